// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// client is the i-th of many UDP conversations.
func client(i int) Key {
	return udp(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 40000).String(), "10.0.0.1:53")
}

func TestAtTheBoundTheLongestSilentConversationMakesRoom(t *testing.T) {
	k := newKernel(t, TableOptions{MaxConversations: 3})
	k.drain(1, flow(podIn, client(1), 1, 0.5), flow(podIn, client(2), 1, 0.5), flow(podIn, client(3), 1, 0.5))
	k.drain(2, flow(podIn, client(1), 1, 1.5))
	k.drain(3, flow(podIn, client(3), 1, 2.5))
	rs := k.drain(4, flow(podIn, client(4), 1, 3.5), flow(podIn, client(5), 1, 3.5))
	if len(rs) != 2 || rs[0].Key != client(2) || rs[1].Key != client(1) {
		t.Fatalf("got %+v, want client 2 and then 1", rs)
	}
	for _, r := range rs {
		if r.EndReason != EndLackOfResources {
			t.Errorf("%v: got %v, want lack_of_resources", r.Key, r.EndReason)
		}
	}
	if n := k.table.Conversations(); n != 3 {
		t.Errorf("got %d conversations, want 3", n)
	}
}

func TestWhatOneDrainCannotHoldIsSkippedAndCounted(t *testing.T) {
	k := newKernel(t, TableOptions{MaxConversations: 4})
	var many []Sample
	for i := range 100 {
		many = append(many, flow(podIn, client(i), 2, 0.5))
	}
	rs := append(k.drain(1, many...), k.close(2)...)
	// Four fit. Of the queue of four, the second pass takes each slot once more.
	if len(rs) != 8 {
		t.Errorf("got %d records, want 8: four evicted and four at the end", len(rs))
	}
	p := k.table.points.ledger(second(2), 0).Points[0]
	want := Count{2 * 92, 200 * 92}
	if got := p.Skipped[SkipConversationLimit]; got != want {
		t.Errorf("skipped[%v]: got %v, want %v", SkipConversationLimit, got, want)
	}
	if got := p.Recorded.Plus(p.Skipped[SkipConversationLimit]); got != p.Seen {
		t.Errorf("recorded and skipped: got %v, want %v as seen", got, p.Seen)
	}
}

func TestEvictionNeverExceedsTwiceTheBoundInADrain(t *testing.T) {
	const bound = 8
	k := newKernel(t, TableOptions{MaxConversations: bound})
	var old, many []Sample
	for i := range 2000 {
		if i < bound {
			old = append(old, flow(podIn, client(60000+i), 1, 0.5))
		}
		many = append(many, flow(podIn, client(i), 1, 1.5))
	}
	k.drain(1, old...)
	if rs := k.drain(2, many...); len(rs) != 2*bound {
		t.Errorf("got %d records, want %d", len(rs), 2*bound)
	}
}

func TestFurtherPointsThanARecordHoldsAreSkippedAndCounted(t *testing.T) {
	k := newKernel(t, TableOptions{})
	flood := udp("10.0.0.9:5353", "224.0.0.251:5353")
	var seen []Sample
	for i := range maxHops + 5 {
		seen = append(seen, flow(Point{Netns: 1, Ifindex: uint32(100 + i), Hook: HookEgress}, flood, 2, 0.5))
	}
	seen = append(seen, flow(podIn, Key{Src: flood.Dst, Dst: flood.Src, Proto: flood.Proto}, 1, 0.6))
	k.drain(1, seen...)
	r := k.one(k.close(2))
	if len(r.Hops) != maxHops+1 || r.Packets != 2 || r.ReversePackets != 1 {
		t.Errorf("got %d hops, %d and %d packets, want %d, 2 and 1", len(r.Hops), r.Packets, r.ReversePackets, maxHops+1)
	}
	var skipped Count
	for _, p := range k.table.points.ledger(second(2), 0).Points {
		skipped.Add(p.Skipped[SkipHopLimit])
	}
	if want := (Count{10, 1000}); skipped != want {
		t.Errorf("skipped[%v]: got %v, want %v", SkipHopLimit, skipped, want)
	}
}

func TestAllHopsTogetherAreBounded(t *testing.T) {
	k := newKernel(t, TableOptions{MaxConversations: 2})
	var seen []Sample
	for i := range 10 {
		seen = append(seen, flow(Point{Netns: 1, Ifindex: uint32(100 + i), Hook: HookEgress}, client(1), 1, 0.5))
	}
	k.drain(1, seen...)
	if r := k.one(k.close(2)); len(r.Hops) != 1+2*moreHops {
		t.Errorf("got %d hops, want %d", len(r.Hops), 1+2*moreHops)
	}
}

func TestTimeoutsAreSpreadOverDrains(t *testing.T) {
	k := newKernel(t, TableOptions{IdleTimeout: time.Second, MaxConversations: 4096})
	const n = 4096 // at the least, 1024 end in each drain
	var all []Sample
	for i := range n {
		all = append(all, flow(podIn, client(i), 1, 0.5))
	}
	k.drain(0)
	k.drain(1, all...)
	ended := map[Key]bool{}
	for s := 2; s <= 5; s++ {
		rs := k.drain(float64(s))
		if len(rs) != n/4 {
			t.Errorf("drain %d: got %d records, want %d", s, len(rs), n/4)
		}
		for _, r := range rs {
			ended[r.Key] = true
		}
	}
	if len(ended) != n || k.table.Conversations() != 0 {
		t.Errorf("got %d keys and %d conversations left, want %d and none", len(ended), k.table.Conversations(), n)
	}
}

func TestTimeoutsComeToEveryConversationInTurn(t *testing.T) {
	k := newKernel(t, TableOptions{ActiveTimeout: time.Second})
	k.table.perDrain = 1
	k.drain(0)
	told := map[Key]int{}
	for s := 1; s <= 9; s++ {
		var all []Sample
		for i := range 3 {
			all = append(all, flow(podIn, client(i), 1, float64(s)-0.5))
		}
		for _, r := range k.drain(float64(s), all...) {
			told[r.Key]++
		}
	}
	for i := range 3 {
		if told[client(i)] != 3 {
			t.Errorf("conversation %d: got %d records in 9 drains of one each, want 3", i, told[client(i)])
		}
	}
}

func TestFoldingKnownConversationsAllocatesNothing(t *testing.T) {
	table := NewTable(TableOptions{})
	samples := udpSamples(2000, veth, bridge)
	table.Fold(Batch{At: second(0), Flows: samples})
	if n := testing.AllocsPerRun(20, func() { table.Fold(Batch{At: second(0), Flows: samples}) }); n != 0 {
		t.Errorf("4000 samples: got %v allocations, want 0", n)
	}
}

// The comments of TableOptions, conversation and hop promise these sizes.
func TestMemoryIsAsPromised(t *testing.T) {
	if got := unsafe.Sizeof(conversation{}); got != 176 {
		t.Errorf("conversation: got %d bytes, want 176", got)
	}
	if got := unsafe.Sizeof(hop{}); got != 48 {
		t.Errorf("hop: got %d bytes, want 48", got)
	}
	samples := udpSamples(100_000, veth, bridge)
	before := heap()
	table := NewTable(TableOptions{})
	table.Fold(Batch{At: second(0), Flows: samples, Final: true})
	if n := table.Conversations(); n != 100_000 {
		t.Errorf("got %d conversations in a table of default size, want 100000", n)
	}
	if got := int64(heap()) - int64(before); got > 24<<20 {
		t.Errorf("100,000 conversations at two points: got %d bytes of heap, want at most 24 MiB", got)
	}
	runtime.KeepAlive(table)
	runtime.KeepAlive(samples)
}

func TestKeysDifferInEveryField(t *testing.T) {
	base := convKey{netns: 1, a: address{2, 3}, b: address{4, 5}, aPort: 6, bPort: 7, outer: 8, inner: 9, proto: 10}
	for i, change := range []func(*convKey){
		func(k *convKey) { k.netns++ }, func(k *convKey) { k.a.hi++ }, func(k *convKey) { k.a.lo++ },
		func(k *convKey) { k.b.hi++ }, func(k *convKey) { k.b.lo++ }, func(k *convKey) { k.aPort++ },
		func(k *convKey) { k.bPort++ }, func(k *convKey) { k.outer++ }, func(k *convKey) { k.inner++ },
		func(k *convKey) { k.proto++ }, func(k *convKey) { k.v4 = true }, func(k *convKey) { k.fragment = true },
		func(k *convKey) { k.oneWay = true },
	} {
		k := base
		change(&k)
		if k.equal(&base) || k == base {
			t.Errorf("field %d changed: got equal %v and == %v, want neither", i, k.equal(&base), k == base)
		}
	}
	if k := base; !k.equal(&base) {
		t.Error("equal keys: got not equal")
	}
}
