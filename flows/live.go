// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"time"
)

// Bounds of a [Watch]. What is over them is in Activity.Over.
const (
	maxLive     = 1 << 16 // conversations of a drain
	maxLiveHops = 8       // points at which a conversation is looked at
)

// Activity is what one drain brought, while somebody watches. Not to be written to.
type Activity struct {
	Start, End time.Time
	Live       []Live
	Points     []PointAccount // Before is what the point gained in this time
	Drops      []DropSample
	Over       uint64 // conversations that had no room
}

// Live is one conversation's part of an [Activity]: a record of that time alone,
// with the figures of its hops. Its end reason says nothing.
type Live struct {
	Record
	New bool // it was first seen in this time
}

// Watch makes activities of batches: what conversations do now, and not when
// their records end. It belongs to the goroutine that folds.
type Watch struct {
	table *Table
	start time.Time
	from  int64 // the table's opened when the drain began
	convs map[convKey]*watched
	order []*watched
	seen  map[Point]PointAccount
	over  uint64
}

type watched struct {
	key  convKey
	hops []watchedHop // at most maxLiveHops
}

type watchedHop struct {
	at   Point
	from side
	n    Count
	span [2]int64 // first and last, Unix nanoseconds
	tcp  TCPHealth
}

// NewWatch watches what t folds from its next drain on.
func NewWatch(t *Table) *Watch {
	return &Watch{table: t, from: t.opened, convs: map[convKey]*watched{}}
}

// Add takes a batch that the table has folded. With a drain's final batch it is
// done; the first drain only says from when on there are figures, and its
// activity is empty.
func (w *Watch) Add(b *Batch) (a Activity, done bool) {
	for i := range b.Flows {
		w.sample(&b.Flows[i])
	}
	if !b.Final {
		return Activity{}, false
	}
	first := w.start.IsZero()
	a = Activity{Start: w.start, End: b.At, Points: w.gains(b.Seen.Points), Over: w.over}
	if first {
		a = Activity{Start: b.At, End: b.At}
	} else {
		a.Drops = append(a.Drops, b.Drops...)
		for i := range a.Drops { // so that they meet their conversation
			d := &a.Drops[i]
			d.Key = w.table.told(Scope{Netns: cmp.Or(d.Domain, d.At.Netns)}, d.Key, d.First, d.Last)
		}
		all := w.joined()
		a.Live = make([]Live, len(all))
		for i := range all {
			w.tell(&a.Live[i], &all[i])
		}
	}
	w.start, w.from, w.over = b.At, w.table.opened, 0
	w.order = w.order[:0]
	clear(w.convs)
	return a, true
}

func (w *Watch) sample(s *Sample) {
	var key convKey
	from := key.pack(s)
	c := w.convs[key]
	if c == nil {
		if s.Packets == 0 { // measured of what an earlier drain counted
			return
		}
		if len(w.order) >= maxLive {
			w.over++
			return
		}
		c = &watched{key: key}
		w.convs[key] = c
		w.order = append(w.order, c)
	}
	for i := range c.hops {
		if h := &c.hops[i]; h.at == s.At && h.from == from {
			h.add(s)
			return
		}
	}
	if len(c.hops) < maxLiveHops {
		c.hops = append(c.hops, watchedHop{at: s.At, from: from, span: [2]int64{s.First, s.Last}})
		c.hops[len(c.hops)-1].add(s)
	}
}

func (h *watchedHop) add(s *Sample) {
	h.n.Add(Count{s.Packets, s.Bytes})
	h.span = [2]int64{min(h.span[0], s.First), max(h.span[1], s.Last)}
	h.tcp.add(&s.TCP)
}

// watchedConn is what one connection's views brought, in the order of their stages.
type watchedConn struct {
	of [maxViews]*watched
	n  int
	to Translation
	by NATBasis // 0: not translated
}

// joined puts those together that are views of one connection.
func (w *Watch) joined() []watchedConn {
	all := make([]watchedConn, 0, len(w.order))
	type connection struct {
		scope  Scope
		opened Key
	}
	known := map[connection]int{}
	for _, c := range w.order {
		to, by := w.translated(c)
		if by != 0 {
			k := connection{c.key.scope(), to.Opened}
			if i, ok := known[k]; ok && all[i].to == to && all[i].take(c) {
				continue
			}
			known[k] = len(all)
		}
		all = append(all, watchedConn{of: [maxViews]*watched{c}, n: 1, to: to, by: by})
	}
	return all
}

// take adds a view; false: there is that one.
func (g *watchedConn) take(c *watched) bool {
	mine, _, _ := g.to.in(&c.key)
	at := 0
	for _, o := range g.of[:g.n] {
		its, _, _ := g.to.in(&o.key)
		if its == mine {
			return false
		}
		if its < mine {
			at++
		}
	}
	copy(g.of[at+1:], g.of[at:g.n])
	g.of[at] = c
	g.n++
	return true
}

// translated is the translation of c's connection; 0: it has none, or none is known.
func (w *Watch) translated(c *watched) (to Translation, by NATBasis) {
	conv := &conversation{key: c.key}
	if i := w.table.convs.find(&c.key, w.table.convs.hashOf(&c.key)); i != 0 {
		conv = w.table.convs.at(i)
	}
	first, last := int64(never), int64(0)
	for i := range c.hops {
		first, last = min(first, c.hops[i].span[0]), max(last, c.hops[i].span[1])
	}
	if to, ok := w.table.translation(conv, first, last); ok && w.agree(&to, &c.key) {
		return to, NATTracked
	}
	if to, ok := w.table.sameConnection(conv); ok {
		return to, NATConnection
	}
	return to, 0
}

// agree reports whether what this drain brought with to's addresses, in the scope of k,
// has no two ConnectionIDs: then it is not one connection.
func (w *Watch) agree(to *Translation, k *convKey) bool {
	var id uint64
	for _, as := range to.keys() {
		if !as.Src.IsValid() {
			continue
		}
		key, _ := k.seenAs(as)
		if w.convs[key] == nil {
			continue
		}
		if at := w.table.convs.find(&key, w.table.convs.hashOf(&key)); at != 0 {
			own := w.table.convs.at(at).connectionID()
			if id != 0 && own != 0 && own != id {
				return false
			}
			id = cmp.Or(id, own)
		}
	}
	return true
}

// tell writes g as a record, with the initiator that the table knows or guesses.
func (w *Watch) tell(l *Live, g *watchedConn) {
	var convs [maxViews]conversation
	var chosen [maxViews][2]int // by view and side
	v := views{to: g.to, by: g.by, chosen: [2]int{-1, -1}}
	l.New = true
	hops := 0
	for i, c := range g.of[:g.n] {
		conv := &convs[i]
		conv.key = c.key
		if at := w.table.convs.find(&c.key, w.table.convs.hashOf(&c.key)); at != 0 {
			*conv = *w.table.convs.at(at)
		}
		l.New = l.New && !conv.is(convSettled) && conv.opened == w.from
		var first [2]int64
		first, chosen[i] = c.choose()
		conv.settle(first)
		x := view{c: conv, src: conv.source()}
		if g.by != 0 {
			var at int
			at, x.src, _ = g.to.in(&c.key)
			x.stage = stageOf(at)
			conv.openedBy(x.src)
		}
		v.add(x)
		v.choose(i, chosen[i][x.src] >= 0, chosen[i][1-x.src] >= 0)
		hops += len(c.hops)
	}
	m := v.merged()
	l.Record = Record{
		Scope: m.key.scope(), Key: v.key(), Initiator: m.basis, Fragment: m.key.fragment,
		TCPFlags: m.flags[0], ReverseTCPFlags: m.flags[1], ConnectionID: v.connectionID(),
		Hops: make([]HopCount, 0, hops),
	}
	if g.by != 0 {
		l.NAT = g.to.nat(g.by)
	}
	if m.key.proto == ProtoTCP {
		l.TCP = &TCPRecord{}
	}
	for i := range v.all() {
		w.tellView(l, g.of[i], &v, i, chosen[i])
	}
	l.sortHops()
}

// choose is when c's sides were first seen, and at which hop.
func (c *watched) choose() (first [2]int64, chosen [2]int) {
	first, chosen = [2]int64{never, never}, [2]int{-1, -1}
	for i := range c.hops {
		h := &c.hops[i]
		if h.span[0] < first[h.from] || chosen[h.from] >= 0 && h.span[0] == first[h.from] && h.at.Hook < c.hops[chosen[h.from]].at.Hook {
			first[h.from], chosen[h.from] = h.span[0], i
		}
	}
	return first, chosen
}

// tellView adds what c brought, which is v's view with index i.
func (w *Watch) tellView(l *Live, c *watched, v *views, i int, chosen [2]int) {
	x := &v.of[i]
	for k := range c.hops {
		h := &c.hops[k]
		back := h.from != x.src
		dir := 0
		if back {
			dir = 1
		}
		p := w.table.points.at(w.table.points.find(h.at, w.table.drain))
		total := chosen[h.from] == k && v.chosen[dir] == i
		l.add(HopCount{
			At: h.at, Hop: p.hop, NAT: x.stage, Reverse: back, Chosen: total, Packets: h.n.Packets, Bytes: h.n.Bytes,
			First: time.Unix(0, h.span[0]).UTC(), Last: time.Unix(0, h.span[1]).UTC(),
		})
		switch {
		case l.TCP == nil || !total:
		case back:
			l.TCP.Destination = h.tcp
		default:
			l.TCP.Source = h.tcp
		}
	}
}

// gains is what each point counted since the last drain.
func (w *Watch) gains(now []PointAccount) []PointAccount {
	gained := make([]PointAccount, 0, len(now))
	seen := make(map[Point]PointAccount, len(now))
	for _, p := range now {
		seen[p.At] = p
		if was, ok := w.seen[p.At]; ok || w.seen != nil {
			p.Before = Count{p.Before.Packets - was.Before.Packets, p.Before.Bytes - was.Before.Bytes}
			gained = append(gained, p)
		}
	}
	w.seen = seen
	return gained
}
