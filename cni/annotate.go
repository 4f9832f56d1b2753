// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// annotated is what [Census.Annotate] remembers.
type annotated struct {
	owners   map[ownerOf]*flows.Entity   // at most maxOwners; at the bound all are forgotten
	serving  map[servingOf]*flows.Entity // the same
	guests   map[guestOf]*flows.Entity   // the same
	aged     map[agedOf]*flows.Entity    // the same
	asked    int                         // processes read since round
	round    time.Time
	disputed atomic.Uint64
}

// ownerOf is a socket's owner among those who have its address.
type ownerOf struct {
	who     *flows.Entity
	process flows.Process
	seen    sighting
}

// sighting is how it is known who owns a socket.
type sighting struct {
	opener    *opener // by the descriptors; nil: the kernel named the owner when it connected or accepted
	connected bool    // the very socket was seen, not one that listens where it is
}

// servingOf is a pod as a part of a Service.
type servingOf struct {
	who      *flows.Entity
	service  flowsService
	inferred bool
}

// guestOf is a guest and how an end's device tells of it.
type guestOf struct {
	who *flows.Entity
	why string
}

// Bounds of what is remembered, and of what is read in one round: further processes
// are told without their unit.
const (
	maxOwners  = 8192
	maxReading = 256 // some 20 us each
	roundTakes = 500 * time.Millisecond
)

// Annotate says who the two ends of a record are, and in which isolation layer each of its
// hops is. What is there already stays. It
// reads snapshots and, for owners of sockets that it has not met, their cgroups; it
// waits for nobody. For one goroutine at a time.
func (c *Census) Annotate(r *flows.Record) {
	t := c.topology()
	for i := range r.Hops {
		h := &r.Hops[i]
		if d := t.Device(h.At.Netns, h.At.Ifindex); d != nil && h.Layer == flows.LayerUnknown {
			h.Layer = d.Layer
		}
	}
	if r.Source == nil {
		r.Source = c.end(r, true)
	}
	if r.Destination == nil {
		r.Destination = c.end(r, false)
	}
	c.noteApart(r)
}

// Refused is how many times an address was not noted, since there was no room for it.
func (c *Census) Refused() uint64 {
	_, refused := c.resolver.held()
	return refused
}

// Disputed is how many ends had several holders that nothing told apart, and so got
// no name.
func (c *Census) Disputed() uint64 { return c.annotated.disputed.Load() }

func (c *Census) end(r *flows.Record, source bool) *flows.Entity {
	addr, process := r.Key.Dst.Addr(), r.DestinationProcess
	if source {
		addr, process = r.Key.Src.Addr(), r.SourceProcess
	}
	if !addr.IsValid() {
		return nil
	}
	var who *flows.Entity
	holder, disputed := c.resolver.holder(r.Scope, addr, r.Start.UnixNano(), r.Hops)
	switch {
	case holder != nil && !disputed:
		who = c.aged(holder, r.End)
	case disputed:
		c.annotated.disputed.Add(1)
	}
	if who == nil {
		who = c.guest(r, addr, source)
	}
	switch {
	case process != nil && process.PID != 0:
		who = c.owner(ownerOf{who: who, process: *process}, r.End)
	case c.sockets != nil && holder != nil && !disputed && holder.rank == rankSeen:
		if o, connected := c.sockets.find(holder.near[0].netns, r, source); o != nil {
			who = c.owner(ownerOf{who, flows.Process{PID: o.PID, Comm: o.Comm}, sighting{o, connected}}, r.End)
		}
	}
	switch {
	case c.kube == nil || who == nil && (source || r.NAT == nil):
	case source:
		who = c.opener(r, who)
	default:
		who = c.service(r, who)
	}
	return who
}

// guest is the machine or sandbox that has an end whose address nobody here has: the
// one whose device the end's packets come out of or, if none does, go into. nil: there
// is no such device, or several, or the packets were for many. The addresses inside of a
// guest are not seen, and it may pass on what others sent, so this is no certainty.
func (c *Census) guest(r *flows.Record, addr netip.Addr, source bool) *flows.Entity {
	t := c.topology()
	var from, to *flows.Entity
	several := [2]bool{}
	for i := range r.Hops {
		h := &r.Hops[i]
		d := t.Device(h.At.Netns, h.At.Ifindex)
		if d == nil || d.Behind == nil || d.Behind.Layer != flows.LayerVM && d.Behind.Layer != flows.LayerSandbox {
			continue
		}
		switch sent := h.Reverse != source; {
		case sent && h.At.Hook != flows.HookEgress:
			several[0] = several[0] || from != nil && from != d.Behind
			from = d.Behind
		case !sent && h.At.Hook == flows.HookEgress && !forMany(addr, d) && !spread(t, r.Hops, h, d):
			several[1] = several[1] || to != nil && to != d.Behind
			to = d.Behind
		}
	}
	switch {
	case from != nil && !several[0]:
		return c.behind(from, "its packets come out of the device")
	case from == nil && to != nil && !several[1]:
		return c.behind(to, "packets for it go into the device")
	}
	return nil
}

// behind is a guest that is known by its device.
func (c *Census) behind(guest *flows.Entity, why string) *flows.Entity {
	a, key := &c.annotated, guestOf{guest, why}
	e := a.guests[key]
	if e == nil {
		if a.guests == nil || len(a.guests) >= maxOwners {
			a.guests = map[guestOf]*flows.Entity{}
		}
		e = new(flows.Entity)
		*e = *guest
		e.Confidence, e.Why = min(e.Confidence, 80), because(e.Why, why)
		if e.Node == "" {
			e.Node = c.opts.Node
		}
		a.guests[key] = e
	}
	return e
}

// owner is who with the process that owns the socket there.
func (c *Census) owner(key ownerOf, until time.Time) *flows.Entity {
	a := &c.annotated
	if e, ok := a.owners[key]; ok {
		return e
	}
	if a.owners == nil || len(a.owners) >= maxOwners {
		a.owners = map[ownerOf]*flows.Entity{}
	}
	e := &flows.Entity{Node: c.opts.Node, Confidence: 90}
	if key.who != nil {
		*e = *key.who
	}
	sure, why := key.seen.evidence()
	e.Process, e.PID = bounded(key.process.Comm), key.process.PID
	e.Confidence, e.Why = min(e.Confidence, sure), because(e.Why, why)
	if now := time.Now(); now.Sub(a.round) > roundTakes {
		a.round, a.asked = now, 0
	}
	if a.asked < maxReading {
		a.asked++
		c.unit(e, key, until)
		a.owners[key] = e
	}
	return e
}

// evidence is how sure it is that the process is the right one, and why. What listens
// may not be what was spoken to: address translation goes before it.
func (s sighting) evidence() (sure uint8, why string) {
	o := s.opener
	if o == nil {
		return 100, "the kernel names the owner of the socket"
	}
	sure, why = 75, fmt.Sprintf("process %d listens there", o.PID)
	if s.connected {
		sure, why = 85, fmt.Sprintf("process %d has the socket open", o.PID)
	}
	switch {
	case o.mixed:
		sure, why = 50, why+fmt.Sprintf(", as have %d that are not all called so", o.holders-1)
	case o.holders > 1:
		sure, why = sure-10, why+fmt.Sprintf(", the oldest of %d", o.holders)
	}
	return sure, why
}

// unit adds the systemd unit of the process or, where it is on the host's network,
// its container.
func (c *Census) unit(e *flows.Entity, key ownerOf, until time.Time) {
	p := key.process
	now, err := readProcess(p.PID)
	another := err == nil && key.seen.opener != nil && now.Start != key.seen.opener.Start
	if err != nil || another || startOf(now).After(until) {
		e.Why = because(e.Why, "it had ended before its cgroup was read")
		return
	}
	text, err := readProc(p.PID, "cgroup")
	if err != nil {
		return
	}
	in := parseCgroups(string(text))
	if strings.HasSuffix(in.Unit, ".service") || e.Unit == "" {
		e.Unit = in.Unit
	}
	if in.ID == "" && e.Layer == flows.LayerUnknown {
		e.Layer = flows.LayerHost
	}
	if in.ID == "" || e.ContainerID != "" && e.ContainerID != in.ID {
		return
	}
	e.ContainerID, e.Layer = in.ID, flows.LayerContainer
	if e.Runtime == "" {
		e.Runtime = in.Runtime
	}
	if n := c.named(in.ID); n != nil {
		pod(e, n.Pod, n.Namespace, n.PodUID, n.Runtime)
		e.Container, e.Labels = n.Name, n.Labels
		if e.Runtime == "" {
			e.Runtime = n.Runtime
		}
	}
	e.Confidence = min(e.Confidence, in.Confidence)
	e.Why = because(e.Why, in.Why)
}

// startOf is when a process began, to the kernel's tick of 10 ms.
func startOf(p process) time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(p.Start)*(time.Second/ticks) - time.Duration(up.Nano()))
}

// ticks is what the kernel calls a second towards user space (USER_HZ).
const ticks = 100
