// SPDX-License-Identifier: Apache-2.0

package dataplane

import "weft/bpf"

const (
	defaultInterfaces = 2048
	maxInterfaces     = 8192 // a point's number has 16 bits
	minMemory         = 2 << 20
	ringBytes         = 4 << 20 // mapped twice by its reader
	leastSlots        = 8192    // of a CPU, if memory allows
	maxRareShards     = 2

	slotBytes  = 64
	coldBytes  = 32
	tcpBytes   = 64 + 64       // of a slot: its line, and half of a connection's
	timesBytes = 24 + 968 + 64 // a histogram: key, value and the kernel's own
	times      = 1024          // histograms
	placeBytes = 64            // an interface, on each CPU
	rareBytes  = 256           // a point, on each shard
	fragBytes  = 8192 * 112    // the fragment table: 48 bytes an entry and the kernel's own
	ownBytes   = 128 << 10     // of the maps beside their entries: a ring's list of pages, a page an array, what is small
	hashBytes  = 48 + 64 + 64  // an entry of the fallback: key, value and the kernel's own
	bucketSize = int(bpf.FlowWeftLimitsWEFT_WAYS)
	hooks      = int(bpf.FlowWeftHookWEFT_HOOKS)
	maxProbes  = int(bpf.FlowWeftLimitsWEFT_LINK_PROBES)
)

// sizes of the kernel structures: together at most Options.MaxMemory.
type sizes struct {
	cpus   int
	slots  int // of one CPU
	places int // interfaces, and as many free ones, so that most have the first place they look for
	shards int // copies of the rare counters
	ring   int // bytes
	drops  int // entries of each set of drops; 0: not traced
	tcp    bool
	dns    int // bytes of the ring of DNS packets; 0: off

	sockets int // entries of each set of what sockets told; 0: not asked
}

// sizeFor picks the partition size for the machine: counters first, then the
// ring, and the largest power of two of slots that still fits.
func sizeFor(o *Options, cpus int) sizes {
	s := sizes{
		cpus: cpus, ring: ringBytes, shards: min(floorPow2(cpus), maxRareShards),
		places: ceilPow2(o.MaxInterfaces * 2),
	}
	for s.ring > 65536 && s.ring > o.MaxMemory/8 {
		s.ring /= 2
	}
	if o.DNS {
		s.dns = max(65536, min(dnsRingBytes, floorPow2(o.MaxMemory/8)))
	}
	for s.places > 16 && s.counters() > o.MaxMemory/8 {
		s.places /= 2
	}
	s.tcp = o.TCP
	if o.Drops {
		s.drops = dropEntries
	}
	for s.drops > 64 && s.dropSets() > o.MaxMemory/8 {
		s.drops /= 2
	}
	if o.Sockets {
		s.sockets = socketEntries
	}
	for s.sockets > 64 && s.socketSets() > o.MaxMemory/8 {
		s.sockets /= 2
	}
	s.slots = ceilPow2(max(o.Slots/cpus, min(o.Slots, leastSlots), bucketSize))
	for s.slots > bucketSize && s.total() > o.MaxMemory {
		s.slots /= 2
	}
	return s
}

// leastMemory is the smallest MaxMemory, to 64 KiB, that holds what o asks for.
func leastMemory(o *Options, cpus int) int {
	try := *o
	for sizeFor(&try, cpus).total() > try.MaxMemory {
		try.MaxMemory += 64 << 10
	}
	return try.MaxMemory
}

func (s sizes) counters() int { return s.places * (s.cpus*placeBytes + s.shards*hooks*rareBytes) }

func (s sizes) total() int {
	return s.cpus*s.slots*(slotBytes+coldBytes) + s.counters() + s.ring + fragBytes + ownBytes + s.dropSets() + s.tcpTables() + s.dns + s.socketSets()
}

// tcpTables is the size of what measures TCP: 0 when it is off.
func (s sizes) tcpTables() int {
	if !s.tcp {
		return 0
	}
	return s.cpus*s.slots*tcpBytes + times*timesBytes
}

// connectionPairs is how many pairs of connections have a line: one of four slots has
// a pair, since a connection has two flows at a device.
func (s sizes) connectionPairs() int {
	return max(1, floorPow2(s.cpus)*s.slots/4)
}

// dropSets is the size of both sets of drops and of both of their overflow.
func (s sizes) dropSets() int {
	if s.drops == 0 {
		return 0
	}
	return 2 * (s.drops + overflowEntries) * dropBytes
}

// socketSets is the size of both sets of what sockets told, of both of their
// overflow, and of the owners.
func (s sizes) socketSets() int {
	if s.sockets == 0 {
		return 0
	}
	return 2*(s.sockets+socketOverflow)*socketBytes + s.sockets*socketOwners*ownerBytes
}

// hashEntries is the size of each of the fallback's two sets, in the same memory.
func (s sizes) hashEntries() int { return max(64, s.cpus*s.slots*(slotBytes+coldBytes)/(2*hashBytes)) }

func floorPow2(n int) int {
	p := 1
	for p*2 <= n {
		p *= 2
	}
	return p
}

func ceilPow2(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}
