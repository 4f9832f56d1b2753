// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

// dropReasons names the running kernel's drop reasons from its BTF. A reason's
// upper 16 bits are the subsystem that it belongs to; the core's are 0.
type dropReasons struct {
	names      map[uint32]string
	subsystems map[uint32]string
	looked     map[uint32]bool // subsystems whose module was asked
	oldApart   bool            // repetitions have a reason of their own (TCP_OLD_SEQUENCE)
}

// reasonEnums is where a subsystem other than the core lists its reasons:
// module, if it is one, and enum.
var reasonEnums = map[string][2]string{
	"MAC80211":    {"mac80211", "___mac80211_drop_reason"},
	"OPENVSWITCH": {"openvswitch", "ovs_drop_reason"},
}

func newDropReasons(kernel *btf.Spec) (*dropReasons, error) {
	r := &dropReasons{names: map[uint32]string{}, subsystems: map[uint32]string{}, looked: map[uint32]bool{}}
	var core, subsystems *btf.Enum
	if err := kernel.TypeByName("skb_drop_reason", &core); err != nil {
		return nil, fmt.Errorf("find the kernel's drop reasons: %w", err)
	}
	for _, v := range core.Values {
		if v.Value>>16 == 0 {
			r.names[uint32(v.Value)] = strings.TrimPrefix(strings.TrimPrefix(v.Name, "SKB_DROP_REASON_"), "SKB_")
			r.oldApart = r.oldApart || strings.HasSuffix(v.Name, "TCP_OLD_SEQUENCE")
		}
	}
	if err := kernel.TypeByName("skb_drop_reason_subsys", &subsystems); err == nil { // else it is older than 6.4
		for _, v := range subsystems.Values {
			r.subsystems[uint32(v.Value)] = strings.TrimPrefix(v.Name, "SKB_DROP_REASON_SUBSYS_")
		}
	}
	return r, nil
}

// name is a reason's name without its prefix, or its number.
func (r *dropReasons) name(reason uint32) string {
	if n := r.names[reason]; n != "" {
		return n
	}
	subsystem := reason >> 16
	if subsystem == 0 {
		return fmt.Sprintf("REASON_%d", reason)
	}
	name := r.subsystems[subsystem]
	if name == "" {
		name = fmt.Sprintf("SUBSYSTEM_%d", subsystem)
	}
	if !r.looked[subsystem] && len(r.looked) < 256 {
		r.looked[subsystem] = true
		for prefix, where := range reasonEnums {
			if strings.HasPrefix(name, prefix) {
				r.learn(where[0], where[1])
			}
		}
		if n := r.names[reason]; n != "" {
			return n
		}
	}
	return fmt.Sprintf("%s_%d", name, reason&0xffff)
}

// class is a reason's class. Where repetitions have no reason of their own, they are
// called out of window, and whether that is a loss is not known.
func (r *dropReasons) class(name string) flows.DropClass {
	if name == "TCP_INVALID_SEQUENCE" && !r.oldApart {
		return flows.DropUnspecified
	}
	return flows.DropClassOf(name)
}

// learn reads a module's reasons; it has none if it is built in, and then the
// kernel has them.
func (r *dropReasons) learn(module, enum string) {
	spec, err := btf.LoadKernelModuleSpec(module)
	if err != nil {
		if spec, err = btf.LoadKernelSpec(); err != nil {
			return // the number is the name
		}
	}
	var e *btf.Enum
	if spec.TypeByName(enum, &e) != nil {
		return
	}
	for _, v := range e.Values {
		if v.Value>>16 != 0 {
			r.names[uint32(v.Value)] = strings.TrimLeft(v.Name, "_")
		}
	}
}

// symbols names functions of the kernel by an address in them. The kernel does
// it, so that neither its ten megabytes of symbols are read nor kptr_restrict
// matters. Bounded: at 4096 names the next one starts anew.
type symbols struct {
	prog  *ebpf.Program
	m     *ebpf.Map
	known map[uint64]string
}

const maxSymbols = 4096

// name is "function" or "function [module]" of a return address; the address when
// the kernel cannot tell.
func (s *symbols) name(address uint64) string {
	if n, ok := s.known[address]; ok {
		return n
	}
	n, err := s.ask(address)
	if err != nil || n == "" {
		n = fmt.Sprintf("%#x", address)
	}
	if len(s.known) >= maxSymbols {
		clear(s.known)
	}
	s.known[address] = n
	return n
}

// ask looks one byte ahead of the return address: a call may be a function's end.
func (s *symbols) ask(address uint64) (string, error) {
	sym := bpf.DropSymbol{Address: address - 1}
	if err := s.m.Put(uint32(0), &sym); err != nil {
		return "", fmt.Errorf("ask for a symbol: %w", err)
	}
	ret, err := s.prog.Run(&ebpf.RunOptions{})
	if err != nil || ret != 0 {
		return "", fmt.Errorf("ask for a symbol: program run returned %d: %w", ret, err)
	}
	if err := s.m.Lookup(uint32(0), &sym); err != nil {
		return "", fmt.Errorf("ask for a symbol: %w", err)
	}
	name := unsafe.Slice((*byte)(unsafe.Pointer(&sym.Name[0])), len(sym.Name))
	return unix.ByteSliceToString(name), nil
}
