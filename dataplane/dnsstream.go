// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"

	"weft/bpf"
	"weft/flows"
)

const (
	// maxDNSStreams bounds the directions of TCP connections of which is known where
	// the next message begins; beyond it any one is forgotten, and its next segment
	// is taken to begin with a message.
	maxDNSStreams = 4096
	dnsStreamLife = 60e9 // ns: a connection that is silent for longer is another
	// A segment that is further back than a message and a window is of another
	// connection with the same ports.
	maxDNSBack = 1 << 17
)

// dnsStreams is where the next message begins in each direction, at each point.
type dnsStreams map[dnsStreamKey]dnsStream

type dnsStreamKey struct {
	key  bpf.FlowFlowKey
	vlan uint32
}

type dnsStream struct {
	next uint32 // sequence number
	body int    // the length, when its prefix came alone: next is behind it. 0: it did not
	last uint64 // CLOCK_MONOTONIC, ns
}

// segment reads the messages that begin in a TCP segment. The rest of a message that
// began in an earlier one is Continued, and so is what was sent again.
func (d *dns) segment(p *bpf.FlowDnsPacket, rest []byte) {
	at := dnsStreamKey{p.Key, p.Vlan}
	s, known := d.streams[at]
	start, length := p.Seq, int(p.Len)
	if p.Flags&flows.FlagSYN != 0 {
		start++
	}
	if ahead := int32(start - s.next); known && (p.KtimeNs-s.last > dnsStreamLife || ahead > 0 || ahead < -maxDNSBack) {
		known = false
	} else if known && ahead < 0 {
		skip := int(-ahead)
		if skip >= length {
			d.acct.Continued++
			return
		}
		rest, length = rest[min(skip, len(rest)):], length-skip
	}
	if !known {
		s = dnsStream{next: start}
	}
	if !d.messagesIn(p, rest, length, &s, known) || p.Flags&(flows.FlagFIN|flows.FlagRST) != 0 {
		delete(d.streams, at)
		return
	}
	s.last = p.KtimeNs
	d.remember(at, s)
}

// messagesIn reads what begins at s.next and moves s behind it; false when it is not
// known any more where messages begin. Length is what there was, rest is what was copied.
func (d *dns) messagesIn(p *bpf.FlowDnsPacket, rest []byte, length int, s *dnsStream, known bool) bool {
	for length > 0 {
		head, n := 0, s.body
		if n == 0 {
			if len(rest) < dnsPrefix {
				d.acct.Faults[cutOrSplit(length < dnsPrefix)]++
				return false
			}
			head, n = dnsPrefix, int(binary.BigEndian.Uint16(rest))
			if length == dnsPrefix && n > 0 {
				s.next, s.body = s.next+dnsPrefix, n
				return true
			}
		}
		m, fault := parseDNS(rest[head:min(head+n, len(rest))], n, p)
		switch {
		case fault == flows.DNSSound:
			d.tell(p, m)
		case fault == flows.DNSCut:
			d.acct.Faults[cutOrSplit(len(rest) == length)]++
		case !known:
			d.acct.Faults[flows.DNSSplit]++ // it began in the middle, as far as anyone can tell
			return false
		default:
			d.acct.Faults[fault]++
		}
		known = known || fault == flows.DNSSound
		s.next, s.body = s.next+uint32(head+n), 0
		rest, length = rest[min(head+n, len(rest)):], length-min(head+n, length)
	}
	return true
}

// cutOrSplit: the segment ended before the question did, or only its copy.
func cutOrSplit(segmentEnded bool) flows.DNSFault {
	if segmentEnded {
		return flows.DNSSplit
	}
	return flows.DNSCut
}

func (d *dns) remember(at dnsStreamKey, s dnsStream) {
	if d.streams == nil {
		d.streams = dnsStreams{}
	}
	if _, ok := d.streams[at]; !ok && len(d.streams) >= maxDNSStreams {
		for old := range d.streams {
			delete(d.streams, old)
			break
		}
	}
	d.streams[at] = s
}
