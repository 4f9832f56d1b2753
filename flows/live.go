// SPDX-License-Identifier: Apache-2.0

package flows

import "time"

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
		a.Live = make([]Live, len(w.order))
		for i, c := range w.order {
			w.tell(&a.Live[i], c)
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

// tell writes c as a record, with the initiator that the table knows or guesses.
func (w *Watch) tell(l *Live, c *watched) {
	conv := conversation{key: c.key}
	if i := w.table.convs.find(&c.key, w.table.convs.hashOf(&c.key)); i != 0 {
		conv = *w.table.convs.at(i)
	}
	l.New = !conv.is(convSettled) && conv.opened == w.from
	first, chosen := [2]int64{never, never}, [2]int{-1, -1}
	for i := range c.hops {
		h := &c.hops[i]
		if h.span[0] < first[h.from] || chosen[h.from] >= 0 && h.span[0] == first[h.from] && h.at.Hook < c.hops[chosen[h.from]].at.Hook {
			first[h.from], chosen[h.from] = h.span[0], i
		}
	}
	conv.settle(first)
	src := conv.source()
	l.Record = Record{
		Scope: c.key.scope(), Key: c.key.from(src), Initiator: conv.basis, Fragment: c.key.fragment,
		TCPFlags: conv.flags[src], ReverseTCPFlags: conv.flags[1-src], ConnectionID: conv.connectionID(),
		Hops: make([]HopCount, 0, len(c.hops)),
	}
	if c.key.proto == ProtoTCP {
		l.TCP = &TCPRecord{}
	}
	for i := range c.hops {
		h := &c.hops[i]
		p := w.table.points.at(w.table.points.find(h.at, w.table.drain))
		l.add(HopCount{
			At: h.at, Hop: p.hop, Reverse: h.from != src, Chosen: chosen[h.from] == i, Packets: h.n.Packets, Bytes: h.n.Bytes,
			First: time.Unix(0, h.span[0]).UTC(), Last: time.Unix(0, h.span[1]).UTC(),
		})
		switch {
		case l.TCP == nil || chosen[h.from] != i:
		case h.from == src:
			l.TCP.Source = h.tcp
		default:
			l.TCP.Destination = h.tcp
		}
	}
	l.sortHops()
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
