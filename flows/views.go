// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"slices"
)

// view is one conversation of the table as a part of a record: what was seen with
// certain addresses.
type view struct {
	c     *conversation
	src   side // the record's source in c
	stage NATStage
}

// views is what one record is made of: one conversation, or those that a connection
// makes whose addresses are translated, in the order of their stages.
type views struct {
	of     [maxViews]view
	n      int
	to     Translation
	by     NATBasis // 0: not translated
	chosen [2]int   // which of them has the hop that makes the total: from the source, to it
}

func (v *views) all() []view { return v.of[:v.n] }

func (v *views) add(w view) {
	v.of[v.n] = w
	v.n++
}

// mayHaveViews reports whether there is anything that could tell of other views of c.
func (t *Table) mayHaveViews(c *conversation) bool {
	return !t.apart && (t.translations != nil && c.key.translatable() || c.knows(0) && c.knows(1))
}

// viewsOf sets v to every open conversation of the connection that c belongs to, c among them.
func (t *Table) viewsOf(v *views, c *conversation) {
	*v = views{}
	if t.mayHaveViews(c) {
		first, last := t.span(c)
		var ok bool
		if v.to, ok = t.translation(c, first, last); ok && t.collect(v, c, NATTracked) {
			return
		}
		if v.to, ok = t.sameConnection(c); ok && t.collect(v, c, NATConnection) {
			return
		}
	}
	v.add(view{c: c})
}

// span is the time of what c's hops hold.
func (t *Table) span(c *conversation) (first, last int64) {
	first = never
	for h := &c.first; h != nil; h = t.after(h) {
		if h.packets|h.bytes != 0 {
			first, last = min(first, h.first), max(last, h.last)
		}
	}
	return first, last
}

// seenAs is the key of k in c's scope, and the side that sends k.
func (c *convKey) seenAs(k Key) (o convKey, src side) {
	src = o.pack(&Sample{Key: k, At: Point{Netns: c.netns}, VLAN: VLAN{c.outer, c.inner}})
	return o, src
}

// translation is what connection tracking says of c's packets of that time. Whom a SYN
// has named as the opener cannot be the other side.
func (t *Table) translation(c *conversation, first, last int64) (to Translation, ok bool) {
	if t.translations == nil || t.apart || !c.key.translatable() {
		return to, false
	}
	if to, ok = t.translations.Translation(c.key.scope(), c.key.from(0), first, last, c.opensIn(first, last)); !ok {
		return to, false
	}
	_, src, ok := to.in(&c.key)
	return to, ok && (!c.is(convSYN) || c.opener() == src)
}

// opensIn reports whether c's SYN was seen between first and last: for certain unless c is
// older than the 18 minutes after which its time repeats.
func (c *conversation) opensIn(first, last int64) bool {
	return c.syn != 0 && c.syn-uint32(first>>8) <= uint32((last-first)>>8)
}

// translatable reports whether connection tracking knows a conversation by this key
// alone: of ICMP it has identifiers, tags it does not see.
func (c *convKey) translatable() bool {
	return !c.fragment && c.outer == 0 && (Key{Proto: c.proto}).ports()
}

// in is which of t's keys k is, and the source's side there.
func (t *Translation) in(k *convKey) (i int, src side, ok bool) {
	for i, as := range t.keys() {
		if !as.Src.IsValid() {
			continue
		}
		if o, src := k.seenAs(as); o.equal(k) {
			return i, src, true
		}
	}
	return 0, 0, false
}

// collect finds the conversations that v.to makes, among them c. false: one of them is
// of another connection, so nothing is certain, and v has none.
func (t *Table) collect(v *views, c *conversation, by NATBasis) bool {
	var id uint64
	v.by = by
	for i, as := range v.to.keys() {
		if !as.Src.IsValid() {
			continue
		}
		key, src := c.key.seenAs(as)
		at := t.convs.find(&key, t.convs.hashOf(&key))
		if at == 0 {
			continue
		}
		p := t.convs.at(at)
		if p != c && !t.shares(p, v) {
			continue
		}
		if pid := p.connectionID(); pid != 0 {
			if id != 0 && pid != id {
				v.n, v.by = 0, 0
				return false
			}
			id = pid
		}
		v.add(view{p, src, stageOf(i)})
	}
	return v.n > 0
}

// shares reports whether what p holds is of the connection that v is of.
func (t *Table) shares(p *conversation, v *views) bool {
	if !p.is(convGained) {
		return false
	}
	if v.by == NATConnection {
		return true // it was found by that
	}
	first, last := t.span(p)
	to, ok := t.translation(p, first, last)
	return ok && to == v.to
}

// synPasses is how long a SYN may take from one view to the next, 10 s in the units of
// conversation.syn: it may be lost in between, and sent again.
const synPasses = 10_000_000_000 >> 8

// sameConnection is the translation that conversations show which have the same
// ConnectionID: who saw the SYN first has it as it was opened. Numbers can be copied, so
// the views have to be a path as well.
func (t *Table) sameConnection(c *conversation) (to Translation, ok bool) {
	id := c.connectionID()
	if id == 0 || t.apart {
		return to, false
	}
	var same [maxViews]*conversation
	n := 0
	for p := range t.ids.each(&t.convs, id) {
		if p.key.scope() != c.key.scope() {
			continue
		}
		if n == len(same) || p.syn == 0 {
			return to, false
		}
		same[n] = p
		n++
	}
	if n < 2 {
		return to, false
	}
	slices.SortFunc(same[:n], func(a, b *conversation) int { return cmp.Compare(int32(a.syn-b.syn), 0) })
	for i, p := range same[1:n] {
		if !t.leads(same[i], p) || t.meet(same[0], p) {
			return to, false
		}
	}
	before, after := same[0], same[n-1]
	to = Translation{Opened: before.key.from(before.opener()), Sent: after.key.from(after.opener())}
	for _, p := range same[1 : n-1] {
		if _, _, ok := to.in(&p.key); !ok && to.Via == (Key{}) {
			to.Via = p.key.from(p.opener())
		}
	}
	_, _, ok = to.in(&c.key)
	return to, ok
}

// leads reports whether what a sees may come to p next. The SYN passes a first, and its
// answer p: who copies the numbers of others has the second one from that answer, and is
// too late with his own.
func (t *Table) leads(a, p *conversation) bool {
	if later := p.syn - a.syn; later == 0 || later > synPasses {
		return false // which was first is not known, or it is another SYN
	}
	if a.answer == 0 || p.answer == 0 || int32(a.answer-p.answer) < 0 {
		return false
	}
	return !t.meet(a, p) && t.feeds(a, a.opener(), p, p.opener()) && t.feeds(p, 1-p.opener(), a, 1-a.opener())
}

// surplus is how many packets more than twice as many a view may have as the one that they
// come from: it is read a moment later, and a point may have had no room.
const surplus = 64

// feeds reports whether what to has from its side s can have come from what from has: no
// more comes out of a translation than goes in. Who has both ends of two connections
// cannot hide the traffic of one behind the other.
func (t *Table) feeds(from *conversation, f side, to *conversation, s side) bool {
	in := t.most(from, f)
	return in == 0 || t.most(to, s) <= 2*in+surplus // 0: it goes another way, and to makes the total
}

// most is how many packets of side s the point has in this period that has most.
func (t *Table) most(c *conversation, s side) (n uint64) {
	for h := &c.first; h != nil; h = t.after(h) {
		if h.from() == s {
			n = max(n, h.packets)
		}
	}
	return n
}

// meet reports whether one point has seen the openers of both go by. A packet passes none
// twice in one direction, so they are two connections, whatever their numbers: who has both
// ends of two chooses these.
func (t *Table) meet(a, b *conversation) bool {
	for h := &a.first; h != nil; h = t.after(h) {
		if h.packets == 0 || h.from() != a.opener() {
			continue
		}
		for g := &b.first; g != nil; g = t.after(g) {
			if g.packets != 0 && g.from() == b.opener() && g.where>>1 == h.where>>1 {
				return true
			}
		}
	}
	return false
}

// settle decides the source of each view and the hops that make the totals: of what the
// source sends that of the first stage, of what it receives that of the last.
func (t *Table) settle(v *views) {
	for i := range v.all() {
		w := &v.of[i]
		t.choose(w.c)
		if v.by == 0 {
			w.src = w.c.source()
			continue
		}
		w.c.openedBy(w.src)
	}
	v.chosen = [2]int{-1, -1}
	for i, w := range v.all() {
		v.choose(i, w.c.chosen[w.src] != 0, w.c.chosen[1-w.src] != 0)
	}
}

// choose is told, view by view, which directions the view with index i has seen.
func (v *views) choose(i int, forth, back bool) {
	if v.chosen[0] < 0 && forth {
		v.chosen[0] = i
	}
	if back {
		v.chosen[1] = i
	}
}

// openedBy is told who opened c's connection, whatever was guessed.
func (c *conversation) openedBy(s side) {
	c.state |= convSettled | convSource
	if s == 0 {
		c.state &^= convSource
	}
	if c.basis = InitiatorTracked; c.is(convSYN) {
		c.basis = InitiatorSYN
	}
}

// makesTotal reports whether h, of the view with index i, makes its direction's total.
func (v *views) makesTotal(i int, h *hop) bool {
	w := &v.of[i]
	dir := 0
	if h.from() != w.src {
		dir = 1
	}
	return v.chosen[dir] == i && w.c.chosen[h.from()] == h.where
}

// merged is what all views say of the connection, with the source as side 0.
func (v *views) merged() (m conversation) {
	m.key = v.of[0].c.key
	for _, w := range v.all() {
		m.flags[0] |= w.c.flags[w.src]
		m.flags[1] |= w.c.flags[1-w.src]
		if w.c.is(convSYN) && !m.is(convSYN) {
			m.state |= convSYN
			if w.c.opener() != w.src {
				m.state |= convOpener
			}
		}
		if m.basis == 0 || w.c.basis == InitiatorSYN {
			m.basis = w.c.basis
		}
	}
	return m
}

// key is the record's.
func (v *views) key() Key {
	if v.by != 0 {
		return v.to.ends()
	}
	return v.of[0].c.key.from(v.of[0].src)
}

// connectionID is that of the first view that has one.
func (v *views) connectionID() (id uint64) {
	for _, w := range v.all() {
		if id = w.c.connectionID(); id != 0 {
			break
		}
	}
	return id
}

// busy reports whether another view of c's connection still gains: what c has waits for
// it, so that one record has both.
func (t *Table) busy(c *conversation, gains func(*conversation) bool) bool {
	if !c.is(convGained) || !t.mayHaveViews(c) {
		return false
	}
	var v views
	t.viewsOf(&v, c)
	for _, w := range v.all() {
		if w.c != c && gains(w.c) {
			return true
		}
	}
	return false
}

// told is the key that a record of the packets with k has.
func (t *Table) told(scope Scope, k Key, first, last int64) Key {
	if t.translations == nil || t.apart || !k.ports() || scope.VLAN != (VLAN{}) {
		return k
	}
	to, ok := t.translations.Translation(scope, k, first, last, false)
	if !ok {
		return k
	}
	own := convKey{netns: scope.Netns}
	asked, sent := own.seenAs(k)
	if _, src, ok := to.in(&asked); !ok || src == sent {
		return to.ends()
	}
	return to.ends().Reverse()
}

// held is the conversation to which what comes with k belongs: c, which has that key,
// or nil; if its period holds nothing, another view of the connection that has gained,
// or did last, as its record will be made. sent is the side that sent k, from that of c.
func (t *Table) held(c *conversation, from side, scope Scope, k Key, first, last int64) (best *conversation, sent side) {
	if c != nil && c.is(convGained) || t.translations == nil || t.apart || !k.ports() {
		return c, from
	}
	to, ok := t.translations.Translation(scope, k, first, last, false)
	if !ok {
		return c, from
	}
	own := convKey{netns: scope.Netns}
	asked, sender := own.seenAs(k)
	_, src, ok := to.in(&asked)
	if !ok {
		return c, from
	}
	best, sent = c, from
	for _, as := range to.keys() {
		if !as.Src.IsValid() {
			continue
		}
		key, end := own.seenAs(as)
		at := t.convs.find(&key, t.convs.hashOf(&key))
		if at == 0 {
			continue
		}
		p := t.convs.at(at)
		if best != nil && (best.is(convGained) || !p.is(convGained) && p.last <= best.last) {
			continue
		}
		if best, sent = p, end; sender != src {
			sent = 1 - end
		}
	}
	return best, sent
}
