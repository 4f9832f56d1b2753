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
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"weft/bpf"
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
	drops *drops     // nil: not traced
	times *latencies // nil: TCP is not measured
	dns   *dns       // nil: not read
	socks *sockets   // nil: not asked

	points  pointTable
	spaces  *spaces
	devices atomic.Pointer[[]flows.DeviceDrops] // the latest reading; nil: none
	unseen  atomic.Pointer[[]flows.DeviceFrames]

	offMu sync.Mutex
	off   map[string]Capability

	drain   atomic.Pointer[DrainStatus]
	started atomic.Bool

	buffers [2][]flows.Sample // batches in turn: one being filled, one with the consumer
	turn    int
}

// Open loads the programs and attaches them to every device that opts names and
// that exists; Run follows what changes. The error names what is missing (a
// privilege, a kernel feature, a device) and the mend; it is ErrOptions when opts
// are to be mended.
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
	if d.objs.size.tcp {
		d.times = newLatencies(d.objs.maps[bpf.HealthMapLatencies])
	}
	d.drain.Store(&DrainStatus{})
	if d.spaces, err = openSpaces(d); err != nil {
		return err
	}
	d.openDrops()
	if d.objs.config.Options&dnsOption != 0 {
		if d.dns, err = openDNS(d.objs, &d.points); err != nil {
			return err
		}
	}
	d.openSockets()
	if d.opts.Drops || d.opts.Sockets {
		debug.FreeOSMemory() // the kernel's BTF was read: some 12 MiB that nobody needs again
	}
	return nil
}

// openDrops traces drops if asked to and the kernel can.
func (d *Dataplane) openDrops() {
	if !d.opts.Drops {
		return
	}
	var err error
	if d.drops, err = openDrops(d.objs.size.drops, d.points.domainOf); err != nil {
		d.turnOff(Capability{Name: "drop tracing", Needs: dropsNeed, Err: err.Error()})
	}
}

// openSockets asks sockets if asked to and the kernel can.
func (d *Dataplane) openSockets() {
	if !d.opts.Sockets {
		return
	}
	var err error
	if d.socks, err = openSockets(d.objs.size.sockets, d.turnOff); err != nil {
		d.turnOff(Capability{Name: "sockets", Needs: socketsNeed, Err: err.Error()})
	}
}

// Run drains the table every interval, and earlier when evictions fill the
// ring, and sends what it finds. When ctx ends it stops every program, drains what is
// left, sends it as the last batch with every point Gone, and closes out. The consumer
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
	var err error
	if d.drops != nil {
		err = d.drops.detach()
	}
	if d.socks != nil {
		err = errors.Join(err, d.socks.detach())
	}
	err = errors.Join(err, d.spaces.detachAll())
	return errors.Join(err, d.drainAll(out, true))
}

// askDomains has the points know what tells tenants apart.
func (d *Dataplane) askDomains() {
	if d.opts.Domains != nil {
		d.points.tell(d.opts.Domains())
	}
}

// drainEvicted makes room in the ring buffer between two drains.
func (d *Dataplane) drainEvicted(out chan<- flows.Batch) error {
	now, err := d.clock.read()
	if err != nil {
		return err
	}
	d.askDomains()
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
	d.askDomains()
	// First: the packets of what sockets tell are then in the table, or were before.
	told, byEvents := d.drainSockets(now)
	acct := d.points.begin(last)
	e := d.emitter(now, out)
	res, err := d.table.drain(e)
	if err != nil {
		return fmt.Errorf("drain the flow table: %w", err)
	}
	e.flush()
	seen := flows.Account{At: now.wall, Points: acct.end(), Sockets: byEvents}
	var dropped []flows.DropSample
	if d.drops != nil {
		if dropped, seen.Drops, err = d.drops.drain(now); err != nil {
			d.turnOff(Capability{Name: "drop tracing", Needs: dropsNeed, Err: err.Error()})
		}
	}
	if seen.TCP, err = d.objs.tcpAccount(); err != nil {
		return err
	}
	var asked []flows.DNSMessage
	if d.dns != nil {
		if asked, seen.DNS, err = d.dns.drain(now.mono, last); err != nil {
			d.turnOff(Capability{Name: "dns", Needs: dnsNeed, Err: err.Error()})
		}
	}
	if devices := d.devices.Load(); devices != nil {
		seen.Devices = *devices
	}
	if unseen := d.unseen.Load(); unseen != nil {
		seen.Unseen = *unseen
	}
	prev := d.drain.Load()
	d.drain.Store(&DrainStatus{
		Drains: prev.Drains + 1, Live: res.live, Used: res.used,
		Evictions: prev.Evictions + res.evictions, Last: time.Since(start),
	})
	out <- flows.Batch{At: now.wall, Final: true, Drops: dropped, DNS: asked, Sockets: told, Latencies: d.readTimes(now, last), Seen: seen}
	d.points.forget(acct)
	return nil
}

// readTimes is every histogram, when it is time to read them, or for the last time.
func (d *Dataplane) readTimes(now instant, last bool) []flows.Latency {
	if d.times == nil || !last && !d.times.due(now) {
		return nil
	}
	all, err := d.times.read(now)
	if err != nil {
		d.times = nil
		d.turnOff(Capability{Name: "latency histograms", Needs: "batch reads of hash maps (Linux 5.14)", Err: err.Error()})
	}
	return all
}

func (d *Dataplane) drainSockets(now instant) ([]flows.SocketSample, flows.SocketAccount) {
	if d.socks == nil {
		return nil, flows.SocketAccount{}
	}
	told, acct, err := d.socks.drain(now, d.spaces.domainOf)
	if err != nil {
		d.turnOff(Capability{Name: "sockets", Needs: socketsNeed, Err: err.Error()})
	}
	return told, acct
}

// Hop names the device behind p; false when p is not watched (any more).
func (d *Dataplane) Hop(p flows.Point) (flows.Hop, bool) { return d.points.hop(p) }

// Reload replaces the globs of Options and attaches or detaches at once. With
// ErrOptions (a bad glob, a name that no device has) it changes nothing.
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
	if d.socks != nil {
		errs = append(errs, d.socks.close())
	}
	if d.drops != nil {
		errs = append(errs, d.drops.close())
	}
	if d.dns != nil {
		errs = append(errs, d.dns.close())
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
	level := slog.LevelWarn
	if c.later {
		level = slog.LevelInfo
	}
	d.log.Log(context.Background(), level, "capability off", "probe", c.Name, "needs", c.Needs, "err", c.Err)
}

// capabilities that loading and attaching take, by their bits.
var capabilities = []struct {
	bit  int
	name string
}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// checkPrivilege fails early, with the mend, when no program can be loaded at all.
// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
func checkPrivilege() error {
	var have [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		return fmt.Errorf("read the process's capabilities: %w", err)
	}
	effective := uint64(have[1].Effective)<<32 | uint64(have[0].Effective)
	var missing []string
	for _, c := range capabilities {
		admin := c.bit != unix.CAP_NET_ADMIN && effective>>unix.CAP_SYS_ADMIN&1 == 1
		if effective>>c.bit&1 == 0 && !admin {
			missing = append(missing, c.name)
		}
	}
	if missing != nil {
		return fmt.Errorf("load BPF programs: %s missing: run as root, or give the process CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
			strings.Join(missing, ", "))
	}
	switch err := features.HaveProgramType(ebpf.SchedCLS); {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load BPF programs: %w: the kernel forbids it to this process (a container, lockdown or seccomp): run on the host as root", err)
	default:
		return fmt.Errorf("load BPF programs: %w: the kernel has no BPF classifier; it needs CONFIG_NET_CLS_BPF and Linux 5.15 or later", err)
	}
}
