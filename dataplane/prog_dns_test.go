// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"weft/flows"
)

// udpTo53 and tcpTo53 are transport headers before a payload.
func udpTo53(payload []byte) []byte {
	h := udp()
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	return append(h, payload...)
}

func tcpTo53(words byte, payload []byte) []byte {
	h := tcp(24)
	binary.BigEndian.PutUint16(h[2:], 53)
	h[12] = (5 + words) << 4
	return append(append(h, make([]byte, 4*int(words))...), payload...)
}

// TestPort53PayloadIsCopiedFromWhereItIs: behind tags, options and extension headers,
// never padding, never a later fragment, never another port's.
func TestPort53PayloadIsCopiedFromWhereItIs(t *testing.T) {
	q := nsQuestion(t, 7, "name.test", dnsmessage.TypeA)
	long := append(slices.Clone(q), make([]byte, 1200)...)
	label := "\x3f" + strings.Repeat("x", 63)
	longest := rawName(label + label + label + "\x3d" + label[1:62] + "\x00")
	dgram, segment := udpTo53(q), tcpTo53(3, nsPrefixed(q))
	other := func(h []byte) []byte { h = slices.Clone(h); h[3] = 54; return h }
	v4 := func(proto byte, h []byte, change ...func([]byte)) []byte {
		return append(ip4(proto, len(h), change...), h...)
	}
	v6 := func(proto byte, h []byte) []byte { return append(ip6(proto, len(h)), h...) }
	cases := map[string]struct {
		frame []byte
		seen  uint64
		name  string
	}{
		"UDP, IPv4":                 {frame(ethIPv4, v4(17, dgram)), 1, "name.test"},
		"UDP, IPv4 with options":    {frame(ethIPv4, v4(17, dgram, options(4))), 1, "name.test"},
		"UDP, IPv6":                 {frame(ethIPv6, v6(17, dgram)), 1, "name.test"},
		"UDP, IPv6 with extensions": {frame(ethIPv6, ip6(0, 16+len(dgram)), ext(17, 1), dgram), 1, "name.test"},
		"UDP, padded":               {frame(ethIPv4, v4(17, dgram), make([]byte, 30)), 1, "name.test"},
		"UDP, over 1 KiB":           {frame(ethIPv4, v4(17, udpTo53(long))), 1, "name.test"},
		"UDP, longest name":         {frame(ethIPv4, v4(17, udpTo53(longest))), 1, strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("x", 61)},
		"UDP, no payload":           {frame(ethIPv4, v4(17, udpTo53(nil))), 1, ""},
		"UDP, two tags":             {frame(eth(0x88a8), vlan(5, 0x8100), vlan(6, 0x0800), v4(17, dgram)), 1, "name.test"},
		"TCP, IPv4":                 {frame(ethIPv4, v4(6, segment)), 1, "name.test"},
		"TCP, IPv4, one tag":        {frame(eth(0x8100), vlan(5, 0x0800), v4(6, segment), make([]byte, 9)), 1, "name.test"},
		"TCP, IPv6, padded":         {frame(ethIPv6, v6(6, segment), make([]byte, 9)), 1, "name.test"},
		"TCP, padding alone":        {frame(ethIPv4, v4(6, tcpTo53(0, nil)), make([]byte, 6)), 0, ""},
		"TCP, nothing":              {frame(ethIPv6, v6(6, tcpTo53(8, nil))), 0, ""},
		"UDP, other port":           {frame(ethIPv4, v4(17, other(dgram))), 0, ""},
		"TCP, other port":           {frame(ethIPv4, v4(6, other(segment))), 0, ""},
		"SCTP":                      {frame(ethIPv4, v4(132, dgram)), 0, ""},
		"UDP, first fragment":       {frame(ethIPv4, v4(17, dgram, fragment(9, 0, true))), 1, "name.test"},
	}
	for _, backend := range backends {
		h := newHarness(t, Options{DNS: true, Backend: backend, Slots: 4096}, 14)
		var err error
		if h.d.dns, err = openDNS(h.d.objs, &h.d.points); err != nil {
			t.Fatal(err)
		}
		var before flows.DNSAccount
		for name, x := range cases {
			t.Run(string(backend)+", "+name, func(t *testing.T) {
				h.run(flows.HookIngress, x.frame, 1, nil)
				if strings.Contains(name, "fragment") {
					h.run(flows.HookIngress, frame(ethIPv4, v4(17, dgram, fragment(9, 1480, false))), 1, nil)
				}
				got, acct, err := h.d.dns.drain(math.MaxInt64, true)
				seen, drained := acct.Seen-before.Seen, acct.Drained-before.Drained
				before = acct
				if err != nil || seen != x.seen || drained != x.seen {
					t.Fatalf("got %d seen and %d read (%v), want %d", seen, drained, err, x.seen)
				}
				names := ""
				for _, m := range got {
					names += m.Name
				}
				if names != x.name {
					t.Errorf("got %q of %+v, want %q", names, acct, x.name)
				}
			})
		}
	}
}

// TestFullDNSRingCountsWhatItLost fills the ring while nobody reads.
func TestFullDNSRingCountsWhatItLost(t *testing.T) {
	h := newHarness(t, Options{DNS: true, Slots: 4096}, 14)
	q := udpTo53(nsQuestion(t, 7, "name.test", dnsmessage.TypeA))
	const count = 20_000
	h.run(flows.HookIngress, frame(ethIPv4, ip4(17, len(q)), q), count, nil)
	var err error
	if h.d.dns, err = openDNS(h.d.objs, &h.d.points); err != nil {
		t.Fatal(err)
	}
	got, acct, err := h.d.dns.drain(math.MaxInt64, true)
	const fits = dnsRingBytes / (64 + 96 + ringHead)
	if err != nil || acct.Seen != count || acct.Drained+acct.Lost != count || uint64(len(got)) != acct.Drained || acct.Drained < fits-2 || acct.Drained > fits {
		t.Errorf("got %d messages, %+v (%v), want %d seen and %d read", len(got), acct, err, count, fits)
	}
}
