// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"

	"github.com/cilium/ebpf"

	"weft/bpf"
	"weft/flows"
)

const (
	defaultInterfaces = 2048
	maxInterfaces     = 8192 // a point's number has 16 bits
	minMemory         = 2 << 20
	ringBytes         = 2 << 20 // mapped twice by its reader
	leastSlots        = 8192    // of a CPU, if memory allows
	maxRareShards     = 2

	slotBytes  = 64
	coldBytes  = 32
	tcpBytes   = 64 + 64       // of a slot: its line, and half of a connection's
	timesBytes = 24 + 968 + 56 // a histogram: key, value and the kernel's own
	times      = 1024          // histograms
	placeBytes = 64            // an interface, on each CPU
	rareBytes  = 256           // a point, on each shard
	fragBytes  = 8192 * 128    // the fragment table: 48 bytes an entry and the kernel's own
	hashBytes  = 48 + 64 + 56  // an entry of the fallback: key, value and the kernel's own
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
	return s.cpus*s.slots*(slotBytes+coldBytes) + s.counters() + s.ring + fragBytes + s.dropSets() + s.tcpTables() + s.dns + s.socketSets()
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

// objects is what is loaded once: the maps, and what programs of a further
// namespace are made from.
type objects struct {
	backend Backend
	size    sizes
	config  bpf.FlowFlowConfig
	spec    *ebpf.CollectionSpec
	xdp     *ebpf.CollectionSpec // nil: off
	maps    map[string]*ebpf.Map
	first   *programs // of the agent's own namespace, without XDP; they also read the clock
}

// loadObjects creates the maps and proves that the programs load. The slot table
// gives way to the hash when the kernel refuses it, unless it was asked for.
func loadObjects(o *Options, off func(Capability)) (*objects, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count possible CPUs: %w", err)
	}
	backend := o.Backend
	if backend == BackendAuto {
		backend = BackendSlots
		if preemptibleSoftirqs() {
			off(Capability{Name: "slot table", Needs: "a kernel without PREEMPT_RT", Err: "softirqs can be preempted: a slot would have two writers"})
			backend = BackendHash
		}
	}
	size := sizeFor(o, cpus)
	if size.total() > o.MaxMemory {
		return nil, wrong("maximum memory %d bytes: use at least %d with these options on %d CPUs", o.MaxMemory, leastMemory(o, cpus), cpus)
	}
	objs, err := loadBackend(backend, size, o.XDP != XDPOff, off)
	if err != nil && size.tcp && backend == BackendSlots {
		// without it, or with the same refusal, which is then not its own
		size.tcp = false
		why := err
		if objs, err = loadBackend(backend, size, o.XDP != XDPOff, off); err == nil {
			off(Capability{Name: "TCP health", Needs: "a verifier that takes its programs", Err: why.Error()})
		}
	}
	if err != nil && o.Backend == BackendAuto && backend == BackendSlots {
		off(Capability{Name: "slot table", Needs: "mappable arrays (5.5), ring buffer (5.8), CAP_BPF", Err: err.Error()})
		objs, err = loadBackend(BackendHash, size, false, off)
	}
	if err != nil {
		return nil, err
	}
	if o.TCP && objs.backend == BackendHash {
		off(Capability{Name: "TCP health", Needs: "the slot table", Err: "the hash table has no lines for it"})
	}
	if o.XDP != XDPOff && objs.xdp == nil {
		off(Capability{Name: "xdp", Needs: "the slot table", Err: "the hash table has no XDP program"})
	}
	return objs, nil
}

// preemptibleSoftirqs is true on PREEMPT_RT.
func preemptibleSoftirqs() bool {
	b, err := os.ReadFile("/sys/kernel/realtime")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

func loadBackend(backend Backend, size sizes, xdp bool, off func(Capability)) (*objects, error) {
	o := &objects{backend: backend, size: size, maps: map[string]*ebpf.Map{}}
	load := bpf.LoadFlow
	if size.tcp {
		load = bpf.LoadHealth
	}
	if backend == BackendHash {
		load, o.size.tcp = bpf.LoadFlowHash, false
	}
	var err error
	if o.spec, err = load(); err != nil {
		return nil, fmt.Errorf("read the %s object: %w", backend, err)
	}
	o.configure()
	if err := o.loadFirst(off); err != nil {
		return nil, errors.Join(err, o.close())
	}
	if xdp && backend == BackendSlots {
		if o.xdp, err = bpf.LoadXdp(); err != nil {
			return nil, errors.Join(fmt.Errorf("read the xdp object: %w", err), o.close())
		}
	}
	return o, nil
}

func (o *objects) configure() {
	s := o.size
	var seed [40]byte
	rand.Read(seed[:]) // never fails
	for i := range o.config.HashKey {
		o.config.HashKey[i] = binary.NativeEndian.Uint64(seed[i*8:])
	}
	o.config.Slots = uint32(s.slots)
	o.config.SlotShift = uint32(64 - bits.TrailingZeros(uint(s.slots)))
	o.config.PlaceMask = uint32(s.places - 1)
	o.config.RareMask = uint32(s.shards - 1)
	o.config.RingWake = uint32(s.ring / 4)
	if s.tcp {
		o.config.Options |= uint32(bpf.FlowWeftOptionWEFT_OPTION_TCP)
		o.config.ConvMask = uint32(s.connectionPairs() - 1)
	}
	o.resize(o.spec)
}

// resize gives the maps of a spec the sizes that config names.
func (o *objects) resize(spec *ebpf.CollectionSpec) {
	s := o.size
	buckets := uint32(s.cpus * s.slots / bucketSize)
	lines, pairs, histograms := uint32(1), uint32(1), uint32(1)
	if s.tcp {
		lines, pairs, histograms = buckets, uint32(s.connectionPairs()), times
	}
	for name, n := range map[string]uint32{
		bpf.FlowMapTcpLines: lines, bpf.HealthMapTcpConvs: pairs, bpf.HealthMapLatencies: histograms,
		bpf.FlowMapPlaces: uint32(s.cpus * s.places), bpf.FlowMapRare: uint32(s.shards * s.places * hooks),
		bpf.FlowMapSlots:     uint32(s.cpus * s.slots),
		bpf.FlowMapColdLines: buckets, bpf.FlowMapEvicted: uint32(s.ring), bpf.FlowMapDnsPackets: uint32(s.dns),
	} {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = n
		}
	}
	if m := spec.Maps[bpf.FlowHashMapCurrentSet]; m != nil {
		m.InnerMap.MaxEntries = uint32(s.hashEntries())
	}
}

// createMaps makes every map but the read-only data, which each namespace's
// programs have for themselves.
func (o *objects) createMaps() error {
	for name, spec := range o.spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("create map %s (%d entries): %w", name, spec.MaxEntries, err)
		}
		o.maps[name] = m
	}
	return o.makeOverflow()
}

// makeOverflow makes the histograms of servers that have no room.
func (o *objects) makeOverflow() error {
	if !o.size.tcp {
		return nil
	}
	for m := range uint8(flows.DNSLookup) {
		k := bpf.FlowLatencyKey{Proto: flows.ProtoTCP, Measure: m}
		if err := o.maps[bpf.HealthMapLatencies].Put(k, bpf.FlowLatency{}); err != nil {
			return fmt.Errorf("make the overflow histogram of %s: %w", flows.Measure(m), err)
		}
	}
	return nil
}

// ownNetns is the number of the agent's own namespace.
const ownNetns = 1

// programs is one namespace's set; only the maps are shared.
type programs struct {
	ingress, egress, xdp, clock *ebpf.Program
	bytes                       uint64 // of the kernel's memory, see programBytes
}

// of is the program for a hook.
func (p *programs) of(h flows.Hook) *ebpf.Program {
	switch h {
	case flows.HookEgress:
		return p.egress
	case flows.HookXDP:
		return p.xdp
	}
	return p.ingress
}

// programs loads a set whose packets count for the namespace with that number.
func (o *objects) programs(netns uint32, xdp bool) (*programs, error) {
	p := &programs{}
	loaded, err := o.load(o.spec, netns)
	if err != nil {
		return nil, err
	}
	p.ingress, p.egress, p.clock = loaded[bpf.FlowProgTcIngress], loaded[bpf.FlowProgTcEgress], loaded[bpf.FlowProgReadClock]
	p.bytes = programBytes(p.ingress, p.egress, p.clock)
	if !xdp || o.xdp == nil {
		return p, nil
	}
	x := o.xdp.Copy()
	o.resize(x)
	if loaded, err = o.load(x, netns); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.xdp = loaded[bpf.XdpProgXdpObserve]
	p.bytes += programBytes(p.xdp)
	return p, nil
}

func (o *objects) load(spec *ebpf.CollectionSpec, netns uint32) (map[string]*ebpf.Program, error) {
	spec = spec.Copy()
	cfg := o.config
	cfg.Netns, cfg.FirstPlace = netns, firstPlace(netns)
	if err := spec.Variables[bpf.FlowVarConfig].Set(cfg); err != nil {
		return nil, fmt.Errorf("configure programs: %w", err)
	}
	if netns != ownNetns { // the agent's own showed that they load: source lines are memory for nothing
		for _, p := range spec.Programs {
			for i := range p.Instructions {
				p.Instructions[i] = p.Instructions[i].WithSource(nil)
			}
		}
	}
	shared := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := o.maps[name]; m != nil {
			shared[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	progs := map[string]*ebpf.Program{}
	for name := range spec.Programs {
		progs[name] = coll.DetachProgram(name)
	}
	coll.Close()
	return progs, nil
}

func (p *programs) close() error {
	var errs []error
	for _, prog := range []*ebpf.Program{p.ingress, p.egress, p.xdp, p.clock} {
		if prog != nil {
			errs = append(errs, prog.Close())
		}
	}
	return errors.Join(errs...)
}

func (o *objects) close() error {
	var errs []error
	for _, m := range o.maps {
		errs = append(errs, m.Close())
	}
	o.maps = nil
	if o.first != nil {
		errs = append(errs, o.first.close())
	}
	return errors.Join(errs...)
}

// memory lists what the kernel holds for the programs.
func (o *objects) memory() []MemoryUse {
	s := o.size
	use := []MemoryUse{
		{"point counters", uint64(s.counters())},
		{"fragment table", fragBytes},
	}
	if o.backend == BackendHash {
		return append(use, MemoryUse{"flow sets (2)", uint64(2 * s.hashEntries() * hashBytes)})
	}
	if s.tcp {
		use = append(use, MemoryUse{"TCP lines and histograms", uint64(s.tcpTables())})
	}
	return append(use,
		MemoryUse{"flow slots", uint64(s.cpus * s.slots * slotBytes)},
		MemoryUse{"cold lines", uint64(s.cpus * s.slots * coldBytes)},
		MemoryUse{"eviction ring", uint64(s.ring)})
}
