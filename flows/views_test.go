// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// tracking is what connection tracking would say, each for ever.
type tracking []Translation

func (all *tracking) Translation(_ Scope, k Key, _, _ int64, _ bool) (Translation, bool) {
	for _, t := range *all {
		for _, as := range t.keys() {
			if as.Src.IsValid() && (as == k || as.Reverse() == k) {
				return t, true
			}
		}
	}
	return Translation{}, false
}

func (*tracking) Late(int64) bool { return false }

const (
	aClient, aNode, aService, aBackend = "10.9.0.5:40000", "10.1.0.1:1024", "10.96.0.1:80", "10.0.0.7:8080"
)

// serviced is a connection to a Service, and to the port of a node, of a protocol.
func serviced(proto uint8) Translation {
	return Translation{Opened: endpoints(proto, aClient, aService), Sent: endpoints(proto, aClient, aBackend)}
}

func nodePorted(proto uint8) Translation {
	return Translation{Opened: endpoints(proto, aClient, aService), Sent: endpoints(proto, aNode, aBackend)}
}

// hopsOf is a record's path in words.
func hopsOf(r Record) (all []string) {
	for _, h := range r.Hops {
		way := ">"
		if h.Reverse {
			way = "<"
		}
		if h.Chosen {
			way += "*"
		}
		all = append(all, fmt.Sprintf("%d%s%s %d", h.At.Ifindex, way, h.NAT, h.Packets))
	}
	return all
}

func TestViewsOfATranslatedConnectionAreOneRecord(t *testing.T) {
	const syn, ack = FlagSYN, FlagSYN | FlagACK
	k := newKernel(t, TableOptions{Translations: &tracking{nodePorted(ProtoTCP)}})
	to := nodePorted(ProtoTCP)
	between := tcp(aClient, aBackend)
	k.drain(1,
		// The samples of a drain come in any order.
		flow(eth0Out, to.Sent, 3, 0.5003, starts(syn, 100, 0)),
		flow(eth0In, to.Sent.Reverse(), 4, 0.501, starts(ack, 700, 101)),
		flow(podIn, to.Opened, 4, 0.5001, starts(syn, 100, 0), dscp(9)), // one was lost on the way
		flow(podOut, to.Opened.Reverse(), 4, 0.5014, starts(ack, 700, 101)),
		flow(bridge, between, 4, 0.5002, starts(syn, 100, 0)),
	)
	r := k.one(k.drain(20))
	if want := tcp(aClient, aBackend); r.Key != want {
		t.Errorf("key: got %s, want %s", r.Key, want)
	}
	if want := (NAT{netip.MustParseAddrPort(aNode), netip.MustParseAddrPort(aService), NATTracked}); r.NAT == nil || *r.NAT != want {
		t.Errorf("NAT: got %+v, want %+v", r.NAT, want)
	}
	if r.Packets != 4 || r.ReversePackets != 4 || r.Initiator != InitiatorSYN || r.DSCP != 9 || r.ConnectionID == 0 {
		t.Errorf("got %d and %d packets, initiator %s, DSCP %d, connection %x; want 4 and 4, syn, 9, not 0", r.Packets, r.ReversePackets, r.Initiator, r.DSCP, r.ConnectionID)
	}
	if got, want := hopsOf(r), []string{"8>*before 4", "3>between 4", "2>after 3", "2<*after 4", "8<before 4"}; !slices.Equal(got, want) {
		t.Errorf("hops: got %q, want %q", got, want)
	}
}

// whenOpened notes what it is asked: by the first of its packets' times, whether the
// connection was opened among them.
type whenOpened map[int64]bool

func (w whenOpened) Translation(_ Scope, _ Key, first, _ int64, opens bool) (Translation, bool) {
	w[first] = opens
	return Translation{}, false
}

func (whenOpened) Late(int64) bool { return false }

func TestOnlyTheFirstRecordsPacketsOpenAConnection(t *testing.T) {
	asked := whenOpened{}
	k := newKernel(t, TableOptions{Translations: asked})
	to := tcp(aClient, aService)
	syn := flow(podIn, to, 3, 0.5, starts(FlagSYN, 100, 0))
	k.drain(1, syn)
	k.drain(20)
	later := flow(podIn, to, 3, 20.5)
	k.drain(21, later)
	k.drain(40)
	if want := (whenOpened{syn.First: true, later.First: false}); !maps.Equal(asked, want) {
		t.Errorf("got %v, want %v", asked, want)
	}
}

// A node sends a Service's connection to the port of another one, and that one to the server: each has
// replaced the source as well. All five views are one connection's.
func TestTranslationsInARowAreOneRecord(t *testing.T) {
	const syn, ack = FlagSYN, FlagSYN | FlagACK
	const first, port, last = "10.1.0.1:1024", "10.1.0.2:30080", "10.2.0.2:5000"
	for _, c := range []struct {
		name    string
		to      Translation
		between []Key // beside Via
		by      NATBasis
	}{
		{"both replaced twice", Translation{Opened: tcp(aClient, aService), Via: tcp(first, port), Sent: tcp(last, aBackend)}, []Key{tcp(aClient, port), tcp(first, aBackend)}, NATTracked},
		{"destinations", Translation{Opened: tcp(aClient, aService), Via: tcp(aClient, port), Sent: tcp(aClient, aBackend)}, nil, NATTracked},
		{"by their numbers", Translation{Opened: tcp(aClient, aService), Via: tcp(first, port), Sent: tcp(last, aBackend)}, nil, NATConnection},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := TableOptions{}
			if c.by == NATTracked {
				o.Translations = &tracking{c.to}
			}
			k := newKernel(t, o)
			samples := []Sample{
				flow(eth0Out, c.to.Sent, 4, 0.5004, starts(syn, 100, 0)), flow(eth0In, c.to.Sent.Reverse(), 3, 0.601, starts(ack, 700, 101)),
				flow(bridge, c.to.Via, 4, 0.5002, starts(syn, 100, 0)), flow(bridge, c.to.Via.Reverse(), 3, 0.602, starts(ack, 700, 101)),
				flow(podIn, c.to.Opened, 4, 0.5001, starts(syn, 100, 0)), flow(podOut, c.to.Opened.Reverse(), 3, 0.603, starts(ack, 700, 101)),
			}
			for i, b := range c.between {
				samples = append(samples, flow(bridge, b, 4, 0.50015+0.00015*float64(i), starts(syn, 100, 0)))
			}
			watch := NewWatch(k.table)
			for i, b := range []Batch{{At: second(0.1), Final: true}, {At: second(1), Final: true, Flows: samples}} {
				k.drain([]float64{0.1, 1}[i], b.Flows...)
				if a, _ := watch.Add(&b); i == 1 && (len(a.Live) != 1 || a.Live[0].Packets != 4 || a.Live[0].ReversePackets != 3) {
					t.Errorf("now: got %+v, want one conversation of 4 and 3 packets", a.Live)
				}
			}
			r := k.one(k.drain(20))
			if want := *c.to.nat(c.by); r.Key != tcp(aClient, aBackend) || r.NAT == nil || *r.NAT != want || r.Packets != 4 || r.ReversePackets != 3 || len(r.Hops) != len(samples) {
				t.Errorf("got %s with %+v, %d and %d packets at %q; want %s, %+v, 4 and 3 at %d hops", r.Key, r.NAT, r.Packets, r.ReversePackets, hopsOf(r), tcp(aClient, aBackend), want, len(samples))
			}
			if got := hopsOf(r); got[0] != "8>*before 4" || got[1] != "3>between 4" || got[len(got)-1] != "8<before 3" || got[len(got)-2] != "3<between 3" || got[len(got)-3] != "2<*after 3" {
				t.Errorf("got the path %q, want from before to after and back", got)
			}
		})
	}
}

// Datagrams have no ConnectionID, and masquerading changes the source alone.
func TestDatagramsAreJoinedByConnectionTracking(t *testing.T) {
	for _, c := range []struct {
		name string
		to   Translation
		want NAT
	}{
		{"Service", serviced(ProtoUDP), NAT{Destination: netip.MustParseAddrPort(aService), Basis: NATTracked}},
		{"masqueraded", Translation{Opened: udp(aClient, aBackend), Sent: udp(aNode, aBackend)}, NAT{Source: netip.MustParseAddrPort(aNode), Basis: NATTracked}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(t, TableOptions{Translations: &tracking{c.to}})
			k.drain(1, flow(podIn, c.to.Opened, 5, 0.5), flow(eth0Out, c.to.Sent, 5, 0.5001),
				flow(eth0In, c.to.Sent.Reverse(), 2, 0.6), flow(podOut, c.to.Opened.Reverse(), 2, 0.6001))
			r := k.one(k.drain(20))
			if r.Key != udp(aClient, aBackend) || r.NAT == nil || *r.NAT != c.want || r.Packets != 5 || r.ReversePackets != 2 || r.Initiator != InitiatorTracked {
				t.Errorf("got %s, %+v, %d and %d packets by %s", r.Key, r.NAT, r.Packets, r.ReversePackets, r.Initiator)
			}
		})
	}
}

// What is told later than the packets were read is in time for their record.
func TestTranslationMayBeKnownAfterThePackets(t *testing.T) {
	known := &tracking{}
	k := newKernel(t, TableOptions{Translations: known})
	to := serviced(ProtoUDP)
	k.drain(1, flow(podIn, to.Opened, 1, 0.5), flow(eth0Out, to.Sent, 1, 0.5001))
	k.drain(2, flow(podIn, to.Opened, 1, 1.5), flow(eth0Out, to.Sent, 1, 1.5001))
	*known = tracking{to}
	if r := k.one(k.drain(20)); r.Packets != 2 || len(r.Hops) != 2 {
		t.Errorf("got %d packets at %q, want 2 at two hops", r.Packets, hopsOf(r))
	}
}

// A drain may come between the views of the last packets.
func TestAViewWaitsForTheOthersOfItsConnection(t *testing.T) {
	to := serviced(ProtoTCP)
	for _, c := range []struct {
		name  string
		flags uint8
		end   EndReason
		at    float64 // when the first view would have ended
	}{{"finished", FlagFIN | FlagACK, EndOfFlow, 3}, {"silent", FlagACK, EndIdleTimeout, 16}} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(t, TableOptions{Translations: &tracking{to}})
			k.drain(1, flow(podIn, to.Opened, 3, 0.5, flags(c.flags)), flow(podOut, to.Opened.Reverse(), 3, 0.6, flags(c.flags)),
				flow(eth0Out, to.Sent, 2, 0.5001, flags(FlagACK)), flow(eth0In, to.Sent.Reverse(), 3, 0.5999, flags(c.flags)))
			late := 1.0
			if c.end == EndIdleTimeout {
				late = 14
			}
			k.drain(late+1, flow(eth0Out, to.Sent, 1, late, flags(c.flags)))
			if c.end == EndIdleTimeout {
				if rs := k.drain(c.at); len(rs) != 0 {
					t.Errorf("at %v s: got %d records, want none yet", c.at, len(rs))
				}
				c.at = 30
			}
			r := k.one(k.drain(c.at))
			if r.EndReason != c.end || r.Packets != 3 || len(r.Hops) != 4 {
				t.Errorf("got %s with %d packets at %q, want %s with 3 at four hops", r.EndReason, r.Packets, hopsOf(r), c.end)
			}
			if rs := k.drain(c.at + 1); len(rs) != 0 {
				t.Errorf("then: got %d records more, want none", len(rs))
			}
		})
	}
}

// A connection that lasts has one record for each period, with all its views, and every
// packet in one of them, wherever drains come between two views.
func TestPeriodsOfAllViewsAreTheSame(t *testing.T) {
	to := nodePorted(ProtoUDP)
	k := newKernel(t, TableOptions{ActiveTimeout: 4 * time.Second, IdleTimeout: 3 * time.Second, Translations: &tracking{to}})
	var rs []Record
	sent, at := uint64(0), 0.0
	for i := range 40 {
		at = float64(i)
		samples := []Sample{flow(podIn, to.Opened, 2, at-0.001)}
		if i > 0 { // the other view of what came before
			samples = append(samples, flow(eth0Out, to.Sent, 2, at-0.9))
		}
		sent += 2
		rs = append(rs, k.drain(at, samples...)...)
	}
	rs = append(rs, k.drain(at+1, flow(eth0Out, to.Sent, 2, at))...)
	rs = append(rs, k.drain(at+20)...)
	var got uint64
	for i, r := range rs {
		if len(r.Hops) != 2 || r.Key != to.ends() || r.NAT == nil {
			t.Errorf("record %d: got %s at %q, want both views", i, r.Key, hopsOf(r))
		}
		got += r.Packets
	}
	if got != sent || len(rs) < 8 || len(rs) > 11 {
		t.Errorf("got %d packets in %d records, want %d in some 10", got, len(rs), sent)
	}
}

// Where nobody tells of translations, the initial sequence numbers do, whichever of the
// addresses is lower.
func TestConnectionsAreJoinedByTheirID(t *testing.T) {
	for _, to := range []Translation{
		serviced(ProtoTCP), nodePorted(ProtoTCP),
		{Opened: tcp("10.1.0.1:4000", "10.0.0.2:80"), Sent: tcp("10.1.0.1:4000", "192.0.2.1:80")},
		{Opened: tcp("10.1.0.1:4000", "192.0.2.1:80"), Sent: tcp("203.0.113.9:61000", "192.0.2.1:80")},
	} {
		for _, swapped := range []bool{false, true} {
			k := newKernel(t, TableOptions{})
			all := []Sample{
				flow(podIn, to.Opened, 3, 0.5, starts(FlagSYN, 100, 0)), flow(eth0Out, to.Sent, 3, 0.50001, starts(FlagSYN, 100, 0)),
				flow(eth0In, to.Sent.Reverse(), 2, 0.6, starts(FlagSYN|FlagACK, 700, 101)), flow(podOut, to.Opened.Reverse(), 2, 0.60001, starts(FlagSYN|FlagACK, 700, 101)),
			}
			if swapped {
				slices.Reverse(all)
			}
			k.drain(1, all...)
			r := k.one(k.drain(20))
			if want := (Key{to.Opened.Src, to.Sent.Dst, ProtoTCP}); r.Key != want || r.NAT == nil || *r.NAT != *to.nat(NATConnection) {
				t.Errorf("%s sent as %s: got %s with %+v, want %s with %+v", to.Opened, to.Sent, r.Key, r.NAT, want, to.nat(NATConnection))
			}
			if got, want := hopsOf(r), []string{"8>*before 3", "2>after 3", "2<*after 2", "8<before 2"}; !slices.Equal(got, want) {
				t.Errorf("%s sent as %s: got %q, want %q", to.Opened, to.Sent, got, want)
			}
		}
	}
}

func TestWhatIsNotOneConnectionIsNotJoined(t *testing.T) {
	to := serviced(ProtoTCP)
	syn := func(isn uint32) []edit { return []edit{starts(FlagSYN, isn, 0)} }
	back := func(isn, peer uint32) []edit { return []edit{starts(FlagSYN|FlagACK, isn, peer+1)} }
	connection := func(k Key, p, q Point, isn uint32, at float64) []Sample {
		return []Sample{flow(p, k, 3, at, syn(isn)...), flow(q, k.Reverse(), 2, at+0.1, back(isn+50, isn)...)}
	}
	for _, c := range []struct {
		name    string
		options TableOptions
		samples []Sample
	}{
		{
			"other sequence numbers than the tracked one's", TableOptions{Translations: &tracking{to}},
			slices.Concat(connection(to.Opened, podIn, podOut, 100, 0.5), connection(to.Sent, eth0Out, eth0In, 900, 0.5001)),
		},
		{
			"equal sequence numbers, a minute apart", TableOptions{ActiveTimeout: time.Hour, IdleTimeout: time.Hour},
			slices.Concat(connection(to.Opened, podIn, podOut, 100, 0.5), connection(tcp("10.2.0.1:77", "10.2.0.2:80"), eth0Out, eth0In, 100, 60.5)),
		},
		{
			"equal sequence numbers, that go the same way through one device", TableOptions{},
			slices.Concat(connection(to.Opened, podIn, podOut, 100, 0.5), connection(tcp("10.9.0.5:40001", "203.0.113.66:443"), podIn, podOut, 100, 0.51)),
		},
		{
			"numbers copied from others, whose answer was seen before", TableOptions{},
			slices.Concat(connection(to.Opened, podIn, podOut, 100, 0.5), connection(tcp("10.9.0.66:66", "10.9.0.67:67"), eth0Out, eth0In, 100, 0.51)),
		},
		{
			"numbers of one's own, and more traffic behind than before", TableOptions{},
			[]Sample{
				flow(podIn, to.Opened, 3, 0.5, starts(FlagSYN, 100, 0)), flow(podOut, to.Opened.Reverse(), 2, 0.7, back(150, 100)...),
				flow(eth0Out, tcp("10.9.0.66:66", "10.9.0.67:67"), 100_000, 0.51, syn(100)...), flow(eth0In, tcp("10.9.0.67:67", "10.9.0.66:66"), 2, 0.6, back(150, 100)...),
			},
		},
		{
			"numbers of one's own, and more answers before than behind", TableOptions{},
			[]Sample{
				flow(podIn, to.Opened, 3, 0.5, starts(FlagSYN, 100, 0)), flow(podOut, to.Opened.Reverse(), 100_000, 0.7, back(150, 100)...),
				flow(eth0Out, tcp("10.9.0.66:66", "10.9.0.67:67"), 3, 0.51, syn(100)...), flow(eth0In, tcp("10.9.0.67:67", "10.9.0.66:66"), 2, 0.6, back(150, 100)...),
			},
		},
		{
			"asked to be kept apart", TableOptions{Translations: &tracking{to}, Apart: true},
			slices.Concat(connection(to.Opened, podIn, podOut, 100, 0.5), connection(to.Sent, eth0Out, eth0In, 100, 0.5001)),
		},
		{
			"whom a SYN shows as opened from the other end", TableOptions{Translations: &tracking{to}},
			slices.Concat(connection(to.Opened.Reverse(), podOut, podIn, 100, 0.5), connection(to.Sent.Reverse(), eth0In, eth0Out, 900, 0.5001)),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(t, c.options)
			rs := append(k.drain(61, c.samples...), k.close(62)...)
			if len(rs) != 2 || len(rs[0].Hops) != 2 || len(rs[1].Hops) != 2 {
				t.Errorf("got %+v, want two records of two hops", rs)
			}
		})
	}
}

// The next connection with the same ports goes to another backend: the first one's
// record is whole, and the second one's.
func TestPortsUsedAgainForAnotherBackend(t *testing.T) {
	first, second := serviced(ProtoTCP), serviced(ProtoTCP)
	second.Sent.Dst = netip.MustParseAddrPort("10.0.0.8:8080")
	k := newKernel(t, TableOptions{}) // by their numbers alone
	connection := func(to Translation, isn uint32, at float64) []Sample {
		const fin = FlagFIN | FlagACK
		return []Sample{
			flow(podIn, to.Opened, 3, at, starts(FlagSYN, isn, 0), flags(fin)), flow(eth0Out, to.Sent, 3, at+0.001, starts(FlagSYN, isn, 0), flags(fin)),
			flow(eth0In, to.Sent.Reverse(), 2, at+0.002, starts(FlagSYN|FlagACK, isn+9, isn+1), flags(fin)), flow(podOut, to.Opened.Reverse(), 2, at+0.003, starts(FlagSYN|FlagACK, isn+9, isn+1), flags(fin)),
		}
	}
	rs := k.drain(1, connection(first, 100, 0.5)...)
	rs = append(rs, k.drain(2, connection(second, 5000, 1.5)...)...)
	rs = append(rs, k.drain(3)...)
	if len(rs) != 2 {
		t.Fatalf("got %d records, want 2: %+v", len(rs), rs)
	}
	for i, to := range []Translation{first, second} {
		if r := rs[i]; r.Key.Dst != to.Sent.Dst || r.Packets != 3 || r.ReversePackets != 2 || len(r.Hops) != 4 {
			t.Errorf("connection %d: got %s with %d and %d packets at %q", i, r.Key, r.Packets, r.ReversePackets, hopsOf(r))
		}
	}
}

// A socket that opened a connection to a Service, and a packet dropped on its way to
// it, have addresses that no device saw.
func TestSocketsAndDropsMeetTheirConnectionByAnyAddress(t *testing.T) {
	to := nodePorted(ProtoTCP)
	table := NewTable(TableOptions{Translations: &tracking{to}})
	at := second(1)
	ns := func(s time.Time) int64 { return s.UnixNano() }
	table.Fold(Batch{At: at, Final: true,
		Flows: []Sample{flow(eth0Out, to.Sent, 3, 0.5), flow(eth0In, to.Sent.Reverse(), 3, 0.6)},
		Drops: []DropSample{{Key: tcp(aClient, aBackend), At: Point{Netns: 1}, Reason: "NETFILTER_DROP", Class: DropLoss, Packets: 2, First: ns(at), Last: ns(at)}},
		Sockets: []SocketSample{
			{Key: to.Opened, Netns: 1, Process: Process{PID: 11}, SocketFigures: SocketFigures{Retransmits: 4}, Events: 1},
			{Key: to.Sent.Reverse(), Netns: 1, Process: Process{PID: 22}, Events: 1},
		}})
	w := table.Close(second(2))
	if len(w.Records) != 1 || w.Ledger.SocketsUnmatched != 0 {
		t.Fatalf("got %d records, %d events unmatched, want 1 and 0", len(w.Records), w.Ledger.SocketsUnmatched)
	}
	r := w.Records[0]
	if r.SourceProcess == nil || r.SourceProcess.PID != 11 || r.DestinationProcess == nil || r.DestinationProcess.PID != 22 || r.SourceSocket.Retransmits != 4 {
		t.Errorf("sockets: got %+v and %+v, want 11 with 4 sent again and 22", r.SourceProcess, r.DestinationProcess)
	}
	if r.Dropped != 2 || r.DropReason != "NETFILTER_DROP" {
		t.Errorf("drops: got %d, %s, want 2, NETFILTER_DROP", r.Dropped, r.DropReason)
	}
	if got, want := r.SocketKey(true), to.Opened; got != want {
		t.Errorf("the source's socket: got %s, want %s", got, want)
	}
	if got, want := r.SocketKey(false), to.Sent.Reverse(); got != want {
		t.Errorf("the destination's socket: got %s, want %s", got, want)
	}
}

// A connection that is redirected to a loopback address is seen by no device of the domain.
func TestSocketsMeetWhatIsRedirectedToALoopbackAddress(t *testing.T) {
	to := Translation{Opened: tcp("10.9.0.5:40000", "192.0.2.1:80"), Sent: tcp("10.9.0.5:40000", "127.0.0.1:15001")}
	lo := func(hook Hook) Point { return Point{Netns: 5, Ifindex: 1, Hook: hook} }
	table := NewTable(TableOptions{Translations: &tracking{to}})
	table.Fold(Batch{At: second(1), Final: true,
		Flows: []Sample{flow(lo(HookEgress), to.Sent, 3, 0.5), flow(lo(HookIngress), to.Sent, 3, 0.5001), flow(lo(HookEgress), to.Sent.Reverse(), 2, 0.6)},
		Sockets: []SocketSample{
			{Key: to.Opened, Netns: 5, Domain: 2, Process: Process{PID: 11}, SocketFigures: SocketFigures{Retransmits: 4}, Events: 1},
			{Key: to.Sent.Reverse(), Netns: 5, Domain: 2, Process: Process{PID: 22}, Events: 1},
		}})
	w := table.Close(second(2))
	if len(w.Records) != 1 || w.Ledger.SocketsUnmatched != 0 {
		t.Fatalf("got %d records, %d events unmatched, want 1 and 0", len(w.Records), w.Ledger.SocketsUnmatched)
	}
	r := w.Records[0]
	if r.NAT == nil || r.NAT.Destination != to.Opened.Dst || r.SourceProcess == nil || r.SourceProcess.PID != 11 || r.DestinationProcess == nil || r.DestinationProcess.PID != 22 {
		t.Errorf("got %+v, %+v to %+v; want 192.0.2.1:80, 11 and 22", r.NAT, r.SourceProcess, r.DestinationProcess)
	}
}

// What was dropped in several views is told once, with the reason of most of it.
func TestDropsOfAllViewsAddUp(t *testing.T) {
	to := nodePorted(ProtoTCP)
	table := NewTable(TableOptions{Translations: &tracking{to}})
	drop := func(k Key, reason string, n uint64) DropSample {
		return DropSample{Key: k, At: Point{Netns: 1}, Reason: reason, Class: DropLoss, Packets: n, First: 1, Last: 2}
	}
	table.Fold(Batch{At: second(1), Final: true,
		Flows: []Sample{flow(podIn, to.Opened, 30, 0.5, dscp(9)), flow(bridge, tcp(aClient, aBackend), 30, 0.5001, dscp(9)), flow(eth0Out, to.Sent, 30, 0.5002, dscp(8))},
		Drops: []DropSample{drop(to.Opened, "A", 3), drop(tcp(aClient, aBackend), "B", 2), drop(to.Sent.Reverse(), "B", 2), drop(to.Sent, "C", 1)}})
	w := table.Close(second(2))
	if len(w.Records) != 1 {
		t.Fatalf("got %d records, want 1", len(w.Records))
	}
	if r := w.Records[0]; r.Dropped != 8 || r.DropReason != "B" || r.DSCP != 9 {
		t.Errorf("got %d dropped, most for %q, DSCP %d; want 8, B, 9", r.Dropped, r.DropReason, r.DSCP)
	}
}

// A view that is silent while its connection goes on keeps nothing back: what is dropped
// and what sockets tell by its addresses is in the record of the view that is not.
func TestASilentViewKeepsNothingBack(t *testing.T) {
	to := serviced(ProtoTCP)
	const syn, ack = FlagSYN, FlagSYN | FlagACK
	for _, by := range []Key{to.Opened, to.Sent, to.Opened.Reverse()} {
		table := NewTable(TableOptions{Translations: &tracking{to}})
		open := []Sample{
			flow(podIn, to.Opened, 3, 0.5, starts(syn, 100, 0)), flow(eth0Out, to.Sent, 3, 0.5001, starts(syn, 100, 0)),
			flow(eth0In, to.Sent.Reverse(), 2, 0.6, starts(ack, 700, 101)), flow(podOut, to.Opened.Reverse(), 2, 0.6001, starts(ack, 700, 101)),
		}
		table.Fold(Batch{At: second(1), Final: true, Flows: open})
		if w, _ := table.Fold(Batch{At: second(30), Final: true}); len(w.Records) != 1 {
			t.Fatalf("got %d records, want 1", len(w.Records))
		}
		table.Fold(Batch{At: second(31), Final: true, Flows: []Sample{flow(eth0Out, to.Sent, 4, 30.5)},
			Drops:   []DropSample{{Key: by, At: Point{Netns: 1}, Reason: "A", Class: DropLoss, Packets: 3, First: 1, Last: 2}},
			Sockets: []SocketSample{{Key: to.Opened, Netns: 1, Process: Process{PID: 11}, SocketFigures: SocketFigures{Retransmits: 4}, Events: 1}}})
		w := table.Close(second(32))
		if len(w.Records) != 1 {
			t.Fatalf("then: got %d records, want 1", len(w.Records))
		}
		r := w.Records[0]
		if r.Dropped != 3 || r.SourceSocket == nil || r.SourceSocket.Retransmits != 4 || w.Ledger.SocketsUnmatched != 0 {
			t.Errorf("dropped as %s: got %d, socket %+v, %d unmatched; want 3, 4 sent again, 0", by, r.Dropped, r.SourceSocket, w.Ledger.SocketsUnmatched)
		}
	}
}

// What is dropped of a connection that is silent until it is forgotten takes no room then.
func TestDropsOfWhatIsForgottenTakeNoRoom(t *testing.T) {
	table, k := NewTable(TableOptions{}), serviced(ProtoTCP).Sent
	table.Fold(Batch{At: second(1), Final: true, Flows: []Sample{flow(podIn, k, 3, 0.5, starts(FlagSYN, 100, 0)), flow(podOut, k.Reverse(), 2, 0.6, starts(FlagSYN|FlagACK, 700, 101))}})
	table.Fold(Batch{At: second(30), Final: true})
	table.Fold(Batch{At: second(31), Final: true, Drops: []DropSample{{Key: k, At: Point{Netns: 1}, Reason: "A", Class: DropLoss, Packets: 3, First: 1, Last: 2}}})
	if n := table.troubles.taken(); n != 1 {
		t.Fatalf("drops held of %d conversations, want 1", n)
	}
	table.Fold(Batch{At: second(3000), Final: true})
	if n, c := table.troubles.taken(), table.Conversations(); n != 0 || c != 0 {
		t.Errorf("drops held of %d conversations, of which there are %d; want 0 and 0", n, c)
	}
}

// What goes on now is joined as records are, and its drops are its own.
func TestRankingsHaveATranslatedConnectionOnce(t *testing.T) {
	to := serviced(ProtoUDP)
	table := NewTable(TableOptions{Translations: &tracking{to}})
	table.Fold(Batch{At: second(0), Final: true})
	watch, top := NewWatch(table), NewTop(ByFlow, nil)
	for s := 1.0; s < 3; s++ {
		b := Batch{At: second(s), Final: true, Flows: []Sample{
			flow(eth0Out, to.Sent, 5, s-0.499), flow(podIn, to.Opened, 5, s-0.5),
			flow(podOut, to.Opened.Reverse(), 2, s-0.3), flow(eth0In, to.Sent.Reverse(), 3, s-0.301),
		}, Drops: []DropSample{{Key: to.Opened.Reverse(), At: Point{Netns: 1}, Reason: "NETFILTER_DROP", Class: DropLoss, Packets: 1}}}
		table.Fold(b)
		if a, done := watch.Add(&b); done {
			top.Add(&a)
			if s > 1 && (len(a.Live) != 1 || !slices.Equal(hopsOf(a.Live[0].Record), []string{"8>*before 5", "2>after 5", "2<*after 3", "8<before 2"})) {
				t.Errorf("got %+v, want one conversation of four hops", a.Live)
			}
		}
	}
	r := top.Take("bytes", 10)
	want := Traffic{Packets: 5, Bytes: 500, ReversePackets: 3, ReverseBytes: 300, Drops: 1}
	if len(r.Rows) != 1 || r.Rows[0].Key != udp(aClient, aBackend) || r.Rows[0].Traffic != want {
		t.Errorf("got %+v, want one row %+v", r.Rows, want)
	}
}

// Connection tracking may be behind: what has other sequence numbers is another connection.
func TestRankingsKeepConnectionsOfOtherNumbersApart(t *testing.T) {
	to := serviced(ProtoTCP)
	for other, want := range map[uint32]int{100: 1, 900: 2} {
		table := NewTable(TableOptions{Translations: &tracking{to}})
		watch := NewWatch(table)
		empty, b := Batch{At: second(0), Final: true}, Batch{At: second(1), Final: true, Flows: []Sample{
			flow(podIn, to.Opened, 3, 0.5, starts(FlagSYN, 100, 0)), flow(podOut, to.Opened.Reverse(), 2, 0.7, starts(FlagSYN|FlagACK, 700, 101)),
			flow(eth0Out, to.Sent, 3, 0.5001, starts(FlagSYN, other, 0)), flow(eth0In, to.Sent.Reverse(), 2, 0.6, starts(FlagSYN|FlagACK, 700, other+1)),
		}}
		table.Fold(empty)
		watch.Add(&empty)
		table.Fold(b)
		a, _ := watch.Add(&b)
		if len(a.Live) != want || (a.Live[0].NAT != nil) != (want == 1) {
			t.Errorf("behind the translation number %d, before it 100: got %d conversations, %+v, want %d", other, len(a.Live), a.Live, want)
		}
	}
}

func TestFiltersMeetBothAddressesOfAnEnd(t *testing.T) {
	to := nodePorted(ProtoTCP)
	r := &Record{Key: to.ends(), NAT: to.nat(NATTracked)}
	for text, want := range map[string]bool{
		"ip=10.96.0.1": true, "to-ip=10.96.0.1": true, "from-ip=10.96.0.1": false, "to-ip=10.0.0.7": true, "from-ip=10.9.0.5": true,
		"from-ip=10.1.0.0/16": true, "to-ip=10.1.0.1": false, "to-port=80": true, "to-port=8080": true, "from-port=1024": true, "to-port=0": false, "port=443": false,
	} {
		f, err := ParseFilter(terms(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(r); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}
