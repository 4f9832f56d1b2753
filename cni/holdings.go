// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/flows"
)

// Bounds of what is remembered.
const (
	maxHoldings = 1 << 18          // of all addresses; what comes beyond is not told, and counted
	maxPast     = 8                // past holds of an address; the oldest give way
	pastFor     = 10 * time.Minute // how long a past holder is remembered: longer than records take
)

// holds is what the sources write. One lock: readers never take it.
type holds struct {
	mu      sync.Mutex
	owned   map[owner][]spot // where each owner has a holding that is not past
	count   int              // holdings, past ones included
	refused uint64           // holdings that there was no room for
}

// owner is who tells of a holding: the same thing told again replaces what it said.
type owner struct {
	kind ownerKind
	id   string
}

type ownerKind uint8

const (
	ownerNamespace ownerKind = iota // id: the cookie
	ownerLease                      // id: network and container
	ownerPod                        // id: uid
	ownerNode                       // id: name
	ownerService                    // id: namespace/name
)

// claim is that an owner has an address, in a segment: see [Topology.Domain].
type claim struct {
	space uint64
	addr  netip.Addr
	from  int64 // when it began, Unix nanoseconds; 0: not known, so always
	guess bool  // it began between from and when it is told
	who   *flows.Entity
	near  []device
	rank  rank
	anew  bool // somebody else, from then on: what the owner had before ends there instead of being told better
}

// telling is all that an owner has.
type telling struct {
	owner  owner
	claims []claim
}

// hold makes claims all that o has at a time (Unix nanoseconds): what is new
// begins, what it had and is not among them ends, what is known better now is told
// of the past too.
func (r *Resolver) hold(o owner, at int64, claims []claim) { r.holdAll(at, []telling{{o, claims}}) }

// holdAll is hold of several owners, who may have handed addresses to each other:
// what ends does so before anything begins.
func (r *Resolver) holdAll(at int64, all []telling) {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit := r.edit()
	for _, t := range all {
		now := make(map[spot]bool, len(t.claims))
		for i := range t.claims {
			now[r.spot(t.claims[i].space, t.claims[i].addr)] = true
		}
		for _, p := range r.owned[t.owner] {
			if !now[p] {
				edit.end(p, t.owner, at)
			}
		}
	}
	for _, t := range all {
		have := make([]spot, 0, len(t.claims))
		for i := range t.claims {
			if p := r.spot(t.claims[i].space, t.claims[i].addr); edit.claim(p, t.owner, &t.claims[i], at) {
				have = append(have, p)
			}
		}
		if delete(r.owned, t.owner); len(have) > 0 {
			r.owned[t.owner] = have
		}
	}
	edit.publish()
}

// spot is where a namespace's address is looked for. With the lock.
func (r *Resolver) spot(space uint64, addr netip.Addr) spot {
	addr = addr.Unmap().WithZone("")
	if addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return spot{space, addr}
	}
	return spot{r.domain(space), addr}
}

// joined takes the domain of every namespace that there is at a time (Unix nanoseconds).
// What is known of addresses in those whose domain is another now moves with them, but
// for the past of one that others still go by. Namespaces that are gone keep theirs as
// long as their past is remembered.
func (r *Resolver) joined(at int64, domains map[uint64]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.domains.Load()
	now, moved := maps.Clone(domains), false
	for cookie, d := range old {
		if to, ok := now[cookie]; !ok {
			now[cookie] = d
		} else if to != d {
			moved = true
		}
	}
	for cookie, d := range domains {
		if was, ok := old[cookie]; !ok && d != cookie || ok && was != d {
			moved = true // a claim may have come before the namespace was joined
		}
	}
	if !moved {
		r.domains.Store(&now)
		return
	}
	// First what is new, then the word on where to look, then away with the old: who
	// asks meanwhile finds one or the other.
	stays := make(map[uint64]bool, len(domains))
	for _, d := range domains {
		stays[d] = true
	}
	leave := r.moveIn(now, at, stays)
	r.domains.Store(&now)
	leave.publish()
}

// moveIn puts every holding where it is by other domains too, and returns the
// change that takes it away from where it was, at that time if that stays: the pair of
// a container goes before its namespace does, and its packets were others' as well.
func (r *Resolver) moveIn(domains map[uint64]uint64, at int64, stays map[uint64]bool) edit {
	enter, leave := r.edit(), map[spot][]holding{}
	for i := range r.shards {
		for p, held := range r.shards[i].Load().all() {
			for _, h := range held {
				d, ok := domains[h.space]
				to := spot{d, p.addr}
				if !ok || to == p || p.addr.IsLoopback() || p.addr.IsLinkLocalUnicast() || stays[p.domain] && h.to != never {
					continue
				}
				there := slices.DeleteFunc(slices.Clone(enter.at(to)[to]), func(o holding) bool { return o.owner == h.owner && o.from == h.from })
				enter.set(to, append(there, h)) // in the place of what it left behind when it went away
				leave[p] = append(leave[p], h)
				if had := r.owned[h.owner]; h.to == never {
					had[slices.Index(had, p)] = to
				}
			}
		}
	}
	enter.publish()
	out := r.edit()
	for p, gone := range leave {
		held := slices.DeleteFunc(slices.Clone(out.at(p)[p]), func(h holding) bool {
			return slices.ContainsFunc(gone, func(g holding) bool { return g.owner == h.owner && g.from == h.from && g.to == h.to })
		})
		for _, h := range gone {
			if h.to = max(at, h.from); stays[p.domain] && r.count < maxHoldings {
				held = append(held, h)
			}
		}
		out.set(p, fewPast(held))
	}
	return out
}

// forget drops what ended longer ago than pastFor, and the domains of namespaces
// that nothing is remembered of and that are not in there.
func (r *Resolver) forget(at int64, there map[uint64]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit, used := r.edit(), map[uint64]bool{}
	for i := range r.shards {
		for p, held := range r.shards[i].Load().all() {
			old := func(h holding) bool { return h.to != never && h.to < at-int64(pastFor) }
			if slices.ContainsFunc(held, old) {
				edit.set(p, slices.DeleteFunc(slices.Clone(held), old))
			}
			for j := range held {
				used[held[j].space] = true
			}
		}
	}
	edit.publish()
	now := maps.Clone(*r.domains.Load())
	maps.DeleteFunc(now, func(cookie, _ uint64) bool { _, is := there[cookie]; return !is && !used[cookie] })
	r.domains.Store(&now)
}

// held is how many holdings there are, past ones included, and how many were refused.
func (r *Resolver) held() (count int, refused uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count, r.refused
}

// edit is a set of changes that is published together, shard by shard.
type edit struct {
	r     *Resolver
	fresh map[uint8]map[spot][]holding // copies
}

func (r *Resolver) edit() edit { return edit{r, map[uint8]map[spot][]holding{}} }

func (e edit) at(p spot) map[spot][]holding {
	i := e.r.shardOf(p)
	s := e.fresh[i]
	if s == nil {
		old := e.r.shards[i].Load()
		s = make(map[spot][]holding, old.count+1)
		maps.Insert(s, old.all())
		e.fresh[i] = s
	}
	return s
}

// set replaces what is known of p; held is not to be written to afterwards.
func (e edit) set(p spot, held []holding) {
	s := e.at(p)
	e.r.count += len(held) - len(s[p])
	if s[p] = held; len(held) == 0 {
		delete(s, p)
	}
}

// claim is false when there is no room.
func (e edit) claim(p spot, o owner, c *claim, at int64) bool {
	held := slices.Clone(e.at(p)[p])
	if i := slices.IndexFunc(held, func(h holding) bool { return h.owner == o && h.to == never }); i >= 0 {
		h := &held[i]
		if !c.anew {
			if h.who != c.who || h.rank != c.rank || !slices.Equal(h.near, c.near) {
				h.who, h.rank, h.near = c.who, c.rank, c.near
				e.set(p, held)
			}
			return true
		}
		h.to = max(c.from, h.from)
	}
	if e.r.count >= maxHoldings {
		e.r.refused++
		return false
	}
	from, met := c.from, c.from
	if c.guess {
		met = at
	}
	for i := range held {
		if h := &held[i]; h.to != never && h.rank == c.rank {
			from = max(from, h.to)
		}
	}
	held = append(held, holding{met: met, from: from, to: never, who: c.who, owner: o, space: c.space, near: c.near, rank: c.rank})
	e.set(p, fewPast(held))
	return true
}

// fewPast is held without the oldest of more than maxPast past holdings.
func fewPast(held []holding) []holding {
	past := 0
	for i := len(held) - 1; i >= 0; i-- {
		if held[i].to == never {
			continue
		}
		if past++; past > maxPast {
			held = slices.Delete(held, i, i+1)
		}
	}
	return held
}

// end ends o's holding of p: at that time or, if that is told late, when another's
// began.
func (e edit) end(p spot, o owner, at int64) {
	held := slices.Clone(e.at(p)[p])
	for i := range held {
		h := &held[i]
		if h.owner != o || h.to != never {
			continue
		}
		h.to = max(at, h.from)
		for j := range held {
			if n := &held[j]; j != i && n.rank == h.rank && n.met > h.met && n.met < h.to {
				h.to = max(n.met, h.from)
			}
		}
		for j := range held {
			if n := &held[j]; j != i && n.rank == h.rank && n.met > h.met {
				n.from = max(n.from, h.to)
			}
		}
	}
	e.set(p, held)
}

func (e edit) publish() {
	for i, s := range e.fresh {
		e.r.shards[i].Store(e.r.newShard(s))
	}
}
