// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var topStart = time.Unix(1_700_000_000, 0)

// topPoint is a device's hook in namespace 1.
func topPoint(ifindex uint32, hook Hook) Point { return Point{Netns: 1, Ifindex: ifindex, Hook: hook} }

// topSample is what a point saw of n packets of 100 bytes, ms after the start.
func topSample(k Key, at Point, n uint64, ms int64) Sample {
	first := topStart.Add(time.Duration(ms) * time.Millisecond).UnixNano()
	return Sample{Key: k, At: at, Packets: n, Bytes: 100 * n, First: first, Last: first, New: true}
}

func topTCP(src, dst string) Key {
	return Key{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), Proto: ProtoTCP}
}

// drains folds batches a second apart and returns the activity of each but the
// first, which is empty.
func drains(t *testing.T, batches ...Batch) []Activity {
	t.Helper()
	table := NewTable(TableOptions{})
	w := NewWatch(table)
	var all []Activity
	for i, b := range append([]Batch{{}}, batches...) {
		b.At, b.Final = topStart.Add(time.Duration(i)*time.Second), true
		table.Fold(b)
		a, done := w.Add(&b)
		if !done {
			t.Fatalf("drain %d: got no activity, want one", i)
		}
		if i > 0 {
			all = append(all, a)
		} else if len(a.Live) > 0 || !a.Start.Equal(a.End) {
			t.Fatalf("first drain: got %+v, want an empty activity", a)
		}
	}
	return all
}

func TestActivityCountsAPacketOnceAndOnlyNow(t *testing.T) {
	k := topTCP("10.0.0.1:40000", "10.0.0.2:80")
	in, out := topPoint(2, HookIngress), topPoint(3, HookEgress)
	first := Batch{Flows: []Sample{
		topSample(k, out, 10, 1), topSample(k, in, 4, 0), topSample(k, in, 6, 0), // two CPUs
		topSample(k.Reverse(), topPoint(3, HookIngress), 5, 2), topSample(k.Reverse(), topPoint(2, HookEgress), 5, 3),
	}}
	second := Batch{Flows: []Sample{topSample(k, in, 1, 1000), topSample(k, out, 1, 1000)}}
	all := drains(t, first, second)
	a, b := all[0].Live, all[1].Live
	if len(a) != 1 || a[0].Key != k || a[0].Packets != 10 || a[0].Bytes != 1000 || a[0].ReversePackets != 5 || !a[0].New || len(a[0].Hops) != 4 {
		t.Errorf("first second: got %+v, want one new conversation of 10 and 5 packets over 4 hops", a)
	}
	if len(b) != 1 || b[0].Packets != 1 || b[0].ReversePackets != 0 || b[0].New {
		t.Errorf("second second: got %+v, want 1 more packet of a known conversation", b)
	}
}

func TestActivityTellsTheInitiatorOfTheTable(t *testing.T) {
	k := topTCP("10.0.0.2:80", "10.0.0.1:40000") // the SYN-ACK is seen first
	s := topSample(k, topPoint(2, HookIngress), 1, 0)
	s.FirstFlags, s.TCPFlags, s.SeqNumber, s.AckNumber = FlagSYN|FlagACK, FlagSYN|FlagACK, 7, 9
	a := drains(t, Batch{Flows: []Sample{s}})[0].Live[0]
	if a.Key != k.Reverse() || a.Initiator != InitiatorSYN || a.ReversePackets != 1 || a.Packets != 0 {
		t.Errorf("got %+v, want it from the client, with a packet back", a)
	}
}

func TestActivityOfPointsIsWhatTheyGained(t *testing.T) {
	at := func(n uint64) Batch {
		return Batch{Seen: Account{Points: []PointAccount{{At: topPoint(2, HookIngress), Hop: Hop{Interface: "eth0"}, Before: Count{n, 100 * n}}}}}
	}
	all := drains(t, at(10), at(17))
	if got := all[1].Points; len(got) != 1 || got[0].Before != (Count{7, 700}) {
		t.Errorf("got %+v, want 7 packets gained", got)
	}
}

func TestWatchIsBounded(t *testing.T) {
	flood := make([]Sample, maxLive+500)
	for i := range flood {
		k := Key{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1), Dst: netip.MustParseAddrPort("192.0.2.1:9"), Proto: ProtoUDP}
		flood[i] = topSample(k, topPoint(2, HookIngress), 1, 0)
	}
	a := drains(t, Batch{Flows: flood})[0]
	if len(a.Live) != maxLive || a.Over != 500 {
		t.Errorf("got %d conversations and %d over, want %d and 500", len(a.Live), a.Over, maxLive)
	}
}

// busy is two clients of one web server, one of them with trouble, a question to
// a name server, and drops.
func busy(t *testing.T) []Activity {
	web1, web2 := topTCP("10.0.0.1:40000", "192.0.2.1:443"), topTCP("10.0.0.2:40000", "192.0.2.1:443")
	dns := Key{Src: netip.MustParseAddrPort("10.0.0.1:5000"), Dst: netip.MustParseAddrPort("192.0.2.53:53"), Proto: ProtoUDP}
	eth0, back := topPoint(2, HookIngress), topPoint(2, HookEgress)
	slow := topSample(web2.Reverse(), back, 50, 1)
	slow.TCP = TCPHealth{Retransmits: 3, RTT: RTT{Count: 1, Sum: 30 * time.Millisecond}}
	return drains(t, Batch{
		Flows: []Sample{
			topSample(web1, eth0, 10, 0), topSample(web1.Reverse(), back, 100, 1),
			topSample(web2, eth0, 5, 0), slow, topSample(dns, eth0, 1, 0), topSample(dns.Reverse(), back, 1, 1),
		},
		Drops: []DropSample{
			{Key: web2, At: Point{Netns: 1, Ifindex: 2}, Reason: "NO_SOCKET", Class: DropLoss, Packets: 4, Bytes: 400},
			{Key: dns, At: Point{Netns: 1, Ifindex: 2}, Reason: "OTHERHOST", Class: DropNoise, Packets: 9, Bytes: 900},
		},
		Seen: Account{Points: []PointAccount{
			{At: eth0, Hop: Hop{Interface: "eth0"}, Before: Count{16, 1600}}, {At: back, Hop: Hop{Interface: "eth0"}, Before: Count{151, 15100}},
		}},
	}, Batch{Seen: Account{Points: []PointAccount{
		{At: eth0, Hop: Hop{Interface: "eth0"}, Before: Count{16, 1600}}, {At: back, Hop: Hop{Interface: "eth0"}, Before: Count{151, 15100}},
	}}})
}

func TestTopRanksByEveryFigure(t *testing.T) {
	all := busy(t)
	for name, want := range map[string]string{
		"flow bytes":         "10.0.0.1:40000>192.0.2.1:443 10+100, 10.0.0.2:40000>192.0.2.1:443 5+50, 10.0.0.1:5000>192.0.2.53:53 1+1",
		"flow packets":       "10.0.0.1:40000>192.0.2.1:443 10+100, 10.0.0.2:40000>192.0.2.1:443 5+50, 10.0.0.1:5000>192.0.2.53:53 1+1",
		"flow drops":         "10.0.0.2:40000>192.0.2.1:443 5+50",
		"flow retransmits":   "10.0.0.2:40000>192.0.2.1:443 5+50",
		"flow rtt":           "10.0.0.2:40000>192.0.2.1:443 5+50",
		"endpoint bytes":     "192.0.2.1 150+15, 10.0.0.1 11+101, 10.0.0.2 5+50, 192.0.2.53 1+1",
		"endpoint flows":     "10.0.0.1 11+101, 192.0.2.1 150+15, 10.0.0.2 5+50, 192.0.2.53 1+1",
		"endpoint rtt":       "192.0.2.1 150+15",
		"server flows":       "192.0.2.1:443 15+150, 192.0.2.53:53 1+1",
		"port bytes":         "443 15+150, 53 1+1",
		"drop-reason drops":  "OTHERHOST 9+0, NO_SOCKET 4+0",
		"interface drops":    "eth0 16+151",
		"interface packets":  "eth0 16+151",
		"flow bytes, 443":    "10.0.0.1:40000>192.0.2.1:443 10+100, 10.0.0.2:40000>192.0.2.1:443 5+50",
		"server bytes, 9999": "",
	} {
		choice, port, filtered := strings.Cut(name, ", ")
		byName, orderName, _ := strings.Cut(choice, " ")
		by, order, err := ParseTop(byName, orderName)
		if err != nil {
			t.Fatal(err)
		}
		var match *Filter
		if filtered {
			if match, err = ParseFilter([]Term{{Kind: "port", Value: port}}); err != nil {
				t.Fatal(err)
			}
		}
		top := NewTop(by, match)
		if by == ByInterface {
			// Points gain against the drain before, so their first has nothing.
			all[0].Points = all[1].Points
			for i := range all[0].Points {
				all[0].Points[i].Before = []Count{{16, 1600}, {151, 15100}}[i]
			}
		}
		top.Add(&all[0])
		r := top.Take(order, 10)
		var got []string
		for _, row := range r.Rows {
			k := row.Key
			label := row.Device.Interface + row.Reason
			switch by {
			case ByFlow:
				label = k.Src.String() + ">" + k.Dst.String()
			case ByEndpoint:
				label = k.Src.Addr().String()
			case ByServer:
				label = k.Dst.String()
			case ByPort:
				label = fmt.Sprint(k.Dst.Port())
			}
			got = append(got, fmt.Sprintf("%s %d+%d", label, row.Packets, row.ReversePackets))
		}
		if text := strings.Join(got, ", "); text != want || r.Of != len(got) || r.End.Sub(r.Start) != time.Second {
			t.Errorf("%s: got %s, of %d, over %s, want %s over 1s", name, text, r.Of, r.End.Sub(r.Start), want)
		}
		if again := top.Take(order, 10); len(again.Rows) != 0 || again.Total != (Traffic{}) {
			t.Errorf("%s: taken again: got %+v, want nothing", name, again)
		}
	}
}

func TestTopTakesTheLargestAndCountsTheRest(t *testing.T) {
	top := NewTop(ByFlow, nil)
	a := Activity{Start: topStart, End: topStart.Add(time.Second), Over: 2}
	for i := range 100 {
		a.Live = append(a.Live, Live{Record: Record{Key: topTCP(fmt.Sprintf("10.0.0.%d:1", i), "192.0.2.1:2"), Packets: 1, Bytes: uint64(i + 1)}})
	}
	top.Add(&a)
	top.Add(&a)
	r := top.Take("bytes", 3)
	if len(r.Rows) != 3 || r.Of != 100 || r.Over != 4 || r.Rows[0].Bytes != 200 || r.Rows[2].Bytes != 196 || r.Total.Bytes != 2*5050 {
		t.Errorf("got %+v, want the largest 3 of 100, 4 without room, and the total of all", r)
	}
}

func TestParseTopSaysWhatThereIs(t *testing.T) {
	for _, c := range []struct{ by, order, want string }{
		{"", "", "flow bytes"}, {"drop-reason", "", "drop-reason drops"}, {"server", "flows", "server flows"},
		{"pods", "", `by "pods": want flow, endpoint, server, port, pod, workload, service, node, interface or drop-reason`},
		{"", "size", `order "size": want bytes, packets, flows, drops, retransmits or rtt`},
	} {
		by, order, err := ParseTop(c.by, c.order)
		got := strings.TrimSpace(string(by) + " " + string(order))
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q %q: got %q, want %q", c.by, c.order, got, c.want)
		}
	}
}

// What watching costs the drain, and ranking its watcher, a conversation of two points.
func BenchmarkWatch(b *testing.B) {
	const conversations = 25_000
	var batch Batch
	for i := range conversations {
		k := Key{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 40000), Dst: netip.MustParseAddrPort("192.0.2.1:443"), Proto: ProtoUDP}
		batch.Flows = append(batch.Flows, topSample(k, topPoint(2, HookIngress), 1, 0), topSample(k, topPoint(3, HookEgress), 1, 0))
	}
	batch.At, batch.Final = topStart, true
	table := NewTable(TableOptions{})
	w := NewWatch(table)
	table.Fold(batch)
	w.Add(&batch)
	a, _ := w.Add(&batch)
	each := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/conversations, "ns/conversation")
	}
	b.Run("watch", func(b *testing.B) {
		for b.Loop() {
			w.Add(&batch)
		}
		each(b)
	})
	b.Run("rank", func(b *testing.B) {
		top := NewTop(ByFlow, nil)
		for b.Loop() {
			top.Add(&a)
			top.Take("bytes", 20)
		}
		each(b)
	})
}
