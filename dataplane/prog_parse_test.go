// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"weft/flows"
)

// Frames are built from these headers.
var (
	ethIPv4 = eth(0x0800)
	ethIPv6 = eth(0x86dd)
	srcV4   = [4]byte{10, 0, 0, 1}
	dstV4   = [4]byte{10, 0, 0, 2}
	srcV6   = netip.MustParseAddr("fd00::1").As16()
	dstV6   = netip.MustParseAddr("fd00::2").As16()
)

func eth(proto uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}, proto)
}

func vlan(id, proto uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id|0xe000), proto)
}

// ip4 is an IPv4 header for a payload of n bytes.
func ip4(proto byte, n int, change ...func([]byte)) []byte {
	h := make([]byte, 20, 60)
	h[0], h[1], h[8], h[9] = 0x45, 0xb8, 63, proto
	copy(h[12:], srcV4[:])
	copy(h[16:], dstV4[:])
	for _, f := range change {
		f(h)
	}
	binary.BigEndian.PutUint16(h[2:], uint16(int(h[0]&15)*4+n))
	return h[:max(20, int(h[0]&15)*4)]
}

func options(words byte) func([]byte) { return func(h []byte) { h[0] = 0x45 + words } }

func fragment(id uint16, offset int, more bool) func([]byte) {
	return func(h []byte) {
		binary.BigEndian.PutUint16(h[4:], id)
		v := uint16(offset / 8)
		if more {
			v |= 0x2000
		}
		binary.BigEndian.PutUint16(h[6:], v)
	}
}

func ip6(next byte, n int) []byte {
	h := make([]byte, 40)
	h[0], h[1], h[6], h[7] = 0x6b, 0x80, next, 61
	binary.BigEndian.PutUint16(h[4:], uint16(n))
	copy(h[8:], srcV6[:])
	copy(h[24:], dstV6[:])
	return h
}

func ext(next byte, units int) []byte {
	h := make([]byte, 8*(units+1))
	h[0], h[1] = next, byte(units)
	return h
}

func frag6(next byte, id uint32, offset int, more bool) []byte {
	h := make([]byte, 8)
	h[0] = next
	v := uint16(offset)
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(h[2:], v)
	binary.BigEndian.PutUint32(h[4:], id)
	return h
}

func tcp(flags byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 443)
	binary.BigEndian.PutUint32(h[4:], 0x11223344)
	binary.BigEndian.PutUint32(h[8:], 0x55667788)
	h[12], h[13] = 0x50, flags
	return h
}

func udp() []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 53)
	binary.BigEndian.PutUint16(h[4:], 8)
	return h
}

func frame(parts ...[]byte) []byte {
	var f []byte
	for _, p := range parts {
		f = append(f, p...)
	}
	return f
}

func key4(proto uint8, sport, dport uint16) flows.Key {
	return flows.Key{Src: netip.AddrPortFrom(netip.AddrFrom4(srcV4), sport), Dst: netip.AddrPortFrom(netip.AddrFrom4(dstV4), dport), Proto: proto}
}

func key6(proto uint8, sport, dport uint16) flows.Key {
	return flows.Key{Src: netip.AddrPortFrom(netip.AddrFrom16(srcV6), sport), Dst: netip.AddrPortFrom(netip.AddrFrom16(dstV6), dport), Proto: proto}
}

// place is where a frame must land: in the flow with that key, or skipped.
type place struct {
	key      flows.Key
	vlan     flows.VLAN
	fragment bool
	skip     flows.SkipReason
	skipped  bool
}

func inFlow(k flows.Key) place { return place{key: k} }

func skip(r flows.SkipReason) place { return place{skip: r, skipped: true} }

var places = []struct {
	name  string
	frame []byte
	l3    bool
	want  place
}{
	{name: "TCP over IPv4", frame: frame(ethIPv4, ip4(6, 20), tcp(2)), want: inFlow(key4(6, 40000, 443))},
	{name: "UDP over IPv6", frame: frame(ethIPv6, ip6(17, 8), udp()), want: inFlow(key6(17, 40000, 53))},
	{name: "TCP over IPv6", frame: frame(ethIPv6, ip6(6, 20), tcp(16)), want: inFlow(key6(6, 40000, 443))},
	{name: "IPv4 with 4 bytes of options", frame: frame(ethIPv4, ip4(6, 20, options(1)), tcp(2)), want: inFlow(key4(6, 40000, 443))},
	{name: "IPv4 with 40 bytes of options", frame: frame(ethIPv4, ip4(17, 8, options(10)), udp()), want: inFlow(key4(17, 40000, 53))},
	{name: "one VLAN tag", frame: frame(eth(0x8100), vlan(100, 0x0800), ip4(6, 20), tcp(2)), want: place{key: key4(6, 40000, 443), vlan: flows.VLAN{Outer: 100}}},
	{name: "QinQ", frame: frame(eth(0x88a8), vlan(200, 0x8100), vlan(100, 0x86dd), ip6(17, 8), udp()), want: place{key: key6(17, 40000, 53), vlan: flows.VLAN{Outer: 200, Inner: 100}}},
	{name: "QinQ of 802.1Q in 802.1Q", frame: frame(eth(0x8100), vlan(4094, 0x8100), vlan(4095, 0x0800), ip4(17, 8), udp()), want: place{key: key4(17, 40000, 53), vlan: flows.VLAN{Outer: 4094, Inner: 4095}}},
	{name: "three tags", frame: frame(eth(0x88a8), vlan(1, 0x8100), vlan(2, 0x8100), vlan(3, 0x0800), ip4(17, 8), udp()), want: skip(flows.SkipVLANDepth)},
	{name: "SCTP", frame: frame(ethIPv4, ip4(132, 12), udp(), make([]byte, 4)), want: inFlow(key4(132, 40000, 53))},
	{name: "UDP-Lite", frame: frame(ethIPv4, ip4(136, 8), udp()), want: inFlow(key4(136, 40000, 53))},
	{name: "ICMP echo", frame: frame(ethIPv4, ip4(1, 8), []byte{8, 0, 0, 0, 0, 1, 0, 1}), want: inFlow(key4(1, 8, 0))},
	{name: "ICMP unreachable", frame: frame(ethIPv4, ip4(1, 8), []byte{3, 13, 0, 0, 0, 0, 0, 0}), want: inFlow(key4(1, 3, 13))},
	{name: "ICMPv6 neighbour solicitation", frame: frame(ethIPv6, ip6(58, 24), []byte{135, 0}, make([]byte, 22)), want: inFlow(key6(58, 135, 0))},
	{name: "GRE", frame: frame(ethIPv4, ip4(47, 8), make([]byte, 8)), want: inFlow(key4(47, 0, 0))},
	{name: "ESP over IPv6", frame: frame(ethIPv6, ip6(50, 8), make([]byte, 8)), want: inFlow(key6(50, 0, 0))},
	{name: "IPv6 with no next header", frame: frame(ethIPv6, ip6(59, 0)), want: inFlow(key6(59, 0, 0))},
	{name: "IPv6 extension headers in a chain", frame: frame(ethIPv6, ip6(0, 52), ext(60, 0), ext(43, 1), ext(51, 0), []byte{6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}[:12], tcp(2)),
		want: skip(flows.SkipTruncated)}, // the header length of the chain contradicts the payload length
	{name: "IPv6 hop-by-hop then TCP", frame: frame(ethIPv6, ip6(0, 28), ext(6, 0), tcp(2)), want: inFlow(key6(6, 40000, 443))},
	{name: "IPv6 routing, destination, then UDP", frame: frame(ethIPv6, ip6(43, 32), ext(60, 1), ext(17, 0), udp()), want: inFlow(key6(17, 40000, 53))},
	{name: "IPv6 authentication header", frame: frame(ethIPv6, ip6(51, 32), []byte{17, 4}, make([]byte, 22), udp()), want: inFlow(key6(17, 40000, 53))},
	{name: "seven extension headers", frame: frame(ethIPv6, ip6(60, 64), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(17, 0), udp()), want: inFlow(key6(17, 40000, 53))},
	{name: "nine extension headers", frame: frame(ethIPv6, ip6(60, 80), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(60, 0), ext(17, 0), udp()), want: skip(flows.SkipIPv6Extensions)},
	{name: "extension header past the end", frame: frame(ethIPv6, ip6(60, 8), ext(17, 5), udp(), make([]byte, 60)), want: skip(flows.SkipTruncated)},
	{name: "ARP", frame: frame(eth(0x0806), make([]byte, 28)), want: skip(flows.SkipARP)},
	{name: "spanning tree", frame: frame(eth(38), make([]byte, 38)), want: skip(flows.SkipLLC)},
	{name: "LLDP", frame: frame(eth(0x88cc), make([]byte, 46)), want: skip(flows.SkipLLDP)},
	{name: "LACP", frame: frame(eth(0x8809), make([]byte, 46)), want: skip(flows.SkipLLDP)},
	{name: "MPLS", frame: frame(eth(0x8847), make([]byte, 46)), want: skip(flows.SkipMPLS)},
	{name: "PPPoE", frame: frame(eth(0x8864), make([]byte, 46)), want: skip(flows.SkipPPPoE)},
	{name: "another ethertype", frame: frame(eth(0x88f7), make([]byte, 46)), want: skip(flows.SkipEthertype)},
	{name: "tagged ARP", frame: frame(eth(0x8100), vlan(5, 0x0806), make([]byte, 28)), want: skip(flows.SkipARP)},
	{name: "tag cut short", frame: frame(eth(0x8100), []byte{0, 1}), want: skip(flows.SkipTruncated)},
	{name: "IPv4 cut short", frame: frame(eth(0x8100), vlan(1, 0x0800), ip4(6, 20)[:19]), want: skip(flows.SkipTruncated)},
	{name: "IPv6 cut short", frame: frame(eth(0x8100), vlan(1, 0x86dd), ip6(6, 20)[:39]), want: skip(flows.SkipTruncated)},
	{name: "TCP cut short", frame: frame(ethIPv4, ip4(6, 20), tcp(2)[:19]), want: skip(flows.SkipTruncated)},
	{name: "UDP cut short", frame: frame(ethIPv4, ip4(17, 8), udp()[:7]), want: skip(flows.SkipTruncated)},
	{name: "TCP beyond the IP length, in the padding", frame: frame(ethIPv4, ip4(6, 4), tcp(2), make([]byte, 20)), want: skip(flows.SkipTruncated)},
	{name: "UDP beyond the IPv6 length", frame: frame(ethIPv6, ip6(17, 4), udp(), make([]byte, 20)), want: skip(flows.SkipTruncated)},
	{name: "IPv4 with version 5", frame: frame(ethIPv4, ip4(6, 20, func(h []byte) { h[0] = 0x55 }), tcp(2)), want: skip(flows.SkipMalformed)},
	{name: "IPv4 with a header of 16 bytes", frame: frame(ethIPv4, ip4(6, 24, func(h []byte) { h[0] = 0x44 }), tcp(2)), want: skip(flows.SkipMalformed)},
	{name: "IPv6 with version 4", frame: frame(ethIPv6, append([]byte{0x4b}, ip6(6, 20)[1:]...), tcp(2)), want: skip(flows.SkipMalformed)},
	{name: "TCP with a header of 16 bytes", frame: frame(ethIPv4, ip4(6, 20), append(append(tcp(2)[:12:12], 0x40), tcp(2)[13:]...)), want: skip(flows.SkipMalformed)},
	{name: "later fragment of an unknown datagram", frame: frame(ethIPv4, ip4(17, 40, fragment(99, 1480, false)), make([]byte, 40)), want: place{key: key4(17, 0, 0), fragment: true}},
	{name: "later IPv6 fragment of an unknown datagram", frame: frame(ethIPv6, ip6(44, 48), frag6(17, 99, 1448, false), make([]byte, 40)), want: place{key: key6(17, 0, 0), fragment: true}},
	{name: "IPv4 without a link header", l3: true, frame: frame(ethIPv4, ip4(6, 20), tcp(2)), want: inFlow(key4(6, 40000, 443))},
}

func TestEveryFrameLandsWhereItMust(t *testing.T) {
	for _, b := range backends {
		h := newHarness(t, Options{Backend: b, Slots: 1024}, 14)
		for _, c := range places {
			if c.l3 {
				continue // a test run always has a link header; netns tests use a tun device
			}
			t.Run(string(b)+"/"+c.name, func(t *testing.T) {
				h.t = t
				before := h.account(h.drain(), flows.HookIngress)
				h.run(flows.HookIngress, c.frame, 3, nil)
				checkPlace(t, h, before, h.account(h.drain(), flows.HookIngress), c.want, len(c.frame))
			})
		}
	}
}

func checkPlace(t *testing.T, h *harness, before, after flows.PointAccount, want place, size int) {
	t.Helper()
	n := flows.Count{Packets: 3, Bytes: uint64(3 * size)}
	if got := minus(after.After, before.After); got != n {
		t.Errorf("seen: got %+v, want %+v", got, n)
	}
	for r := range after.Skipped {
		w := flows.Count{}
		if want.skipped && flows.SkipReason(r) == want.skip {
			w = n
		}
		if got := minus(after.Skipped[r], before.Skipped[r]); got != w {
			t.Errorf("skipped[%s]: got %+v, want %+v", flows.SkipReason(r), got, w)
		}
	}
	if want.skipped {
		if len(h.last) != 0 {
			t.Errorf("flows: got %+v, want none", h.last)
		}
		return
	}
	if len(h.last) != 1 {
		t.Fatalf("flows: got %+v, want one", h.last)
	}
	s := h.last[0]
	if s.Key != want.key || s.VLAN != want.vlan || s.Fragment != want.fragment {
		t.Errorf("flow: got %v %+v fragment=%v, want %v %+v fragment=%v", s.Key, s.VLAN, s.Fragment, want.key, want.vlan, want.fragment)
	}
	if got := (flows.Count{Packets: s.Packets, Bytes: s.Bytes}); got != n {
		t.Errorf("flow counts: got %+v, want %+v", got, n)
	}
	if s.At != h.points[flows.HookIngress].at {
		t.Errorf("point: got %+v, want %+v", s.At, h.points[flows.HookIngress].at)
	}
}

func TestFirstPacketIsDescribed(t *testing.T) {
	for _, b := range backends {
		h := newHarness(t, Options{Backend: b, Slots: 1024}, 14)
		h.run(flows.HookIngress, frame(ethIPv4, ip4(6, 20), tcp(2|16)), 1, nil)
		h.run(flows.HookIngress, frame(ethIPv4, ip4(6, 20), tcp(16|1)), 1, nil)
		h.drain()
		if len(h.last) != 1 {
			t.Fatalf("%s: flows: got %+v, want one", b, h.last)
		}
		s := h.last[0]
		if s.FirstFlags != 2|16 || s.TCPFlags != 1|2|16 || s.SeqNumber != 0x11223344 || s.AckNumber != 0x55667788 || s.TTL != 63 || s.DSCP != 46 || !s.New {
			t.Errorf("%s: got %+v", b, s)
		}
		if s.SrcMAC != [6]byte{2, 0, 0, 0, 0, 1} || s.DstMAC != [6]byte{2, 0, 0, 0, 0, 2} {
			t.Errorf("%s: MACs: got %x %x", b, s.SrcMAC, s.DstMAC)
		}
	}
}

func TestLaterFragmentsJoinTheirDatagram(t *testing.T) {
	for _, b := range backends {
		h := newHarness(t, Options{Backend: b, Slots: 1024}, 14)
		for _, f := range [][]byte{
			frame(ethIPv4, ip4(17, 16, fragment(7, 0, true)), udp(), make([]byte, 8)),
			frame(ethIPv4, ip4(17, 16, fragment(7, 16, true)), []byte{0xde, 0xad, 0xbe, 0xef}, make([]byte, 12)),
			frame(ethIPv4, ip4(17, 4, fragment(7, 32, false)), []byte{0xde, 0xad, 0xbe, 0xef}),
			frame(ethIPv6, ip6(60, 32), ext(44, 0), frag6(60, 9, 0, true), ext(17, 0), udp()),
			frame(ethIPv6, ip6(44, 16), frag6(60, 9, 16, false), []byte{0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0}),
		} {
			h.run(flows.HookIngress, f, 1, nil)
		}
		// the same id at another point is another datagram
		h.run(flows.HookEgress, frame(ethIPv4, ip4(17, 4, fragment(7, 32, false)), []byte{1, 2, 3, 4}), 1, nil)
		h.drain()
		want := map[flows.Key]uint64{key4(17, 40000, 53): 3, key6(17, 40000, 53): 2, key4(17, 0, 0): 1}
		for k, n := range want {
			if got := h.sum[k].Packets; got != n {
				t.Errorf("%s: %v: got %d packets, want %d", b, k, got, n)
			}
		}
		if len(h.sum) != len(want) {
			t.Errorf("%s: flows: got %v, want %d", b, h.sum, len(want))
		}
	}
}

func TestGSOFrameCountsItsSegmentsAndTheirHeaders(t *testing.T) {
	h := newHarness(t, Options{Slots: 1024}, 14)
	payload := make([]byte, 3000)
	vxlan := frame(udp(), []byte{8, 0, 0, 0, 0, 0, 1, 0}, ethIPv4, ip4(6, 3020), tcp(16), payload)
	binary.BigEndian.PutUint16(vxlan[2:], 4789)
	for _, c := range []struct {
		name  string
		frame []byte
		wire  wireContext
		want  flows.Count
	}{
		{"TCP", frame(ethIPv4, ip4(6, 3020), tcp(16), payload), wireContext{3, 1448}, flows.Count{Packets: 3, Bytes: 3000 + 3*54}},
		{"TCP that comes without a segment count", frame(ethIPv4, ip4(6, 3020), tcp(16), payload), wireContext{0, 1448}, flows.Count{Packets: 3, Bytes: 3000 + 3*54}},
		{"TCP over IPv6", frame(ethIPv6, ip6(6, 3020), tcp(16), payload), wireContext{3, 1428}, flows.Count{Packets: 3, Bytes: 3000 + 3*74}},
		{"UDP", frame(ethIPv4, ip4(17, 3008), udp(), payload), wireContext{6, 500}, flows.Count{Packets: 6, Bytes: 3000 + 6*42}},
		{"TCP in VXLAN", frame(ethIPv4, ip4(17, len(vxlan)), vxlan), wireContext{3, 1398}, flows.Count{Packets: 3, Bytes: 3000 + 3*(42+8+54)}},
	} {
		before := h.account(h.drain(), flows.HookEgress)
		h.run(flows.HookEgress, c.frame, 1, &c.wire)
		after := h.account(h.drain(), flows.HookEgress)
		if got := minus(after.After, before.After); got != c.want {
			t.Errorf("%s: seen: got %+v, want %+v", c.name, got, c.want)
		}
		extra := flows.Count{Packets: c.want.Packets - 1, Bytes: c.want.Bytes - uint64(len(c.frame))}
		if got := minus(after.GSO, before.GSO); got != extra {
			t.Errorf("%s: GSO: got %+v, want %+v", c.name, got, extra)
		}
		if len(h.last) != 1 || h.last[0].Packets != c.want.Packets || h.last[0].Bytes != c.want.Bytes {
			t.Errorf("%s: flow: got %+v, want %+v", c.name, h.last, c.want)
		}
	}
}

func TestXDPParsesAsTCDoes(t *testing.T) {
	h := newHarness(t, Options{Slots: 1024, XDP: XDPNative}, 14)
	if h.progs.xdp == nil {
		t.Fatalf("no XDP program: %+v", h.d.off)
	}
	for _, c := range places {
		if c.l3 {
			continue
		}
		before := h.account(h.drain(), flows.HookXDP)
		h.run(flows.HookXDP, c.frame, 1, nil)
		after := h.account(h.drain(), flows.HookXDP)
		if c.want.skipped {
			if got := minus(after.Skipped[c.want.skip], before.Skipped[c.want.skip]).Packets; got != 1 {
				t.Errorf("%s: skipped[%s]: got %d, want 1", c.name, c.want.skip, got)
			}
			continue
		}
		if len(h.last) != 1 || h.last[0].Key != c.want.key || h.last[0].VLAN != c.want.vlan {
			t.Errorf("%s: got %+v, want %v", c.name, h.last, c.want.key)
		}
	}
}

// TestHostileFramesAreAccounted mutates good frames at random: whatever comes out,
// each is in one flow or one reason, and the kernel agrees with the reference
// parser of prog_reference_test.go on which.
func TestHostileFramesAreAccounted(t *testing.T) {
	h := newHarness(t, Options{Slots: 65536}, 14)
	r := rand.New(rand.NewPCG(1, 2))
	const rounds = 60000
	ref := newReference()
	want := map[place]uint64{}
	for range rounds {
		f := mutate(r, places[r.IntN(len(places))].frame)
		for tooShort(f) {
			f = mutate(r, places[r.IntN(len(places))].frame)
		}
		h.run(flows.HookIngress, f, 1, nil)
		want[ref.parse(f)]++
	}
	acct := h.account(h.drain(), flows.HookIngress)
	got := map[place]uint64{}
	for _, s := range h.last {
		got[place{key: s.Key, vlan: s.VLAN, fragment: s.Fragment}] += s.Packets
	}
	for reason, c := range acct.Skipped {
		if c.Packets > 0 {
			got[skip(flows.SkipReason(reason))] = c.Packets
		}
	}
	for p, n := range want {
		if got[p] != n {
			t.Errorf("%+v: got %d, want %d", p, got[p], n)
		}
	}
	for p, n := range got {
		if want[p] == 0 {
			t.Errorf("%+v: got %d, want none", p, n)
		}
	}
	if sum := h.totalFlows().Plus(totalSkipped(acct)); sum != acct.After || sum.Packets != rounds {
		t.Errorf("flows + skipped = %+v, seen %+v, sent %d", sum, acct.After, rounds)
	}
}

// mutate flips, cuts and extends, mostly in the headers.
func mutate(r *rand.Rand, f []byte) []byte {
	f = append([]byte(nil), f...)
	for range r.IntN(4) {
		f[12+r.IntN(min(len(f)-12, 60))] = byte(r.Uint32())
	}
	switch r.IntN(6) {
	case 0:
		f = f[:14+r.IntN(len(f)-13)]
	case 1:
		f = append(f, make([]byte, r.IntN(200))...)
	}
	return f
}

// tooShort frames are refused by the kernel's test run itself.
func tooShort(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		return len(f) < 34
	case 0x86dd:
		return len(f) < 54
	}
	return false
}
