// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"weft/flows"
)

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

func whose(e *flows.Entity) string {
	if e == nil {
		return ""
	}
	return e.Container
}

func entity(name string) *flows.Entity { return &flows.Entity{Container: name} }

const sec = int64(time.Second)

func TestAddressResolvesToWhoHeldItThen(t *testing.T) {
	r := NewResolver()
	a, b := owner{ownerNamespace, "2"}, owner{ownerNamespace, "3"}
	addr := addrOf("10.1.0.5")
	r.hold(a, 10*sec, []claim{{space: 2, addr: addr, from: 10 * sec, who: entity("a"), rank: rankSeen}})
	r.joined(sec, map[uint64]uint64{1: 1, 2: 1, 3: 1})
	// b gets the address half a second after a lost it, and that a lost it is told last.
	r.hold(b, 21*sec, []claim{{space: 3, addr: addr, from: 20*sec + sec/2, who: entity("b"), rank: rankSeen}})
	r.hold(a, 22*sec, nil)
	for _, c := range []struct {
		at   int64
		want string
	}{{9 * sec, ""}, {10 * sec, "a"}, {20*sec + sec/2 - 1, "a"}, {20*sec + sec/2, "b"}, {100 * sec, "b"}} {
		for _, scope := range []uint64{1, 2, 3} {
			if got := whose(r.Resolve(flows.Scope{Netns: scope}, addr, c.at)); got != c.want {
				t.Errorf("at %s in namespace %d: got %q, want %q", time.Duration(c.at), scope, got, c.want)
			}
		}
	}
	if got := r.Resolve(flows.Scope{Netns: 9}, addr, 30*sec); got != nil {
		t.Errorf("in a namespace that nothing joins: got %+v, want nobody", got)
	}
}

func TestOverlappingTenantsResolveApart(t *testing.T) {
	r := NewResolver()
	addr := addrOf("192.168.0.1")
	r.joined(sec, map[uint64]uint64{1: 1, 2: 1, 3: 1, 5: 5, 6: 5})
	tenant := func(space uint64, name string, near device) {
		r.hold(owner{ownerNamespace, name}, sec, []claim{{space: space, addr: addr, who: entity(name), near: []device{near}, rank: rankSeen}})
	}
	tenant(2, "red", device{1, 12})
	tenant(3, "blue", device{1, 13})
	tenant(6, "far", device{5, 12})
	at := func(ifindex uint32) []flows.HopCount {
		return []flows.HopCount{{At: flows.Point{Netns: 1, Ifindex: ifindex, Hook: flows.HookIngress}}}
	}
	for _, c := range []struct {
		why      string
		scope    uint64
		hops     []flows.HopCount
		want     string
		disputed bool
	}{
		{"one domain, nothing tells", 1, nil, "", true},
		{"one domain, red's device", 1, at(12), "red", false},
		{"one domain, blue's device", 1, at(13), "blue", false},
		{"one domain, both devices", 1, append(at(12), at(13)...), "", true},
		{"red's own namespace", 2, nil, "red", false},
		{"another domain", 5, nil, "far", false},
	} {
		got, disputed := r.find(flows.Scope{Netns: c.scope}, addr, 5*sec, c.hops)
		if whose(got) != c.want || disputed != c.disputed {
			t.Errorf("%s: got %q disputed %v, want %q disputed %v", c.why, whose(got), disputed, c.want, c.disputed)
		}
	}
}

func TestLoopbackIsEachNamespacesOwn(t *testing.T) {
	r := NewResolver()
	r.joined(sec, map[uint64]uint64{1: 1, 2: 1})
	for space, name := range map[uint64]string{1: "host", 2: "pod"} {
		r.hold(owner{ownerNamespace, name}, sec, []claim{{space: space, addr: addrOf("127.0.0.1"), who: entity(name), rank: rankSeen}})
	}
	for space, want := range map[uint64]string{1: "host", 2: "pod"} {
		if got := whose(r.Resolve(flows.Scope{Netns: space}, addrOf("127.0.0.1"), 2*sec)); got != want {
			t.Errorf("127.0.0.1 in namespace %d: got %q, want %q", space, got, want)
		}
	}
}

func TestNamespaceThatIsJoinedLaterIsFound(t *testing.T) {
	r := NewResolver()
	o := owner{ownerNamespace, "7"}
	first, second := []claim{{space: 7, addr: addrOf("10.0.0.7"), who: entity("early"), rank: rankSeen}}, []claim(nil)
	r.hold(o, sec, first)
	r.joined(sec, map[uint64]uint64{1: 1, 7: 1})
	if got := whose(r.Resolve(flows.Scope{Netns: 1}, addrOf("10.0.0.7"), 2*sec)); got != "early" {
		t.Errorf("after the join: got %q, want early", got)
	}
	r.hold(o, 3*sec, second)
	if got := whose(r.Resolve(flows.Scope{Netns: 1}, addrOf("10.0.0.7"), 4*sec)); got != "" {
		t.Errorf("after the end: got %q, want nobody", got)
	}
	if got := whose(r.Resolve(flows.Scope{Netns: 1}, addrOf("10.0.0.7"), 2*sec)); got != "early" {
		t.Errorf("before the end: got %q, want early", got)
	}
}

// The pair of a container goes before its namespace and its address do: what it sent until then was
// in the domain that the others still are.
func TestNamespaceThatLeavesADomainKeepsItsPastThere(t *testing.T) {
	r := NewResolver()
	o, addr := owner{ownerNamespace, "2"}, addrOf("10.1.0.5")
	hold := func(at int64, name string) {
		r.hold(o, at, []claim{{space: 2, addr: addr, from: 10 * sec, who: entity(name), rank: rankSeen}})
	}
	check := func(when string, want map[[2]int64]string) {
		t.Helper()
		for at, name := range want {
			if got := whose(r.Resolve(flows.Scope{Netns: uint64(at[0])}, addr, at[1]*sec)); got != name {
				t.Errorf("%s: in domain %d at %d s: got %q, want %q", when, at[0], at[1], got, name)
			}
		}
	}
	together, apart := map[uint64]uint64{1: 1, 2: 1}, map[uint64]uint64{1: 1, 2: 2}
	r.joined(5*sec, together)
	hold(10*sec, "a")
	r.joined(20*sec, apart)
	check("apart", map[[2]int64]string{{1, 15}: "a", {1, 21}: "", {2, 21}: "a"})
	hold(25*sec, "b")
	r.joined(30*sec, together)
	check("together again", map[[2]int64]string{{1, 15}: "b", {1, 31}: "b"})
	r.joined(40*sec, apart)
	r.hold(o, 40*sec, nil)
	r.joined(41*sec, map[uint64]uint64{1: 1})
	check("gone", map[[2]int64]string{{1, 39}: "b", {1, 41}: "", {2, 41}: ""})
	if count, _ := r.held(); count != 2 {
		t.Errorf("%d remembered, want 2: one in each domain", count)
	}
	for i := int64(50); i < 100; i++ {
		r.joined(i*sec, map[uint64]uint64{1: 1, 2: 1 + uint64(i%2)})
		hold(i*sec, "c")
		if i%7 == 0 {
			r.hold(o, i*sec, nil)
		}
	}
	if count, _ := r.held(); count > 2*(maxPast+1) {
		t.Errorf("%d remembered of one address in two domains, want at most %d", count, 2*(maxPast+1))
	}
}

func TestWhatTheKernelHasWinsOverALease(t *testing.T) {
	r := NewResolver()
	r.hold(owner{ownerLease, "net/x"}, sec, []claim{{space: 1, addr: addrOf("10.0.0.9"), who: entity("leased"), rank: rankLeased}})
	r.hold(owner{ownerNamespace, "2"}, sec, []claim{{space: 1, addr: addrOf("10.0.0.9"), who: entity("seen"), rank: rankSeen}})
	if got := whose(r.Resolve(flows.Scope{Netns: 1}, addrOf("10.0.0.9"), 2*sec)); got != "seen" {
		t.Errorf("got %q, want seen", got)
	}
}

func TestPastIsBoundedAndForgotten(t *testing.T) {
	r := NewResolver()
	addr := addrOf("10.0.0.1")
	for i := int64(1); i <= 100; i++ {
		o := owner{ownerNamespace, fmt.Sprint(i)}
		r.hold(o, i*sec, []claim{{space: 1, addr: addr, from: i * sec, who: entity(fmt.Sprint(i)), rank: rankSeen}})
		r.hold(o, i*sec+sec/2, nil)
	}
	if count, _ := r.held(); count > maxPast+1 {
		t.Errorf("100 holds of one address: %d remembered, want at most %d", count, maxPast+1)
	}
	if got := whose(r.Resolve(flows.Scope{Netns: 1}, addr, 99*sec)); got != "99" {
		t.Errorf("at 99 s: got %q, want 99", got)
	}
	r.forget(100*sec+2*int64(pastFor), nil)
	if count, _ := r.held(); count != 0 {
		t.Errorf("after %s: %d remembered, want none", 2*pastFor, count)
	}
	if len(r.owned) != 0 || len(*r.domains.Load()) != 0 {
		t.Errorf("left: %d owners, %d domains, want none", len(r.owned), len(*r.domains.Load()))
	}
}

func TestReadersNeverSeeHalfOfAChange(t *testing.T) {
	r := NewResolver()
	o, addr := owner{ownerNamespace, "2"}, addrOf("10.0.0.1")
	one, two := entity("one"), entity("two")
	r.hold(o, 0, []claim{{space: 1, addr: addr, who: one, rank: rankSeen}})
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := r.Resolve(flows.Scope{Netns: 1}, addr, sec); got != one && got != two {
					t.Errorf("got %+v, want one or two", got)
					return
				}
			}
		})
	}
	for i := range 2000 {
		r.hold(o, 0, []claim{{space: 1, addr: addr, who: []*flows.Entity{one, two}[i%2], rank: rankSeen}})
		r.hold(owner{ownerNamespace, "x"}, 0, []claim{{space: 4, addr: addr, who: one, rank: rankSeen}})
		r.joined(sec, map[uint64]uint64{1: 1, 3: uint64(1 + i%2*2)})
	}
	close(done)
	wg.Wait()
}

// crowded has a domain of so many containers, each with an address and a namespace.
func crowded(n int) (*Resolver, []netip.Addr) {
	r := NewResolver()
	domains, addrs := map[uint64]uint64{1: 1}, make([]netip.Addr, n)
	for i := range n {
		domains[uint64(i+2)] = 1
	}
	r.joined(sec, domains)
	for i := range n {
		addrs[i] = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r.hold(owner{ownerNamespace, fmt.Sprint(i)}, sec, []claim{{space: uint64(i + 2), addr: addrs[i], from: sec, who: entity(fmt.Sprint(i)), rank: rankSeen}})
	}
	return r, addrs
}

func TestResolvingAllocatesNothing(t *testing.T) {
	r, addrs := crowded(1000)
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		if r.Resolve(flows.Scope{Netns: 1}, addrs[i%len(addrs)], 2*sec) == nil {
			t.Fatalf("%s: nobody", addrs[i%len(addrs)])
		}
		i++
	}); n != 0 {
		t.Errorf("%v allocations a lookup, want none", n)
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, n := range []int{100, 5000, 50000} {
		r, addrs := crowded(n)
		b.Run(fmt.Sprintf("addresses=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if r.Resolve(flows.Scope{Netns: 1}, addrs[i], 2*sec) == nil {
					b.Fatalf("%s: nobody", addrs[i])
				}
				if i += 7; i >= n {
					i -= n
				}
			}
		})
	}
}

func BenchmarkHold(b *testing.B) {
	r, addrs := crowded(5000)
	o, es := owner{ownerPod, "churn"}, [2]*flows.Entity{entity("a"), entity("b")}
	for i := 0; b.Loop(); i++ {
		r.hold(o, 2*sec, []claim{{space: 1, addr: addrs[i%5000], who: es[i&1], rank: rankRoutable}})
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func selfPID() uint32 { return uint32(os.Getpid()) }

// Tables that are as full as they may be, and seeds of all kinds, find every address
// and none that is not there.
func TestShardsFindEveryAddressAtAnySize(t *testing.T) {
	for n := range 300 {
		r := NewResolver()
		all := map[spot][]holding{}
		for i := range n {
			p := spot{uint64(i % 3), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
			if i%2 == 1 {
				p.addr = netip.AddrFrom16(netip.MustParseAddr("fd00::").As16()).Next()
				for range i % 7 {
					p.addr = p.addr.Next()
				}
			}
			all[p] = []holding{{who: entity(fmt.Sprint(i)), to: never}}
		}
		s, found := r.newShard(all), 0
		for p, held := range s.all() {
			k := p.key()
			if got := s.find(k, r.hash(k)); got == nil || got.who != all[p][0].who || held[0].who != got.who {
				t.Fatalf("%d addresses: %v: got %+v, want %+v", n, p, got, all[p])
			}
			found++
		}
		absent := spot{9, addrOf("10.0.0.1")}
		if found != len(all) || s.find(absent.key(), r.hash(absent.key())) != nil {
			t.Fatalf("got %d of %d addresses, and %v", found, len(all), s.find(absent.key(), r.hash(absent.key())))
		}
	}
}
