// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"maps"
	"slices"
)

// Who may own equal addresses is told apart by segment: a namespace's own routing, each
// of its VRFs, each of its bridges that nothing but their ports is on. A VXLAN device
// is in the segment of the bridge or VRF that its VNI is for. Segments that veth pairs
// join, or a device that hangs on another one's, are one domain.

// A domain has the name of the segment in it that was known first: where several were
// found at once, the agent's own namespace, a bridge or VRF, another namespace. What
// joins a domain later does not rename it, nor does it when that segment goes: either
// would cut live conversations in two. Of a domain that falls apart, the part with that
// segment keeps the name, or else the one with what was known first.

// segmentOf is the name of a VRF's or a bridge's segment, by its device. That of a
// namespace's own routing is the cookie, which the kernel counts from 1. Both are whole
// in a number of JSON, which has 53 bits.
func segmentOf(netns uint64, ifindex uint32) uint64 {
	return 1<<52 | uint64(ifindex&(1<<24-1))<<28 | netns&(1<<28-1)
}

// maxMasters bounds how far up masters are followed: a bond in a bridge in a VRF has three.
const maxMasters = 8

// naming is what a snapshot says of its domains: the name of each segment's, and of the
// names, how early they were known.
type naming struct {
	domain map[uint64]uint64
	rank   map[uint64]int
}

// segments gives every device its segment, and every segment its domain. before is of
// the snapshot before; it returns this one's.
func (t *Topology) segments(before naming) naming {
	routed := t.routedBridges()
	j := joiner{root: make(map[uint64]uint64, len(t.Spaces)), rank: make(map[uint64]int, len(t.Spaces)), before: before}
	for _, rank := range before.rank {
		j.next = max(j.next, rank+1)
	}
	if len(t.Spaces) > 0 && t.Spaces[0].Own {
		j.add(t.Spaces[0].Netns)
	}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			if d.segment = segmentOn(d, routed); d.segment != s.Netns {
				j.add(d.segment)
			}
		}
	}
	for _, s := range t.Spaces {
		j.add(s.Netns)
	}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			for _, other := range []*Device{d.Far, d.Under} {
				if other != nil && (other == d.Far || other.Space != s) {
					j.join(d.segment, other.segment)
				}
			}
		}
	}
	now := j.named()
	t.domains = now.domain
	return now
}

// joiner finds which segments are one domain, and its name.
type joiner struct {
	root   map[uint64]uint64
	rank   map[uint64]int // of the least rank is what was known first
	before naming
	next   int // the rank of what is new
}

func (j *joiner) add(segment uint64) {
	if _, known := j.root[segment]; known {
		return
	}
	rank, known := j.before.rank[segment]
	if !known {
		rank = j.next
		j.next++
	}
	j.root[segment], j.rank[segment] = segment, rank
}

// domain is the first of the segments that n is joined with, as far as is known.
func (j *joiner) domain(n uint64) uint64 {
	for j.root[n] != n {
		j.root[n] = j.root[j.root[n]]
		n = j.root[n]
	}
	return n
}

// named gives each domain the first of the names that are its own: those of its segments,
// and those that its segments had from one that is gone.
func (j *joiner) named() naming {
	all := slices.SortedFunc(maps.Keys(j.root), func(a, b uint64) int { return cmp.Compare(j.rank[a], j.rank[b]) })
	owner, first := make(map[uint64]uint64, len(all)), make(map[uint64]uint64, len(all))
	own := func(name, root uint64) {
		owner[name] = root
		if one, ok := first[root]; !ok || j.rank[name] < j.rank[one] {
			first[root] = name
		}
	}
	for _, n := range all {
		own(n, j.domain(n))
	}
	for _, n := range all {
		name, had := j.before.domain[n]
		if _, owned := owner[name]; had && !owned { // its segment is gone
			j.rank[name] = j.before.rank[name]
			own(name, j.domain(n))
		}
	}
	now := naming{domain: make(map[uint64]uint64, len(all)), rank: j.rank}
	for _, n := range all {
		now.domain[n] = first[j.domain(n)]
	}
	for name, root := range owner {
		switch _, here := j.root[name]; {
		case here:
		case first[root] == name:
			now.domain[name] = name // conversations ask by it
		default:
			delete(now.rank, name)
		}
	}
	return now
}

func (j *joiner) join(one, other uint64) {
	a, b := j.domain(one), j.domain(other)
	if j.rank[a] > j.rank[b] {
		a, b = b, a
	}
	j.root[b] = a
}

// routedBridges is the bridges that the host itself, or a device on them, may take
// packets out of: those with an address that is not only the link's, and those that
// something is stacked on.
func (t *Topology) routedBridges() map[*Device]bool {
	routed := map[*Device]bool{}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			if d.Under != nil && d.Under.Kind == "bridge" {
				routed[d.Under] = true
			}
			for _, p := range d.Addrs {
				if d.Kind == "bridge" && !p.Addr().IsLinkLocalUnicast() {
					routed[d] = true
				}
			}
		}
	}
	return routed
}

func segmentOn(d *Device, routed map[*Device]bool) uint64 {
	segment := d.Space.Netns
	for range maxMasters {
		switch {
		case d.Kind == "vrf":
			return segmentOf(d.Space.Netns, d.Index)
		case d.Kind == "bridge" && !routed[d] && segment == d.Space.Netns:
			segment = segmentOf(d.Space.Netns, d.Index)
		}
		if d.Master == nil {
			break
		}
		d = d.Master
	}
	return segment
}

// Domain is what all devices share that see the same packets, and no other tenant's:
// the cookie of a namespace, or a number of a bridge or VRF. ifindex 0 stands for the
// namespace's own routing. 0: the device is not known.
func (t *Topology) Domain(netns uint64, ifindex uint32) uint64 {
	if ifindex == 0 {
		return t.domains[netns]
	}
	if d := t.Device(netns, ifindex); d != nil {
		return t.domains[d.segment]
	}
	return 0
}
