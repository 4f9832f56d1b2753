// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// A tcx attachment waits for an RCU grace period under the lock of all network
// configuration, a clsact filter does not. So a device that comes while the agent
// runs gets filters at once, and tcx links in their place when its creator is done
// with it. While a hook has both, each packet is counted by exactly one: a packet
// meets tcx first, where the relay notes for its CPU that tcx counts from now on;
// the relay of the filter counts only on CPUs without that note. On one CPU no
// packet overtakes another within a hook, and none meets the filter alone once one
// before it has met the link.

const (
	handOverAge   = 5 * time.Second  // a device's creator may still be at its qdiscs until then
	handOverQuiet = time.Second      // without a new device, so that none waits for the lock,
	handOverLate  = 30 * time.Second // but not for longer than this
	handOverShare = 4                // of the time, at most one part is spent with the lock
	relayDevices  = 64               // notes; those of one device at a time are needed
)

// relays are the programs of a namespace between a hook that has both and the
// program that counts.
type relays struct {
	counters         [2]*ebpf.Map // program arrays with the program that counts: ingress, egress
	byFilter, byLink [2]*ebpf.Program
	bytes            uint64 // of the kernel's memory, see programBytes
}

func hookIndex(h flows.Hook) int {
	if h == flows.HookEgress {
		return 1
	}
	return 0
}

// newNotes makes the map of who counts: by relayKey, on each CPU, 0 for the filter.
func newNotes() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "weft_relay", Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 8, MaxEntries: relayDevices,
	})
	if err != nil {
		return nil, fmt.Errorf("create map weft_relay (%d entries): %w", relayDevices, err)
	}
	return m, nil
}

// relayKey names a hook of a device: an ifindex has 31 bits.
func relayKey(netns uint32, hook flows.Hook, ifindex int) uint64 {
	return uint64(netns)<<32 | uint64(ifindex)<<1 | uint64(hookIndex(hook))
}

func newRelays(notes *ebpf.Map, netns uint32, p *programs) (*relays, error) {
	r := &relays{}
	for i, counter := range []*ebpf.Program{p.ingress, p.egress} {
		var err error
		if r.counters[i], err = ebpf.NewMap(&ebpf.MapSpec{
			Name: "weft_counter", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
			Contents: []ebpf.MapKV{{Key: uint32(0), Value: counter}},
		}); err != nil {
			return nil, errors.Join(fmt.Errorf("create map weft_counter: %w", err), r.close())
		}
		base := relayKey(netns, []flows.Hook{flows.HookIngress, flows.HookEgress}[i], 0)
		if r.byFilter[i], err = loadRelay("weft_by_filter", base, notes, r.counters[i],
			asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord), asm.JNE.Imm(asm.R0, 0, "next")); err == nil {
			r.byLink[i], err = loadRelay("weft_by_link", base, notes, r.counters[i],
				asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord))
		}
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.bytes += programBytes(r.byFilter[i], r.byLink[i])
	}
	return r, nil
}

// loadRelay makes a program that looks the device's note up, does noted with it
// (its address is in R0) if there is one, and goes on to the counter.
func loadRelay(name string, base uint64, notes, counter *ebpf.Map, noted ...asm.Instruction) (*ebpf.Program, error) {
	const skbIfindex = 40 // offset in struct __sk_buff
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R1, skbIfindex, asm.Word),
		asm.LSh.Imm(asm.R2, 1),
		asm.LoadImm(asm.R3, int64(base), asm.DWord),
		asm.Or.Reg(asm.R2, asm.R3),
		asm.StoreMem(asm.RFP, -8, asm.R2, asm.DWord),
		asm.LoadMapPtr(asm.R1, notes.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "count"),
	}
	code = append(code, noted...)
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("count"),
		asm.LoadMapPtr(asm.R2, counter.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TC_ACT_UNSPEC: whoever is next decides
		asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: code})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return p, nil
}

func (r *relays) close() error {
	var errs []error
	for i := range r.counters {
		errs = append(errs, r.byFilter[i].Close(), r.byLink[i].Close(), r.counters[i].Close()) // nil is fine
	}
	return errors.Join(errs...)
}

// relay is the namespace's relays, made when they are first needed.
func (s *space) relay() (*relays, error) {
	if s.relays == nil {
		r, err := newRelays(s.all.notes, s.number, s.progs)
		if err != nil {
			return nil, err
		}
		s.relays = r
	}
	return s.relays, nil
}

// attachSoon attaches by a filter that can give way to a link later.
func (s *space) attachSoon(ifindex int, hook flows.Hook) (attachment, error) {
	r, err := s.relay()
	if err != nil {
		return attachment{}, err
	}
	filter, err := s.attachFilter(ifindex, hook, r.byFilter[hookIndex(hook)])
	return attachment{hook: hook, filter: filter}, err
}

// handOverAll gives devices tcx links, one after the other, until it is stopped.
func (a *spaces) handOverAll() {
	timer := time.NewTimer(handOverQuiet)
	defer timer.Stop()
	for {
		select {
		case <-a.stop:
			return
		case <-a.ripen:
		case <-timer.C:
		}
		a.mu.Lock()
		w := a.ripe()
		a.mu.Unlock()
		wait := handOverQuiet
		if w != nil {
			began := time.Now()
			if err := w.handOver(); err != nil {
				a.d.log.Warn("cannot hand over to tcx, clsact stays", "ifindex", w.index, "netns", w.in.cookie, "err", err)
			}
			wait = (handOverShare - 1) * time.Since(began)
		}
		timer.Reset(wait)
	}
}

// later queues a device that was attached soon. Those that are detached
// meanwhile are let go of, so that what waits is bounded by the places.
func (a *spaces) later(w *watched) {
	if len(a.fresh) >= 1024 {
		a.fresh = slices.DeleteFunc(a.fresh, func(w *watched) bool { return w.closed.Load() })
	}
	a.fresh = append(a.fresh, w)
}

// ripe takes the next device out of the queue; nil: none yet.
func (a *spaces) ripe() *watched {
	for len(a.fresh) > 0 && a.fresh[0].closed.Load() {
		a.fresh = a.fresh[1:]
	}
	if len(a.fresh) == 0 || a.detached {
		return nil
	}
	w := a.fresh[0]
	age, quiet := time.Since(w.since), time.Since(a.fresh[len(a.fresh)-1].since)
	if age < a.handOverAge || quiet < handOverQuiet && age < handOverLate {
		return nil
	}
	a.fresh = a.fresh[1:]
	return w
}

// handOver gives each hook a link in the place of its filter. A hook that
// refuses keeps its filter.
func (w *watched) handOver() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed.Load() {
		return nil
	}
	var errs []error
	for i := range w.hooks {
		h := &w.hooks[i]
		if h.filter == nil {
			continue
		}
		err := w.addLink(h)
		if errors.Is(err, unix.ENODEV) {
			return nil // it went, and will be detached
		}
		if err == nil {
			err = h.closeFilter()
		}
		errs = append(errs, err)
	}
	if err := waitForPrograms(); err != nil { // filters that still run read the notes
		return errors.Join(append(errs, err)...)
	}
	for i := range w.hooks {
		h := &w.hooks[i]
		if !h.noted || h.filter != nil {
			continue
		}
		err := h.link.Update(w.in.progs.of(h.hook))
		if errors.Is(err, unix.ENOLINK) {
			err = nil // the device went, and the link with it
		}
		errs = append(errs, err, w.forgetNote(h))
	}
	return errors.Join(errs...)
}

// addLink makes the hook have both.
func (w *watched) addLink(h *attachment) error {
	key := relayKey(w.in.number, h.hook, w.index)
	if err := w.in.all.notes.Put(key, make([]uint64, w.in.all.d.objs.size.cpus)); err != nil {
		return fmt.Errorf("note device %d: %w", w.index, err)
	}
	h.noted = true
	err := inNetns(w.in.all.own, w.in.fd, func() (err error) {
		h.link, err = attachTCX(w.index, h.hook, w.in.relays.byLink[hookIndex(h.hook)])
		return err
	})
	if err != nil {
		h.link = nil
		return errors.Join(err, w.forgetNote(h)) // nobody has written it
	}
	return nil
}

func (w *watched) forgetNote(h *attachment) error {
	if !h.noted {
		return nil
	}
	h.noted = false
	if err := w.in.all.notes.Delete(relayKey(w.in.number, h.hook, w.index)); err != nil {
		return fmt.Errorf("forget the note of device %d: %w", w.index, err)
	}
	return nil
}
