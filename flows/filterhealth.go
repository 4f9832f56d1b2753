// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// anyValue is the value of a term that any value fulfils.
const anyValue = "any"

// side is what one end of a TCP conversation is known to have done; nil: nothing
// was measured.
func (r *Record) side(source bool) *TCPHealth {
	switch {
	case r.TCP == nil:
		return nil
	case source:
		return &r.TCP.Source
	}
	return &r.TCP.Destination
}

// atLeast reads a count from 1.
func atLeast(v string) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n == 0 {
		return 0, errors.New("want a number from 1, at least how many")
	}
	return n, nil
}

// Without from- or to-, one of the ends must have sent that many again by itself.
func parseRetransmitsTerm(v string) (string, func(*Record, bool) bool, error) {
	n, err := atLeast(v)
	return strconv.FormatUint(n, 10), func(r *Record, source bool) bool {
		h := r.side(source)
		return h != nil && h.Retransmits >= n
	}, err
}

// The mean and not the longest round trip, since one delayed acknowledgement is
// 40 ms on a path of any length.
func parseRTTTerm(v string) (string, func(*Record, bool) bool, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return "", nil, errors.New("want a time such as 50ms, 1.5s or 200us")
	}
	return d.String(), func(r *Record, source bool) bool {
		h := r.side(source)
		switch {
		case h == nil:
			return false
		case h.RTT.Count > 0:
			return h.RTT.Mean() > d
		}
		return h.Handshake > d
	}, nil
}

func parseFailedTerm(v string) (string, test, error) {
	v = strings.ToLower(v)
	if v == anyValue {
		return v, func(r *Record) bool { return r.TCP != nil && r.TCP.Failure != FailNone }, nil
	}
	cause := Failure(max(slices.Index(failureNames[:], v), 0))
	if cause == FailNone {
		return "", nil, errors.New("want no value, " + anyValue + ", or one of " + strings.Join(failureNames[1:], ", "))
	}
	return v, func(r *Record) bool { return r.TCP != nil && r.TCP.Failure == cause }, nil
}

func parseDroppedTerm(v string) (string, test, error) {
	n, err := atLeast(v)
	return strconv.FormatUint(n, 10), func(r *Record) bool { return r.Dropped >= n }, err
}

// The kernel's reasons are all upper case. Which there are is the running
// kernel's affair, so none is refused.
func parseDropReasonTerm(v string) (string, test, error) {
	v = strings.ToUpper(v)
	if glob(v) != nil {
		return "", nil, errors.New("want a reason of the kernel such as NETFILTER_DROP, or a pattern such as *CSUM*")
	}
	return v, func(r *Record) bool { return r.Dropped > 0 && matches(v, r.DropReason) }, nil
}

func parseRcodeTerm(v string) (string, test, error) {
	code, ok := parseRcode(v)
	if !ok {
		return "", nil, errors.New("want an answer code such as NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP or REFUSED, or its number")
	}
	return DNSRcodeName(code), func(r *Record) bool {
		return r.DNS != nil && slices.ContainsFunc(r.DNS.Rcodes, func(c DNSRcode) bool { return c.Rcode == code && c.Count > 0 })
	}, nil
}

// Names are lower case and without the last dot, as [DNSQuestion] has them. In
// them "/" is a letter like any other.
func parseDNSNameTerm(v string) (string, test, error) {
	v = strings.ToLower(v)
	if len(v) > 1 {
		v = strings.TrimSuffix(v, ".")
	}
	if glob(v) != nil {
		return "", nil, errors.New("want a name such as example.com, or a pattern such as *.example.com")
	}
	pattern := letterSlash(v)
	return v, func(r *Record) bool {
		return r.DNS != nil && slices.ContainsFunc(r.DNS.Questions, func(q DNSQuestion) bool { return matches(pattern, letterSlash(q.Name)) })
	}, nil
}

// letterSlash is s with what path.Match takes for a separator as a byte that is
// in no name.
func letterSlash(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
