// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// point is one observation point's side of the ledger.
type point struct {
	at    Point
	state pointState
	refs  uint32 // open hops that lead here
	hop   Hop    // last known name
	named uint32 // drain in which Places was last asked

	seen     PointAccount // the last account; zero before the first
	before   Count        // Before of the account before that
	flows    Count        // folded
	open     Count        // of those, in open hops
	recorded Count        // of those, in records
	limited  [2]Count     // skipped here: SkipConversationLimit, SkipHopLimit
}

type pointState uint8

const (
	pointFree    pointState = iota
	pointUnknown            // sent samples, but no account yet
	pointLive               // has an account
	pointGone               // in points.gone already; open hops still lead here
)

// points finds points. It holds those with a live account, those the last
// drain's samples came from, and those that open hops lead to.
type points struct {
	slab[point]
	index  map[Point]uint32
	recent [64]uint32 // the last index found, by ifindex and hook: saves the map
	places Places

	gone           PointLedger
	goneUnbalanced uint64
}

// find is the index of at's point, which it makes when there is none.
func (ps *points) find(at Point, drain uint32) uint32 {
	slot := &ps.recent[(at.Ifindex*4+uint32(at.Hook))%uint32(len(ps.recent))]
	if *slot != 0 {
		if p := ps.at(*slot); p.at == at && (p.state == pointLive || p.state == pointUnknown) {
			return *slot
		}
	}
	i, ok := ps.index[at]
	if !ok {
		i = ps.take()
		p := ps.at(i)
		p.at, p.state = at, pointUnknown
		ps.index[at] = i
		ps.name(p, drain)
	}
	*slot = i
	return i
}

// name is p's hop: what Places says now, at most once a drain, else what was
// last known.
func (ps *points) name(p *point, drain uint32) Hop {
	if ps.places != nil && p.named != drain && p.state != pointGone {
		p.named = drain
		if h, ok := ps.places.Hop(p.at); ok {
			p.hop = h
		}
	}
	return p.hop
}

// skip counts packets that no conversation could take.
func (p *point) skip(why SkipReason, n Count) { p.limited[why-SkipConversationLimit].Add(n) }

// fold counts packets into an open hop.
func (p *point) fold(n Count) {
	p.flows.Add(n)
	p.open.Add(n)
}

// record moves packets of p from an open hop to a record.
func (ps *points) record(p *point, n Count) {
	open, recorded := &p.open, &p.recorded
	if p.state == pointGone {
		open, recorded = &ps.gone.Open, &ps.gone.Recorded
	}
	*open = Count{open.Packets - n.Packets, open.Bytes - n.Bytes}
	recorded.Add(n)
}

// release drops one open hop's hold on the point with index i.
func (ps *points) release(i uint32) {
	p := ps.at(i)
	if p.refs--; p.refs == 0 && p.state == pointGone {
		ps.give(i)
	}
}

// account takes the kernel's side of the ledger. A point that is detached, and
// one that never had an account nor holds anything any more, is closed into
// gone.
func (ps *points) account(seen Account, drain uint32) {
	for i := range seen.Points {
		a := &seen.Points[i]
		p := ps.at(ps.find(a.At, drain))
		p.before = p.seen.Before
		p.seen, p.state = *a, pointLive
		if a.Hop != (Hop{}) {
			p.hop = a.Hop
		}
	}
	for at, i := range ps.index {
		p := ps.at(i)
		if !p.seen.Gone && (p.state != pointUnknown || p.refs > 0) {
			continue
		}
		last := p.ledger(true)
		ps.gone.add(last)
		if last.Unaccounted != (SignedCount{}) {
			ps.goneUnbalanced++
		}
		delete(ps.index, at)
		if p.state = pointGone; p.refs == 0 {
			ps.give(i)
		}
	}
}

// ledger is the account of every point, in the order of netns, ifindex and hook.
func (ps *points) ledger(at time.Time, made uint64) Ledger {
	l := Ledger{At: at, Gone: ps.gone, GoneUnbalanced: ps.goneUnbalanced, Made: made}
	order := slices.SortedFunc(maps.Values(ps.index), func(a, b uint32) int { return ps.at(a).at.compare(ps.at(b).at) })
	l.Points = make([]PointLedger, len(order))
	for n, i := range order {
		l.Points[n] = ps.at(i).ledger(false)
	}
	return l
}

func (p Point) compare(q Point) int {
	return cmp.Or(cmp.Compare(p.Netns, q.Netns), cmp.Compare(p.Ifindex, q.Ifindex), cmp.Compare(p.Hook, q.Hook))
}

// ledger is p's line. A live point may be ahead of the last account but one and
// behind the last; one that is gone has to balance exactly.
func (p *point) ledger(gone bool) PointLedger {
	l := PointLedger{
		At: p.at, Hop: p.hop, Seen: p.seen.After, GSO: p.seen.GSO,
		Flows: p.flows, Recorded: p.recorded, Open: p.open, Skipped: p.seen.Skipped,
	}
	for i, n := range p.limited {
		l.Skipped[int(SkipConversationLimit)+i].Add(n)
	}
	counted, before := l.Flows.Plus(l.TotalSkipped()), p.before
	if gone {
		before = l.Seen
	}
	l.InTable.Packets, l.Unaccounted.Packets = balance(l.Seen.Packets, before.Packets, counted.Packets)
	l.InTable.Bytes, l.Unaccounted.Bytes = balance(l.Seen.Bytes, before.Bytes, counted.Bytes)
	return l
}

// balance splits what was seen and not counted yet into what the next drain may
// still bring, which came after before was read, and what nothing explains.
func balance(seen, before, counted uint64) (inTable uint64, unaccounted int64) {
	switch {
	case counted > seen:
		return 0, int64(seen - counted)
	case counted < before:
		return seen - before, int64(before - counted)
	}
	return seen - counted, 0
}

// add adds q's figures to p.
func (p *PointLedger) add(q PointLedger) {
	p.Seen.Add(q.Seen)
	p.GSO.Add(q.GSO)
	p.Flows.Add(q.Flows)
	p.Recorded.Add(q.Recorded)
	p.Open.Add(q.Open)
	p.InTable.Add(q.InTable)
	for i := range p.Skipped {
		p.Skipped[i].Add(q.Skipped[i])
	}
	p.Unaccounted.Packets += q.Unaccounted.Packets
	p.Unaccounted.Bytes += q.Unaccounted.Bytes
}
