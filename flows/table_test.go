// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Points of one host: a physical device, a bridge and two pods' devices.
var (
	eth0In  = Point{Netns: 1, Ifindex: 2, Hook: HookIngress}
	eth0XDP = Point{Netns: 1, Ifindex: 2, Hook: HookXDP}
	eth0Out = Point{Netns: 1, Ifindex: 2, Hook: HookEgress}
	podIn   = Point{Netns: 1, Ifindex: 8, Hook: HookIngress}
	podOut  = Point{Netns: 1, Ifindex: 8, Hook: HookEgress}
)

// second is the wall clock at s seconds.
func second(s float64) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(s * float64(time.Second))).UTC()
}

// edit changes a sample that flow makes.
type edit func(*Sample)

// flow is a sample of packets packets of 100 bytes each, seen at p at once.
func flow(p Point, k Key, packets uint64, at float64, edits ...edit) Sample {
	s := Sample{Key: k, At: p, Packets: packets, Bytes: 100 * packets, First: second(at).UnixNano(), Last: second(at).UnixNano()}
	for _, e := range edits {
		e(&s)
	}
	return s
}

// starts makes the sample the flow's first, begun with these TCP flags.
func starts(flags uint8, seq, ack uint32) edit {
	return func(s *Sample) {
		s.New, s.FirstFlags, s.SeqNumber, s.AckNumber = true, flags, seq, ack
		s.TCPFlags |= flags
	}
}

func flags(f uint8) edit     { return func(s *Sample) { s.TCPFlags |= f } }
func dscp(d uint8) edit      { return func(s *Sample) { s.DSCP = d } }
func vlan(outer uint16) edit { return func(s *Sample) { s.VLAN.Outer = outer } }
func fragment(s *Sample)     { s.Fragment = true }
func until(at float64) edit  { return func(s *Sample) { s.Last = second(at).UnixNano() } }
func tcp(a, b string) Key    { return endpoints(ProtoTCP, a, b) }
func udp(a, b string) Key    { return endpoints(ProtoUDP, a, b) }
func endpoints(proto uint8, a, b string) Key {
	return Key{Src: netip.MustParseAddrPort(a), Dst: netip.MustParseAddrPort(b), Proto: proto}
}

// kernel plays the data plane: what it hands to the table it has also seen.
type kernel struct {
	t     *testing.T
	table *Table
	seen  map[Point]Count
}

func newKernel(t *testing.T, o TableOptions) *kernel {
	return &kernel{t: t, table: NewTable(o), seen: map[Point]Count{}}
}

// account is what the kernel counted at every point.
func (k *kernel) account(at time.Time) Account {
	a := Account{At: at}
	for p, n := range k.seen {
		a.Points = append(a.Points, PointAccount{At: p, Before: n, After: n})
	}
	return a
}

// drain folds samples as one drain at s seconds and returns its records. The
// ledger has to balance.
func (k *kernel) drain(s float64, samples ...Sample) []Record {
	k.t.Helper()
	for _, x := range samples {
		n := k.seen[x.At]
		n.Add(Count{x.Packets, x.Bytes})
		k.seen[x.At] = n
	}
	w, done := k.table.Fold(Batch{At: second(s), Flows: samples, Final: true, Seen: k.account(second(s))})
	if !done {
		k.t.Fatal("the final batch of a drain: got done=false, want true")
	}
	if err := w.Ledger.Check(); err != nil {
		k.t.Fatalf("ledger at %v s: %v", s, err)
	}
	audit(k.t, k.table)
	return w.Records
}

// one is the only record of rs.
func (k *kernel) one(rs []Record) Record {
	k.t.Helper()
	if len(rs) != 1 {
		k.t.Fatalf("got %d records, want 1: %+v", len(rs), rs)
	}
	return rs[0]
}

// close closes the table at s seconds.
func (k *kernel) close(s float64) []Record {
	k.t.Helper()
	w := k.table.Close(second(s))
	if err := w.Ledger.Check(); err != nil {
		k.t.Fatalf("ledger at the end: %v", err)
	}
	for _, p := range append(w.Ledger.Points, w.Ledger.Gone) {
		if p.Open != (Count{}) {
			k.t.Errorf("%v at the end: open %v, want none", p.At, p.Open)
		}
	}
	audit(k.t, k.table)
	return w.Records
}

// audit checks what has to hold of a table at any time: the index finds every
// conversation, hops are counted, and every point's open figures and references
// are those of the hops.
func audit(t *testing.T, table *Table) {
	t.Helper()
	open, refs := map[uint32]Count{}, map[uint32]uint32{}
	live, hops, ids := 0, 0, 0
	for i := uint32(1); i < table.convs.end; i++ {
		c := table.convs.at(i)
		if !c.is(convLive) {
			continue
		}
		live++
		if got := table.convs.find(&c.key, table.convs.hashOf(&c.key)); got != i {
			t.Fatalf("index: conversation %d is found as %d", i, got)
		}
		if id := c.connectionID(); id != 0 && !table.apart {
			ids++
			found := false
			for p := range table.ids.each(&table.convs, id) {
				found = found || p == c
			}
			if !found {
				t.Fatalf("index: conversation %d is not found by its connection %x", i, id)
			}
		}
		var n [2]uint8
		for h := &c.first; h != nil && h.where != 0; h = table.after(h) {
			n[h.from()]++
			pi := h.where >> 1
			refs[pi]++
			if table.points.at(pi).state == pointGone {
				pi = 0
			}
			open[pi] = open[pi].Plus(h.count())
			if h != &c.first {
				hops++
			}
		}
		if n != c.nhops {
			t.Fatalf("conversation %d: %v hops, counted as %v", i, n, c.nhops)
		}
	}
	if ids != table.ids.taken {
		t.Fatalf("index: got %d conversations with a ConnectionID, %d are held", table.ids.taken, ids)
	}
	if live != table.convs.taken() || hops != table.hops.taken() {
		t.Fatalf("got %d conversations and %d further hops, taken are %d and %d", live, hops, table.convs.taken(), table.hops.taken())
	}
	if table.points.gone.Open != open[0] {
		t.Fatalf("detached points: hops hold %v, open is %v", open[0], table.points.gone.Open)
	}
	for i := uint32(1); i < table.points.end; i++ {
		p := table.points.at(i)
		if p.refs != refs[i] || (p.state != pointGone && p.open != open[i]) {
			t.Fatalf("point %v: hops %d hold %v, counted as %d and %v", p.at, refs[i], open[i], p.refs, p.open)
		}
	}
}

func TestBothDirectionsAreOneConversation(t *testing.T) {
	k := newKernel(t, TableOptions{})
	k.drain(1,
		flow(podIn, tcp("10.0.0.9:40000", "10.0.0.1:80"), 5, 0.1, starts(FlagSYN, 100, 0), flags(FlagACK|FlagPSH), dscp(10), until(0.9)),
		flow(podOut, tcp("10.0.0.1:80", "10.0.0.9:40000"), 4, 0.2, starts(FlagSYN|FlagACK, 500, 101), dscp(12), until(0.8)))
	r := k.one(k.close(2))
	if r.Key != tcp("10.0.0.9:40000", "10.0.0.1:80") || r.Initiator != InitiatorSYN {
		t.Errorf("source: got %v by %v, want 10.0.0.9:40000 by syn", r.Key, r.Initiator)
	}
	if r.Packets != 5 || r.Bytes != 500 || r.ReversePackets != 4 || r.ReverseBytes != 400 {
		t.Errorf("totals: got %d %d, %d %d, want 5 500, 4 400", r.Packets, r.Bytes, r.ReversePackets, r.ReverseBytes)
	}
	if r.TCPFlags != FlagSYN|FlagACK|FlagPSH || r.ReverseTCPFlags != FlagSYN|FlagACK {
		t.Errorf("flags: got %s and %s, want SYN+PSH+ACK and SYN+ACK", FlagNames(r.TCPFlags), FlagNames(r.ReverseTCPFlags))
	}
	if !r.Start.Equal(second(0.1)) || !r.End.Equal(second(0.9)) {
		t.Errorf("period: got %v to %v, want %v to %v", r.Start, r.End, second(0.1), second(0.9))
	}
	if r.DSCP != 10 || r.EndReason != EndForced || r.ConnectionID == 0 {
		t.Errorf("got dscp %d, end %v, connection %x, want 10, forced_end, not zero", r.DSCP, r.EndReason, r.ConnectionID)
	}
	if len(r.Hops) != 2 || r.Hops[0].Reverse || !r.Hops[1].Reverse {
		t.Errorf("hops: got %+v, want podIn then podOut reversed", r.Hops)
	}
}

func TestInitiator(t *testing.T) {
	const a, b = "10.0.0.1", "10.0.0.2"
	for _, c := range []struct {
		what    string
		samples []Sample
		source  Key
		basis   InitiatorBasis
	}{
		{"SYN decides against the ports", []Sample{
			flow(eth0In, tcp(b+":80", a+":50000"), 1, 0, starts(FlagSYN, 7, 0))},
			tcp(b+":80", a+":50000"), InitiatorSYN},
		{"SYN-ACK alone: the other side began", []Sample{
			flow(eth0In, tcp(b+":50000", a+":80"), 1, 0, starts(FlagSYN|FlagACK, 7, 9))},
			tcp(a+":80", b+":50000"), InitiatorSYN},
		{"a mid-stream first packet says nothing: the service port decides", []Sample{
			flow(eth0In, tcp(a+":443", b+":50000"), 1, 0, starts(FlagACK, 0, 0))},
			tcp(b+":50000", a+":443"), InitiatorPort},
		{"registered port against ephemeral", []Sample{
			flow(eth0In, udp(a+":8080", b+":50000"), 1, 0)}, udp(b+":50000", a+":8080"), InitiatorPort},
		{"two ephemeral ports: the first seen", []Sample{
			flow(eth0In, udp(a+":40000", b+":50000"), 1, 0.2), flow(eth0Out, udp(b+":50000", a+":40000"), 1, 0.1)},
			udp(b+":50000", a+":40000"), InitiatorFirst},
		{"two system ports: the first seen", []Sample{
			flow(eth0In, udp(a+":500", b+":500"), 1, 0.2)}, udp(a+":500", b+":500"), InitiatorFirst},
		{"port 0 is nobody's service", []Sample{
			flow(eth0In, udp(a+":0", b+":50000"), 1, 0.2)}, udp(a+":0", b+":50000"), InitiatorFirst},
		{"no ports: the first seen", []Sample{
			flow(eth0In, endpoints(47, b+":0", a+":0"), 1, 0.2)}, endpoints(47, b+":0", a+":0"), InitiatorFirst},
		{"a group is never the source", []Sample{
			flow(eth0In, udp(a+":53", "224.0.0.251:50000"), 1, 0)}, udp(a+":53", "224.0.0.251:50000"), InitiatorFirst},
		{"echo reply before the request", []Sample{
			flow(eth0In, key(ProtoICMP, b, 0, a, 0), 1, 0.1), flow(eth0Out, key(ProtoICMP, a, 8, b, 0), 1, 0.2)},
			key(ProtoICMP, a, 8, b, 0), InitiatorICMP},
		{"echo reply without a request", []Sample{
			flow(eth0In, key(ProtoICMPv6, "fd00::2", 129, "fd00::1", 0), 1, 0)},
			key(ProtoICMPv6, "fd00::1", 128, "fd00::2", 0), InitiatorICMP},
		{"router advertisement nobody asked for", []Sample{
			flow(eth0In, key(ProtoICMPv6, "fe80::1", 134, "ff02::1", 0), 1, 0)},
			key(ProtoICMPv6, "fe80::1", 134, "ff02::1", 0), InitiatorFirst},
		{"one-way ICMP keeps its code", []Sample{
			flow(eth0In, key(ProtoICMP, b, 3, a, 13), 1, 0)}, key(ProtoICMP, b, 3, a, 13), InitiatorFirst},
	} {
		t.Run(c.what, func(t *testing.T) {
			k := newKernel(t, TableOptions{})
			k.drain(1, c.samples...)
			r := k.one(k.close(2))
			if r.Key != c.source || r.Initiator != c.basis {
				t.Errorf("got %v by %v, want %v by %v", r.Key, r.Initiator, c.source, c.basis)
			}
		})
	}
}

func TestTheICMPRequestBegins(t *testing.T) {
	for proto, requests := range map[uint8][]uint16{ProtoICMP: {8, 10, 13, 15, 17}, ProtoICMPv6: {128, 130, 133, 135, 139, 144}} {
		for _, request := range requests {
			// The answer is seen first, and its sender has the lower address.
			ask, answer := key(proto, "10.0.0.2", request, "10.0.0.1", 0), key(proto, "10.0.0.1", request+1, "10.0.0.2", 0)
			switch request {
			case 8:
				answer = key(proto, "10.0.0.1", 0, "10.0.0.2", 0)
			case 10:
				answer = key(proto, "10.0.0.1", 9, "10.0.0.2", 0)
			}
			k := newKernel(t, TableOptions{})
			k.drain(1, flow(eth0In, answer, 1, 0.1), flow(eth0Out, ask, 2, 0.2))
			if r := k.one(k.close(2)); r.Key != ask || r.Initiator != InitiatorICMP || r.Packets != 2 {
				t.Errorf("%v: got %v by %v", ask, r.Key, r.Initiator)
			}
		}
	}
}

func TestOneWayICMPIsAConversationPerDirection(t *testing.T) {
	k := newKernel(t, TableOptions{})
	k.drain(1,
		flow(eth0In, key(ProtoICMP, "10.0.0.2", 3, "10.0.0.1", 1), 1, 0),
		flow(eth0Out, key(ProtoICMP, "10.0.0.1", 3, "10.0.0.2", 1), 1, 0),
		flow(eth0In, key(ProtoICMP, "10.0.0.2", 3, "10.0.0.1", 4), 1, 0))
	if got := len(k.close(2)); got != 3 {
		t.Errorf("unreachables both ways and another code: got %d records, want 3", got)
	}
}

func TestSourceMayBecomeCertainButNeverFlips(t *testing.T) {
	client, server := tcp("10.0.0.1:443", "10.0.0.2:50000"), tcp("10.0.0.2:50000", "10.0.0.1:443")
	t.Run("before the first record the handshake corrects the guess", func(t *testing.T) {
		k := newKernel(t, TableOptions{})
		k.drain(1, flow(eth0In, server, 1, 0.5))
		k.drain(2, flow(eth0Out, client, 1, 1.5, starts(FlagSYN, 9, 0)))
		if r := k.one(k.close(3)); r.Key != client || r.Initiator != InitiatorSYN {
			t.Errorf("got %v by %v, want %v by syn", r.Key, r.Initiator, client)
		}
	})
	t.Run("after it the source stays", func(t *testing.T) {
		k := newKernel(t, TableOptions{ActiveTimeout: time.Second})
		k.drain(1, flow(eth0In, server, 1, 0.5))
		guess := k.one(k.drain(2, flow(eth0In, server, 1, 1.5)))
		k.drain(2.5, flow(eth0Out, client, 1, 0.4, starts(FlagSYN, 9, 0)))
		if r := k.one(k.close(3)); r.Key != guess.Key || r.Initiator != guess.Initiator || r.ReversePackets != 1 {
			t.Errorf("got %v by %v, %d back, want %v by %v, 1 back", r.Key, r.Initiator, r.ReversePackets, guess.Key, guess.Initiator)
		}
	})
}

func TestConnectionIDIsOfBothSequenceNumbersAlone(t *testing.T) {
	// id is the identifier of a conversation of these samples.
	id := func(samples ...Sample) uint64 {
		k := newKernel(t, TableOptions{})
		k.drain(1, samples...)
		return k.one(k.close(2)).ConnectionID
	}
	client, server := tcp("10.0.0.9:40000", "10.0.0.1:80"), tcp("10.0.0.1:80", "10.0.0.9:40000")
	syn := flow(podIn, client, 1, 0.1, starts(FlagSYN, 100, 0))
	synAck := flow(podOut, server, 1, 0.2, starts(FlagSYN|FlagACK, 500, 101))
	want := id(syn, synAck)
	natSYN := flow(eth0Out, tcp("192.0.2.1:61000", "198.51.100.7:8080"), 1, 0.1, starts(FlagSYN, 100, 0))
	natSYNACK := flow(eth0In, tcp("198.51.100.7:8080", "192.0.2.1:61000"), 1, 0.2, starts(FlagSYN|FlagACK, 500, 101))
	for _, c := range []struct {
		what string
		got  uint64
		same bool
	}{
		{"SYN-ACK read first", id(synAck, syn), true},
		{"SYN-ACK alone", id(synAck), true},
		{"behind NAT", id(natSYN, natSYNACK), true},
		{"another client number", id(flow(podIn, client, 1, 0.1, starts(FlagSYN, 101, 0)), flow(podOut, server, 1, 0.2, starts(FlagSYN|FlagACK, 500, 102))), false},
		{"numbers exchanged", id(flow(podOut, server, 1, 0.2, starts(FlagSYN|FlagACK, 100, 501))), false},
	} {
		if (c.got == want) != c.same || c.got == 0 {
			t.Errorf("%s: got %x, want the same as %x: %v", c.what, c.got, want, c.same)
		}
	}
	if got := id(syn); got != 0 {
		t.Errorf("SYN alone: got %x, want 0", got)
	}
	if got := id(flow(podIn, client, 1, 0.1, flags(FlagSYN|FlagACK))); got != 0 {
		t.Errorf("SYN in the flags, but not a first packet: got %x, want 0", got)
	}
}

func TestEqualTuplesStayApart(t *testing.T) {
	there := udp("10.0.0.1:0", "10.0.0.2:0")
	other := eth0In
	other.Netns = 2
	for _, c := range []struct {
		what string
		x    Sample
	}{
		{"namespace", flow(other, there, 1, 0)},
		{"VLAN", flow(eth0In, there, 1, 0, vlan(100))},
		{"fragment without ports", flow(eth0In, there, 1, 0, fragment)},
		{"protocol", flow(eth0In, endpoints(ProtoSCTP, "10.0.0.1:0", "10.0.0.2:0"), 1, 0)},
		{"family", flow(eth0In, udp("[::ffff:10.0.0.1]:0", "[::ffff:10.0.0.2]:0"), 1, 0)},
	} {
		k := newKernel(t, TableOptions{})
		k.drain(1, flow(eth0In, there, 1, 0), c.x)
		rs := k.close(2)
		if len(rs) != 2 {
			t.Errorf("%s: got %d records, want 2", c.what, len(rs))
			continue
		}
		want := Scope{Netns: c.x.At.Netns, VLAN: c.x.VLAN}
		if got := rs[1]; got.Scope != want || got.Fragment != c.x.Fragment || got.Key != c.x.Key {
			t.Errorf("%s: got %v %v fragment %v, want %v %v fragment %v", c.what, got.Scope, got.Key, got.Fragment, want, c.x.Key, c.x.Fragment)
		}
	}
}

func TestICMPFragmentsArePairedByAddressAlone(t *testing.T) {
	k := newKernel(t, TableOptions{})
	k.drain(1,
		flow(eth0In, key(ProtoICMP, "10.0.0.2", 0, "10.0.0.1", 0), 3, 0.1, fragment),
		flow(eth0Out, key(ProtoICMP, "10.0.0.1", 0, "10.0.0.2", 0), 2, 0.2, fragment))
	r := k.one(k.close(2))
	if r.Initiator != InitiatorFirst || r.Packets != 3 || r.ReversePackets != 2 {
		t.Errorf("got %v by %v, %d and %d packets, want 10.0.0.2 by first_seen, 3 and 2", r.Key, r.Initiator, r.Packets, r.ReversePackets)
	}
}

func TestAPacketSeenAtSeveralPointsIsCountedOnce(t *testing.T) {
	there, back := tcp("10.0.0.9:40000", "10.0.0.1:80"), tcp("10.0.0.1:80", "10.0.0.9:40000")
	for _, c := range []struct {
		what          string
		samples       []Sample
		chosen, other Point // of source to destination
	}{
		{"pod to pod: the first to see each direction", []Sample{
			flow(eth0Out, there, 7, 0.11), flow(podIn, there, 7, 0.10),
			flow(podOut, back, 6, 0.21), flow(eth0In, back, 6, 0.20)}, podIn, eth0In},
		{"seen at once: ingress before egress", []Sample{
			flow(eth0Out, there, 7, 0.1), flow(podIn, there, 7, 0.1),
			flow(podOut, back, 6, 0.2), flow(eth0In, back, 6, 0.2)}, podIn, eth0In},
		{"XDP and ingress of one device: XDP saw them first", []Sample{
			flow(eth0In, there, 7, 0.1001), flow(eth0XDP, there, 7, 0.1),
			flow(podOut, back, 6, 0.2)}, eth0XDP, podOut},
		{"XDP and ingress at once: ingress", []Sample{
			flow(eth0XDP, there, 7, 0.1), flow(eth0In, there, 7, 0.1),
			flow(podOut, back, 6, 0.2)}, eth0In, podOut},
	} {
		k := newKernel(t, TableOptions{})
		k.drain(1, c.samples...)
		r := k.one(k.close(2))
		if r.Packets != 7 || r.Bytes != 700 || r.ReversePackets != 6 || r.ReverseBytes != 600 {
			t.Errorf("%s: got %d %d, %d %d, want 7 700, 6 600", c.what, r.Packets, r.Bytes, r.ReversePackets, r.ReverseBytes)
		}
		for _, h := range r.Hops {
			want := c.chosen
			if h.Reverse {
				want = c.other
			}
			if h.Chosen != (h.At == want) {
				t.Errorf("%s: hop %v reverse %v: got chosen %v, want %v", c.what, h.At, h.Reverse, h.Chosen, h.At == want)
			}
		}
		if len(r.Hops) != len(c.samples) {
			t.Errorf("%s: got %d hops, want %d", c.what, len(r.Hops), len(c.samples))
		}
	}
}

func TestTheChosenPointStaysWhileItCounts(t *testing.T) {
	k := newKernel(t, TableOptions{ActiveTimeout: time.Second})
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	// chosen is the packets and the chosen point of the period's record.
	chosen := func(rs []Record) (uint64, Point) {
		r := k.one(rs)
		for _, h := range r.Hops {
			if h.Chosen {
				return r.Packets, h.At
			}
		}
		return r.Packets, Point{}
	}
	expect := func(rs []Record, n uint64, at Point) {
		t.Helper()
		if gotN, got := chosen(rs); gotN != n || got != at {
			t.Errorf("got %d packets at %v, want %d at %v", gotN, got, n, at)
		}
	}
	k.drain(0)
	expect(k.drain(1, flow(podIn, x, 5, 0.1), flow(eth0Out, x, 4, 0.2)), 5, podIn)
	expect(k.drain(2, flow(podIn, x, 1, 1.9), flow(eth0Out, x, 4, 1.1)), 1, podIn)
	expect(k.drain(3, flow(eth0Out, x, 3, 2.1)), 3, eth0Out)
	expect(k.drain(4, flow(podIn, x, 9, 3.0), flow(eth0Out, x, 8, 3.5)), 8, eth0Out)
}

func TestActiveTimeoutEndsAPeriodAndNotTheConversation(t *testing.T) {
	k := newKernel(t, TableOptions{})
	x := tcp("10.0.0.9:40000", "10.0.0.1:80")
	k.drain(0)
	var rs []Record
	sent := uint64(0)
	for s := 1; s <= 150; s++ {
		e := flags(FlagACK)
		if s == 1 {
			e = starts(FlagSYN, 1, 0)
		}
		ended := k.drain(float64(s), flow(podIn, x, uint64(s), float64(s)-0.5, e))
		if (len(ended) == 1) != (s%60 == 0) {
			t.Errorf("at %d s: got %d records", s, len(ended))
		}
		rs = append(rs, ended...)
		sent += uint64(s)
	}
	rs = append(rs, k.close(151)...)
	if len(rs) != 3 {
		t.Fatalf("150 s with a time-out of 60 s: got %d records, want 3", len(rs))
	}
	var got uint64
	for i, r := range rs {
		got += r.Packets
		if d := r.End.Sub(r.Start); d > 60*time.Second {
			t.Errorf("record %d: period of %v, want at most 60s", i, d)
		}
		if want := []EndReason{EndActiveTimeout, EndActiveTimeout, EndForced}[i]; r.EndReason != want {
			t.Errorf("record %d: end %v, want %v", i, r.EndReason, want)
		}
		if r.Initiator != InitiatorSYN {
			t.Errorf("record %d: initiator %v, want syn", i, r.Initiator)
		}
	}
	if got != sent {
		t.Errorf("sum of the records: got %d packets, want %d", got, sent)
	}
}

func TestIdleConversationsEnd(t *testing.T) {
	k := newKernel(t, TableOptions{})
	k.drain(0)
	k.drain(1, flow(podIn, udp("10.0.0.9:40000", "10.0.0.1:53"), 1, 0.5))
	if rs := k.drain(15.9); len(rs) != 0 {
		t.Errorf("after 14.9 s of silence: got %d records, want none", len(rs))
	}
	if r := k.one(k.drain(16)); r.EndReason != EndIdleTimeout {
		t.Errorf("after 15 s of silence: got %v, want idle_timeout", r.EndReason)
	}
	if n := k.table.Conversations(); n != 0 {
		t.Errorf("after the record: got %d conversations, want 0", n)
	}
}

func TestAConversationThatGainedNothingEndsWithoutARecord(t *testing.T) {
	k := newKernel(t, TableOptions{ActiveTimeout: time.Second})
	k.drain(0)
	k.one(k.drain(1, flow(podIn, udp("10.0.0.9:40000", "10.0.0.1:53"), 1, 0.5)))
	if rs := k.drain(30); len(rs) != 0 || k.table.Conversations() != 0 {
		t.Errorf("got %d records and %d conversations, want none", len(rs), k.table.Conversations())
	}
}

func TestASilentConnectionIsRememberedForAWhile(t *testing.T) {
	k := newKernel(t, TableOptions{})
	// The server has the higher port, so a guess would be wrong.
	client, server := tcp("10.0.0.9:80", "10.0.0.1:50000"), tcp("10.0.0.1:50000", "10.0.0.9:80")
	k.drain(0)
	k.drain(1, flow(podIn, client, 2, 0.1, starts(FlagSYN, 1, 0)), flow(podOut, server, 2, 0.2, starts(FlagSYN|FlagACK, 5, 2)))
	first := k.one(k.drain(20))
	if first.EndReason != EndIdleTimeout || first.ConnectionID == 0 {
		t.Fatalf("after 19 s of silence: got %v, connection %x, want idle_timeout and not 0", first.EndReason, first.ConnectionID)
	}
	k.drain(21)
	if n := k.table.points.at(1).refs; n != 0 {
		t.Errorf("a silent connection holds %d hops, want none", n)
	}
	k.drain(199)
	k.drain(200, flow(podOut, server, 1, 199.5))
	again := k.one(k.drain(220))
	if again.Key != first.Key || again.ConnectionID != first.ConnectionID || again.Initiator != InitiatorSYN {
		t.Errorf("speaking again: got %v, %x by %v, want %v, %x by syn", again.Key, again.ConnectionID, again.Initiator, first.Key, first.ConnectionID)
	}
	k.drain(499)
	if n := k.table.Conversations(); n != 1 {
		t.Errorf("299 s after its last packet: got %d conversations, want 1", n)
	}
	if rs := k.drain(500); len(rs) != 0 || k.table.Conversations() != 0 {
		t.Errorf("300 s after its last packet: got %d records, %d conversations, want none", len(rs), k.table.Conversations())
	}
}

func TestTCPEndsWhenItFallsSilent(t *testing.T) {
	client, server := tcp("10.0.0.9:40000", "10.0.0.1:80"), tcp("10.0.0.1:80", "10.0.0.9:40000")
	t.Run("FIN from both sides", func(t *testing.T) {
		k := newKernel(t, TableOptions{})
		k.drain(0)
		if rs := k.drain(1, flow(podIn, client, 3, 0.1, flags(FlagFIN|FlagACK)), flow(podOut, server, 3, 0.2, flags(FlagACK))); len(rs) != 0 {
			t.Fatalf("FIN from one side: got %d records, want none", len(rs))
		}
		if rs := k.drain(2); len(rs) != 0 {
			t.Fatalf("half closed and silent: got %d records, want none", len(rs))
		}
		if rs := k.drain(3, flow(podOut, server, 1, 2.1, flags(FlagFIN|FlagACK))); len(rs) != 0 {
			t.Fatalf("FIN from both sides, just now: got %d records, want none", len(rs))
		}
		if rs := k.drain(4, flow(podIn, client, 1, 3.1, flags(FlagFIN|FlagACK))); len(rs) != 0 {
			t.Fatalf("last ACK: got %d records, want none", len(rs))
		}
		if r := k.one(k.drain(5)); r.EndReason != EndOfFlow || r.Packets != 4 || r.ReversePackets != 4 {
			t.Errorf("got %v with %d and %d packets, want end_of_flow with 4 and 4", r.EndReason, r.Packets, r.ReversePackets)
		}
	})
	t.Run("RST from one side", func(t *testing.T) {
		k := newKernel(t, TableOptions{})
		k.drain(1, flow(podOut, server, 1, 0.2, flags(FlagRST)))
		if r := k.one(k.drain(2)); r.EndReason != EndOfFlow {
			t.Errorf("got %v, want end_of_flow", r.EndReason)
		}
	})
	t.Run("one that will not be silent ends by the active time-out", func(t *testing.T) {
		k := newKernel(t, TableOptions{ActiveTimeout: 3 * time.Second})
		k.drain(0)
		for s := 1.0; s <= 2; s++ {
			k.drain(s, flow(podIn, client, 1, s-0.5, flags(FlagRST)))
		}
		if r := k.one(k.drain(3, flow(podIn, client, 1, 2.5, flags(FlagRST)))); r.EndReason != EndOfFlow || r.Packets != 3 {
			t.Errorf("got %v with %d packets, want end_of_flow with 3", r.EndReason, r.Packets)
		}
		if n := k.table.Conversations(); n != 0 {
			t.Errorf("got %d conversations, want 0", n)
		}
	})
	t.Run("UDP has no flags", func(t *testing.T) {
		k := newKernel(t, TableOptions{})
		k.drain(1, flow(podOut, udp("10.0.0.1:1", "10.0.0.2:2"), 1, 0.2, flags(FlagRST)))
		if rs := k.drain(2); len(rs) != 0 {
			t.Errorf("got %d records, want none", len(rs))
		}
	})
}

func TestAReusedPortIsANewConversation(t *testing.T) {
	client, server := tcp("10.0.0.9:40000", "10.0.0.1:80"), tcp("10.0.0.1:80", "10.0.0.9:40000")
	// ended is a connection that was opened and reset in one drain.
	ended := func(edits ...edit) *kernel {
		k := newKernel(t, TableOptions{})
		k.drain(1,
			flow(podIn, client, 3, 0.1, append(edits, until(0.5))...),
			flow(podOut, server, 2, 0.2, flags(FlagRST), until(0.6)))
		return k
	}
	for _, c := range []struct {
		what    string
		k       *kernel
		x       Sample
		records int // closed when x has been folded and the table is
	}{
		{"a SYN with another number", ended(starts(FlagSYN, 100, 0)), flow(podIn, client, 1, 1.5, starts(FlagSYN, 999, 0)), 2},
		{"a SYN-ACK that answers another number", ended(starts(FlagSYN, 100, 0)), flow(podOut, server, 1, 1.5, starts(FlagSYN|FlagACK, 7, 1000)), 2},
		{"a SYN with another number, among the packets", ended(starts(FlagSYN, 100, 0)), flow(podIn, client, 1, 0.3, starts(FlagSYN, 999, 0)), 2},
		{"the same SYN after the last packet", ended(starts(FlagSYN, 100, 0)), flow(podIn, client, 1, 1.5, starts(FlagSYN, 100, 0)), 1},
		{"a SYN-ACK that answers the same number", ended(starts(FlagSYN, 100, 0)), flow(eth0In, server, 1, 1.5, starts(FlagSYN|FlagACK, 7, 101)), 1},
		{"the same SYN at a further point", ended(starts(FlagSYN, 100, 0)), flow(eth0Out, client, 1, 0.11, starts(FlagSYN, 100, 0)), 1},
		{"the number not known, after the last packet", ended(), flow(podIn, client, 1, 1.5, starts(FlagSYN, 999, 0)), 2},
		{"the number not known, among the packets", ended(), flow(eth0Out, client, 1, 0.11, starts(FlagSYN, 100, 0)), 1},
		{"not a first packet", ended(starts(FlagSYN, 100, 0)), flow(podIn, client, 1, 1.5, starts(FlagSYN, 999, 0), func(s *Sample) { s.New = false }), 1},
	} {
		rs := append(c.k.drain(2, c.x), c.k.close(3)...)
		if len(rs) != c.records {
			t.Errorf("%s: got %d records, want %d", c.what, len(rs), c.records)
		}
		if rs[0].EndReason != EndOfFlow {
			t.Errorf("%s: first record: got %v, want end_of_flow", c.what, rs[0].EndReason)
		}
	}
}

func TestBatchesOfOneDrainMakeOneWindow(t *testing.T) {
	table := NewTable(TableOptions{})
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	for range 3 {
		if _, done := table.Fold(Batch{At: second(1), Flows: []Sample{flow(podIn, x, 1, 0.5)}}); done {
			t.Fatal("a batch that is not final: got done=true, want false")
		}
	}
	seen := Account{Points: []PointAccount{{At: podIn, Before: Count{3, 300}, After: Count{3, 300}}}}
	w, done := table.Fold(Batch{At: second(1), Final: true, Seen: seen})
	if !done || w.Ledger.Points[0].Flows != (Count{3, 300}) {
		t.Errorf("got done=%v, flows %v, want true, {3 300}", done, w.Ledger.Points[0].Flows)
	}
	if err := w.Ledger.Check(); err != nil {
		t.Error(err)
	}
	if w := table.Close(second(2)); w.Ledger.Made != 1 || len(w.Records) != 1 || w.Records[0].Packets != 3 {
		t.Errorf("got %d made, %+v, want one record of 3 packets", w.Ledger.Made, w.Records)
	}
}

func TestALiveConnectionIsNotTakenOverByAnotherSYN(t *testing.T) {
	for _, ends := range [][2]string{{"10.0.0.9:40000", "10.0.0.1:80"}, {"10.0.0.1:40000", "10.0.0.9:80"}} {
		client, server := tcp(ends[0], ends[1]), tcp(ends[1], ends[0])
		samples := []Sample{
			flow(podIn, client, 3, 0.1, starts(FlagSYN, 100, 0)),
			flow(podOut, server, 2, 0.2, starts(FlagSYN|FlagACK, 500, 101)),
			flow(eth0In, server, 1, 0.3, starts(FlagSYN, 9, 0)),
			flow(podIn, client, 1, 0.4, starts(FlagSYN, 9, 0)),
		}
		k := newKernel(t, TableOptions{})
		k.drain(1, samples[:2]...)
		want := k.one(k.close(2))
		k = newKernel(t, TableOptions{})
		k.drain(1, samples...)
		got := k.one(k.close(2))
		if got.ConnectionID != want.ConnectionID || got.Key != want.Key {
			t.Errorf("got connection %x of %v, want %x of %v", got.ConnectionID, got.Key, want.ConnectionID, want.Key)
		}
	}
}

// A port is used again within a drain, and the first connection's FINs, which passed another
// CPU, are told after the second one's SYN.
func TestAPortUsedAgainWithinADrainHasAConnectionOfItsOwn(t *testing.T) {
	client, server := tcp("10.0.0.9:40000", "10.0.0.1:80"), tcp("10.0.0.1:80", "10.0.0.9:40000")
	first := []Sample{
		flow(podIn, client, 3, 0.1, starts(FlagSYN, 100, 0)),
		flow(podOut, server, 2, 0.2, starts(FlagSYN|FlagACK, 500, 101)),
	}
	again := []Sample{
		flow(podIn, client, 1, 0.5, starts(FlagSYN, 200, 0)),
		flow(podOut, server, 1, 0.6, starts(FlagSYN|FlagACK, 600, 201)),
	}
	fins := []Sample{flow(podIn, client, 1, 0.3, flags(FlagFIN)), flow(podOut, server, 1, 0.4, flags(FlagFIN))}
	alone := func(samples []Sample) uint64 {
		k := newKernel(t, TableOptions{})
		k.drain(1, samples...)
		return k.one(k.close(2)).ConnectionID
	}
	k := newKernel(t, TableOptions{})
	r := k.one(k.drain(1, slices.Concat(first, again, fins)...))
	if r.ConnectionID != alone(first) || r.EndReason != EndOfFlow || r.Packets+r.ReversePackets != 7 {
		t.Errorf("first: got connection %x, %v, %d packets, want %x, end_of_flow, 7", r.ConnectionID, r.EndReason, r.Packets+r.ReversePackets, alone(first))
	}
	table := NewTable(TableOptions{})
	table.Fold(Batch{At: second(1), Flows: slices.Concat(first, again)})
	if w := table.Close(second(1)); len(w.Records) != 1 || w.Records[0].Packets+w.Records[0].ReversePackets != 7 {
		t.Errorf("closed within a drain: got %+v, want one record of 7 packets", w.Records)
	}
	k.drain(2, flow(podIn, client, 4, 1.5))
	if r := k.one(k.close(3)); r.ConnectionID != alone(again) || r.Packets != 5 || r.ReversePackets != 1 {
		t.Errorf("second: got connection %x, %d and %d packets, want %x, 5 and 1", r.ConnectionID, r.Packets, r.ReversePackets, alone(again))
	}
}

func TestARecordSpansItsPackets(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	k := newKernel(t, TableOptions{})
	k.drain(1, flow(podIn, x, 1, 0.5, until(0.6)), flow(podIn, x, 1, 0.3, until(0.8)), flow(podIn, x, 1, 0.4, until(0.7)))
	if r := k.one(k.close(2)); !r.Start.Equal(second(0.3)) || !r.End.Equal(second(0.8)) {
		t.Errorf("got %v to %v, want %v to %v", r.Start, r.End, second(0.3), second(0.8))
	}
	k.drain(3, flow(podIn, x, 1, 2.505, until(2.5)))
	if r := k.one(k.close(4)); r.End.Before(r.Start) {
		t.Errorf("last packet by the tick before the first: got %v to %v", r.Start, r.End)
	}
}

func TestDSCPIsOfTheSourcesFirstPacket(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	k := newKernel(t, TableOptions{ActiveTimeout: time.Second})
	k.drain(0)
	first := k.one(k.drain(1, flow(podIn, x, 1, 0.5, dscp(46))))
	later := k.one(k.drain(2, flow(podIn, x, 1, 1.5, dscp(10))))
	if first.DSCP != 46 || later.DSCP != 46 {
		t.Errorf("marked, and differently later: got %d and %d, want 46 and 46", first.DSCP, later.DSCP)
	}
	k = newKernel(t, TableOptions{})
	k.drain(1, flow(podIn, x, 1, 0.5), flow(eth0Out, x, 1, 0.6, dscp(8)))
	if r := k.one(k.close(2)); r.DSCP != 0 {
		t.Errorf("marked on the way: got %d, want 0", r.DSCP)
	}
}
