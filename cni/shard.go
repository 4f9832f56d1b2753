// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"

	"weft/flows"
)

// shard is a part of the addresses: an open-addressed table with linear probing, at
// most seven eighths full. Never written to once it is published. Who has an address
// alone is in the slot itself, so that a look-up reads one line of memory, or two.
type shard struct {
	slots []slot // a power of two; nil: empty
	count int
}

// slot is one address: 64 bytes.
type slot struct {
	hi, lo   uint64 // IPv4 in its mapped form
	domain   uint64
	from, to int64         // of the only holding
	who      *flows.Entity // of the only holding; nil: there are several
	held     *[]holding    // all; nil: the slot is empty
	_        uint64
}

// key is a spot in words.
type key struct{ hi, lo, domain uint64 }

func (p spot) key() key {
	b := p.addr.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), p.domain}
}

// hash mixes k's words by 64x64-bit multiplications.
func (r *Resolver) hash(k key) uint64 {
	h, l := bits.Mul64(k.hi^k.domain^r.seed[0], k.lo^r.seed[1])
	h, l = bits.Mul64(h^l^r.seed[0], k.domain^r.seed[1])
	return h ^ l
}

// find is k's slot; nil: there is none.
func (s *shard) find(k key, hash uint64) *slot {
	if len(s.slots) == 0 {
		return nil
	}
	mask := uint64(len(s.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		p := &s.slots[at]
		if p.held == nil {
			return nil
		}
		if p.lo == k.lo && p.hi == k.hi && p.domain == k.domain {
			return p
		}
	}
}

// newShard makes one of what a writer has.
func (r *Resolver) newShard(all map[spot][]holding) *shard {
	s := &shard{count: len(all)}
	if len(all) == 0 {
		return s
	}
	size := 1 << bits.Len(uint(len(all)*8/7)) // more than there are
	s.slots = make([]slot, size)
	for p, held := range all {
		k := p.key()
		at := r.hash(k) & uint64(size-1)
		for s.slots[at].held != nil {
			at = (at + 1) & uint64(size-1)
		}
		n := slot{hi: k.hi, lo: k.lo, domain: k.domain, held: &held}
		if len(held) == 1 {
			n.from, n.to, n.who = held[0].from, held[0].to, held[0].who
		}
		s.slots[at] = n
	}
	return s
}

// all is every spot and its holdings, which are not to be written to.
func (s *shard) all() iter.Seq2[spot, []holding] {
	return func(yield func(spot, []holding) bool) {
		for i := range s.slots {
			if p := &s.slots[i]; p.held != nil && !yield(p.spot(), *p.held) {
				return
			}
		}
	}
}

func (s *slot) spot() spot {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], s.hi)
	binary.BigEndian.PutUint64(b[8:], s.lo)
	return spot{s.domain, netip.AddrFrom16(b).Unmap()}
}
