// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"

	"weft/bpf"
	"weft/flows"
)

// gopacketPlace is where a frame belongs as gopacket decodes it; not known when
// gopacket cannot decode all of it, or has no memory for what it is: a later fragment.
// It has no bounds for tags and extensions, and takes any version for that of the
// Ethernet type: what ours refuses there.
func gopacketPlace(f []byte) (p place, known bool) {
	packet := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	if packet.ErrorLayer() != nil || packet.Metadata().Truncated {
		return p, false
	}
	var src, dst netip.Addr
	tags, ports, proto, extensions := []uint16(nil), [2]uint16{}, layers.IPProtocol(0), 0
	for _, l := range packet.Layers() {
		switch l := l.(type) {
		case *layers.Dot1Q:
			if tags = append(tags, l.VLANIdentifier); len(tags) > 2 {
				return skip(flows.SkipVLANDepth), true
			}
		case *layers.IPv4:
			src, dst, proto = unmapped(l.SrcIP), unmapped(l.DstIP), l.Protocol
			if l.Version != 4 {
				return skip(flows.SkipMalformed), true
			}
			if l.FragOffset != 0 {
				return p, false
			}
		case *layers.IPv6:
			src, dst, proto = unmapped(l.SrcIP), unmapped(l.DstIP), l.NextHeader
			if l.Version != 6 {
				return skip(flows.SkipMalformed), true
			}
		case *layers.IPv6HopByHop:
			proto, extensions = l.NextHeader, extensions+1
		case *layers.IPv6Routing:
			proto, extensions = l.NextHeader, extensions+1
		case *layers.IPv6Destination:
			proto, extensions = l.NextHeader, extensions+1
		case *layers.IPv6Fragment:
			if proto, extensions = l.NextHeader, extensions+1; l.FragmentOffset != 0 {
				return p, false
			}
		case *layers.TCP:
			ports = [2]uint16{uint16(l.SrcPort), uint16(l.DstPort)}
		case *layers.UDP:
			ports = [2]uint16{uint16(l.SrcPort), uint16(l.DstPort)}
		case *layers.SCTP:
			ports = [2]uint16{uint16(l.SrcPort), uint16(l.DstPort)}
		case *layers.ICMPv4:
			ports = [2]uint16{uint16(l.TypeCode.Type()), uint16(l.TypeCode.Code())}
		case *layers.ICMPv6:
			ports = [2]uint16{uint16(l.TypeCode.Type()), uint16(l.TypeCode.Code())}
		}
		if extensions > 8 {
			return skip(flows.SkipIPv6Extensions), true
		}
		if l.LayerType() != transports[proto] || proto == 0 {
			continue
		}
		p = inFlow(flows.Key{Src: netip.AddrPortFrom(src, ports[0]), Dst: netip.AddrPortFrom(dst, ports[1]), Proto: uint8(proto)})
		tags = append(tags, 0, 0)
		p.vlan = flows.VLAN{Outer: tags[0], Inner: tags[1]}
		return p, true
	}
	return p, false
}

var transports = map[layers.IPProtocol]gopacket.LayerType{
	layers.IPProtocolTCP: layers.LayerTypeTCP, layers.IPProtocolUDP: layers.LayerTypeUDP, layers.IPProtocolSCTP: layers.LayerTypeSCTP,
	layers.IPProtocolICMPv4: layers.LayerTypeICMPv4, layers.IPProtocolICMPv6: layers.LayerTypeICMPv6,
}

func unmapped(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// TestReferenceParserAgreesWithGopacket: on what gopacket decodes the parser that the
// kernel's is compared with finds the same flow.
func TestReferenceParserAgreesWithGopacket(t *testing.T) {
	r, ref := rand.New(rand.NewPCG(3, 4)), newReference()
	const rounds = 60_000
	compared, differ := 0, 0
	for range rounds {
		f := mutate(r, places[r.IntN(len(places))].frame)
		if tooShort(f) {
			continue
		}
		got := ref.parse(f)
		want, known := gopacketPlace(f)
		if !known {
			continue
		}
		compared++
		if got != want && differ < 20 {
			differ++
			t.Errorf("%x: got %+v, gopacket has %+v", f[:min(len(f), 120)], got, want)
		}
	}
	if t.Logf("%d of %d compared", compared, rounds); compared < rounds/5 {
		t.Errorf("gopacket decoded %d of %d frames, want a fifth at least", compared, rounds)
	}
}

// TestDNSMessagesAreReadAsGopacketReadsThem: of mutated questions and answers.
func TestDNSMessagesAreReadAsGopacketReadsThem(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	messages := [][]byte{
		nsQuestion(t, 7, "name.test", dnsmessage.TypeA), nsQuestion(t, 9, "a.Longer.name-of.example.org", dnsmessage.TypeAAAA),
	}
	for _, q := range slices.Clone(messages) {
		answer := slices.Clone(q)
		answer[2], answer[3] = answer[2]|0x80, 3
		messages = append(messages, answer)
	}
	const rounds = 60_000
	compared, sound := 0, 0
	for range rounds {
		msg := slices.Clone(messages[r.IntN(len(messages))])
		for range r.IntN(4) {
			msg[r.IntN(len(msg))] = byte(r.Uint32())
		}
		if r.IntN(8) == 0 {
			msg = msg[:r.IntN(len(msg))]
		}
		var theirs layers.DNS
		if theirs.DecodeFromBytes(msg, gopacket.NilDecodeFeedback) != nil || theirs.QDCount != 1 || theirs.OpCode != layers.DNSOpCodeQuery {
			continue
		}
		compared++
		var p bpf.FlowDnsPacket
		if p.Key.Dport = swap16(dnsPort); theirs.QR {
			p.Key.Sport, p.Key.Dport = swap16(dnsPort), 0
		}
		want := flows.DNSMessage{
			ID: theirs.ID, Response: theirs.QR, Rcode: uint16(theirs.ResponseCode), Records: theirs.ANCount,
			Name: printable(append(slices.Clone(theirs.Questions[0].Name), '.')), Type: uint16(theirs.Questions[0].Type),
		}
		got, fault := parseDNS(msg, len(msg), &p)
		if fault == flows.DNSName && labelsWithDots(msg[dnsHeader:]) {
			continue // gopacket takes a dot inside a label for one between two
		}
		sound++
		if fault != flows.DNSSound || got != want {
			t.Fatalf("%x: got %+v (%v), gopacket has %+v", msg, got, fault, want)
		}
	}
	if t.Logf("%d of %d compared, %d sound", compared, rounds, sound); sound < rounds/4 {
		t.Errorf("gopacket decoded %d of %d messages, want a quarter at least", sound, rounds)
	}
}

// labelsWithDots reports whether a label of the name has a dot of its own.
func labelsWithDots(name []byte) bool {
	for len(name) > 0 && name[0] > 0 && int(name[0]) < len(name) && name[0] < 64 {
		if strings.Contains(string(name[1:1+name[0]]), ".") {
			return true
		}
		name = name[1+name[0]:]
	}
	return false
}
