// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"weft/cni"
	"weft/dataplane"
	"weft/exporter"
	"weft/flows"
)

// finishAtMost is how long the sinks together may take to hand over what they hold.
const finishAtMost = 10 * time.Second

// agent is one run: what is open, in the order it was opened.
type agent struct {
	log    *slog.Logger
	level  *slog.LevelVar
	reload func() (Config, error) // reads the configuration again
	out    *screen                // where -print writes; nil: nowhere
	got    chan os.Signal         // what arrived since the process began; nil: none

	mu  sync.Mutex
	cfg Config // its live keys change

	started time.Time
	store   *exporter.Store
	outlets []outlet          // of exporter.otlp, if it has an endpoint, and of exporter.sinks
	printer *exporter.Print   // nil: no -print
	stages  *exporter.Stages  // of the agent itself; nil: no /metrics
	servers flows.Servers     // of the drain's goroutine
	traffic *exporter.Traffic // nil: exporter.prometheus.pairs is 0
	drops   *exporter.Drops   // nil: not traced
	dns     *exporter.DNS     // nil: not read
	sinks   []flows.Sink      // those that are there, outlets among them
	routed  []flows.Sink      // those that get their records from one of sinks
	socket  *exporter.Server
	web     *exporter.Web // nil: listen.http is off
	mirror  *cni.Mirror   // nil: mirrorErr says why
	census  *cni.Census   // nil: without mirror
	plane   atomic.Pointer[dataplane.Dataplane]

	table         *flows.Table // the drain goroutine's
	live          *flows.Watch // the drain goroutine's; nil: nobody watches
	conversations atomic.Int64
	drained       atomic.Int64 // when the last window was delivered, Unix nanoseconds; 0: not yet
	manager       notifier     // the drain goroutine's
	trimmed       time.Time    // the drain goroutine's: when it last gave back memory
	audit         audit
	refused       map[string]string // by sink: its last error; the drain goroutine's
	mirrorErr     error
}

// run opens everything, works until ctx ends or the data plane fails, and
// closes everything.
func (a *agent) run(ctx context.Context) (err error) {
	a.started, a.refused, a.manager = time.Now(), map[string]string{}, newNotifier()
	ctx, cancel := context.WithCancel(ctx)
	open, signals := make(chan struct{}), make(chan error, 1)
	go func() {
		defer cancel() // a panic of the reload stops the agent
		signals <- caught("signals", func() error { return a.signals(ctx, open, cancel) })
	}()
	defer func() {
		cancel()
		err = errors.Join(err, a.close(), <-signals)
	}()
	if err := a.open(); err != nil {
		return err
	}
	a.announce()
	close(open)
	return a.work(ctx)
}

// open takes the socket first: it is the lock that keeps a second agent out.
func (a *agent) open() error {
	cfg := a.cfg
	a.store = exporter.NewStore(cfg.Store)
	a.sinks = append(a.sinks, a.store)
	var err error
	if a.socket, err = exporter.ListenSocket(cfg.Socket, cfg.Group, a.store, a.status); err != nil {
		return err
	}
	if err := a.openOutlets(); err != nil {
		return err
	}
	if err := a.listenHTTP(); err != nil {
		return err
	}
	a.openTopology()
	a.openCensus()
	a.tellTopology()
	cfg.Dataplane.Log = a.log
	if a.mirror != nil {
		cfg.Dataplane.Domains = func() dataplane.Domains { return a.mirror.Topology() }
	}
	plane, err := dataplane.Open(cfg.Dataplane)
	if err != nil {
		return err
	}
	cfg.Table.Places = plane
	if a.census != nil {
		cfg.Table.Translations = a.census
	}
	a.table = flows.NewTable(cfg.Table)
	if a.out != nil {
		f := &exporter.Formatter{Format: exporter.Compact, Color: terminal(a.out.out)}
		if _, err := a.out.Write(f.Header()); withoutPipe(err) != nil {
			return errors.Join(fmt.Errorf("write flows: %w", err), plane.Close())
		}
		a.printer = exporter.NewPrint(a.out, f, 0, a.log)
		a.sinks = append(a.sinks, a.printer)
	}
	a.plane.Store(plane) // from here on status reads the sinks
	return nil
}

// device names a point without a hook, if it is watched.
func (a *agent) device(at flows.Point) (flows.Hop, bool) {
	at.Hook = flows.HookIngress
	return a.plane.Load().Hop(at)
}

// announce says what the agent is and where it listens.
func (a *agent) announce() {
	where := []any{"version", ownVersion(), "socket", a.cfg.Socket}
	if a.web != nil {
		where = append(where, "http", a.web.Addr())
	}
	for _, o := range a.outlets {
		where = append(where, o.Name(), o.Status().GetTarget())
	}
	a.log.Info("weftd started", where...)
}

// work drains and delivers until ctx ends or the data plane fails. A panic
// anywhere in it ends it like an error, so that the data plane is still closed.
func (a *agent) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan flows.Batch)
	source := make(chan error, 1)
	go func() {
		source <- caught("data plane", func() error { return a.plane.Load().Run(ctx, batches) })
	}()
	err := caught("drain", func() error {
		var folded time.Duration // in this drain
		for b := range batches {
			if a.drops != nil && b.Final {
				a.drops.Add(b.Drops, b.Seen)
			}
			began := time.Now()
			w, done := a.table.Fold(b)
			folded += time.Since(began)
			a.watch(&b)
			if done {
				a.stages.Took(exporter.StageFold, folded, 0)
				folded = 0
				if a.dns != nil {
					a.dns.Set(w.DNS)
				}
				a.deliver(w)
			}
		}
		a.deliver(a.table.Close(time.Now()))
		return nil
	})
	cancel()
	for range batches { // only after a panic: the source must not wait for a taker
	}
	return errors.Join(err, <-source)
}

// watch shows what a batch brought to those who watch, if anybody does.
func (a *agent) watch(b *flows.Batch) {
	if !a.store.Live.Watched() {
		a.live = nil
		return
	}
	if a.live == nil {
		a.live = flows.NewWatch(a.table)
	}
	if now, done := a.live.Add(b); done {
		a.nameLive(now.Live)
		a.store.Live.Offer(&now)
	}
}

// deliver hands w to every sink: first its records, then its histograms and the
// ledger in which the accounts of all sinks have them.
func (a *agent) deliver(w flows.Window) {
	began := time.Now()
	a.name(w.Records)
	a.servers.Name(&w)
	a.stages.Done(exporter.StageName, began, 0)
	if a.traffic != nil {
		a.traffic.Add(w.Records, w.End)
	}
	began = time.Now()
	a.export(flows.Window{End: w.End, Records: w.Records})
	a.stages.Done(exporter.StageOffer, began, 0)
	for _, s := range a.accounted() {
		w.Ledger.Sinks = append(w.Ledger.Sinks, s.Account())
	}
	a.audit.check(&w.Ledger, a.log)
	a.export(flows.Window{End: w.End, Ledger: w.Ledger, Latencies: w.Latencies, TCP: w.TCP, Servers: w.Servers})
	a.conversations.Store(int64(a.table.Conversations()))
	now := time.Now()
	a.trim(now)
	if a.drained.Swap(now.UnixNano()) == 0 {
		a.tell(a.manager.tell("READY=1"))
	}
	a.tell(a.manager.alive(now))
}

// export gives w to every sink; a sink's error is a line when it changes.
func (a *agent) export(w flows.Window) {
	for _, s := range a.sinks {
		text := ""
		if err := s.Export(context.Background(), w); err != nil {
			text = err.Error()
		}
		if text == a.refused[s.Name()] {
			continue
		}
		if a.refused[s.Name()] = text; text == "" {
			a.log.Info("sink takes records again", "sink", s.Name())
		} else {
			a.log.Warn("sink refuses records", "sink", s.Name(), "err", text)
		}
	}
}

// tell logs that the service manager could not be told.
func (a *agent) tell(err error) {
	if err != nil {
		a.log.Warn("service manager does not listen", "err", err)
	}
}

// close hands over what the sinks hold under one deadline, then ends the
// servers, then frees the data plane. It may follow an open that failed half-way.
func (a *agent) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), finishAtMost)
	defer cancel()
	a.tell(a.manager.tell("STOPPING=1"))
	errs := []error{a.closeSinks(ctx)}
	if a.plane.Load() != nil {
		a.farewell()
	}
	if a.web != nil {
		errs = append(errs, a.web.Close(ctx))
	}
	if a.socket != nil {
		errs = append(errs, a.socket.Close())
	}
	if a.census != nil {
		a.census.Close()
	}
	if a.mirror != nil {
		errs = append(errs, a.mirror.Close())
	}
	if plane := a.plane.Load(); plane != nil {
		errs = append(errs, plane.Close())
	}
	return errors.Join(errs...)
}

// closeSinks closes those that have something to hand over, side by side.
func (a *agent) closeSinks(ctx context.Context) error {
	var closers []func(context.Context) error
	for _, o := range a.outlets {
		closers = append(closers, o.Close)
	}
	if a.printer != nil {
		closers = append(closers, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, a.cfg.OTLP.Finish)
			defer cancel()
			return withoutPipe(a.printer.Close(ctx))
		})
	}
	results := make(chan error, len(closers))
	for _, f := range closers {
		go func() { results <- caught("stop", func() error { return f(ctx) }) }()
	}
	var errs []error
	for range closers {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// farewell logs the last account, and what of it is lost and why.
func (a *agent) farewell() {
	l, _ := a.store.Ledger()
	l.Sinks = l.Sinks[:0:0]
	line := []any{"records", l.Made}
	for _, s := range a.accounted() {
		account := s.Account()
		l.Sinks = append(l.Sinks, account)
		line = append(line, slog.Group(s.Name(), "acknowledged", account.Acknowledged, "lost", account.TotalLost()))
		if account.TotalLost() == 0 || s == flows.Sink(a.printer) && a.out.left() {
			continue // a reader that left wanted no more
		}
		var why []any
		for _, reason := range slices.Sorted(maps.Keys(account.Lost)) {
			why = append(why, slog.Uint64(reason, account.Lost[reason]))
		}
		loss := []any{"sink", s.Name(), "records", account.TotalLost(), slog.Group("reason", why...)}
		if o := a.outlet(s); o != nil {
			loss = append(loss, "receiver", o.Status().GetState())
		}
		a.log.Warn("records lost", loss...)
	}
	total := l.Gone
	for i := range l.Points {
		total.Seen.Add(l.Points[i].Seen)
		total.Flows.Add(l.Points[i].Flows)
	}
	line = append(line, "packets", total.Seen.Packets, "in_flows", total.Flows.Packets, "balanced", l.Balanced())
	a.log.Info("weftd stopped", line...)
	l.At = time.Now()
	a.export(flows.Window{Ledger: l}) // for whoever follows it
}

// healthy is why the agent is not well: nothing was drained for too long.
func (a *agent) healthy() error {
	last := a.started
	if ns := a.drained.Load(); ns != 0 {
		last = time.Unix(0, ns)
	}
	if silent := time.Since(last); silent > 5*time.Second+3*a.cfg.Dataplane.Interval {
		return fmt.Errorf("nothing was drained for %s", silent.Round(time.Second))
	}
	return nil
}

// ready is why the agent is not at work yet.
func (a *agent) ready() error {
	if a.drained.Load() == 0 {
		return errors.New("the first drain has not come")
	}
	return a.healthy()
}

// caught is what f returns; a panic in it becomes an error with its place.
func caught(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v at %s", what, p, panicPlace())
		}
	}()
	return f()
}

// panicPlace is the file and line that panicked, for a caller that is deferred.
func panicPlace() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for panicking := false; ; {
		f, more := frames.Next()
		if panicking && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		panicking = panicking || f.Function == "runtime.gopanic"
		if !more {
			return "an unknown place"
		}
	}
}

// withoutPipe is err unless it says that the reader of our output has left,
// which is its right.
func withoutPipe(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}
