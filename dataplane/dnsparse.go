// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/dns/dnsmessage"

	"weft/bpf"
	"weft/flows"
)

const (
	dnsPort   = 53
	dnsHeader = 12
	dnsPrefix = 2   // before each message over TCP: its length
	maxName   = 255 // bytes of a name as it is told
)

// parse reads the messages in a packet's payload, which may have been copied in part.
func (d *dns) parse(p *bpf.FlowDnsPacket, payload []byte) {
	if p.Key.Proto == flows.ProtoTCP {
		d.segment(p, payload)
		return
	}
	if m, fault := parseDNS(payload, int(p.Len), p); fault != flows.DNSSound {
		d.acct.Faults[fault]++
	} else {
		d.tell(p, m)
	}
}

// tell hands m on with where and when it was seen.
func (d *dns) tell(p *bpf.FlowDnsPacket, m flows.DNSMessage) {
	if len(d.messages[d.turn]) == maxDNSMessages {
		d.acct.Faults[flows.DNSUnread]++
		return
	}
	var s flows.Sample
	d.points.place(&s, p.Key.Point)
	m.Key, m.At, m.Domain, m.Class, m.When = keyOf(&p.Key), s.At, s.Domain, s.Class, int64(p.KtimeNs)
	m.VLAN = flows.VLAN{Outer: uint16(p.Vlan & 0xfff), Inner: uint16(p.Vlan >> 12 & 0xfff)}
	d.messages[d.turn] = append(d.messages[d.turn], m)
	d.acct.Messages++
}

// parseDNS reads the header and the question of a message of n bytes of which msg is
// what there is. Nothing behind the question is looked at.
func parseDNS(msg []byte, n int, p *bpf.FlowDnsPacket) (m flows.DNSMessage, fault flows.DNSFault) {
	if n < dnsHeader {
		return m, flows.DNSShort
	}
	if len(msg) < dnsHeader {
		return m, flows.DNSCut
	}
	var parser dnsmessage.Parser
	h, err := parser.Start(msg)
	if err != nil || h.OpCode != 0 {
		return m, flows.DNSOpcode
	}
	server := swap16(p.Key.Dport)
	if h.Response {
		server = swap16(p.Key.Sport)
	}
	if server != dnsPort {
		return m, flows.DNSDirection
	}
	m.ID, m.Response, m.Rcode = h.ID, h.Response, uint16(h.RCode)
	m.Records = binary.BigEndian.Uint16(msg[6:])
	switch questions := binary.BigEndian.Uint16(msg[4:]); {
	case questions == 0 && h.Response && h.RCode != dnsmessage.RCodeSuccess:
		return m, flows.DNSSound // a server that did not understand may leave it out
	case questions != 1:
		return m, flows.DNSQuestions
	}
	q, err := parser.Question()
	switch {
	case err != nil && len(msg) < n:
		return m, flows.DNSCut
	case err != nil:
		return m, flows.DNSName
	}
	m.Name, m.Type = printable(q.Name.Data[:q.Name.Length]), uint16(q.Type)
	return m, flows.DNSSound
}

// printable is a name in lower case, without the last dot, with \DDD for what does not
// print and at most maxName bytes. The root is a dot.
func printable(name []byte) string {
	if len(name) > 1 {
		name = name[:len(name)-1]
	}
	b := make([]byte, 0, len(name))
	for _, c := range name {
		switch {
		case 'A' <= c && c <= 'Z':
			b = append(b, c+'a'-'A')
		case c <= ' ' || c >= 0x7f || c == '\\':
			b = fmt.Appendf(b, `\%03d`, c)
		default:
			b = append(b, c)
		}
	}
	const more = "..."
	if len(b) > maxName {
		b = append(b[:maxName-len(more)], more...)
	}
	return string(b)
}
