// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"weft/flows"
)

// udpFrame is flow n's: 10.x.y.z:port -> 10.0.0.2:53.
func udpFrame(n uint32) []byte {
	f := frame(ethIPv4, ip4(17, 8), udp())
	binary.BigEndian.PutUint32(f[26:], 0x0b000000+n>>8)
	binary.BigEndian.PutUint16(f[34:], uint16(1024+n&0xff))
	return f
}

// TestTenMillionPacketsAreConserved gives 10 million packets of ten times more
// flows than there are slots to two CPUs, while the table is drained: every one
// is in a flow or in a reason, and each flow has what was sent to it.
func TestTenMillionPacketsAreConserved(t *testing.T) {
	const slots, repeat = 4096, 50
	h := newHarness(t, Options{Slots: slots}, 14)
	flowsN := 10 * h.d.objs.size.slots * h.d.objs.size.cpus
	total := 10_000_000
	if testing.Short() {
		total /= 10
	}
	sent := make([]atomic.Uint64, flowsN)
	ctx, cancel := context.WithCancel(t.Context())
	out, read := make(chan flows.Batch), make(chan error, 1)
	got := map[flows.Key]flows.Count{}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for b := range out {
			for _, s := range b.Flows {
				c := got[s.Key]
				c.Add(flows.Count{Packets: s.Packets, Bytes: s.Bytes})
				got[s.Key] = c
			}
		}
	}()
	go func() { read <- h.wakes(ctx, out); close(out) }()
	var wg sync.WaitGroup
	for cpu := range 2 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(cpu), 3))
			for range total / repeat / 2 {
				n := uint32(r.IntN(flowsN))
				var err error
				undisturbed(func() {
					_, err = h.progs.ingress.Run(&ebpf.RunOptions{Data: udpFrame(n), Repeat: repeat})
				})
				if err != nil {
					t.Error(err)
					return
				}
				sent[n].Add(repeat)
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	<-collected
	h.sum = got
	acct := h.account(h.drain(), flows.HookIngress)
	sum := h.totalFlows()
	if all := sum.Plus(totalSkipped(acct)); all != acct.After || acct.After.Packets != uint64(total) {
		t.Errorf("flows %+v + skipped %+v != seen %+v of %d sent", sum, totalSkipped(acct), acct.After, total)
	}
	checkPerFlow(t, h, sent, acct)
	t.Logf("seen %+v, evictions %d, table_full %+v", acct.After, h.d.drain.Load().Evictions, acct.Skipped[flows.SkipTableFull])
}

// checkPerFlow holds when no packet was refused: then each flow has exactly its own.
func checkPerFlow(t *testing.T, h *harness, sent []atomic.Uint64, acct flows.PointAccount) {
	t.Helper()
	if acct.Skipped[flows.SkipTableFull].Packets > 0 {
		return
	}
	bad := 0
	for n := range sent {
		f := udpFrame(uint32(n))
		k := h.keyOf(f)
		if want := sent[n].Load(); h.sum[k].Packets != want && bad < 10 {
			bad++
			t.Errorf("flow %d (%v): got %d packets, want %d", n, k, h.sum[k].Packets, want)
		}
	}
}

func (h *harness) keyOf(f []byte) flows.Key { return newReference().parse(f).key }

// TestFullRingRefusesPacketsAndCountsThem never drains: once the ring of evicted
// flows is full, packets of new flows are counted under table_full.
func TestFullRingRefusesPacketsAndCountsThem(t *testing.T) {
	h := newHarness(t, Options{Slots: 64, MaxMemory: minMemory}, 14)
	n := 2 * (h.d.objs.size.ring/112 + 64*h.d.objs.size.cpus)
	for i := range n {
		h.run(flows.HookIngress, udpFrame(uint32(i)), 1, nil)
	}
	acct := h.account(h.drain(), flows.HookIngress)
	full := acct.Skipped[flows.SkipTableFull]
	if full.Packets == 0 {
		t.Errorf("table_full: got 0 of %d packets, want some", n)
	}
	if sum := h.totalFlows().Plus(totalSkipped(acct)); sum != acct.After || sum.Packets != uint64(n) {
		t.Errorf("flows + skipped = %+v, seen %+v, sent %d", sum, acct.After, n)
	}
	h.run(flows.HookIngress, udpFrame(1<<20), 1, nil)
	again := h.account(h.drain(), flows.HookIngress).Skipped[flows.SkipTableFull]
	if again != full {
		t.Errorf("table_full after the ring was drained: got %+v, want %+v", again, full)
	}
}

// At default memory the ring holds what a million packets a second of new flows evict in
// 30 ms: so long may the agent not get to run.
func TestRingHoldsTheEvictionsOfAPause(t *testing.T) {
	h := newHarness(t, Options{Slots: 64}, 14)
	const evicted = 30_000
	for i := range evicted {
		h.run(flows.HookIngress, udpFrame(uint32(i)), 1, nil)
	}
	acct := h.account(h.drain(), flows.HookIngress)
	if full := acct.Skipped[flows.SkipTableFull]; full.Packets != 0 || h.d.drain.Load().Evictions < evicted-64*uint64(h.d.objs.size.cpus) {
		t.Errorf("got %d packets refused and %d flows evicted of %d", full.Packets, h.d.drain.Load().Evictions, evicted)
	}
}

func TestFullHashRefusesPacketsAndCountsThem(t *testing.T) {
	h := newHarness(t, Options{Backend: BackendHash, Slots: 64, MaxMemory: minMemory}, 14)
	n := 3 * h.d.objs.size.hashEntries()
	for i := range n {
		h.run(flows.HookIngress, udpFrame(uint32(i)), 1, nil)
	}
	acct := h.account(h.drain(), flows.HookIngress)
	if acct.Skipped[flows.SkipTableFull].Packets == 0 {
		t.Errorf("table_full: got 0 of %d packets, want some", n)
	}
	if sum := h.totalFlows().Plus(totalSkipped(acct)); sum != acct.After || sum.Packets != uint64(n) {
		t.Errorf("flows + skipped = %+v, seen %+v, sent %d", sum, acct.After, n)
	}
}

// TestReadOutSlotsAreReusedWithoutTheRing: a flow that rested since it was read
// gives its slot away without an eviction.
func TestReadOutSlotsAreReusedWithoutTheRing(t *testing.T) {
	h := newHarness(t, Options{Slots: 64}, 14)
	fill := func(from, n int) {
		for i := range n {
			h.run(flows.HookIngress, udpFrame(uint32(from+i)), 1, nil)
		}
	}
	fill(0, 1000)
	for range 3 { // read out, and at rest for a whole interval since
		waitJiffies(t, h, 2)
		h.drain()
	}
	before := h.d.drain.Load().Evictions
	fill(5000, 16)
	acct := h.account(h.drain(), flows.HookIngress)
	if got := h.d.drain.Load().Evictions - before; got != 0 {
		t.Errorf("evictions of flows at rest: got %d, want 0", got)
	}
	if sum := h.totalFlows().Plus(totalSkipped(acct)); sum != acct.After {
		t.Errorf("flows + skipped = %+v, seen %+v", sum, acct.After)
	}
}

func waitJiffies(t *testing.T, h *harness, n uint64) {
	t.Helper()
	_, from, err := h.d.clock.run()
	for now := from; err == nil && now < from+n; {
		_, now, err = h.d.clock.run()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReusedPortIsANewFlow(t *testing.T) {
	for _, backend := range backends {
		h := newHarness(t, Options{Backend: backend, Slots: 1024}, 14)
		send := func(flags byte, n int) { h.run(flows.HookIngress, frame(ethIPv4, ip4(6, 20), tcp(flags)), n, nil) }
		send(2, 1)
		send(16, 5)
		send(17, 1)
		send(2, 1)
		send(16, 2)
		h.drain()
		h.inOrder()
		if len(h.last) != 2 {
			t.Fatalf("%s: flows: got %+v, want two", backend, h.last)
		}
		if a, b := h.last[0], h.last[1]; a.Packets != 7 || b.Packets != 3 || !a.New || !b.New || a.TCPFlags&1 == 0 || b.TCPFlags&1 != 0 || a.Bytes != 7*b.Bytes/3 {
			t.Errorf("%s: got %+v and %+v, want 7 packets with FIN, then 3 without", backend, a, b)
		}
	}
}

// inOrder puts the samples of the last drain in the order in which their flows began.
func (h *harness) inOrder() {
	slices.SortFunc(h.last, func(a, b flows.Sample) int { return cmp.Compare(a.First, b.First) })
}

// TestReusedPortIsANewFlowWhereNoFINPassed: as on a CPU that saw a connection's SYN-ACK,
// but not its end.
func TestReusedPortIsANewFlowWhereNoFINPassed(t *testing.T) {
	h := newHarness(t, Options{Slots: 1024}, 14)
	send := func(flags byte, n int) { h.run(flows.HookIngress, frame(ethIPv4, ip4(6, 20), tcp(flags)), n, nil) }
	send(18, 2) // sent again
	send(16, 5)
	h.drain()
	if len(h.last) != 1 || h.last[0].Packets != 7 || !h.last[0].New {
		t.Fatalf("flows: got %+v, want one of 7 packets", h.last)
	}
	for range 3 { // read out, and at rest for a whole interval since
		waitJiffies(t, h, 2)
		h.drain()
	}
	send(18, 1)
	send(16, 2)
	h.drain()
	if len(h.last) != 1 || h.last[0].Packets != 3 || !h.last[0].New || h.last[0].FirstFlags != 18 {
		t.Errorf("the port again: got %+v, want a new flow of 3 packets", h.last)
	}
	if got := h.d.drain.Load().Evictions; got != 0 {
		t.Errorf("evictions: got %d, want none: all had been read out", got)
	}
}

// TestReusedPortIsANewFlowBeforeItWasReadOut: a port that is used again at once, on a CPU that saw
// no end of the first connection.
func TestReusedPortIsANewFlowBeforeItWasReadOut(t *testing.T) {
	for i, flags := range []byte{2, 18, 2, 18} { // SYN, SYN-ACK
		backend := backends[i/2]
		name := fmt.Sprint(backend, " flags ", flags)
		h := newHarness(t, Options{Backend: backend, Slots: 1024}, 14)
		send := func(flags byte, seq uint32, n int) {
			segment := tcp(flags)
			binary.BigEndian.PutUint32(segment[4:], seq)
			h.run(flows.HookIngress, frame(ethIPv4, ip4(6, 20), segment), n, nil)
		}
		send(flags, 1000, 2) // sent again
		send(16, 1001, 5)
		send(flags, 77, 1)
		send(16, 78, 1)
		send(flags, 77, 1) // sent again behind what follows it
		h.drain()
		h.inOrder()
		if len(h.last) != 2 {
			t.Fatalf("%s: got %+v, want two flows", name, h.last)
		}
		if a, b := h.last[0], h.last[1]; a.Packets != 7 || b.Packets != 3 || !a.New || !b.New || a.SeqNumber != 1000 || b.SeqNumber != 77 {
			t.Errorf("%s: got %+v and %+v, want 7 packets of the first connection, then 3 of the second", name, a, b)
		}
	}
}

func TestSamplesAreDifferences(t *testing.T) {
	for _, b := range backends {
		h := newHarness(t, Options{Backend: b, Slots: 1024}, 14)
		for i := 1; i <= 4; i++ {
			h.run(flows.HookIngress, udpFrame(1), i, nil)
			h.drain()
			if len(h.last) != 1 || h.last[0].Packets != uint64(i) || h.last[0].Bytes != uint64(i*42) {
				t.Errorf("%s: drain %d: got %+v, want %d packets", b, i, h.last, i)
			}
			if h.last[0].First > h.last[0].Last {
				t.Errorf("%s: drain %d: first %d after last %d", b, i, h.last[0].First, h.last[0].Last)
			}
		}
		h.drain()
		if len(h.last) != 0 {
			t.Errorf("%s: an idle flow: got %+v, want nothing", b, h.last)
		}
	}
}

// TestHashSpreadsKeys holds the claim of hash.h: keys that differ in few bits fill
// the table as evenly as random ones, so that none leaves it below its load.
func TestHashSpreadsKeys(t *testing.T) {
	h := newHarness(t, Options{Slots: 8192}, 14)
	for i := range 1024 {
		h.run(flows.HookIngress, udpFrame(uint32(i)), 1, nil)
	}
	h.drain()
	if got := h.d.drain.Load().Evictions; got != 0 {
		t.Errorf("evictions at a load of 1/8: got %d, want 0", got)
	}
	if len(h.last) != 1024 {
		t.Errorf("flows: got %d, want 1024", len(h.last))
	}
}

func TestMemoryStaysWithinItsBound(t *testing.T) {
	for _, cpus := range []int{1, 2, 3, 8, 64, 96, 128} {
		everything := Options{TCP: true, Drops: true, DNS: true, Sockets: true}
		if err := everything.setDefaults(); err != nil {
			t.Fatal(err)
		}
		if s := sizeFor(&everything, cpus); s.total() > defaultMaxMemory || s.slots < 512 {
			t.Errorf("%d CPUs, all options: got %d bytes and %d slots a CPU, want at most %d bytes", cpus, s.total(), s.slots, defaultMaxMemory)
		}
		o := Options{}
		if err := o.setDefaults(); err != nil {
			t.Fatal(err)
		}
		s := sizeFor(&o, cpus)
		if s.total() > defaultMaxMemory {
			t.Errorf("%d CPUs: got %d bytes, want at most %d", cpus, s.total(), defaultMaxMemory)
		}
		if s.slots < 1024 || s.places < 512 {
			t.Errorf("%d CPUs: got %d slots and %d places a CPU, too few to be useful", cpus, s.slots, s.places)
		}
		t.Logf("%d CPUs: %+v, %d KiB", cpus, s, s.total()>>10)
	}
}

// A bound that cannot be kept is refused, with one that can.
func TestTooLittleMemoryIsRefused(t *testing.T) {
	o := Options{TCP: true, Drops: true, DNS: true, Sockets: true, MaxMemory: minMemory}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	least := leastMemory(&o, cpus)
	if _, err := loadObjects(&o, func(Capability) {}); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), strconv.Itoa(least)) {
		t.Errorf("all options in %d bytes: got %v, want an error of the options with %d", o.MaxMemory, err, least)
	}
	if o.MaxMemory = least; sizeFor(&o, cpus).total() > least {
		t.Errorf("got %d bytes, want at most %d", sizeFor(&o, cpus).total(), least)
	}
}

func BenchmarkDrain(b *testing.B) {
	for _, live := range []int{1 << 10, 1 << 17, 1 << 20} {
		b.Run(byteCount(live), func(b *testing.B) { benchmarkDrain(b, live) })
	}
}
