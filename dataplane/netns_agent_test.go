// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"weft/flows"
)

// nsAgent is a data plane at work, and everything it said. When it stops, the
// ledger of every point it ever had must balance, and every interface that the
// test named must have counted what its points saw.
type nsAgent struct {
	t      testing.TB
	d      *Dataplane
	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	flows    map[nsFlow]*nsGain
	sums     map[flows.Point]flows.Count        // of points not yet gone
	accounts map[flows.Point]flows.PointAccount // the latest; what is gone stays
	closed   []flows.PointAccount               // the last of every point
	drains   int
	wrong    []string
	table    *flows.Table // nil: not folded
	records  []flows.Record
	ledger   flows.Ledger
	asked    *flows.DNSFigures // the latest, as what follows
	times    []flows.Latency

	truths  []nsTruth
	stopped bool
}

// nsFlow is what makes a sample's flow, at one point.
type nsFlow struct {
	At       flows.Point
	Key      flows.Key
	VLAN     flows.VLAN
	Fragment bool
}

// nsGain is the sum of a flow's samples.
type nsGain struct {
	flows.Count
	first, last int64 // Unix ns
	flags       uint8
	tcp         flows.TCPHealth
}

// nsTruth is an interface whose own counters are to be met.
type nsTruth struct {
	in        *nsSpace
	name      string
	segmented bool // the device counts wire packets: frames are segmented before it counts
	lossy     bool // the device may drop what it cannot pass on, behind our hook

	counters nsCounters // when it began
	seen     map[flows.Hook]flows.PointAccount
}

// nsStart opens a data plane and runs it. interval 0: 10 ms.
func nsStart(t testing.TB, o Options) *nsAgent {
	t.Helper()
	return nsStartFolding(t, o, nil)
}

func nsStartFolding(t testing.TB, o Options, table *flows.Table) *nsAgent {
	t.Helper()
	nsRequire(t)
	if o.Interval == 0 {
		o.Interval = 10 * time.Millisecond
	}
	if o.Slots == 0 {
		o.Slots = 4096
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	a := &nsAgent{
		t: t, d: d, done: make(chan error, 1), flows: map[nsFlow]*nsGain{}, table: table,
		sums: map[flows.Point]flows.Count{}, accounts: map[flows.Point]flows.PointAccount{},
	}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	out := make(chan flows.Batch)
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for b := range out {
			a.take(b)
		}
	}()
	go func() {
		err := d.Run(ctx, out)
		<-consumed
		a.done <- err
	}()
	t.Cleanup(a.stop)
	return a
}

func (a *nsAgent) take(b flows.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range b.Flows {
		s := &b.Flows[i]
		n := flows.Count{Packets: s.Packets, Bytes: s.Bytes}
		sum := a.sums[s.At]
		sum.Add(n)
		a.sums[s.At] = sum
		f := nsFlow{s.At, s.Key, s.VLAN, s.Fragment}
		g := a.flows[f]
		if g == nil {
			g = &nsGain{first: s.First}
			a.flows[f] = g
		}
		g.Add(n)
		gainTCP(&g.tcp, &s.TCP)
		g.last, g.flags = max(g.last, s.Last), g.flags|s.TCPFlags
		if s.First > s.Last {
			a.wrong = append(a.wrong, fmt.Sprintf("%v: first %d is after last %d", s.Key, s.First, s.Last))
		}
	}
	if b.Final {
		a.drains++
		met := map[flows.Point]bool{}
		for _, p := range b.Seen.Points {
			if met[p.At] {
				a.wrong = append(a.wrong, fmt.Sprintf("%s %s: two accounts in one drain", p.Hop.Interface, p.At.Hook))
			}
			met[p.At] = true
			a.account(p)
		}
	}
	if a.table != nil {
		if w, done := a.table.Fold(b); done {
			a.records = append(a.records, w.Records...)
			a.ledger, a.asked = w.Ledger, w.DNS
			if w.Latencies != nil {
				a.times = w.Latencies
			}
		}
	}
}

// account notes one; the last one of a point must balance exactly.
func (a *nsAgent) account(p flows.PointAccount) {
	a.accounts[p.At] = p
	if !p.Gone {
		return
	}
	a.closed = append(a.closed, p)
	sum, skipped := a.sums[p.At], totalSkipped(p)
	if sum.Plus(skipped) != p.After {
		a.wrong = append(a.wrong, fmt.Sprintf("%s %s: flows %+v + skipped %+v, seen %+v: unaccounted %+v",
			p.Hop.Interface, p.At.Hook, sum, skipped, p.After, minus(p.After, sum.Plus(skipped))))
	}
	delete(a.sums, p.At)
}

// stop ends the agent and checks what it said. It may be called twice.
func (a *nsAgent) stop() {
	a.t.Helper()
	if a.stopped {
		return
	}
	a.stopped = true
	if a.t.Failed() || a.t.Skipped() { // links may be gone by now
		a.truths = nil
	}
	var before, after []nsCounters
	for _, x := range a.truths {
		before = append(before, x.in.counters(x.name))
	}
	a.cancel()
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		a.t.Fatal("Run does not end within 20 s of its context")
	}
	for _, x := range a.truths {
		after = append(after, x.in.counters(x.name))
	}
	if err := a.d.Close(); err != nil {
		a.t.Errorf("close: %v", err)
	}
	for at := range a.sums {
		a.wrong = append(a.wrong, fmt.Sprintf("%+v: samples, but no last account after them", at))
	}
	for at, p := range a.accounts {
		if !p.Gone {
			a.wrong = append(a.wrong, fmt.Sprintf("%+v: its last account is not its last", at))
		}
	}
	for _, w := range a.wrong {
		a.t.Error(w)
	}
	for i, x := range a.truths {
		a.meet(x, before[i], after[i])
	}
}

// meet compares what an interface counted, read before and after it was detached,
// with what its points saw.
func (a *nsAgent) meet(x nsTruth, before, after nsCounters) {
	a.t.Helper()
	check := func(hook flows.Hook, lo, hi flows.Count, dropped uint64) {
		p, ok := a.accounts[a.at(x.in, x.name, hook)]
		if !ok {
			a.t.Errorf("%s %s: no account", x.name, hook)
			return
		}
		seen, gso := minus(p.After, x.seen[hook].After), minus(p.GSO, x.seen[hook].GSO)
		if !x.segmented {
			seen = minus(seen, gso)
		}
		if dropped > 0 && !x.lossy {
			a.t.Errorf("%s %s: the device dropped %d packets behind the hook", x.name, hook, dropped)
		}
		lo.Packets += dropped
		hi.Packets += dropped
		hi.Bytes += dropped * 65549 // their sizes are not known
		if seen.Packets < lo.Packets || seen.Packets > hi.Packets || seen.Bytes < lo.Bytes || seen.Bytes > hi.Bytes {
			a.t.Errorf("%s %s: got %+v (GSO %+v), the interface counted %+v (%+v when detached): off by %d packets, %d bytes",
				x.name, hook, seen, gso, lo, hi, int64(seen.Packets-lo.Packets), int64(seen.Bytes-lo.Bytes))
		}
	}
	began := x.counters
	check(flows.HookIngress, minus(before.rx, began.rx), minus(after.rx, began.rx), 0)
	check(flows.HookEgress, minus(before.tx, began.tx), minus(after.tx, began.tx), before.txDropped-began.txDropped)
}

// expect has stop compare both directions of an interface from now on: what a
// device is given before its queue carries is lost between our hook and its count.
func (a *nsAgent) expect(in *nsSpace, name string, segmented bool) {
	a.t.Helper()
	x := nsTruth{in: in, name: name, segmented: segmented}
	x.counters, x.seen = a.still(in, name)
	a.truths = append(a.truths, x)
}

// still reads an interface's counters and what its points counted at a moment when
// nothing comes.
func (a *nsAgent) still(in *nsSpace, name string) (c nsCounters, seen map[flows.Hook]flows.PointAccount) {
	a.t.Helper()
	seen = map[flows.Hook]flows.PointAccount{}
	for quiet := false; !quiet; quiet = c == in.counters(name) {
		c = in.settle(name)
		for _, hook := range []flows.Hook{flows.HookIngress, flows.HookEgress} {
			seen[hook] = a.now(in, name, hook)
		}
	}
	return c, seen
}

// at is a point by names. It also finds a device that is gone.
func (a *nsAgent) at(in *nsSpace, name string, hook flows.Hook) flows.Point {
	a.t.Helper()
	cookie, index := in.cookie(), uint32(0)
	if l, err := in.h.LinkByName(name); err == nil {
		index = uint32(l.Attrs().Index)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, p := range a.accounts {
		if at.Netns == cookie && at.Hook == hook && (at.Ifindex == index || index == 0 && p.Hop.Interface == name) {
			return at
		}
	}
	return flows.Point{Netns: cookie, Ifindex: index, Hook: hook}
}

// live is the kernel's own point of a device that is watched now.
func (a *nsAgent) live(in *nsSpace, name string, hook flows.Hook) *point {
	l, err := in.h.LinkByName(name)
	if err != nil {
		return nil
	}
	return a.liveAt(flows.Point{Netns: in.cookie(), Ifindex: uint32(l.Attrs().Index), Hook: hook})
}

// liveAt is the same by numbers: it asks the kernel nothing.
func (a *nsAgent) liveAt(at flows.Point) *point {
	a.d.points.mu.Lock()
	defer a.d.points.mu.Unlock()
	if p := a.d.points.byAt[at]; p != nil && p.attached && p.leaving == 0 {
		return p
	}
	return nil
}

// await waits until devices are watched on both TC hooks.
func (a *nsAgent) await(in *nsSpace, names ...string) {
	a.t.Helper()
	for _, name := range names {
		nsUntil(a.t, name+" is watched", func() bool {
			return a.live(in, name, flows.HookIngress) != nil && a.live(in, name, flows.HookEgress) != nil
		})
	}
}

// now is what the kernel counted at a point until now.
func (a *nsAgent) now(in *nsSpace, name string, hook flows.Hook) flows.PointAccount {
	a.t.Helper()
	p := a.live(in, name, hook)
	if p == nil {
		a.t.Fatalf("%s %s is not watched", name, hook)
	}
	acct := a.d.points.read(p.id)
	acct.After, acct.GSO = minus(acct.After, p.base.After), minus(acct.GSO, p.base.GSO)
	return acct
}

// seen is the packets of that.
func (a *nsAgent) seen(in *nsSpace, name string, hook flows.Hook) flows.Count {
	a.t.Helper()
	return a.now(in, name, hook).After
}

// drained waits until a drain has begun and ended that could read everything
// that happened before the call.
func (a *nsAgent) drained() {
	a.t.Helper()
	a.mu.Lock()
	n := a.drains
	a.mu.Unlock()
	nsUntil(a.t, "two drains", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.drains >= n+2
	})
}

// sum adds up the flows of a point that f chooses. Call it after drained or stop.
func (a *nsAgent) sum(at flows.Point, f func(nsFlow) bool) (c flows.Count) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, g := range a.flows {
		if k.At == at && f(k) {
			c.Add(g.Count)
		}
	}
	return c
}

// last is the latest account of a point.
func (a *nsAgent) last(in *nsSpace, name string, hook flows.Hook) flows.PointAccount {
	at := a.at(in, name, hook)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.accounts[at]
}
