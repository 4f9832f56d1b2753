// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// bench-like harness: the real programs and tables, run by BPF_PROG_TEST_RUN on
// frames that the test builds, as if they came to ifindex 1 of namespace 1.
type harness struct {
	t      *testing.T
	d      *Dataplane
	progs  *programs
	points map[flows.Hook]*point
	sum    map[flows.Key]flows.Count
	last   []flows.Sample // of the last drain
}

var backends = []Backend{BackendSlots, BackendHash}

func requireBPF(t testing.TB) {
	t.Helper()
	if err := checkPrivilege(); err != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatal(err)
		}
		t.Skipf("needs BPF: %v", err)
	}
}

func newHarness(t *testing.T, o Options, l2Len uint8) *harness {
	t.Helper()
	requireBPF(t)
	if o.Backend == BackendAuto {
		o.Backend = BackendSlots // no falling back: a kernel that refuses the slots fails the test
	}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	d := &Dataplane{opts: o, log: slog.New(slog.DiscardHandler), off: map[string]Capability{}}
	h := &harness{t: t, d: d, points: map[flows.Hook]*point{}, sum: map[flows.Key]flows.Count{}}
	var err error
	if d.objs, err = loadObjects(&d.opts, d.turnOff); err != nil {
		t.Fatal(err)
	}
	if err = d.points.open(d.objs); err != nil {
		t.Fatal(err)
	}
	if d.clock, err = newClock(d.objs); err != nil {
		t.Fatal(err)
	}
	if d.table, err = newTable(d); err != nil {
		t.Fatal(err)
	}
	d.drain.Store(&DrainStatus{})
	h.progs = d.objs.first // a second load would show nothing new
	if d.objs.xdp != nil {
		if h.progs, err = d.objs.programs(ownNetns, true); err != nil {
			t.Fatal(err)
		}
	}
	on := []flows.Hook{flows.HookIngress, flows.HookEgress, flows.HookXDP}
	points, err := d.points.add(1, l2Len, flows.Point{Netns: 7, Ifindex: 1}, flows.Hop{Interface: "lo"}, nil, on)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		h.points[p.at.Hook] = p
	}
	t.Cleanup(func() {
		if h.progs != d.objs.first { // which the objects close
			if err := h.progs.close(); err != nil {
				t.Error(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// wireContext is the part of struct __sk_buff that a test sets.
type wireContext struct {
	gsoSegs, gsoSize uint32
}

// offsets in struct __sk_buff (include/uapi/linux/bpf.h)
const (
	skbGSOSegs = 164
	skbGSOSize = 176
	skbSize    = 192
)

func (w *wireContext) bytes() []byte {
	b := make([]byte, skbSize)
	binary.NativeEndian.PutUint32(b[skbGSOSegs:], w.gsoSegs)
	binary.NativeEndian.PutUint32(b[skbGSOSize:], w.gsoSize)
	return b
}

// run gives a frame to the hook's program n times and checks that its verdict is
// to go on.
func (h *harness) run(hook flows.Hook, frame []byte, n int, w *wireContext) {
	h.t.Helper()
	prog, want := h.progs.ingress, uint32(0xffffffff)
	switch hook {
	case flows.HookEgress:
		prog = h.progs.egress
	case flows.HookXDP:
		prog, want = h.progs.xdp, 2 // XDP_PASS
	}
	opts := &ebpf.RunOptions{Data: frame, Repeat: uint32(n)}
	if w != nil {
		opts.Context = w.bytes()
	}
	var ret uint32
	var err error
	undisturbed(func() { onOneCPU(h.t, func() { ret, err = prog.Run(opts) }) })
	if err != nil {
		h.t.Fatalf("run %s on %x: %v", hook, frame, err)
	}
	if ret != want {
		h.t.Fatalf("verdict of %s on %x: got %d, want %d", hook, frame, int32(ret), int32(want))
	}
}

// drain reads everything out and returns the final account.
func (h *harness) drain() flows.Account {
	h.t.Helper()
	acct, err := h.drainErr()
	if err != nil {
		h.t.Fatal(err)
	}
	return acct
}

func (h *harness) drainErr() (flows.Account, error) {
	out := make(chan flows.Batch)
	failed := make(chan error, 1)
	go func() {
		failed <- h.d.drainAll(out, false)
		close(out)
	}()
	var acct flows.Account
	h.last = h.last[:0]
	for b := range out {
		for _, s := range b.Flows {
			c := h.sum[s.Key]
			c.Add(flows.Count{Packets: s.Packets, Bytes: s.Bytes})
			h.sum[s.Key] = c
			h.last = append(h.last, s)
		}
		if b.Final {
			acct = b.Seen
		}
	}
	return acct, <-failed
}

// wakes runs the eviction path of Run while traffic flows, until ctx ends.
func (h *harness) wakes(ctx context.Context, out chan<- flows.Batch) error {
	for ctx.Err() == nil {
		if err := h.d.table.wait(ctx, time.Now().Add(20*time.Millisecond)); err != nil {
			return err
		}
		if err := h.d.drainAll(out, false); err != nil {
			return err
		}
	}
	return nil
}

// account is the hook's part of an account.
func (h *harness) account(a flows.Account, hook flows.Hook) flows.PointAccount {
	h.t.Helper()
	for _, p := range a.Points {
		if p.At == h.points[hook].at {
			return p
		}
	}
	h.t.Fatalf("no account of %s in %+v", hook, a)
	return flows.PointAccount{}
}

func totalSkipped(p flows.PointAccount) (c flows.Count) {
	for _, s := range p.Skipped {
		c.Add(s)
	}
	return c
}

func (h *harness) totalFlows() (c flows.Count) {
	for _, s := range h.sum {
		c.Add(s)
	}
	return c
}

// undisturbed runs f on a thread that takes no signals: a test run that a signal
// interrupts is begun again, and the frames it had counted stay counted.
func undisturbed(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		panic(err)
	}
	f()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		panic(err)
	}
}

// onOneCPU keeps the locked thread on CPU 0 for f: frames of one flow that two CPUs
// count are two samples.
func onOneCPU(t *testing.T, f func()) {
	t.Helper()
	var all, one unix.CPUSet
	one.Set(0)
	if err := errors.Join(unix.SchedGetaffinity(0, &all), unix.SchedSetaffinity(0, &one)); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
}
