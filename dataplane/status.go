// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// Status is what the data plane is doing now.
type Status struct {
	Kernel   string // release of the running kernel
	Backend  Backend
	Hooks    Hooks
	CPUs     int // possible CPUs: the number of partitions
	Slots    int // flow slots for each CPU
	Memory   []MemoryUse
	Points   []PointStatus
	Programs []ProgramStatus
	Off      []Capability // what does not work here, and why
	Drain    DrainStatus
}

// MemoryUse is one bounded kernel structure and its size. All but "programs",
// which grows with the watched namespaces, are together at most Options.MaxMemory.
type MemoryUse struct {
	Name  string
	Bytes uint64
}

// PointStatus is one attachment.
type PointStatus struct {
	At       flows.Point
	Hop      flows.Hop
	Attached bool
	Err      string // why it is not attached
}

// ProgramStatus is one loaded program.
type ProgramStatus struct {
	Name   string
	Netns  string // the namespace it serves; empty: the agent's own
	Runs   uint64 // packets measured; 0: no statistics
	Nanos  uint64 // time spent in those runs, nanoseconds, with the kernel's own overhead of measuring
	Instrs int    // verified instructions; 0: the kernel does not say
}

// Capability is something the running kernel or the caller's privileges refuse.
type Capability struct {
	Name  string // what is off
	Needs string // the kernel feature, version or capability that is missing
	Err   string // the kernel's answer

	later bool // nothing is lost without it: what it tells is told later, by another
}

// DrainStatus is the cost of reading the table.
type DrainStatus struct {
	Drains    uint64
	Live      int           // slots that changed in the last drain
	Used      int           // slots that hold a flow, live or idle
	Evictions uint64        // flows that came through the ring buffer
	Last      time.Duration // wall time of the last drain
}

// statsWindow is how long Costs lets the kernel time the programs.
const statsWindow = 200 * time.Millisecond

// Status reads what is attached and what it holds. Programs have no cost here
// unless somebody has the kernel time them: see [Dataplane.Costs].
func (d *Dataplane) Status() Status {
	s := Status{
		Backend: d.objs.backend, Hooks: d.spaces.hooks, CPUs: d.objs.size.cpus, Slots: d.objs.size.slots,
		Memory: d.objs.memory(), Points: d.points.status(), Drain: *d.drain.Load(),
	}
	if d.objs.backend == BackendHash {
		s.Slots = d.objs.size.hashEntries()
	}
	s.Memory = append(s.Memory, MemoryUse{"programs", d.spaces.programMemory()})
	if d.drops != nil {
		s.Memory = append(s.Memory, d.drops.memory())
	}
	if d.dns != nil {
		s.Memory = append(s.Memory, d.dns.memory())
	}
	if d.socks != nil {
		s.Memory = append(s.Memory, d.socks.memory())
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		s.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	s.Programs = d.spaces.programs()
	d.offMu.Lock()
	for _, c := range d.off {
		s.Off = append(s.Off, c)
	}
	d.offMu.Unlock()
	slices.SortFunc(s.Off, func(a, b Capability) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Costs has the kernel time every program for 200 ms, which slows each run by some
// 20 ns meanwhile, and blocks for as long. It returns what ran in that time.
func (d *Dataplane) Costs() []ProgramStatus {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		d.turnOff(Capability{Name: "program cost", Needs: "run-time statistics (Linux 5.8, CAP_SYS_ADMIN)", Err: err.Error()})
		return d.spaces.programs()
	}
	defer stats.Close()
	before := d.spaces.programs()
	time.Sleep(statsWindow)
	after := d.spaces.programs()
	old := map[ProgramStatus]ProgramStatus{}
	for _, p := range before {
		old[ProgramStatus{Name: p.Name, Netns: p.Netns}] = p
	}
	for i := range after {
		o := old[ProgramStatus{Name: after[i].Name, Netns: after[i].Netns}]
		after[i].Runs -= min(o.Runs, after[i].Runs)
		after[i].Nanos -= min(o.Nanos, after[i].Nanos)
	}
	return after
}

// programs lists the loaded programs with the kernel's counters of them.
func (a *spaces) programs() []ProgramStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ProgramStatus
	for _, s := range a.byCookie {
		for _, p := range []struct {
			name string
			prog *ebpf.Program
		}{{"tc_ingress", s.progs.ingress}, {"tc_egress", s.progs.egress}, {"xdp_observe", s.progs.xdp}} {
			if p.prog == nil {
				continue
			}
			out = append(out, programStatus(p.name, s.name, p.prog))
		}
	}
	if a.d.drops != nil {
		out = append(out, a.d.drops.status())
	}
	if a.d.socks != nil {
		out = append(out, a.d.socks.status()...)
	}
	slices.SortFunc(out, func(a, b ProgramStatus) int { return strings.Compare(a.Netns+a.Name, b.Netns+b.Name) })
	return out
}

// programShare is what a program takes of the kernel, as a multiple of the
// instructions and machine code that the kernel tells of: it keeps subprograms
// twice, and tables beside them. Measured on 6.18 with 300 namespaces' sets: 312 KB
// (VmallocUsed and Slab) for 105 KB told.
const programShare = 3

// programMemory is the memory of every namespace's programs, in bytes.
func (a *spaces) programMemory() (bytes uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.byCookie {
		bytes += s.progs.bytes
		if s.relays != nil {
			bytes += s.relays.bytes
		}
	}
	return bytes
}

// programBytes estimates what programs take; those that are nil take nothing, and
// those that the kernel tells nothing of too.
func programBytes(progs ...*ebpf.Program) (bytes uint64) {
	for _, p := range progs {
		if p == nil {
			continue
		}
		info, err := p.Info()
		if err != nil {
			continue
		}
		if n, ok := info.Memlock(); ok {
			bytes += n * programShare
		}
		if n, err := info.JitedSize(); err == nil {
			bytes += uint64(n) * programShare
		}
	}
	return bytes
}

// programStatus reads the kernel's counters of a program.
func programStatus(name, netns string, prog *ebpf.Program) ProgramStatus {
	ps := ProgramStatus{Name: name, Netns: netns}
	if st, err := prog.Stats(); err == nil {
		ps.Runs, ps.Nanos = st.RunCount, uint64(st.Runtime)
	}
	if info, err := prog.Info(); err == nil {
		if n, ok := info.VerifiedInstructions(); ok {
			ps.Instrs = int(n)
		}
	}
	return ps
}
