// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// FilterKind describes one kind of [Term], so that a command line can offer
// every kind as a flag without a list of its own.
type FilterKind struct {
	Name  string // of the term and the flag: "from-ip"
	Value string // what it takes, for help: "ADDRESS|PREFIX"
	Help  string // one line
	// Bare is the value of a flag that is written without one; empty: it needs one.
	// A flag that may be bare takes its value behind "=" only.
	Bare string
}

// kind is a filter kind: a condition on one end of a conversation, which has
// from- and to- forms as well, or a condition on the whole record. Its parser
// returns the value in canonical spelling and the condition.
type kind struct {
	name, value, help string
	bare              string
	end               func(string) (string, func(r *Record, source bool) bool, error)
	record            func(string) (string, test, error)
}

// kinds is every kind there is: a new one is a line here.
var kinds = []kind{
	{name: "ip", value: "ADDRESS|PREFIX", help: "address, or a prefix that holds it; also the one that the other end knows, as a Service's", end: parseIPTerm},
	{name: "port", value: "PORT", help: "TCP, UDP or SCTP port; also the one that the other end knows, as a Service's", end: parsePortTerm},
	{name: "protocol", value: "NAME|NUMBER", help: "IP protocol: tcp, udp, icmp, 47 ...", record: parseProtocolTerm},
	{name: "interface", value: "GLOB", help: "device that any hop of the conversation is at", record: parseInterfaceTerm},
	{name: "netns", value: "GLOB", help: "network namespace, path or name, of any hop; self: the agent's own", record: parseNetnsTerm},
	{name: "vlan", value: "ID", help: "VLAN that the conversation is in, the outer one of two", record: parseVLANTerm},
	{name: "tcp-flags", value: "FLAG[,FLAG...]", help: "flags, all of them sent in the conversation: SYN, SYN,ACK, RST ...", end: parseFlagsTerm},
	{name: "retransmits", value: "N", bare: "1", help: "TCP segments sent again: any, or with =N at least N", end: parseRetransmitsTerm},
	{name: "rtt-over", value: "DURATION", help: "mean TCP round trip (the handshake, where none was measured) over 50ms, 1.5s ...", end: parseRTTTerm},
	{name: "failed", value: "CAUSE", bare: anyValue, help: "TCP connections that failed: for any cause, or with =CAUSE one of " + strings.Join(failureNames[1:], ", "), record: parseFailedTerm},
	{name: "dropped", value: "N", bare: "1", help: "packets that the kernel threw away: any, or with =N at least N", record: parseDroppedTerm},
	{name: "drop-reason", value: "GLOB", help: "the kernel's reason for most of the packets thrown away: NETFILTER_DROP, *CSUM* ... in any case", record: parseDropReasonTerm},
	{name: "dns-rcode", value: "NAME|NUMBER", help: "code that a DNS answer had: NXDOMAIN, SERVFAIL, 3 ...", record: parseRcodeTerm},
	{name: "dns-name", value: "GLOB", help: "name among the last that were asked for, such as *.example.com, in any case", record: parseDNSNameTerm},
}

// allKinds is what a filter can be about.
var allKinds = slices.Concat(kinds, entityKinds)

// FilterKinds lists every kind, sided forms included, in the order of help.
func FilterKinds() []FilterKind {
	var all []FilterKind
	for _, k := range allKinds {
		all = append(all, FilterKind{k.name, k.value, k.help, k.bare})
		if k.end != nil {
			all = append(all,
				FilterKind{"from-" + k.name, k.value, "source " + k.help, k.bare},
				FilterKind{"to-" + k.name, k.value, "destination " + k.help, k.bare})
		}
	}
	return all
}

func kindNames() []string {
	var names []string
	for _, k := range FilterKinds() {
		names = append(names, k.Name)
	}
	return names
}

// kindOf is the kind called name and the side it is about: from, to or neither.
func kindOf(name string) (*kind, string) {
	side, base, sided := strings.Cut(name, "-")
	sided = sided && (side == "from" || side == "to")
	for i := range allKinds {
		k := &allKinds[i]
		if k.name == name {
			return k, ""
		}
		if sided && k.end != nil && k.name == base {
			return k, side
		}
	}
	return nil, ""
}

// endpoint is one end of r's conversation.
func (r *Record) endpoint(source bool) netip.AddrPort {
	if source {
		return r.Key.Src
	}
	return r.Key.Dst
}

func parseIPTerm(v string) (string, func(*Record, bool) bool, error) {
	var p netip.Prefix
	a, err := netip.ParseAddr(v)
	if err == nil && a.Zone() == "" {
		p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
	} else if p, err = netip.ParsePrefix(v); err != nil || (p.Addr().Is4In6() && p.Bits() < 96) {
		return "", nil, errors.New("want an address such as 10.0.0.1 or 2001:db8::1, or a prefix such as 10.0.0.0/8")
	} else if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	name := p.String()
	if p.IsSingleIP() {
		name = p.Addr().String()
	}
	return name, func(r *Record, source bool) bool {
		return p.Contains(r.endpoint(source).Addr().Unmap()) || p.Contains(r.known(source).Addr().Unmap())
	}, nil
}

// A port never matches ICMP, whose key has type and code in its place, nor
// fragments whose ports are not known.
func parsePortTerm(v string) (string, func(*Record, bool) bool, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return "", nil, errors.New("want a port number from 0 to 65535")
	}
	return strconv.FormatUint(n, 10), func(r *Record, source bool) bool {
		known := r.known(source)
		return r.Key.ports() && !r.Fragment && (r.endpoint(source).Port() == uint16(n) || known.IsValid() && known.Port() == uint16(n))
	}, nil
}

// ports reports whether k's protocol has ports.
func (k Key) ports() bool {
	return k.Proto == ProtoTCP || k.Proto == ProtoUDP || k.Proto == ProtoSCTP
}

func parseProtocolTerm(v string) (string, test, error) {
	for p := range 256 {
		if name := ProtoName(uint8(p)); strings.EqualFold(v, name) || v == strconv.Itoa(p) {
			return name, func(r *Record) bool { return r.Key.Proto == uint8(p) }, nil
		}
	}
	return "", nil, errors.New("want a protocol name such as tcp, udp, icmp, icmpv6 or sctp, or a number from 0 to 255")
}

// glob checks v as a path.Match pattern.
func glob(v string) error {
	if v == "" {
		return errors.New("want a name or a pattern such as veth*")
	}
	if _, err := path.Match(v, ""); err != nil {
		return fmt.Errorf("want a pattern such as veth* or eth[0-3]: %w", err)
	}
	return nil
}

// matches is path.Match of a pattern that glob has checked.
func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

func parseInterfaceTerm(v string) (string, test, error) {
	return v, func(r *Record) bool {
		for i := range r.Hops {
			if matches(v, r.Hops[i].Hop.Interface) {
				return true
			}
		}
		return false
	}, glob(v)
}

// A namespace matches by its path or by the last element of it, so "blue" is
// enough for /run/netns/blue.
func parseNetnsTerm(v string) (string, test, error) {
	return v, func(r *Record) bool {
		for i := range r.Hops {
			name := r.Hops[i].Hop.Netns
			if name == "" {
				name = "self"
			}
			if matches(v, name) || matches(v, path.Base(name)) {
				return true
			}
		}
		return false
	}, glob(v)
}

func parseVLANTerm(v string) (string, test, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n < 1 || n > 4094 {
		return "", nil, errors.New("want the number of a VLAN from 1 to 4094")
	}
	return strconv.FormatUint(n, 10), func(r *Record) bool { return uint64(r.Scope.VLAN.Outer) == n }, nil
}

var flagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

// FlagNames spells TCP flags from FIN up: "SYN+ACK". Empty: none.
func FlagNames(flags uint8) string { return flagTexts()[flags] }

// flagTexts are the spellings of every set of flags: 12 KiB, made when first needed.
var flagTexts = sync.OnceValue(func() *[256]string {
	all := new([256]string)
	for flags := range all {
		all[flags] = joinFlags(uint8(flags))
	}
	return all
})

func joinFlags(flags uint8) string {
	var s []string
	for i, name := range flagNames {
		if flags&(1<<i) != 0 {
			s = append(s, name)
		}
	}
	return strings.Join(s, "+")
}

// Flags hold when one end has sent every one of them, over the conversation so
// far; not necessarily in one packet.
func parseFlagsTerm(v string) (string, func(*Record, bool) bool, error) {
	var mask uint8
	for _, word := range strings.FieldsFunc(v, func(c rune) bool { return c == '+' || c == ',' || c == '|' }) {
		bit := uint8(0)
		for i, name := range flagNames {
			if strings.EqualFold(strings.TrimSpace(word), name) {
				bit = 1 << i
			}
		}
		if bit == 0 {
			mask = 0
			break
		}
		mask |= bit
	}
	if mask == 0 {
		return "", nil, errors.New("want flags joined by , or +, of " + strings.Join(flagNames[:], ", "))
	}
	return FlagNames(mask), func(r *Record, source bool) bool {
		if source {
			return r.TCPFlags&mask == mask
		}
		return r.ReverseTCPFlags&mask == mask
	}, nil
}
