// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"

	"weft/flows"
)

// Resolver names who held an address, in which namespace, and when. Any goroutine
// may ask: an answer takes no lock and allocates nothing. It implements
// [flows.Resolver].
type Resolver struct {
	shards [numShards]atomic.Pointer[shard]
	seed   [2]uint64 // random: nobody can aim at one slot
	// domains has the domain of every segment that is known, as in [flows.Scope].
	domains atomic.Pointer[map[uint64]uint64]

	holds // the writers' side
}

// numShards is in how many parts the addresses are kept: a change copies one.
const numShards = 256

// spot is an address in a domain.
type spot struct {
	domain uint64
	addr   netip.Addr
}

// holding is that somebody had an address for a time.
type holding struct {
	from, to int64 // Unix nanoseconds, to excluded; never: still held
	who      *flows.Entity
	owner    owner
	space    uint64   // segment that the address is in: the namespace's cookie, or a VRF's or bridge's number
	near     []device // that lead to the holder: its own, the far end of its veth pair
	rank     rank
	met      int64 // when it was told, where from is a guess; else from
}

// device is where a hop may be, as [flows.Point] without the hook.
type device struct {
	netns   uint64
	ifindex uint32
}

// rank orders what is known of an address by how directly it is known.
type rank uint8

const (
	rankRoutable rank = iota // elsewhere: the API server's word
	rankLeased               // an IPAM lease or a cached CNI result
	rankSeen                 // the kernel has the address on a device
)

const never = math.MaxInt64

// NewResolver returns one that knows nobody.
func NewResolver() *Resolver {
	r := &Resolver{seed: [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}}
	for i := range r.shards {
		r.shards[i].Store(&shard{})
	}
	r.domains.Store(&map[uint64]uint64{})
	r.owned = map[owner][]spot{}
	return r
}

// Resolve implements [flows.Resolver]: who held addr at a time (Unix nanoseconds).
// nil: nobody that is known, or more than one, so that a name would be a guess.
func (r *Resolver) Resolve(scope flows.Scope, addr netip.Addr, at int64) *flows.Entity {
	s := r.slot(scope, addr)
	switch {
	case s == nil:
		return nil
	case s.who != nil: // of the only one
		if at < s.from || at >= s.to {
			return nil
		}
		return s.who
	}
	if h, disputed := choose(*s.held, scope, at, nil); h != nil && !disputed {
		return h.who
	}
	return nil
}

// slot is what is known of an address; nil: nothing.
func (r *Resolver) slot(scope flows.Scope, addr netip.Addr) *slot {
	addr = addr.Unmap()
	p := spot{r.domain(scope.Netns), addr}
	if addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsInterfaceLocalMulticast() {
		p.domain = scope.Netns // means another one in each namespace
	}
	k := p.key()
	h := r.hash(k)
	return r.shards[h>>56].Load().find(k, h)
}

// find is Resolve; when several hold the address, the one that hops lead to.
// disputed: that did not tell either.
func (r *Resolver) find(scope flows.Scope, addr netip.Addr, at int64, hops []flows.HopCount) (e *flows.Entity, disputed bool) {
	h, disputed := r.holder(scope, addr, at, hops)
	if h == nil || disputed {
		return nil, disputed
	}
	return h.who, false
}

// holder is find with all that is known of it.
func (r *Resolver) holder(scope flows.Scope, addr netip.Addr, at int64, hops []flows.HopCount) (found *holding, disputed bool) {
	s := r.slot(scope, addr)
	if s == nil {
		return nil, false
	}
	return choose(*s.held, scope, at, hops)
}

// choose is which of the holdings of an address was meant at a time.
func choose(held []holding, scope flows.Scope, at int64, hops []flows.HopCount) (found *holding, disputed bool) {
	found, disputed = pick(held, at, func(*holding) bool { return true })
	if disputed && len(hops) > 0 {
		if f, d := pick(held, at, func(h *holding) bool { return h.leads(hops) }); f != nil {
			found, disputed = f, d
		}
	}
	if disputed {
		if f, d := pick(held, at, func(h *holding) bool { return h.space == scope.Netns }); f != nil {
			found, disputed = f, d
		}
	}
	return found, disputed
}

// pick is the holding of that time with the highest rank. disputed: there are
// several of that rank, of different holds, and the one returned is any of them.
func pick(held []holding, at int64, holds func(*holding) bool) (best *holding, disputed bool) {
	for i := range held {
		h := &held[i]
		if at < h.from || at >= h.to || !holds(h) {
			continue
		}
		switch {
		case best == nil || h.rank > best.rank:
			best, disputed = h, false
		case h.rank == best.rank && h.who != best.who:
			disputed = true
		}
	}
	return best, disputed
}

// leads reports whether one of the hops is at a device that leads to the holder.
func (h *holding) leads(hops []flows.HopCount) bool {
	for i := range hops {
		at := &hops[i].At
		if slices.Contains(h.near, device{at.Netns, at.Ifindex}) {
			return true
		}
	}
	return false
}

// domain is what namespaces that veth pairs join share; a namespace that is not
// known is alone.
func (r *Resolver) domain(cookie uint64) uint64 {
	if d, ok := (*r.domains.Load())[cookie]; ok {
		return d
	}
	return cookie
}

func (r *Resolver) shardOf(p spot) uint8 { return uint8(r.hash(p.key()) >> 56) }
