// SPDX-License-Identifier: Apache-2.0

// Package dataplane owns the kernel side: it loads the programs of package bpf,
// attaches them to the devices of one or more network namespaces, follows links
// as they come and go, drains the flow table and the counters, and turns the
// kernel's clock into wall-clock time. It yields [flows.Batch]es and knows
// nothing of topology or export.
//
// A missing kernel feature removes one capability, named in [Status], and
// nothing else. Nothing stays behind after Close, or after the process dies:
// tcx and XDP attachments die with it, and clsact filters are removed by the
// next Open.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"weft/flows"
)

const (
	defaultInterval  = time.Second
	maxInterval      = 10 * time.Second // ages of slots are known modulo 2^16 jiffies
	minInterval      = 5 * time.Millisecond
	defaultSlots     = 65536
	defaultMaxMemory = 64 << 20
	batchSamples     = 4096
)

// Dataplane is loaded and attached programs and the tables they fill.
// Status, Hop and Reload may be called at any time by any goroutine.
type Dataplane struct {
	opts  Options
	log   *slog.Logger
	objs  *objects
	table table
	clock *clock

	points pointTable
	spaces *spaces

	offMu sync.Mutex
	off   map[string]Capability

	drain   atomic.Pointer[DrainStatus]
	started atomic.Bool

	buffers [2][]flows.Sample // batches in turn: one being filled, one with the consumer
	turn    int
}

// Open loads the programs and attaches them to every device that opts names and
// that exists; Run follows what changes. The error names what is missing (a
// privilege, a kernel feature, a device) and the mend.
func Open(opts Options) (*Dataplane, error) {
	d := &Dataplane{opts: opts, log: opts.Log, off: map[string]Capability{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.opts.setDefaults(); err != nil {
		return nil, err
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Dataplane) open() error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	var err error
	if d.objs, err = loadObjects(&d.opts, d.turnOff); err != nil {
		return err
	}
	if err = d.points.open(d.objs); err != nil {
		return err
	}
	if d.clock, err = newClock(d.objs); err != nil {
		return err
	}
	if d.table, err = newTable(d); err != nil {
		return err
	}
	d.drain.Store(&DrainStatus{})
	d.spaces, err = openSpaces(d)
	return err
}

// Run drains the table every interval, and earlier when evictions fill the
// ring, and sends what it finds. When ctx ends it detaches, drains what is left,
// sends it as the last batch with every point Gone, and closes out. The consumer
// must receive until then. Run may be called once.
func (d *Dataplane) Run(ctx context.Context, out chan<- flows.Batch) error {
	defer close(out)
	if d.started.Swap(true) {
		return errors.New("run the data plane: it runs already")
	}
	next := time.Now().Add(d.opts.Interval)
	for ctx.Err() == nil {
		if err := d.table.wait(ctx, next); err != nil {
			return fmt.Errorf("wait for evicted flows: %w", err)
		}
		if now := time.Now(); now.Before(next) && ctx.Err() == nil {
			if err := d.drainEvicted(out); err != nil {
				return err
			}
			continue
		}
		if err := d.drainAll(out, false); err != nil {
			return err
		}
		if next = next.Add(d.opts.Interval); next.Before(time.Now()) {
			next = time.Now().Add(d.opts.Interval)
		}
	}
	err := d.spaces.detachAll()
	return errors.Join(err, d.drainAll(out, true))
}

// drainEvicted makes room in the ring buffer between two drains.
func (d *Dataplane) drainEvicted(out chan<- flows.Batch) error {
	now, err := d.clock.read()
	if err != nil {
		return err
	}
	e := d.emitter(now, out)
	if err := d.table.drainEvicted(e); err != nil {
		return fmt.Errorf("drain evicted flows: %w", err)
	}
	e.flush()
	return nil
}

// drainAll reads the counters, the table, and the counters again: what the
// table yielded lies between the two.
func (d *Dataplane) drainAll(out chan<- flows.Batch, last bool) error {
	start := time.Now()
	now, err := d.clock.read()
	if err != nil {
		return err
	}
	acct := d.points.begin(last)
	e := d.emitter(now, out)
	res, err := d.table.drain(e)
	if err != nil {
		return fmt.Errorf("drain the flow table: %w", err)
	}
	e.flush()
	seen := flows.Account{At: now.wall, Points: acct.end()}
	prev := d.drain.Load()
	d.drain.Store(&DrainStatus{
		Drains: prev.Drains + 1, Live: res.live, Used: res.used,
		Evictions: prev.Evictions + res.evictions, Last: time.Since(start),
	})
	out <- flows.Batch{At: now.wall, Final: true, Seen: seen}
	d.points.forget(acct)
	return nil
}

// emitter collects samples and sends them in batches of batchSamples.
type emitter struct {
	d   *Dataplane
	now instant
	out chan<- flows.Batch
	buf []flows.Sample
}

func (d *Dataplane) emitter(now instant, out chan<- flows.Batch) *emitter {
	return &emitter{d: d, now: now, out: out, buf: d.nextBuffer()}
}

// nextBuffer is the buffer that the consumer is done with: it has received the
// batch after it.
func (d *Dataplane) nextBuffer() []flows.Sample {
	d.turn ^= 1
	if d.buffers[d.turn] == nil {
		d.buffers[d.turn] = make([]flows.Sample, 0, batchSamples)
	}
	return d.buffers[d.turn][:0]
}

// next is a sample to fill.
func (e *emitter) next() *flows.Sample {
	if len(e.buf) == cap(e.buf) {
		e.flush()
		e.buf = e.d.nextBuffer()
	}
	e.buf = e.buf[:len(e.buf)+1]
	return &e.buf[len(e.buf)-1]
}

func (e *emitter) flush() {
	if len(e.buf) > 0 {
		e.out <- flows.Batch{At: e.now.wall, Flows: e.buf}
		e.buf = e.buf[:0]
	}
}

// Hop names the device behind p; false when p is not watched (any more).
func (d *Dataplane) Hop(p flows.Point) (flows.Hop, bool) { return d.points.hop(p) }

// Reload replaces the globs of Options and attaches or detaches at once.
func (d *Dataplane) Reload(interfaces, exclude []string) error {
	o := Options{Interfaces: interfaces, Exclude: exclude}
	if err := o.checkGlobs(); err != nil {
		return err
	}
	return d.spaces.reload(interfaces, exclude)
}

// Close detaches everything and frees the kernel's memory. It may follow a Run
// that has returned, or an Open that Run never followed.
func (d *Dataplane) Close() error {
	var errs []error
	if d.spaces != nil {
		errs = append(errs, d.spaces.close())
	}
	if d.table != nil {
		errs = append(errs, d.table.close())
	}
	if d.clock != nil {
		errs = append(errs, d.clock.close())
	}
	if d.objs != nil {
		errs = append(errs, d.points.close(), d.objs.close())
	}
	return errors.Join(errs...)
}

// turnOff notes a capability that the kernel refuses. One line a capability.
func (d *Dataplane) turnOff(c Capability) {
	d.offMu.Lock()
	defer d.offMu.Unlock()
	if _, known := d.off[c.Name]; known {
		return
	}
	d.off[c.Name] = c
	d.log.Warn("capability off", "probe", c.Name, "needs", c.Needs, "err", c.Err)
}

// checkPrivilege fails early with the mend when no program can be loaded at all.
func checkPrivilege() error {
	err := features.HaveProgramType(ebpf.SchedCLS)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load BPF programs: %w: run as root, or give CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", err)
	}
	return fmt.Errorf("load BPF programs: the kernel has no BPF classifier (CONFIG_NET_CLS_BPF, Linux 5.15 or later): %w", err)
}
