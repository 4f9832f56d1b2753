// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

const (
	socketEntries  = 8192
	socketOwners   = 2            // for each entry: sockets live longer than a drain
	socketBytes    = 48 + 72 + 64 // an entry of a set: key, value and the kernel's own
	ownerBytes     = 8 + 40 + 64  // a socket whose owner is known: the same
	socketChunk    = 1024         // entries read at a time
	socketOverflow = 512
)

// sockets asks the sockets of all namespaces: one object, beside the flow programs
// and independent of them, of which each program may be missing. One goroutine
// drains it.
type sockets struct {
	entries  int
	probes   []*socketProbe
	maps     map[string]*ebpf.Map
	flows    *swapSet[bpf.SocketSocketKey, bpf.SocketSocketCount]
	overflow *swapSet[bpf.SocketSocketKey, bpf.SocketSocketCount]

	read bpf.SocketSocketSeen // before the sets were last swapped
	acct flows.SocketAccount
}

const socketsNeed = "kernel BTF, tracepoints of sockets, CAP_PERFMON"

// openSockets loads and attaches what the kernel has; entries bounds each of the
// two sets, and, doubled, the sockets whose owner is known. It fails when nothing is left.
func openSockets(entries int, off func(Capability)) (*sockets, error) {
	types := btf.NewCache() // the kernel's are read once, not for every program
	kernel, err := types.Kernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	spec, err := bpf.LoadSocket()
	if err != nil {
		return nil, fmt.Errorf("read the socket object: %w", err)
	}
	s := &sockets{entries: entries, maps: map[string]*ebpf.Map{}}
	if err := s.createMaps(spec); err != nil {
		return nil, errors.Join(err, s.close())
	}
	found := findSocketProbes(kernel, off)
	if err := spec.Variables[bpf.SocketVarConfig].Set(found.config); err != nil {
		return nil, errors.Join(fmt.Errorf("configure the socket object: %w", err), s.close())
	}
	for _, p := range found.probes {
		if err := p.open(spec, s.maps, types); err != nil {
			off(p.off(err))
			continue
		}
		s.probes = append(s.probes, p)
	}
	if len(s.probes) == 0 {
		return nil, errors.Join(errors.New("attach to sockets: no tracepoint is left"), s.close())
	}
	return s, nil
}

func (s *sockets) createMaps(spec *ebpf.CollectionSpec) error {
	inner := spec.Maps[bpf.SocketMapSocketSets].InnerMap
	inner.MaxEntries = uint32(s.entries)
	spec.Maps[bpf.SocketMapSockets].MaxEntries = uint32(s.entries * socketOwners)
	for _, name := range []string{bpf.SocketMapSeen, bpf.SocketMapSocketSets, bpf.SocketMapSockets} {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("create map %s (%d entries): %w", name, spec.Maps[name].MaxEntries, err)
		}
		s.maps[name] = m
	}
	outer := s.maps[bpf.SocketMapSocketSets]
	var err error
	if s.flows, err = openSwapSet[bpf.SocketSocketKey, bpf.SocketSocketCount]("socket", outer,
		uint32(bpf.SocketWeftSocketWEFT_SOCKET_FLOWS), inner, socketChunk); err != nil {
		return err
	}
	inner = inner.Copy()
	inner.MaxEntries = socketOverflow
	s.overflow, err = openSwapSet[bpf.SocketSocketKey, bpf.SocketSocketCount]("socket overflow", outer,
		uint32(bpf.SocketWeftSocketWEFT_SOCKET_OVERFLOW), inner, socketOverflow)
	return err
}

// drain is what sockets told since the last one, and the account up to it. domain
// is that of a namespace. Sets in which nothing was told are not swapped: a swap
// costs milliseconds.
func (s *sockets) drain(now instant, domain func(netns uint64) uint64) ([]flows.SocketSample, flows.SocketAccount, error) {
	before, err := s.counters()
	if err != nil {
		return nil, s.acct, err
	}
	var out []flows.SocketSample
	emit := func(k *bpf.SocketSocketKey, c *bpf.SocketSocketCount) {
		s.acct.Drained += uint64(c.Events)
		out = append(out, socketSample(now, k, c))
		out[len(out)-1].Domain = domain(k.Netns)
	}
	if before.Seen != s.read.Seen {
		_, err = s.flows.drain(emit)
	}
	if err == nil && before.Overflowed != s.read.Overflowed {
		_, err = s.overflow.drain(emit)
	}
	if err != nil {
		return out, s.acct, err
	}
	s.read = before
	after, err := s.counters()
	if err != nil {
		return out, s.acct, err
	}
	s.acct.Before, s.acct.Seen = before.Seen, after.Seen
	s.acct.Overflowed, s.acct.Lost, s.acct.Unowned = after.Overflowed, after.Lost, after.Unowned
	s.acct.Missed = 0
	for _, p := range s.probes {
		if st, err := p.prog.Stats(); err == nil { // else the kernel does not count them
			s.acct.Missed += st.RecursionMisses
		}
	}
	return out, s.acct, nil
}

// counters sums the CPUs' counters.
func (s *sockets) counters() (sum bpf.SocketSocketSeen, err error) {
	var cpus []bpf.SocketSocketSeen
	if err := s.maps[bpf.SocketMapSeen].Lookup(uint32(0), &cpus); err != nil {
		return sum, fmt.Errorf("read the counters of sockets: %w", err)
	}
	for _, c := range cpus {
		sum.Seen += c.Seen
		sum.Overflowed += c.Overflowed
		sum.Lost += c.Lost
		sum.Unowned += c.Unowned
	}
	return sum, nil
}

func socketSample(now instant, k *bpf.SocketSocketKey, c *bpf.SocketSocketCount) flows.SocketSample {
	s := flows.SocketSample{
		Netns: k.Netns, Events: uint64(c.Events), First: now.at(c.FirstNs),
		SocketFigures: flows.SocketFigures{
			Retransmits: uint64(c.Retransmits), ResetsSent: uint64(c.ResetsSent), ResetsReceived: uint64(c.ResetsReceived),
			RcvQueueFull: uint64(c.QueueFull), Errno: c.Error, Failed: c.Failed != 0,
		},
	}
	s.Last = max(s.First, now.at(c.LastNs))
	if k.Key.Kind&uint8(bpf.DropWeftDropKindWEFT_KIND_OVERFLOW) != 0 {
		s.Overflow = true
		return s
	}
	s.Key = keyOf((*bpf.FlowFlowKey)(unsafe.Pointer(&k.Key)))
	if o := &c.Owner; o.Pid != 0 {
		comm := (*[len(o.Comm)]byte)(unsafe.Pointer(&o.Comm))
		s.Process = flows.Process{PID: o.Pid, Comm: unix.ByteSliceToString(comm[:]), Cgroup: o.Cgroup}
	}
	return s
}

// detach stops asking; what was told can still be drained.
func (s *sockets) detach() error {
	var errs []error
	for i := len(s.probes) - 1; i >= 0; i-- {
		errs = append(errs, s.probes[i].detach())
	}
	return errors.Join(errs...)
}

func (s *sockets) close() error {
	var errs []error
	for i := len(s.probes) - 1; i >= 0; i-- {
		errs = append(errs, s.probes[i].detach(), s.probes[i].prog.Close())
	}
	s.probes = nil
	for _, set := range []*swapSet[bpf.SocketSocketKey, bpf.SocketSocketCount]{s.flows, s.overflow} {
		if set != nil {
			errs = append(errs, set.close())
		}
	}
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func (s *sockets) memory() MemoryUse {
	return MemoryUse{"socket sets (2) and owners", uint64(sizes{sockets: s.entries}.socketSets())}
}

// status is the programs, which serve all namespaces.
func (s *sockets) status() (out []ProgramStatus) {
	for _, p := range s.probes {
		out = append(out, programStatus(p.name, "", p.prog))
	}
	return out
}
