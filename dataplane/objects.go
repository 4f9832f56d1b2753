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
	o.config.RingWake = uint32(s.ring / 8)
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
		{"the maps' own", ownBytes},
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

// loadFirst creates the maps and loads the programs of the agent's own namespace. What the
// rest can do without may be refused: it is then off, and what was dropped before it.
func (o *objects) loadFirst(off func(Capability)) error {
	o.findAcceptQueue(off)
	if o.size.dns == 0 {
		o.withoutDNS()
	} else {
		o.config.Options |= dnsOption
	}
	refused := o.tryFirst()
	if refused == nil {
		return nil
	}
	err := refused
	var dropped []Capability
	drop := func(name, needs string, without func()) {
		if closing := o.close(); closing != nil {
			err = errors.Join(err, closing)
			return
		}
		o.maps = map[string]*ebpf.Map{}
		without()
		dropped = append(dropped, Capability{Name: name, Needs: needs, Err: refused.Error()})
		err = o.tryFirst()
	}
	if o.config.AckBacklog != 0 {
		drop("full accept queues", acceptQueueNeeds, func() { o.config.AckBacklog, o.config.MaxAckBacklog = 0, 0 })
	}
	if err != nil && o.size.dns != 0 {
		drop("dns", dnsNeed, o.withoutDNS)
	}
	if err != nil {
		return err // it was nothing of these
	}
	for _, c := range dropped {
		off(c)
	}
	return nil
}

func (o *objects) tryFirst() (err error) {
	if err = o.createMaps(); err != nil {
		return err
	}
	o.first, err = o.programs(ownNetns, false)
	return err
}
