// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"weft/flows"
)

// Bounds of what is remembered of translated connections.
const (
	// maxTranslated is of one network namespace: some 350 bytes each. At the bound one
	// that has ended makes room, or else one that has stood for long.
	maxTranslated = 65536
	// maxAllTranslated is of all network namespaces together, but that each may have
	// leastTranslated of its own: with 256 of them at most 66 MiB.
	maxAllTranslated = 131072
	leastTranslated  = 256
	// maxSamePorts is how many translations are remembered of the same addresses and ports.
	maxSamePorts = 4
)

// lag is by how much later than the packet that made it the word of a translation is
// believed to come. What passed that long before the end of one may be the next one's.
const lag = int64(1e9) // ns

// endedFor is how long one that has ended is remembered, for records that are made later.
const endedFor = int64(300e9) // ns

// places is what the translations of all network namespaces share.
type places struct {
	// sieve is how many ends fall into each cell, of all namespaces: 1 MiB, taken as needed, so that most of
	// what nobody translates, and what is translated once, is known without asking any.
	sieve [allCells]atomic.Uint32
	// strangers is when the latest word came of a connection that is not translated and has
	// ends of that cell, in seconds of Unix time: 256 KiB.
	strangers [strangerCells]atomic.Uint32
	spent     atomic.Int64  // places in use
	forgotten atomic.Uint64 // translations that made room while they stood
}

// sieveCells are so many that 100 connections leave four of five empty.
const sieveCells = 2048

// allCells are so many that 10,000 connections leave nine of ten empty.
const allCells = 1 << 18

// strangerCells are so many that of 10,000 connections in two seconds three of four find
// theirs empty.
const strangerCells = 1 << 16

var sieveSeed = maphash.MakeSeed()

// cellsOf is the cells of a namespace's sieve and of everybody's for ends that are
// [packed.unsided].
func cellsOf(ends packed) (own, all uint64) {
	h := maphash.Comparable(sieveSeed, ends)
	return h % sieveCells, h >> 32 % allCells
}

// count adds n to what both sieves have of ends that are [packed.unsided].
func (t *translations) count(ends packed, n int32) {
	own, all := cellsOf(ends)
	t.sieve[own].Add(uint32(n))
	t.places.sieve[all].Add(uint32(n))
}

// translations are the connections of one network namespace whose addresses the kernel
// translates, each with the time in which it did. For any number of goroutines.
type translations struct {
	// sieve is how many ends fall into each cell. 0: those are not in index, and who asks
	// need not wait. A domain may have hundreds of namespaces to ask.
	sieve [sieveCells]atomic.Uint32
	// heard is until when every word that came has been read, in Unix nanoseconds; 0: not
	// known. What passed more than lag later may be of a connection whose word waits.
	heard atomic.Int64

	mu    sync.Mutex
	all   []translated // index 0: none
	free  []uint32
	hand  uint32            // the next to make room
	index map[packed]uint32 // the newest with those ends, in either direction
	// sure is until when nothing is missing, in Unix nanoseconds; never: nothing is. 0: before
	// the first list.
	sure int64

	checked int64 // when the latest list was complete; 0: none was
	unheard int   // that stood then and whose ends nobody may tell
	places  *places
}

// word is when something happened of which the word comes now: after all that was heard
// before, however late this is read.
func (t *translations) word(now int64) times {
	if heard := t.heard.Load(); heard != 0 && heard < now-lag {
		return times{heard, now}
	}
	return times{now - lag, now}
}

func newTranslations(p *places) *translations {
	return &translations{all: make([]translated, 1), index: map[packed]uint32{}, places: p}
}

// stranger notes that a connection with the ends k is not translated now, or was until now.
func (p *places) stranger(k packed, now int64) {
	p.strangers[maphash.Comparable(sieveSeed, k.unsided())%strangerCells].Store(uint32(now / 1e9))
}

// alone reports whether nothing is known that had one of these ends from two lags before
// that time on.
func (t *translations) alone(ends [3]packed, from int64) bool {
	for _, k := range ends {
		last := t.places.strangers[maphash.Comparable(sieveSeed, k)%strangerCells].Load()
		if k.proto != 0 && (t.index[k] != 0 || last != 0 && int64(last) >= (from-2*lag)/1e9) {
			return false
		}
	}
	return true
}

// each calls f with everything that has k's ends, the newest first, until it says no.
func (t *translations) each(k packed, f func(i uint32, e *translated) bool) {
	k = k.unsided()
	for i := t.index[k]; i != 0; {
		e := &t.all[i]
		after := *e.next(k)
		if !f(i, e) {
			return
		}
		i = after
	}
}

// find is the translation of the connection that had these ends ([packed.unsided]) all
// the time from first to last, and that was opened then if opens. false: none had, or more
// than one may have had.
func (t *translations) find(ends packed, first, last int64, opens bool) (found flows.Translation, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if heard := t.heard.Load(); last > t.sure || heard != 0 && last > heard+lag {
		return found, false
	}
	several, one := false, (*translated)(nil)
	t.each(ends, func(_ uint32, e *translated) bool {
		if first >= e.ended.before || last < e.began.after || e.crossed && e.between(ends) { // certainly not, or it may be another's
			return true
		}
		if opens && e.told && e.opened.proto == flows.ProtoTCP && e.seen()+lag <= first && e.ended.before <= last {
			return true // an earlier connection on these ports: this one goes on beyond its end
		}
		several = several || ok || last > e.ended.after || first < e.began.before
		ok, one = true, e
		return !several
	})
	if !ok || several {
		return found, false
	}
	return flows.Translation{Opened: one.opened.key(), Sent: one.sent.key()}, true
}

// add notes a translation of which the word came now, from a list or with its beginning;
// list is the number of the latest list. In one zone no two have the same ends at a time:
// what had them has ended.
func (t *translations) add(to flows.Translation, zone uint16, now int64, list uint32, listed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	opened, sent := pack(to.Opened), pack(to.Sent)
	known, over := false, t.word(now)
	first := over.after // the packet that makes a translation passes before its word comes
	alone := !listed && t.alone((&translated{opened: opened, sent: sent}).ends(), first)
	if alone {
		first -= lag // how long before is not known, but it was nobody else's
	}
	began := times{first, first}
	switch {
	case listed && t.sure == 0:
		began, over = times{}, times{0, now} // what is there in the first list always was
	case listed:
		over = times{t.sure, now}
		if t.sure == never { // it was forgotten, for want of room
			over.after = t.checked
		}
		began = over
	}
	for _, k := range []packed{opened, sent} {
		n, oldest := 0, uint32(0)
		t.each(k, func(i uint32, e *translated) bool {
			switch {
			case e.zone != zone || e.ended != stands:
			case e.opened == opened && e.sent == sent:
				known, e.listed = true, max(e.listed, list)
			case e.opened == opened || e.sent == sent:
				e.ended = over
			}
			n, oldest = n+1, i
			return true
		})
		if known {
			return
		}
		if n >= maxSamePorts {
			t.drop(oldest)
		}
	}
	t.age(now)
	i := t.room()
	e := &t.all[i]
	*e = translated{
		opened: opened, sent: sent, zone: zone, began: began, ended: stands, listed: list, unheard: listed, alone: alone,
		crossed: opened.src == sent.src && opened.srcPort != sent.srcPort, // the port was another's already
	}
	for stage, k := range e.ends() {
		if k.proto != 0 {
			e.older[stage], t.index[k] = t.index[k], i
			t.count(k, 1)
		}
	}
}

// end notes that the connection that was opened as k ended now.
func (t *translations) end(k flows.Key, zone uint16, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	opened := pack(k)
	t.each(opened, func(_ uint32, e *translated) bool {
		if e.zone == zone && e.opened == opened && e.ended == stands {
			e.ended, e.told = t.word(now), true
		}
		return true
	})
}

// direct notes that a connection which is not translated has these ends now: whatever had
// them has ended. Between the translations of another one they may be: only what enters and
// what leaves the tracking is one connection's alone.
func (t *translations) direct(k flows.Key, zone uint16, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ends := pack(k).unsided()
	t.places.stranger(ends, now)
	t.each(ends, func(_ uint32, e *translated) bool {
		switch {
		case e.zone != zone || e.ended != stands:
		case e.between(ends):
			e.crossed = true
		default:
			e.ended = t.word(now)
		}
		return true
	})
}

// lose notes that what came after at may be missing.
func (t *translations) lose(at int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sure = min(t.sure, at)
}

// complete notes that a list has been read to its end now: what it does not have ended
// at some time since something was lost, or, of what nobody tells, since the list before.
func (t *translations) complete(list uint32, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unheard = 0
	for i := range t.all {
		e := &t.all[i]
		switch {
		case e.ended != stands || e.opened.proto == 0:
		case e.listed >= list:
			if e.unheard {
				t.unheard++
			}
		case e.unheard:
			e.ended = times{min(t.sure, t.checked), now}
		default:
			e.ended = times{min(t.sure, t.word(now).after), now}
		}
	}
	t.sure, t.checked = never, now
}

// age looks at the next two, and forgets those that ended long ago: so there are never
// many more than there have to be.
func (t *translations) age(now int64) {
	for range 2 {
		if t.hand++; int(t.hand) >= len(t.all) {
			t.hand = 0
			return
		}
		if e := &t.all[t.hand]; e.opened.proto != 0 && e.ended != stands && e.ended.before < now-endedFor {
			t.drop(t.hand)
		}
	}
}

// leave gives the places of t back to the others.
func (t *translations) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.all {
		if t.all[i].opened.proto != 0 {
			t.drop(uint32(i))
		}
	}
	t.places.spent.Add(1 - int64(len(t.all)))
	t.all, t.free, t.hand, t.sure = t.all[:1], nil, 0, 0
}

// standing is how many have not ended.
func (t *translations) standing() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.all {
		if e := &t.all[i]; e.ended == stands && e.opened.proto != 0 {
			n++
		}
	}
	return n
}

// room is a place for one more.
func (t *translations) room() uint32 {
	switch n := len(t.free); {
	case n > 0:
		i := t.free[n-1]
		t.free = t.free[:n-1]
		return i
	case len(t.all) <= maxTranslated && (len(t.all) <= leastTranslated || t.places.spent.Load() < maxAllTranslated):
		t.places.spent.Add(1)
		t.all = append(t.all, translated{})
		return uint32(len(t.all) - 1)
	}
	victim := uint32(0)
	for range 64 { // among so many, the first that has ended
		if t.hand++; int(t.hand) >= len(t.all) {
			t.hand = 1
		}
		if victim == 0 || t.all[t.hand].ended != stands {
			victim = t.hand
		}
		if t.all[victim].ended != stands {
			break
		}
	}
	if t.all[victim].ended == stands {
		t.places.forgotten.Add(1)
	}
	t.drop(victim)
	return t.room()
}

// drop forgets the translation with index i.
func (t *translations) drop(i uint32) {
	e := &t.all[i]
	for stage, k := range e.ends() {
		if k.proto == 0 {
			continue
		}
		t.count(k, -1)
		if t.index[k] == i {
			if t.index[k] = e.older[stage]; e.older[stage] == 0 {
				delete(t.index, k)
			}
			continue
		}
		for at := t.index[k]; at != 0; {
			link := t.all[at].next(k)
			if *link == i {
				*link = e.older[stage]
				break
			}
			at = *link
		}
	}
	*e = translated{}
	t.free = append(t.free, i)
}
