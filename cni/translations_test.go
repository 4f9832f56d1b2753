// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

// nanos is that many seconds in nanoseconds.
func nanos(s float64) int64 { return int64(s * 1e9) }

const aClient, aService, oneBackend, otherBackend = "10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080", "10.0.0.3:8080"

// followed has read an empty list at 1 s.
func followed() *tracker {
	x := &tracker{translations: newTranslations(new(places)), list: 1}
	x.complete(1, nanos(1))
	return x
}

// hears is told of a connection at s seconds.
func (t *translations) of(k flows.Key, first, last int64) (flows.Translation, bool) {
	return t.find(pack(k).unsided(), first, last, false)
}

func (t *tracker) hears(s float64, body []byte, kind, flags uint16) {
	if _, err := t.take(message(body, kind, flags), nanos(s)); err != nil {
		panic(err) // message makes whole ones
	}
}

// TestATranslationHoldsInItsTime: what may have been before it, after it or another one
// at the same time is not taken for it.
func TestATranslationHoldsInItsTime(t *testing.T) {
	one, two := tracked(aClient, aService, oneBackend, 0), tracked(aClient, aService, otherBackend, 0)
	plain := tracked(aClient, oneBackend, oneBackend, 0)
	doubly, moved := trackedAs(aClient, aService, oneBackend, "10.0.0.9:1024", 0), trackedAs(aClient, aService, oneBackend, "10.0.0.1:1024", 0)
	toService, toOne := tracking(aClient, aService), tracking(aClient, oneBackend)
	for _, c := range []struct {
		name        string
		tell        func(*tracker)
		k           flows.Key
		first, last float64
		want        string // where it is sent; empty: not certain
	}{
		{"stands", func(x *tracker) { x.hears(10, one, 0, 0) }, toService, 9.9, 70, oneBackend},
		{"by where it is sent", func(x *tracker) { x.hears(10, one, 0, 0) }, toOne, 9.9, 70, oneBackend},
		{"packets long before it", func(x *tracker) { x.hears(10, one, 0, 0) }, toService, 5, 12, ""},
		{"over", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0) }, toService, 9.9, 18, oneBackend},
		{"until its end", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0) }, toService, 9.9, 19.9, ""},
		{"after its end", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0) }, toService, 20.1, 25, ""},
		{"the next one", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0); x.hears(30, two, 0, 0) }, toService, 29.9, 35, otherBackend},
		{"the one before", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0); x.hears(30, two, 0, 0) }, toService, 10, 15, oneBackend},
		{"both", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0); x.hears(30, two, 0, 0) }, toService, 10, 35, ""},
		{"the end of the first was not told", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(30, two, 0, 0) }, toService, 29.9, 35, ""},
		{"nor that, and later", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(30, two, 0, 0) }, toService, 31, 35, otherBackend},
		{"now one that is not translated", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(30, plain, 0, 0) }, toOne, 31, 35, ""},
		{"one that is not translated between its translations", func(x *tracker) { x.hears(10, doubly, 0, 0); x.hears(30, plain, 0, 0) }, toOne, 31, 35, ""},
		{"and that one by its own", func(x *tracker) { x.hears(10, doubly, 0, 0); x.hears(30, plain, 0, 0) }, toService, 11, 60, oneBackend},
		{"between its translations, alone", func(x *tracker) { x.hears(10, doubly, 0, 0) }, toOne, 11, 60, oneBackend},
		{"its port was taken", func(x *tracker) { x.hears(10, moved, 0, 0) }, toOne, 11, 60, ""},
		{"listed again without an end heard of", func(x *tracker) { x.listsAgain(one, one) }, toService, 11, 95, oneBackend},
		{"not listed any more without an end heard of", func(x *tracker) { x.listsAgain(one, nil) }, toService, 31, 80, ""},
		{"before it was last listed", func(x *tracker) { x.listsAgain(one, nil) }, toService, 11, 29, oneBackend},
		{"in two zones to two", func(x *tracker) {
			x.hears(10, one, 0, 0)
			x.hears(10, tracked(aClient, aService, otherBackend, 9), 0, 0)
		}, toService, 11, 12, ""},
		{"untranslated in another zone", func(x *tracker) {
			x.hears(10, one, 0, 0)
			x.hears(10, tracked(aClient, oneBackend, oneBackend, 9), 0, 0)
		}, toOne, 11, 12, oneBackend},
		{"events are missing", func(x *tracker) { x.hears(10, one, 0, 0); x.lose(nanos(20)) }, toService, 11, 25, ""},
		{"before they are", func(x *tracker) { x.hears(10, one, 0, 0); x.lose(nanos(20)) }, toService, 11, 19, oneBackend},
		{"its end was read late", func(x *tracker) { x.hears(10, one, 0, 0); x.readLate(12, 20, one, ctDelete) }, toService, 13, 14, ""},
		{"before all that was read late", func(x *tracker) { x.hears(10, one, 0, 0); x.readLate(12, 20, one, ctDelete) }, toService, 10, 11, oneBackend},
		{"the next one was read late", func(x *tracker) { x.hears(10, one, 0, 0); x.readLate(12, 20, two, 0) }, toService, 13, 18, ""},
		{"one that is not translated was read late", func(x *tracker) { x.hears(10, one, 0, 0); x.readLate(12, 20, plain, 0) }, toOne, 13, 18, ""},
		{"it was read late itself", func(x *tracker) { x.readLate(12, 20, one, 0) }, toService, 13, 25, oneBackend},
		{"it was read late itself, and nobody had its ends before", func(x *tracker) { x.readLate(12, 20, one, 0) }, toService, 11.1, 25, oneBackend},
		{"long before all that was read late", func(x *tracker) { x.readLate(12, 20, one, 0) }, toService, 10.9, 25, ""},
		{"read late, after one that is not translated", func(x *tracker) {
			x.hears(11, tracked(aClient, aService, aService, 0), 0, 0)
			x.readLate(12, 20, one, 0)
		}, toService, 11.1, 25, ""},
		{"read late, after the end of one that was not translated", func(x *tracker) {
			x.hears(11, tracked(aClient, aService, aService, 0), ctDelete, 0)
			x.readLate(12, 20, one, 0)
		}, toService, 11.1, 25, ""},
		{"read late, after one with the ends it is sent with", func(x *tracker) { x.hears(11, plain, ctDelete, 0); x.readLate(12, 20, one, 0) }, toService, 11.1, 25, ""},
		{"read late, after another one", func(x *tracker) { x.hears(3, two, 0, 0); x.hears(4, two, ctDelete, 0); x.readLate(12, 20, one, 0) }, toService, 11.1, 25, ""},
		{"nothing was read since", func(x *tracker) { x.hears(10, one, 0, 0); x.heard.Store(nanos(12)) }, toService, 11, 14, ""},
		{"nothing was read since, before", func(x *tracker) { x.hears(10, one, 0, 0); x.heard.Store(nanos(12)) }, toService, 11, 13, oneBackend},
		{"still listed then", func(x *tracker) { x.again2(one, one) }, toService, 11, 35, oneBackend},
		{"not listed any more", func(x *tracker) { x.again2(one, nil) }, toService, 11, 25, ""},
		{"not listed any more, before", func(x *tracker) { x.again2(one, nil) }, toService, 11, 19, oneBackend},
		{"another one listed", func(x *tracker) { x.again2(one, two) }, toService, 25, 35, ""},
		{"another one listed, later", func(x *tracker) { x.again2(one, two) }, toService, 31, 35, otherBackend},
	} {
		x := followed()
		c.tell(x)
		for _, k := range []flows.Key{c.k, c.k.Reverse()} {
			got, ok := x.of(k, nanos(c.first), nanos(c.last))
			if ok != (c.want != "") || ok && (got.Opened != toService || got.Sent.Dst.String() != c.want) {
				t.Errorf("%s: got %+v, %v, want %q", c.name, got, ok, c.want)
			}
		}
	}
}

// TestWhatWasNotReadIsLate, until it is read or nobody reads any more.
func TestWhatWasNotReadIsLate(t *testing.T) {
	c := newConntrack(quiet(), nil)
	read, slow := followed(), followed()
	c.known.Store(&[]*tracker{read, slow})
	read.heard.Store(nanos(20))
	slow.heard.Store(nanos(12))
	for at, want := range map[float64]bool{12: false, 13: false, 13.1: true, 21: true} {
		if got := c.late(nanos(at)); got != want {
			t.Errorf("at %v s: got %t, want %t", at, got, want)
		}
	}
	slow.fd = -1
	slow.close()
	if c.late(nanos(21)) {
		t.Error("a namespace that is not followed any more is waited for")
	}
	if _, ok := slow.of(tracking(aClient, aService), nanos(13), nanos(14)); ok || slow.sure != nanos(12) {
		t.Errorf("what it may miss: got from %d, %t, want from 12 s on", slow.sure, ok)
	}
	slow.close()
	if slow.sure != nanos(12) {
		t.Errorf("closed twice: got %d, want 12 s", slow.sure)
	}
}

// TestAPortUsedAgainAtOnce: only who saw the connection open can tell it from one that went
// on while its translation was made anew, and from the one before.
func TestAPortUsedAgainAtOnce(t *testing.T) {
	one, two := tracked(aClient, aService, oneBackend, 0), tracked(aClient, aService, otherBackend, 0)
	for _, c := range []struct {
		name        string
		began       float64
		first, last float64
		opens       bool
		want        string // where it is sent; empty: not certain
	}{
		{"the next one", 2, 9.9995, 12, true, otherBackend},
		{"the one before", 2, 3, 8.5, false, oneBackend},
		{"the one before, to its end", 2, 9.1, 9.5, false, ""},
		{"translated otherwise, later", 2, 9.5, 12, false, ""},
		{"translated otherwise, at once", 9.5, 9.4995, 12, true, ""},
	} {
		x := followed()
		x.hears(c.began, one, 0, 0)
		x.hears(10, one, ctDelete, 0)
		x.hears(10.001, two, 0, 0)
		got, ok := x.find(pack(tracking(aClient, aService)).unsided(), nanos(c.first), nanos(c.last), c.opens)
		if ok != (c.want != "") || ok && got.Sent.Dst.String() != c.want {
			t.Errorf("%s: got %+v, %v, want %q", c.name, got, ok, c.want)
		}
	}
}

// readLate reads at s seconds what came some time after heard seconds.
func (t *tracker) readLate(heard, s float64, body []byte, kind uint16) {
	t.heard.Store(nanos(heard))
	t.hears(s, body, kind, 0)
	t.heard.Store(nanos(s))
	t.hears(s+100, tracked("10.0.0.99:1", aService, oneBackend, 0), 0, 0)
	t.heard.Store(nanos(s + 100))
}

// again2 hears of was, misses what comes after 20 s, and lists is at 30 s.
func (t *tracker) again2(was, is []byte) {
	t.hears(10, was, 0, 0)
	t.lose(nanos(20))
	t.list++
	if is != nil {
		t.hears(29, is, 0, 2) // NLM_F_MULTI
	}
	t.complete(t.list, nanos(30))
}

// listsAgain finds was in a list at 30 s, and is in the next at 90 s; nothing is missed.
func (t *tracker) listsAgain(was, is []byte) {
	t.translations = newTranslations(new(places))
	for _, l := range []struct {
		at   float64
		body []byte
	}{{30, was}, {90, is}} {
		t.list++
		if l.body != nil {
			t.hears(l.at-1, l.body, 0, 2) // NLM_F_MULTI
		}
		t.complete(t.list, nanos(l.at))
	}
}

func TestWhatIsListedFirstWasAlways(t *testing.T) {
	x := &tracker{translations: newTranslations(new(places)), list: 1}
	x.hears(100, tracked(aClient, aService, oneBackend, 0), 0, 2)
	if _, ok := x.of(tracking(aClient, aService), nanos(1), nanos(2)); ok {
		t.Error("before the list is read: got an answer, want none")
	}
	x.complete(1, nanos(101))
	if to, ok := x.of(tracking(aClient, aService), nanos(1), nanos(102)); !ok || to.Sent.Dst.String() != oneBackend {
		t.Errorf("got %+v, %v, want %s", to, ok, oneBackend)
	}
}

// TestTranslationsAreBounded, in all and of the same ports; those that have ended go first.
func TestTranslationsAreBounded(t *testing.T) {
	x := followed()
	at := func(i int) flows.Translation {
		o := tracking(aClient, aService)
		o.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
		return flows.Translation{Opened: o, Sent: flows.Key{Src: o.Src, Dst: netip.MustParseAddrPort(oneBackend), Proto: o.Proto}}
	}
	for i := range 2*maxTranslated + 10 {
		x.add(at(i), 0, nanos(10), 1, false)
		if _, ok := x.of(at(i).Sent, nanos(10), nanos(20)); !ok {
			t.Fatalf("connection %d is not known", i)
		}
		if i != 7 {
			x.end(at(i).Opened, 0, nanos(30))
		}
	}
	if n, ends := len(x.all), len(x.index); n > maxTranslated+1 || ends > 2*maxTranslated {
		t.Errorf("%d are remembered by %d ends, want at most %d by %d", n-1, ends, maxTranslated, 2*maxTranslated)
	}
	sieved, ends := 0, 0
	for i := range x.sieve {
		sieved += int(x.sieve[i].Load())
	}
	for i := range x.all {
		for _, k := range x.all[i].ends() {
			if k.proto != 0 {
				ends++
			}
		}
	}
	if sieved != ends {
		t.Errorf("the sieve has %d ends, want the %d that are remembered", sieved, ends)
	}
	if _, ok := x.of(at(7).Opened, nanos(10), nanos(100)); !ok || x.standing() != 1 {
		t.Errorf("the one that stands: known %v, %d stand, want it and no other", ok, x.standing())
	}

	x = followed()
	for i := range 1000 { // ports that are used again for ever other backends
		to := at(0)
		to.Sent.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 8080)
		x.add(to, 0, nanos(float64(10*i)), 1, false)
		if got, ok := x.of(to.Opened, nanos(float64(10*i)), nanos(float64(10*i+5))); !ok || got != to {
			t.Fatalf("connection %d: got %+v, %v", i, got, ok)
		}
		if got, ok := x.of(to.Sent, nanos(float64(10*i)), nanos(float64(10*i+5))); !ok || got != to {
			t.Fatalf("connection %d by where it is sent: got %+v, %v, want %+v", i, got, ok, to)
		}
	}
	if n := len(x.all) - 1; n > maxSamePorts+1 {
		t.Errorf("%d are remembered, want at most %d", n, maxSamePorts+1)
	}
}

// TestWhatEndedLongAgoIsForgotten: ten thousand connections, ten at a time, one a second.
func TestWhatEndedLongAgoIsForgotten(t *testing.T) {
	x, at := followed(), tracking(aClient, aService)
	const most = 3 * int(endedFor/1e9)
	for i := range 10_000 {
		key := func(i int) flows.Translation {
			o := at
			o.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 4000)
			return flows.Translation{Opened: o, Sent: flows.Key{Src: o.Src, Dst: netip.MustParseAddrPort(oneBackend), Proto: o.Proto}}
		}
		x.add(key(i), 0, nanos(float64(i)), 1, false)
		if i >= 10 {
			x.end(key(i-10).Opened, 0, nanos(float64(i)))
		}
		if old := i - 200; old > 0 {
			if _, ok := x.of(key(old).Opened, nanos(float64(old)), nanos(float64(old+5))); !ok {
				t.Fatalf("connection %d, which ended 190 s ago, is not known", old)
			}
		}
	}
	if n := len(x.all) - 1; n > most {
		t.Errorf("%d are remembered, want at most %d", n, most)
	}
}

// TestNamespacesShareTheRoomForTranslations: one that is full leaves each of the others its
// least, and what a namespace had is there again when it has gone.
func TestNamespacesShareTheRoomForTranslations(t *testing.T) {
	var all places
	fill := func(n int) *translations {
		x := newTranslations(&all)
		for i := range n {
			o := tracking(aClient, aService)
			o.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
			x.add(flows.Translation{Opened: o, Sent: flows.Key{Src: o.Src, Dst: netip.MustParseAddrPort(oneBackend), Proto: o.Proto}}, 0, nanos(10), 1, false)
		}
		return x
	}
	one, other, late := fill(maxTranslated), fill(maxTranslated), fill(2*leastTranslated)
	if a, b, c := one.standing(), other.standing(), late.standing(); a != maxTranslated || b != maxTranslated || c != leastTranslated {
		t.Errorf("got %d, %d and %d, want %d twice and %d", a, b, c, maxTranslated, leastTranslated)
	}
	c := newConntrack(quiet(), nil)
	if c.places.forgotten.Store(all.forgotten.Load()); !strings.HasPrefix(c.state().Err, fmt.Sprint(leastTranslated, " ")) {
		t.Errorf("status says %q, want the %d connections that made room while they stood", c.state().Err, leastTranslated)
	}
	one.leave()
	other.leave()
	late.leave()
	if n := all.spent.Load(); n != 0 {
		t.Errorf("all gone: %d places are taken, want none", n)
	}
	for i := range all.sieve {
		if n := all.sieve[i].Load(); n != 0 {
			t.Fatalf("all gone: %d ends are in cell %d of everybody's sieve, want none", n, i)
		}
	}
}

// TestLoopbackAddressesAreTranslatedInTheirNamespaceAlone: two pods on one bridge are one
// domain, and what one of them sends to itself is not what the other one does.
func TestLoopbackAddressesAreTranslatedInTheirNamespaceAlone(t *testing.T) {
	const one, other, domain = 11, 12, 1
	r := NewResolver()
	r.joined(0, map[uint64]uint64{domain: domain, one: domain, other: domain})
	c := &Census{resolver: r, nat: newConntrack(quiet(), nil)}
	x := &tracker{space: other, translations: newTranslations(&c.nat.places)}
	x.complete(1, nanos(1))
	local := flows.Translation{Opened: tracking("127.0.0.1:4000", "127.0.0.11:53"), Sent: tracking("127.0.0.1:4000", "127.0.0.11:35053")}
	outward := flows.Translation{Opened: tracking(aClient, aService), Sent: tracking(aClient, oneBackend)}
	x.add(local, 0, nanos(10), 1, false)
	x.add(outward, 0, nanos(10), 1, false)
	c.nat.known.Store(&[]*tracker{x})
	for _, q := range []struct {
		space uint64
		k     flows.Key
		want  bool
	}{{one, local.Opened, false}, {domain, local.Opened, false}, {other, local.Opened, true}, {other, local.Sent, true}, {domain, outward.Opened, true}, {one, outward.Sent, true}} {
		if got, ok := c.Translation(flows.Scope{Netns: q.space}, q.k, nanos(11), nanos(12), false); ok != q.want {
			t.Errorf("%s in %d: got %+v, %v, want %v", q.k, q.space, got, ok, q.want)
		}
	}
}

// What one namespace of a domain sends on, and another one once more, is one connection by
// any of its keys. What two send to two places is not certain.
func TestTranslationsInARow(t *testing.T) {
	const client, port = "10.0.0.1:4000", "10.1.0.2:30080"
	first, second := tracked(client, aService, port, 0), trackedAs(client, port, oneBackend, "10.2.0.2:5000", 0)
	via := tracking(client, port)
	whole := flows.Translation{Opened: tracking(client, aService), Via: via, Sent: tracking("10.2.0.2:5000", oneBackend)}
	for _, c := range []struct {
		name string
		said [][][]byte // by each namespace
		k    flows.Key
		want flows.Translation // of no key: not certain
	}{
		{"as it was opened", [][][]byte{{first}, {second}}, whole.Opened, whole},
		{"between", [][][]byte{{first}, {second}}, via, whole},
		{"as it is sent on", [][][]byte{{first}, {second}}, whole.Sent, whole},
		{"between its translations", [][][]byte{{first}, {second}}, tracking(client, oneBackend), whole},
		{"the other namespace is asked first", [][][]byte{{second}, {first}}, whole.Opened, whole},
		{"the answer", [][][]byte{{second}, {first}}, whole.Sent.Reverse(), whole},
		{"not sent on again", [][][]byte{{first}, nil}, via, flows.Translation{Opened: whole.Opened, Sent: via}},
		{"to two places", [][][]byte{{first}, {tracked(client, aService, otherBackend, 0)}}, whole.Opened, flows.Translation{}},
		{"from two places", [][][]byte{{first}, {second}, {tracked(client, "10.96.0.9:80", port, 0)}}, via, flows.Translation{}},
		{"round", [][][]byte{{first}, {tracked(client, port, "10.96.0.1:80", 0)}}, via, flows.Translation{}},
	} {
		n := newConntrack(quiet(), nil)
		var all []*tracker
		for i, said := range c.said {
			x := &tracker{space: uint64(i + 1), translations: newTranslations(&n.places), list: 1}
			x.complete(1, nanos(1))
			for _, m := range said {
				x.hears(10, m, 0, 0)
			}
			all = append(all, x)
		}
		n.known.Store(&all)
		got, ok := n.find(anywhere, c.k, nanos(11), nanos(12), false)
		if want := c.want.Opened.Dst.IsValid(); ok != want || want && got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, ok, c.want)
		}
	}
}

func BenchmarkTranslation(b *testing.B) {
	x := &tracker{translations: newTranslations(new(places))}
	x.complete(1, nanos(1))
	var keys []flows.Key
	for i := range 20_000 {
		o := tracking(aClient, aService)
		o.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
		x.add(flows.Translation{Opened: o, Sent: flows.Key{Src: o.Src, Dst: netip.MustParseAddrPort(oneBackend), Proto: o.Proto}}, 0, nanos(10), 1, false)
		keys = append(keys, o)
	}
	// As asked of 110 namespaces that have 100 each.
	c := newConntrack(quiet(), nil)
	many := make([]*tracker, 110)
	for i := range many {
		many[i] = &tracker{space: uint64(i), translations: newTranslations(&c.places)}
		many[i].complete(1, nanos(1))
		for _, k := range keys[100*i:][:100] {
			many[i].add(flows.Translation{Opened: k, Sent: flows.Key{Src: k.Src, Dst: netip.MustParseAddrPort(oneBackend), Proto: k.Proto}}, 0, nanos(10), 1, false)
		}
	}
	c.known.Store(&many)
	for name, port := range map[string]uint16{"known, 110 namespaces": 4000, "unknown, 110 namespaces": 4001} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k := keys[i%11_000]
				k.Src = netip.AddrPortFrom(k.Src.Addr(), port)
				if _, ok := c.find(anywhere, k, nanos(10), nanos(20), false); ok != (port == 4000) {
					b.Fatalf("%s: got %v", k, ok)
				}
				i += 7
			}
		})
	}
	for name, port := range map[string]uint16{"known": 4000, "unknown": 4001} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k := keys[i%len(keys)]
				k.Src = netip.AddrPortFrom(k.Src.Addr(), port)
				if _, ok := x.of(k, nanos(10), nanos(20)); ok != (port == 4000) {
					b.Fatalf("%s: got %v", k, ok)
				}
				i += 7
			}
		})
	}
}

// atNamespaces asks connection tracking as a census does, of all namespaces.
type atNamespaces struct{ *conntrack }

func (a atNamespaces) Translation(_ flows.Scope, k flows.Key, first, last int64, opens bool) (flows.Translation, bool) {
	return a.find(anywhere, k, first, last, opens)
}

func (a atNamespaces) Late(at int64) bool { return a.late(at) }

// BenchmarkWorstDrain is the longest drain while 100,000 conversations, all that 110
// namespaces translate among them, begin in one second and fall silent.
func BenchmarkWorstDrain(b *testing.B) {
	c := newConntrack(quiet(), nil)
	many := make([]*tracker, 110)
	var samples []flows.Sample
	for i := range 100_000 {
		o := tracking(aClient, aService)
		o.Src, o.Proto = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000), flows.ProtoUDP
		at := flows.Sample{Key: o, At: flows.Point{Netns: 1, Ifindex: 2}, New: true, Packets: 1, Bytes: 100, First: nanos(11), Last: nanos(11)}
		if samples = append(samples, at); i >= 11_000 {
			continue
		}
		if i%100 == 0 {
			many[i/100] = &tracker{space: uint64(i), translations: newTranslations(&c.places)}
			many[i/100].complete(1, nanos(1))
		}
		sent := o
		sent.Dst = netip.MustParseAddrPort(oneBackend)
		many[i/100].add(flows.Translation{Opened: o, Sent: sent}, 0, nanos(10), 1, false)
		at.Key, at.At.Ifindex = sent, 3
		samples = append(samples, at)
	}
	c.known.Store(&many)
	best := time.Hour // of the longest ones: others work on the machine too
	for b.Loop() {
		worst := time.Duration(0)
		table := flows.NewTable(flows.TableOptions{Translations: atNamespaces{c}})
		records := 0
		for s := range 40 {
			batch := flows.Batch{At: time.Unix(int64(11+s), 0), Final: true}
			if s == 0 {
				batch.Flows = samples
			}
			began := time.Now()
			w, _ := table.Fold(batch)
			worst, records = max(worst, time.Since(began)), records+len(w.Records)
		}
		if best = min(best, worst); records != 100_000 {
			b.Fatalf("got %d records, want one of each conversation", records)
		}
	}
	b.ReportMetric(float64(best.Microseconds())/1000, "ms/worst")
}
