// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"strings"
	"testing"
	"time"
)

// names is a Places whose devices come and go.
type names map[Point]Hop

func (n names) Hop(p Point) (Hop, bool) {
	h, ok := n[p]
	return h, ok
}

// fold folds samples as one drain at s seconds with exactly these accounts.
func fold(table *Table, s float64, accounts []PointAccount, samples ...Sample) Window {
	w, _ := table.Fold(Batch{At: second(s), Flows: samples, Final: true, Seen: Account{At: second(s), Points: accounts}})
	return w
}

// packets is n packets of 100 bytes.
func packets(n uint64) Count { return Count{n, 100 * n} }

// between is an account that was read as before and after around the drain.
func between(p Point, before, after uint64) PointAccount {
	return PointAccount{At: p, Before: packets(before), After: packets(after)}
}

func TestLedgerAllowsWhatIsBeingCountedAndNothingElse(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	for _, c := range []struct {
		what        string
		last, now   PointAccount // of two drains
		lost        uint64       // skipped by the kernel, in the second
		first, then uint64       // packets folded in them
		inTable     uint64
		unaccounted int64
	}{
		{what: "all read", last: between(podIn, 5, 5), now: between(podIn, 9, 9), first: 5, then: 4},
		{what: "some came while it was read", last: between(podIn, 5, 7), now: between(podIn, 9, 9), first: 6, then: 3},
		{what: "the newest wait for the next drain", last: between(podIn, 5, 5), now: between(podIn, 9, 9), first: 5, then: 1, inTable: 3},
		{what: "the kernel skipped some", last: between(podIn, 5, 5), now: between(podIn, 9, 9), lost: 4, first: 5},
		{what: "three of before the last drain never came", last: between(podIn, 5, 5), now: between(podIn, 9, 9), first: 2, inTable: 4, unaccounted: 3},
		{what: "two more than were seen", last: between(podIn, 5, 5), now: between(podIn, 9, 9), first: 5, then: 6, unaccounted: -2},
		{what: "skipped and folded", last: between(podIn, 5, 5), now: between(podIn, 9, 9), lost: 4, first: 5, then: 4, unaccounted: -4},
	} {
		table := NewTable(TableOptions{})
		fold(table, 1, []PointAccount{c.last}, flow(podIn, x, c.first, 0.5))
		c.now.Skipped[SkipTruncated] = packets(c.lost)
		w := fold(table, 2, []PointAccount{c.now}, flow(podIn, x, c.then, 1.5))
		p := w.Ledger.Points[0]
		if p.InTable != packets(c.inTable) || p.Unaccounted != (SignedCount{c.unaccounted, 100 * c.unaccounted}) {
			t.Errorf("%s: got in table %v, unaccounted %v, want %d and %d packets of 100 bytes", c.what, p.InTable, p.Unaccounted, c.inTable, c.unaccounted)
		}
		if w.Ledger.Balanced() != (c.unaccounted == 0) {
			t.Errorf("%s: got balanced %v (%v)", c.what, w.Ledger.Balanced(), w.Ledger.Check())
		}
	}
}

func TestBytesAloneUnbalanceTheLedger(t *testing.T) {
	table := NewTable(TableOptions{})
	a := between(podIn, 5, 5)
	a.After.Bytes -= 14
	w := fold(table, 1, []PointAccount{a}, flow(podIn, udp("10.0.0.9:40000", "10.0.0.1:53"), 5, 0.5))
	if got, want := w.Ledger.Points[0].Unaccounted, (SignedCount{0, -14}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := w.Ledger.Check(); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("got %v, want an error about bytes", err)
	}
}

func TestADetachedPointBalancesExactlyAndIsForgotten(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	for _, c := range []struct {
		what   string
		folded uint64
		un     int64
	}{
		{"exactly", 4, 0}, {"one never came", 3, 1}, {"one too many", 5, -1},
	} {
		table := NewTable(TableOptions{})
		fold(table, 1, []PointAccount{between(podIn, 5, 5), between(eth0In, 0, 0)}, flow(podIn, x, 5, 0.5))
		last := between(podIn, 9, 9)
		last.Gone = true
		w := fold(table, 2, []PointAccount{last, between(eth0In, 0, 0)}, flow(podIn, x, c.folded, 1.5))
		g := w.Ledger.Gone
		if len(w.Ledger.Points) != 1 || w.Ledger.Points[0].At != eth0In {
			t.Errorf("%s: got points %+v, want eth0In alone", c.what, w.Ledger.Points)
		}
		if g.Seen != packets(9) || g.Flows != packets(5+c.folded) || g.Open != g.Flows || g.Unaccounted.Packets != c.un {
			t.Errorf("%s: got %+v, want 9 seen, %d open, %d unaccounted", c.what, g, 5+c.folded, c.un)
		}
		if w.Ledger.Balanced() != (c.un == 0) || (w.Ledger.GoneUnbalanced == 0) != (c.un == 0) {
			t.Errorf("%s: got balanced %v, %d unbalanced", c.what, w.Ledger.Balanced(), w.Ledger.GoneUnbalanced)
		}
		w = table.Close(second(3))
		if g := w.Ledger.Gone; g.Recorded != g.Flows || g.Open != (Count{}) {
			t.Errorf("%s, closed: got recorded %v, open %v, want %v and none", c.what, g.Recorded, g.Open, g.Flows)
		}
		if n := table.points.taken(); n != 1 {
			t.Errorf("%s, closed: got %d points held, want 1", c.what, n)
		}
	}
}

func TestDifferencesOfDetachedPointsDoNotCancelOut(t *testing.T) {
	table := NewTable(TableOptions{})
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	a, b := between(podIn, 5, 5), between(podOut, 5, 5)
	a.Gone, b.Gone = true, true
	w := fold(table, 1, []PointAccount{a, b}, flow(podIn, x, 4, 0.5), flow(podOut, x, 6, 0.5))
	if w.Ledger.Gone.Unaccounted != (SignedCount{}) || w.Ledger.GoneUnbalanced != 2 || w.Ledger.Balanced() {
		t.Errorf("one too few here, one too many there: got %v in sum, %d unbalanced, balanced %v, want 0, 2, false",
			w.Ledger.Gone.Unaccounted, w.Ledger.GoneUnbalanced, w.Ledger.Balanced())
	}
}

func TestAPointMayComeBack(t *testing.T) {
	k := newKernel(t, TableOptions{})
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	k.drain(1, flow(podIn, x, 5, 0.5))
	gone := between(podIn, 5, 5)
	gone.Gone = true
	fold(k.table, 2, []PointAccount{gone})
	delete(k.seen, podIn)
	k.drain(3, flow(podIn, x, 2, 2.5))
	if r := k.one(k.close(4)); r.Packets != 5 || len(r.Hops) != 2 {
		t.Errorf("got %d packets over %d hops, want 5 of the first of 2", r.Packets, len(r.Hops))
	}
	l := k.table.points.ledger(second(4), 0)
	if l.Gone.Recorded != packets(5) || l.Points[0].Recorded != packets(2) {
		t.Errorf("recorded: got %v gone and %v live, want 5 and 2 packets", l.Gone.Recorded, l.Points[0].Recorded)
	}
}

func TestSamplesWithoutAnAccountAreCountedTooOften(t *testing.T) {
	table := NewTable(TableOptions{})
	w := fold(table, 1, nil, flow(podIn, udp("10.0.0.9:40000", "10.0.0.1:53"), 5, 0.5))
	if got := w.Ledger.Points[0].Unaccounted; got != (SignedCount{-5, -500}) {
		t.Errorf("got %v, want {-5 -500}", got)
	}
	table.Close(second(2))
	w = fold(table, 3, nil)
	if len(w.Ledger.Points) != 0 || w.Ledger.Gone.Unaccounted != (SignedCount{-5, -500}) || table.points.taken() != 0 {
		t.Errorf("closed: got %d points, gone %v, want none and {-5 -500}", len(w.Ledger.Points), w.Ledger.Gone.Unaccounted)
	}
}

func TestAnAccountWithoutSamplesIsInTheLedger(t *testing.T) {
	a := between(podIn, 0, 0)
	a.Hop, a.GSO = Hop{Interface: "veth0"}, packets(3)
	w := fold(NewTable(TableOptions{}), 1, []PointAccount{a})
	if p := w.Ledger.Points[0]; p.At != podIn || p.Hop.Interface != "veth0" || p.GSO != packets(3) || !w.Ledger.Balanced() {
		t.Errorf("got %+v, want veth0 with nothing seen", p)
	}
}

func TestAHopKeepsTheLastNameItsDeviceHad(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	places := names{podIn: {Interface: "veth0", Netns: "blue"}}
	k := newKernel(t, TableOptions{Places: places, ActiveTimeout: time.Second})
	k.drain(0)
	name := func(rs []Record) Hop { return k.one(rs).Hops[0].Hop }
	if got := name(k.drain(1, flow(podIn, x, 1, 0.5))); got != places[podIn] {
		t.Errorf("at first: got %v, want %v", got, places[podIn])
	}
	places[podIn] = Hop{Interface: "pod0", Netns: "blue"}
	if got := name(k.drain(2, flow(podIn, x, 1, 1.5))); got != places[podIn] {
		t.Errorf("renamed: got %v, want %v", got, places[podIn])
	}
	want := places[podIn]
	delete(places, podIn)
	if got := name(k.drain(3, flow(podIn, x, 1, 2.5))); got != want {
		t.Errorf("vanished: got %v, want %v", got, want)
	}
	if got := name(k.drain(4, flow(eth0In, x, 1, 3.5))); got != (Hop{}) {
		t.Errorf("never known: got %v, want none", got)
	}
}

// counting counts what a Places is asked.
type counting struct{ asked int }

func (c *counting) Hop(Point) (Hop, bool) {
	c.asked++
	return Hop{Interface: "veth0"}, true
}

func TestPlacesIsAskedOnceADrainForAPoint(t *testing.T) {
	places := &counting{}
	k := newKernel(t, TableOptions{Places: places, ActiveTimeout: time.Second})
	k.drain(0)
	for s := 1; s <= 3; s++ {
		k.drain(float64(s), flow(podIn, client(1), 1, float64(s)-0.5), flow(podIn, client(2), 1, float64(s)-0.5))
	}
	if places.asked != 3 {
		t.Errorf("three drains with two records each: got %d questions, want 3", places.asked)
	}
}

func TestADeviceThatVanishesBeforeItsFirstRecordIsNamed(t *testing.T) {
	x := udp("10.0.0.9:40000", "10.0.0.1:53")
	places := names{podIn: {Interface: "veth0"}}
	table := NewTable(TableOptions{Places: places})
	fold(table, 1, []PointAccount{between(podIn, 1, 1)}, flow(podIn, x, 1, 0.5))
	delete(places, podIn)
	a := between(eth0In, 1, 1)
	a.Hop.Interface = "eth0"
	fold(table, 2, []PointAccount{a}, flow(eth0In, x, 1, 1.5))
	r := table.Close(second(3)).Records[0]
	if r.Hops[0].Hop.Interface != "veth0" || r.Hops[1].Hop.Interface != "eth0" {
		t.Errorf("got %+v, want veth0 by Places and eth0 by its account", r.Hops)
	}
}

func TestLedgerCheckNamesEveryImbalance(t *testing.T) {
	good := func() Ledger {
		p := PointLedger{At: podIn, Hop: Hop{Interface: "veth0"}, Seen: packets(10), Flows: packets(6), Recorded: packets(4), Open: packets(2), InTable: packets(1)}
		p.Skipped[SkipARP] = packets(3)
		return Ledger{
			Points: []PointLedger{p}, Made: 9,
			Sinks: []SinkAccount{{Name: "otlp", Offered: 9, Acknowledged: 5, Waiting: 1, Lost: map[string]uint64{"queue_full": 2, "refused": 1}}},
		}
	}
	if err := good().Check(); err != nil {
		t.Fatalf("a ledger that adds up: got %v, want nil", err)
	}
	for _, c := range []struct {
		what  string
		spoil func(*Ledger)
		want  []string
	}{
		{"seen more", func(l *Ledger) { l.Points[0].Seen.Packets++ }, []string{"veth0 ingress", "packets: seen 11, flows 6 + skipped 3 + in table 1: unaccounted 1"}},
		{"bytes", func(l *Ledger) { l.Points[0].Flows.Bytes -= 7; l.Points[0].Open.Bytes -= 7 }, []string{"bytes: seen 1000, flows 593 + skipped 300 + in table 100: unaccounted 7"}},
		{"unaccounted but in sum", func(l *Ledger) { l.Points[0].Unaccounted.Packets = -1; l.Points[0].InTable.Packets++ }, []string{"unaccounted -1"}},
		{"lost from conversations", func(l *Ledger) { l.Points[0].Open.Packets-- }, []string{"packets: flows 6, recorded 4 + open 1: unaccounted 1"}},
		{"detached", func(l *Ledger) { l.Gone.Seen.Packets = 2 }, []string{"detached points", "seen 2"}},
		{"detached, cancelled out", func(l *Ledger) { l.GoneUnbalanced = 2 }, []string{"detached points: 2 did not balance"}},
		{"sink forgot one", func(l *Ledger) { l.Sinks[0].Waiting = 0 }, []string{"sink otlp: records: offered 9, acknowledged 5 + waiting 0 + lost 3: unaccounted 1"}},
		{"sink invented one", func(l *Ledger) { l.Made = 8 }, []string{"sink otlp: records: offered 9 of 8 made"}},
		{"two at once", func(l *Ledger) { l.Made = 8; l.Points[0].Seen.Packets++ }, []string{"veth0", "sink otlp"}},
	} {
		l := good()
		c.spoil(&l)
		err := l.Check()
		if err == nil || l.Balanced() {
			t.Errorf("%s: got no error, balanced %v", c.what, l.Balanced())
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %q, want it to say %q", c.what, err, want)
			}
		}
	}
}
