// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"slices"
	"time"
)

// hop is what one point saw of one direction of a conversation in the current
// period: 48 bytes, no pointers.
type hop struct {
	packets, bytes uint64
	first, last    int64  // Unix nanoseconds
	where          uint32 // twice the point's index, plus the side that sent; 0: no hop
	next           uint32 // the conversation's next hop; 0: none
	tcp            uint32 // in the table's health; 0: nothing measured
}

func (h *hop) count() Count { return Count{h.packets, h.bytes} }

// from is the side that sent what h saw.
func (h *hop) from() side { return side(h.where & 1) }

// gain adds s. The last packet's time is to the kernel's tick, so it may be
// before the first's.
func (h *hop) gain(s *Sample) {
	if h.count() == (Count{}) {
		h.first, h.last = s.First, s.First
	}
	h.packets += s.Packets
	h.bytes += s.Bytes
	h.first = min(h.first, s.First)
	h.last = max(h.last, s.Last)
}

// hop is c's hop at a point in the direction from; nil: there is no room.
func (t *Table) hop(c *conversation, pi uint32, from side) *hop {
	where := pi<<1 | uint32(from)
	h := &c.first
	for h.where != where && h.next != 0 {
		h = t.hops.at(h.next)
	}
	if h.where == where {
		return h
	}
	if h.where != 0 {
		if c.nhops[from] >= maxHops || t.hops.taken() >= moreHops*t.max {
			return nil
		}
		h.next = t.hops.take()
		h = t.hops.at(h.next)
	}
	h.where = where
	c.nhops[from]++
	t.points.at(pi).refs++
	return h
}

// after is the hop that follows h; nil: h is the last.
func (t *Table) after(h *hop) *hop {
	if h.next == 0 {
		return nil
	}
	return t.hops.at(h.next)
}

// dropIdle drops those of c's hops that hold nothing.
func (t *Table) dropIdle(c *conversation) {
	for link := &c.first.next; *link != 0; {
		i := *link
		h := t.hops.at(i)
		if h.packets|h.bytes != 0 {
			link = &h.next
			continue
		}
		t.forget(c, h)
		*link = h.next
		t.hops.give(i)
	}
	if h := &c.first; h.where != 0 && h.packets|h.bytes == 0 {
		t.forget(c, h)
		i := h.next
		if *h = (hop{}); i != 0 {
			*h = *t.hops.at(i)
			t.hops.give(i)
		}
	}
}

// forget undoes what refers to c's hop h.
func (t *Table) forget(c *conversation, h *hop) {
	c.nhops[h.from()]--
	if c.chosen[h.from()] == h.where {
		c.chosen[h.from()] = 0
	}
	t.points.release(h.where >> 1)
	if h.tcp != 0 {
		t.health.give(h.tcp)
		h.tcp = 0
	}
}

// record ends c's period: what its hops hold goes into one record, unless they
// hold nothing. Hops that saw nothing in the period are dropped.
func (t *Table) record(c *conversation, why EndReason) {
	t.dropIdle(c)
	if !c.is(convGained) {
		return
	}
	var v views
	t.viewsOf(&v, c)
	hops := 0
	for _, w := range v.all() {
		t.dropIdle(w.c)
		w.c.state &^= convGained
		hops += int(w.c.nhops[0]) + int(w.c.nhops[1])
	}
	t.settle(&v)
	m := v.merged()
	if m.finished() {
		why = EndOfFlow
	}
	first := &v.of[max(v.chosen[0], 0)]
	r := Record{
		Scope: c.key.scope(), Key: v.key(), Initiator: m.basis, EndReason: why,
		TCPFlags: m.flags[0], ReverseTCPFlags: m.flags[1],
		Fragment: c.key.fragment, DSCP: first.c.dscp[first.src], ConnectionID: v.connectionID(),
		Hops: make([]HopCount, 0, hops),
	}
	if v.by != 0 {
		r.NAT = v.to.nat(v.by)
	}
	if c.key.proto == ProtoTCP && !c.key.fragment {
		r.TCP = &TCPRecord{
			SourceReset: m.flags[0]&FlagRST != 0, DestinationReset: m.flags[1]&FlagRST != 0, Failure: m.failure(why),
		}
	}
	for i := range v.all() {
		t.recordView(&r, &v, i)
	}
	r.sortHops()
	t.recordDrops(&r, &v)
	t.recordSockets(&r, &v)
	if t.records == nil {
		t.records = make([]Record, 0, max(t.expect, 16))
	}
	t.records = append(t.records, r)
	t.made++
}

// recordView puts what v's view with index i holds into r.
func (t *Table) recordView(r *Record, v *views, i int) {
	w := &v.of[i]
	t.tell(r, v, i)
	if dns := t.dns.take(&w.c.key); r.DNS == nil { // of the first stage: nearest to who asked
		r.DNS = dns
	}
	for h := &w.c.first; h != nil; h = t.after(h) {
		p := t.pointOf(h)
		r.add(HopCount{
			At: p.at, Hop: t.points.name(p, t.drain), NAT: w.stage, Reverse: h.from() != w.src, Chosen: v.makesTotal(i, h),
			Packets: h.packets, Bytes: h.bytes, First: time.Unix(0, h.first).UTC(), Last: time.Unix(0, h.last).UTC(),
		})
		t.points.record(p, h.count())
		h.packets, h.bytes = 0, 0
	}
}

// choose makes sure that c has a source, and a chosen point for each direction
// that was seen in the period. A choice stays while that point sees anything; a
// new one is the point that saw the direction first, of equal ones the first by
// hook: ingress, egress, XDP.
func (t *Table) choose(c *conversation) {
	var best [2]*hop
	for h := &c.first; h != nil; h = t.after(h) {
		if b := &best[h.from()]; *b == nil || t.earlier(h, *b) {
			*b = h
		}
	}
	first := [2]int64{never, never}
	for from, h := range best {
		if h == nil {
			continue
		}
		first[from] = h.first
		if c.chosen[from] == 0 {
			c.chosen[from] = h.where
		}
	}
	c.settle(first)
}

func (t *Table) earlier(a, b *hop) bool {
	return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(t.pointOf(a).at.Hook, t.pointOf(b).at.Hook)) < 0
}

func (t *Table) pointOf(h *hop) *point { return t.points.at(h.where >> 1) }

// add adds what one point saw: it widens r's period, and its figures are a
// total if it is chosen.
func (r *Record) add(h HopCount) {
	r.Hops = append(r.Hops, h)
	if r.Start.IsZero() || h.First.Before(r.Start) {
		r.Start = h.First
	}
	if h.Last.After(r.End) {
		r.End = h.Last
	}
	switch {
	case !h.Chosen:
	case h.Reverse:
		r.ReversePackets, r.ReverseBytes = h.Packets, h.Bytes
	default:
		r.Packets, r.Bytes = h.Packets, h.Bytes
	}
}

// sortHops puts the source's direction first, each in the order of the translation's
// stages, and of the first packet in a stage.
func (r *Record) sortHops() {
	slices.SortStableFunc(r.Hops, func(a, b HopCount) int {
		switch {
		case a.Reverse == b.Reverse:
			stage := cmp.Compare(a.NAT, b.NAT)
			if a.Reverse {
				stage = -stage
			}
			return cmp.Or(stage, a.First.Compare(b.First), cmp.Compare(a.At.Hook, b.At.Hook))
		case b.Reverse:
			return -1
		}
		return 1
	})
}
