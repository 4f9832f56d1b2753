// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// Bounds and times of looking for the owners of sockets.
const (
	maxSockets     = 65536 // that are kept, in all namespaces; further ones have no owner, and are counted
	boundEvery     = 2 * time.Second
	connectedEvery = 10 * time.Second
	socketsLinger  = 90 * time.Second // that a socket is remembered: its last record comes later
	maxUnfound     = 2                // times that a socket without an owner is looked for: some are the kernel's
)

// sockets knows who has which socket open: those that listen, those that were
// connected before the agent began, and UDP's. One goroutine asks; readers take a
// snapshot.
type sockets struct {
	log      *slog.Logger
	topology func() *Topology
	now      atomic.Pointer[map[socketKey]*socketHeld]
	over     atomic.Uint64 // sockets that there was no room for when they were last listed
	health

	// The goroutine's.
	connected listed // as they were last listed
	fullAt    time.Time
	lastAt    int64 // of the round before, Unix nanoseconds; 0: none was
	openers   map[socketID]*opener
	unfound   map[socketID]int
	refused   error // of those that were looked for last; nil: all descriptors could be read
}

// listed are the sockets of all namespaces, of one kind.
type listed struct {
	ids  map[socketKey][]socketID
	n    int // of them
	over int // that there was no room for
}

// socketHeld is who had a socket, and when it was seen. Never written to once shared.
type socketHeld struct {
	who      *opener
	from, to int64       // Unix nanoseconds; to is never while it is there
	was      *socketHeld // who had it before; nil: nobody that is remembered
}

func newSockets(log *slog.Logger, topology func() *Topology) *sockets {
	s := &sockets{log: log, topology: topology, health: health{name: "sockets"}, openers: map[socketID]*opener{}, unfound: map[socketID]int{}}
	s.now.Store(&map[socketKey]*socketHeld{})
	return s
}

// run asks until ctx ends, for at most a twentieth of the time.
func (s *sockets) run(ctx context.Context) {
	for {
		began := time.Now()
		err := s.look()
		if ctx.Err() != nil {
			return
		}
		s.say(s.log, err)
		rest := time.NewTimer(max(boundEvery, lookPart*time.Since(began)))
		select {
		case <-ctx.Done():
			rest.Stop()
			return
		case <-rest.C:
		}
	}
}

// look is one round. The error is of what could not be asked; the rest is known.
func (s *sockets) look() error {
	began := time.Now()
	full := began.Sub(s.fullAt) >= connectedEvery
	bound, connected, errs := listed{ids: map[socketKey][]socketID{}}, listed{ids: map[socketKey][]socketID{}}, []error(nil)
	for _, space := range s.topology().Spaces {
		errs = append(errs, s.list(space, diagBound, &bound, s.connected.n))
		if full {
			errs = append(errs, s.list(space, diagConnected, &connected, bound.n))
		}
	}
	if full {
		s.connected, s.fullAt = connected, began
	}
	s.over.Store(uint64(bound.over + s.connected.over))
	errs = append(errs, s.findNew(bound.ids))
	s.publish(bound.ids, began.UnixNano())
	s.lastAt = began.UnixNano()
	return errors.Join(errs...)
}

// list adds the sockets of a namespace. One that is gone is no error.
func (s *sockets) list(space *Space, questions []diagOf, into *listed, taken int) error {
	own, err := unix.Open(ownPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the agent's network namespace: %w", err)
	}
	defer unix.Close(own)
	fd := own
	if !space.Own {
		if fd, err = openNetns(space.Path, space.ino); err != nil {
			if gone(err) {
				return nil
			}
			return err
		}
		defer unix.Close(fd)
	}
	err = inNetns(own, fd, func() error {
		return listSockets(space.Netns, questions, func(k socketKey, id socketID) bool {
			switch {
			case len(into.ids[k]) >= 64: // of those that share a port, so many say whose they are
			case into.n+taken >= maxSockets:
				into.over++
			default:
				into.ids[k] = append(into.ids[k], id)
				into.n++
			}
			return true
		})
	})
	if err != nil && !gone(err) {
		return fmt.Errorf("sockets of %s: %w", space.Path, err)
	}
	return nil
}

// findNew looks for the owners of sockets that have none yet, and again for those
// whose owner ended or is called differently.
func (s *sockets) findNew(bound map[socketKey][]socketID) error {
	there := map[socketID]bool{}
	for _, all := range []map[socketKey][]socketID{bound, s.connected.ids} {
		for _, ids := range all {
			for _, id := range ids {
				there[id] = true
			}
		}
	}
	same := map[process]bool{}
	maps.DeleteFunc(s.openers, func(id socketID, o *opener) bool {
		ok, asked := same[o.process]
		if !asked {
			now, err := readProcess(o.PID)
			ok = err == nil && now.Start == o.Start && now.Comm == o.Comm
			same[o.process] = ok
		}
		return !there[id] || !ok
	})
	maps.DeleteFunc(s.unfound, func(id socketID, _ int) bool { return !there[id] })
	wanted := map[uint32]bool{}
	for id := range there {
		if s.openers[id] == nil && s.unfound[id] < maxUnfound {
			wanted[id.inode] = true
		}
	}
	if len(s.unfound) == 0 {
		s.refused = nil
	}
	if len(wanted) == 0 {
		return s.refused
	}
	found, refused, err := findOpeners(wanted)
	shared := map[opener]*opener{} // one for all sockets of a process, so that who is told of it stays
	for _, o := range s.openers {
		shared[*o] = o
	}
	for id := range there {
		o, ok := found[id.inode]
		switch {
		case !wanted[id.inode] || s.openers[id] != nil:
		case !ok:
			s.unfound[id]++
		default:
			if shared[o] == nil {
				shared[o] = &o
			}
			s.openers[id] = shared[o]
		}
	}
	s.refused = nil
	if refused > 0 {
		s.refused = fmt.Errorf("the descriptors of %d processes may not be read: it needs CAP_SYS_PTRACE, and CAP_DAC_READ_SEARCH for other users' processes", refused)
	}
	return cmp.Or(err, s.refused)
}

// publish makes the snapshot of what was found at a time.
func (s *sockets) publish(bound map[socketKey][]socketID, at int64) {
	old, next := *s.now.Load(), map[socketKey]*socketHeld{}
	for _, all := range []map[socketKey][]socketID{bound, s.connected.ids} {
		for k, ids := range all {
			who := s.openerOf(ids)
			was := old[k]
			switch {
			case who == nil:
			case was != nil && was.to == never && *was.who == *who:
				next[k] = was
			default:
				h := &socketHeld{who: who, from: s.lastAt, to: never}
				if was != nil && was.who.process != who.process {
					h.was = &socketHeld{who: was.who, from: was.from, to: min(was.to, at)}
				} else if was != nil {
					h.from = was.from
				}
				next[k] = h
			}
		}
	}
	for k, h := range old { // those that went
		if next[k] != nil || len(next) >= maxSockets {
			continue
		}
		if h.to == never {
			h = &socketHeld{who: h.who, from: h.from, to: at, was: h.was}
		}
		if at-h.to < int64(socketsLinger) {
			next[k] = h
		}
	}
	s.now.Store(&next)
}

// openerOf is who has sockets open that share a port.
func (s *sockets) openerOf(ids []socketID) *opener {
	var one *opener
	for _, id := range ids {
		o := s.openers[id]
		switch {
		case o == nil || o == one:
		case one == nil:
			one = o
		default:
			sum := one.with(o.process)
			sum.mixed, sum.holders = sum.mixed || o.mixed, max(sum.holders, o.holders)
			one = &sum
		}
	}
	return one
}

// find is who has the socket at one end of a conversation, in the namespace of that
// end, at some time from start to end; connected: the very socket was seen. nil: not
// known.
func (s *sockets) find(space uint64, r *flows.Record, source bool) (who *opener, connected bool) {
	own := r.SocketKey(source)
	k := socketKey{space: space, proto: own.Proto, local: endOf(own.Src), remote: endOf(own.Dst)}
	if k.proto != flows.ProtoTCP && k.proto != flows.ProtoUDP || r.Fragment || k.local.port == 0 {
		return nil, false
	}
	now := *s.now.Load()
	if h := now[k].during(r); h != nil {
		return h.who, true
	}
	if source && k.proto == flows.ProtoTCP && r.Initiator == flows.InitiatorSYN {
		return nil, false // who listens opens no connection from there
	}
	k.remote = socketEnd{}
	if h := now[k].during(r); h != nil {
		return h.who, false
	}
	if k.local.addr = [16]byte{}; r.Key.Src.Addr().Is4() {
		k.local.addr = any4
	}
	if h := now[k].during(r); h != nil {
		return h.who, false
	}
	return nil, false
}

// during is h if it was held while the record's packets passed, else who had it then.
func (h *socketHeld) during(r *flows.Record) *socketHeld {
	for ; h != nil; h = h.was {
		if h.from <= r.End.UnixNano() && h.to >= r.Start.UnixNano() {
			return h
		}
	}
	return nil
}

// status says what is left out.
func (s *sockets) status() SourceStatus {
	st := s.health.status(len(*s.now.Load()))
	if over := s.over.Load(); over > 0 && st.Err == "" {
		st.Err = fmt.Sprintf("%d sockets more than the %d that are remembered", over, maxSockets)
	}
	return st
}
