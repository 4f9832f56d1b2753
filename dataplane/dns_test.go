// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/net/dns/dnsmessage"

	"weft/bpf"
	"weft/flows"
)

// dnsRecord is what the programs would copy of a packet to port 53, or from it.
func dnsRecord(proto uint8, response bool, seq uint32, payload []byte) *bpf.FlowDnsPacket {
	p := &bpf.FlowDnsPacket{Seq: seq, Len: uint32(len(payload)), Copied: uint16(min(len(payload), 512))}
	p.Key.Proto, p.Key.Sport, p.Key.Dport = proto, swap16(40000), swap16(dnsPort)
	if response {
		p.Key.Sport, p.Key.Dport = p.Key.Dport, p.Key.Sport
	}
	copy(p.Payload[:], payload)
	return p
}

// read hands records to a reader without a ring.
func readDNS(records ...*bpf.FlowDnsPacket) *dns {
	d := &dns{points: &pointTable{}}
	for _, p := range records {
		raw := unsafe.Slice((*byte)(unsafe.Pointer(p)), dnsPacketHead+int(p.Copied))
		d.take(raw)
	}
	return d
}

// rawName is a question whose name is these bytes.
func rawName(name string) []byte {
	b := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	return append(append(b, name...), 0, 1, 0, 1)
}

func TestDNSMessagesAreReadOrNamed(t *testing.T) {
	sound := nsQuestion(t, 7, "Www.Example.COM", dnsmessage.TypeAAAA)
	change := func(f func([]byte) []byte) []byte { return f(slices.Clone(sound)) }
	label := "\x3f" + strings.Repeat("x", 63)
	for name, x := range map[string]struct {
		payload  []byte
		response bool
		fault    flows.DNSFault
		want     string
	}{
		"sound":                   {payload: sound, want: "www.example.com"},
		"empty":                   {fault: flows.DNSShort},
		"eleven bytes":            {payload: sound[:11], fault: flows.DNSShort},
		"header only":             {payload: sound[:12], fault: flows.DNSName},
		"type missing":            {payload: sound[:len(sound)-3], fault: flows.DNSName},
		"update":                  {payload: change(func(b []byte) []byte { b[2] = 5 << 3; return b }), fault: flows.DNSOpcode},
		"two questions":           {payload: change(func(b []byte) []byte { b[5] = 2; return b }), fault: flows.DNSQuestions},
		"no question":             {payload: change(func(b []byte) []byte { b[5] = 0; return b }), fault: flows.DNSQuestions},
		"answer to port 53":       {payload: nsAnswer(sound, 0), fault: flows.DNSDirection},
		"question from port 53":   {payload: sound, response: true, fault: flows.DNSDirection},
		"answer":                  {payload: nsAnswer(sound, 3), response: true, want: "www.example.com"},
		"refused, no question":    {payload: change(func(b []byte) []byte { b[2] |= 0x80; b[3] = 5; b[5] = 0; return b[:12] }), response: true},
		"sound rcode, none asked": {payload: change(func(b []byte) []byte { b[2] |= 0x80; b[5] = 0; return b[:12] }), response: true, fault: flows.DNSQuestions},
		"root":                    {payload: rawName("\x00"), want: "."},
		"controls and backslash":  {payload: rawName("\x05a\n\\\xc3 \x00"), want: `a\010\092\195\032`},
		"dot in a label":          {payload: rawName("\x03a.b\x00"), fault: flows.DNSName},
		"label over 63 bytes":     {payload: rawName("\x40" + strings.Repeat("x", 64) + "\x00"), fault: flows.DNSName},
		"name of 255 bytes":       {payload: rawName(label + label + label + "\x3d" + label[1:62] + "\x00"), want: strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("x", 61)},
		"name of 256 bytes":       {payload: rawName(label + label + label + "\x3e" + label[1:63] + "\x00"), fault: flows.DNSName},
		"name that does not end":  {payload: rawName(strings.Repeat(label, 4)), fault: flows.DNSName},
		"pointer to itself":       {payload: rawName("\xc0\x0c"), fault: flows.DNSName},
		"pointer behind the end":  {payload: rawName("\xff\xff"), fault: flows.DNSName},
		"unprintable and long":    {payload: rawName(strings.Repeat("\x3f"+strings.Repeat("\x01", 63), 3) + "\x00"), want: strings.Repeat(`\001`, 63) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			d := readDNS(dnsRecord(flows.ProtoUDP, x.response, 0, x.payload))
			var want [flows.NumDNSFaults]uint64
			if x.fault != flows.DNSSound {
				want[x.fault] = 1
			}
			if d.acct.Faults != want || d.acct.Messages != 1-want[x.fault] {
				t.Fatalf("got %+v, want fault %q", d.acct, x.fault)
			}
			if x.fault != flows.DNSSound {
				return
			}
			m := d.messages[0][0]
			if m.Name != x.want || m.Response != x.response || len(m.Name) > maxName {
				t.Errorf("got %+v, want name %s", m, x.want)
			}
		})
	}
	cut := dnsRecord(flows.ProtoUDP, false, 0, sound)
	cut.Copied = 20
	if d := readDNS(cut); d.acct.Faults[flows.DNSCut] != 1 {
		t.Errorf("copied in part: got %+v, want it as cut", d.acct)
	}
}

func TestDNSOverTCPFollowsTheMessages(t *testing.T) {
	q := func(i int) []byte { return nsQuestion(t, uint16(i), fmt.Sprintf("name%d.test", i), dnsmessage.TypeA) }
	stream := nsPrefixed(q(1), q(2), q(3), q(4))
	size := len(nsPrefixed(q(1)))
	big := slices.Concat(nsPrefixed(append(q(5), make([]byte, 2000)...)), nsPrefixed(q(6)))
	const isn = 0xffffffc0 // it wraps in the second message
	at := func(payload []byte, from, to int) *bpf.FlowDnsPacket {
		return dnsRecord(flows.ProtoTCP, false, isn+uint32(from), payload[from:to])
	}
	for name, x := range map[string]struct {
		segments         []*bpf.FlowDnsPacket
		names            string
		continued, split uint64
		cut              uint64
	}{
		"one each":               {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, size, 2*size)}, names: "12"},
		"all in one":             {segments: []*bpf.FlowDnsPacket{at(stream, 0, 4*size)}, names: "1234"},
		"prefix alone":           {segments: []*bpf.FlowDnsPacket{at(stream, 0, 2), at(stream, 2, size), at(stream, size, 2*size)}, names: "12"},
		"half of a prefix":       {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, size, size+1), at(stream, size+1, 2*size), at(stream, 2*size, 3*size)}, names: "13", split: 2},
		"in two, then more":      {segments: []*bpf.FlowDnsPacket{at(stream, 0, 25), at(stream, 25, 2*size), at(stream, 2*size, 3*size)}, names: "23", split: 1},
		"sent again":             {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, 0, size), at(stream, size, 2*size)}, names: "12", continued: 1},
		"sent again with more":   {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, 0, 2*size)}, names: "12"},
		"a gap":                  {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, 2*size, 3*size)}, names: "13"},
		"a gap into the middle":  {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(stream, 2*size+9, 3*size), at(stream, 3*size, 4*size)}, names: "14", split: 1},
		"longer than a segment":  {segments: []*bpf.FlowDnsPacket{at(big, 0, 1000), at(big, 1000, 2000), at(big, 2000, len(big))}, names: "56", continued: 1},
		"longer than the copy":   {segments: []*bpf.FlowDnsPacket{at(big, 0, len(big))}, names: "5", cut: 1},
		"garbage in the middle":  {segments: []*bpf.FlowDnsPacket{at(stream, 0, size), at(bytes.Repeat([]byte{0xff}, 200), size, 2*size)}, names: "1"},
		"garbage from the start": {segments: []*bpf.FlowDnsPacket{at(bytes.Repeat([]byte{0xff}, 200), 0, 100)}, split: 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := readDNS(x.segments...)
			names := ""
			for _, m := range d.messages[0] {
				names += strings.TrimSuffix(strings.TrimPrefix(m.Name, "name"), ".test")
			}
			if names != x.names || d.acct.Continued != x.continued || d.acct.Faults[flows.DNSSplit] != x.split || d.acct.Faults[flows.DNSCut] != x.cut {
				t.Errorf("got messages %q of %+v, want %+v", names, d.acct, x)
			}
		})
	}
}

func TestDNSReaderIsBounded(t *testing.T) {
	sound := nsQuestion(t, 7, "a.test", dnsmessage.TypeA)
	d := &dns{points: &pointTable{}}
	for i := range maxDNSMessages + 3 {
		p := dnsRecord(flows.ProtoTCP, false, 0, nsPrefixed(sound))
		binary.BigEndian.PutUint32(p.Key.Src[12:], uint32(i))
		d.take(unsafe.Slice((*byte)(unsafe.Pointer(p)), dnsPacketHead+int(p.Copied)))
	}
	if len(d.messages[0]) != maxDNSMessages || d.acct.Faults[flows.DNSUnread] != 3 || len(d.streams) != maxDNSStreams {
		t.Errorf("got %d messages, %d unread, %d streams, want %d, 3, %d",
			len(d.messages[0]), d.acct.Faults[flows.DNSUnread], len(d.streams), maxDNSMessages, maxDNSStreams)
	}
}

// FuzzDNS: whatever comes, a datagram is one message or one fault, a segment is one at
// least unless only a prefix is in it, and names are bounded and print.
func FuzzDNS(f *testing.F) {
	sound := nsQuestion(f, 7, "www.example.com", dnsmessage.TypeAAAA)
	f.Add(sound, uint16(0), false, false)
	f.Add(nsPrefixed(sound, sound), uint16(30), true, false)
	f.Add(nsAnswer(rawName("\xc0\x0c"), 2), uint16(5), false, true)
	f.Add(append([]byte{0, 48}, make([]byte, 50)...), uint16(7), true, false) // a prefix behind the rest of a message
	f.Fuzz(func(t *testing.T, data []byte, cut uint16, tcp, response bool) {
		proto := uint8(flows.ProtoUDP)
		if tcp {
			proto = flows.ProtoTCP
		}
		d := readDNS()
		at := 0
		for part := range slices.Chunk(data, max(int(cut), len(data)/50, 1)) {
			before := d.acct
			p := dnsRecord(proto, response, uint32(at), part)
			p.Len += uint32(cut) % 7 * 100
			d.take(unsafe.Slice((*byte)(unsafe.Pointer(p)), dnsPacketHead+int(p.Copied)))
			told := d.acct.Messages + d.acct.Continued - before.Messages - before.Continued
			for i := range d.acct.Faults {
				told += d.acct.Faults[i] - before.Faults[i]
			}
			prefixLast := d.streams[dnsStreamKey{key: p.Key}].body > 0
			if !tcp && told != 1 || tcp && told == 0 && !prefixLast {
				t.Fatalf("%d bytes of %x: got %+v after %+v", p.Len, part, d.acct, before)
			}
			at += int(p.Len)
		}
		for _, m := range d.messages[0] {
			if len(m.Name) > maxName || strings.ContainsFunc(m.Name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
				t.Fatalf("name %q", m.Name)
			}
		}
	})
}

// TestRefusedDNSTurnsOnlyItselfOff lets the kernel refuse the ring, and the verifier
// the programs that use it.
func TestRefusedDNSTurnsOnlyItselfOff(t *testing.T) {
	requireBPF(t)
	for _, backend := range backends {
		for what, spoil := range map[string]func(*objects){
			"ring of an odd size":     func(o *objects) { o.spec.Maps[bpf.FlowMapDnsPackets].MaxEntries = 5000 },
			"array instead of a ring": func(o *objects) { o.withoutDNS(); o.size.dns = dnsRingBytes },
		} {
			t.Run(fmt.Sprintf("%s, %s", backend, what), func(t *testing.T) {
				opts := Options{DNS: true, Slots: 4096}
				if err := opts.setDefaults(); err != nil {
					t.Fatal(err)
				}
				o := &objects{backend: backend, size: sizeFor(&opts, ebpf.MustPossibleCPU()), maps: map[string]*ebpf.Map{}}
				load := map[Backend]func() (*ebpf.CollectionSpec, error){BackendSlots: bpf.LoadFlow, BackendHash: bpf.LoadFlowHash}[backend]
				var err error
				if o.spec, err = load(); err != nil {
					t.Fatal(err)
				}
				o.configure()
				spoil(o)
				var off []Capability
				if err := o.loadFirst(func(c Capability) { off = append(off, c) }); err != nil {
					t.Fatal(err)
				}
				defer o.close()
				if len(off) != 1 || off[0].Name != "dns" || off[0].Err == "" || o.config.Options&dnsOption != 0 || o.first.ingress == nil {
					t.Errorf("got %+v, options %d, programs %+v: want dns off and the rest loaded", off, o.config.Options, o.first)
				}
			})
		}
	}
}
