// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"weft/bpf"
	"weft/flows"
)

const (
	dropEntries     = 16384
	overflowEntries = 512
	dropBytes       = 8 + 96 + 64 // an entry: key, value and the kernel's own
	dropChunk       = 1024        // entries read at a time
)

// drops traces what the kernel throws away, in all namespaces: one object, beside
// the flow programs and independent of them. One goroutine drains it.
type drops struct {
	entries  int
	link     link.Link
	prog     *ebpf.Program
	seen     *ebpf.Map
	maps     []*ebpf.Map
	flows    *swapSet[uint64, bpf.DropDropCount]
	overflow *swapSet[uint64, bpf.DropDropCount]
	reasons  *dropReasons
	symbols  *symbols
	domainOf func(netns uint64, ifindex uint32) uint64

	read bpf.DropDropSeen // before the sets were last swapped
	acct flows.DropAccount
}

const dropsNeed = "tracepoint kfree_skb with its reason (Linux 5.17), kernel BTF, CAP_PERFMON"

// openDrops loads and attaches; entries bounds each of the two sets.
func openDrops(entries int, domainOf func(netns uint64, ifindex uint32) uint64) (*drops, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	d := &drops{entries: entries, domainOf: domainOf}
	if err := d.load(kernel); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if d.reasons, err = newDropReasons(kernel); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if d.link, err = link.AttachTracing(link.TracingOptions{Program: d.prog}); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to tracepoint kfree_skb: %w", err), d.close())
	}
	return d, nil
}

func (d *drops) load(kernel *btf.Spec) error {
	args, err := traceArguments(kernel)
	if err != nil {
		return err
	}
	spec, err := bpf.LoadDrop()
	if err != nil {
		return fmt.Errorf("read the drop object: %w", err)
	}
	var cfg bpf.DropDropConfig
	var seed [64]byte
	rand.Read(seed[:]) // never fails
	for i := range cfg.HashKey {
		cfg.HashKey[i] = binary.NativeEndian.Uint64(seed[i*8:])
	}
	if args > 3 {
		cfg.TellsSocket = 1
	}
	if err := spec.Variables[bpf.DropVarConfig].Set(cfg); err != nil {
		return fmt.Errorf("configure the drop object: %w", err)
	}
	inner := spec.Maps[bpf.DropMapDropSets].InnerMap
	inner.MaxEntries = uint32(d.entries)
	var objs bpf.DropObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return fmt.Errorf("load the drop object: %w", err)
	}
	d.prog, d.seen, d.maps = objs.TraceDrop, objs.Seen, []*ebpf.Map{objs.Seen, objs.DropSets, objs.Symbols}
	d.symbols = &symbols{prog: objs.NameSymbol, m: objs.Symbols, known: map[uint64]string{}}
	if d.flows, err = openSwapSet[uint64, bpf.DropDropCount]("drop", objs.DropSets,
		uint32(bpf.DropWeftDropWEFT_DROP_FLOWS), inner, dropChunk); err != nil {
		return err
	}
	inner = inner.Copy()
	inner.MaxEntries = overflowEntries
	d.overflow, err = openSwapSet[uint64, bpf.DropDropCount]("drop overflow", objs.DropSets,
		uint32(bpf.DropWeftDropWEFT_DROP_OVERFLOW), inner, dropChunk)
	return err
}

// traceArguments is how many arguments the tracepoint has: packet, location,
// reason and, from 6.11 on, receiving socket.
func traceArguments(kernel *btf.Spec) (int, error) {
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_kfree_skb", &def); err != nil {
		return 0, fmt.Errorf("find tracepoint kfree_skb: %w", err)
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0, fmt.Errorf("find tracepoint kfree_skb: %v is no pointer", def.Type)
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok || len(proto.Params) < 4 { // the first is the tracepoint's own
		return 0, errors.New("find tracepoint kfree_skb: it tells no reason")
	}
	return len(proto.Params) - 1, nil
}

// drain is what was dropped since the last one, and the account up to it. Sets
// in which nothing was counted are not swapped: a swap costs milliseconds.
func (d *drops) drain(now instant) ([]flows.DropSample, flows.DropAccount, error) {
	before, err := d.counters()
	if err != nil {
		return nil, d.acct, err
	}
	var out []flows.DropSample
	emit := func(_ *uint64, c *bpf.DropDropCount) {
		d.acct.Drained += c.Packets
		out = append(out, d.sample(now, c))
	}
	if before.Seen != d.read.Seen {
		_, err = d.flows.drain(emit)
	}
	if err == nil && before.Overflowed != d.read.Overflowed {
		_, err = d.overflow.drain(emit)
	}
	if err != nil {
		return out, d.acct, err
	}
	d.read = before
	after, err := d.counters()
	if err != nil {
		return out, d.acct, err
	}
	d.acct.Before, d.acct.Seen = before.Seen, after.Seen
	d.acct.Overflowed, d.acct.Lost = after.Overflowed, after.Lost
	if st, err := d.prog.Stats(); err == nil { // else the kernel does not count them
		d.acct.Missed = st.RecursionMisses
	}
	return out, d.acct, nil
}

// counters sums the CPUs' counters.
func (d *drops) counters() (sum bpf.DropDropSeen, err error) {
	var cpus []bpf.DropDropSeen
	if err := d.seen.Lookup(uint32(0), &cpus); err != nil {
		return sum, fmt.Errorf("read the counters of drops: %w", err)
	}
	for _, c := range cpus {
		sum.Seen += c.Seen
		sum.Overflowed += c.Overflowed
		sum.Lost += c.Lost
	}
	return sum, nil
}

func (d *drops) sample(now instant, c *bpf.DropDropCount) flows.DropSample {
	k := &c.Key
	s := flows.DropSample{
		At:     flows.Point{Netns: k.Netns, Ifindex: k.Ifindex},
		Reason: d.reasons.name(k.Reason), Packets: c.Packets, Bytes: c.Bytes, First: now.at(c.FirstNs),
	}
	s.Class = d.reasons.class(s.Reason)
	s.Last = max(s.First, now.atJiffies(c.Last))
	if k.Key.Kind&uint8(bpf.DropWeftDropKindWEFT_KIND_OVERFLOW) != 0 {
		s.Overflow = true
		return s
	}
	s.Location = d.symbols.name(k.Location)
	key := *(*bpf.FlowFlowKey)(unsafe.Pointer(&k.Key))
	key.Point = 0 // the CPU
	if key != (bpf.FlowFlowKey{}) {
		s.Key = keyOf(&key)
		s.Domain = d.domainOf(k.Netns, k.Ifindex)
	}
	return s
}

// detach stops the tracing; what was counted can still be drained.
func (d *drops) detach() error {
	if d.link == nil {
		return nil
	}
	err := d.link.Close()
	d.link = nil
	if err != nil {
		return fmt.Errorf("detach from tracepoint kfree_skb: %w", err)
	}
	return nil
}

func (d *drops) close() error {
	errs := []error{d.detach()}
	for _, s := range []*swapSet[uint64, bpf.DropDropCount]{d.flows, d.overflow} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if d.symbols != nil {
		errs = append(errs, d.symbols.prog.Close())
	}
	if d.prog != nil {
		errs = append(errs, d.prog.Close())
	}
	for _, m := range d.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func (d *drops) memory() MemoryUse {
	return MemoryUse{"drop sets (2)", uint64(sizes{drops: d.entries}.dropSets())}
}

// status is the tracing program, which serves all namespaces.
func (d *drops) status() ProgramStatus { return programStatus("trace_drop", "", d.prog) }
