// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// nsVerdict is a program that decides the same on every frame.
func nsVerdict(t testing.TB, verdict int32) *ebpf.Program {
	t.Helper()
	return nsProgram(t, ebpf.SchedCLS, asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

func nsProgram(t testing.TB, kind ebpf.ProgramType, code ...asm.Instruction) *ebpf.Program {
	t.Helper()
	p, err := nsLoad(kind, code...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func nsLoad(kind ebpf.ProgramType, code ...asm.Instruction) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, License: "GPL", Instructions: code})
}

// nsTCX reports whether this kernel has tcx.
func nsTCX(t testing.TB) bool {
	t.Helper()
	_, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: nsVerdict(t, -1), Attach: ebpf.AttachTCXIngress})
	return errors.Is(err, unix.ENODEV)
}

// Ports of the neutrality tests: a foreign program lets one pass and drops the other.
const (
	nsPassed  = 7001
	nsDropped = 7002
)

// nsJudge is a program of somebody else: it counts UDP over IPv4 by destination
// port, drops one of the two, and ends the chain for everything else.
type nsJudge struct {
	t      testing.TB
	prog   *ebpf.Program
	counts *ebpf.Map // of passed, of dropped
}

func nsNewJudge(t testing.TB) *nsJudge {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	const ok, shot = 0, 2 // TC_ACT_
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(12, asm.Half), asm.JNE.Imm(asm.R0, 0x0800, "pass"),
		asm.LoadAbs(23, asm.Byte), asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "pass"),
		asm.LoadAbs(36, asm.Half), asm.Mov.Reg(asm.R7, asm.R0),
		asm.Sub.Imm(asm.R7, nsPassed), asm.JGT.Imm(asm.R7, 1, "pass"),
		asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()), asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "pass"),
		asm.Mov.Imm(asm.R0, shot), asm.Return(),
		asm.Mov.Imm(asm.R0, ok).WithSymbol("pass"), asm.Return(),
	}
	return &nsJudge{t: t, prog: nsProgram(t, ebpf.SchedCLS, code...), counts: m}
}

// judged is how many packets it saw to each port.
func (j *nsJudge) judged() (n [2]uint64) {
	j.t.Helper()
	for i := range n {
		if err := j.counts.Lookup(uint32(i), &n[i]); err != nil {
			j.t.Fatal(err)
		}
	}
	return n
}

func TestForeignProgramsSeeAndDecideAsBefore(t *testing.T) {
	theirs := []string{"clsact filter of priority 1", "clsact filter of priority 9"}
	if nsHooks(t)[0] == HooksTCX {
		theirs = append(theirs, "tcx program")
	}
	for _, hooks := range nsHooks(t) {
		for _, their := range theirs {
			for _, first := range []bool{true, false} {
				name := string(hooks) + "/" + their + map[bool]string{true: " before us", false: " after us"}[first]
				t.Run(name, func(t *testing.T) { nsNeutral(t, hooks, their, first) })
			}
		}
	}
}

func nsNeutral(t *testing.T, hooks Hooks, their string, first bool) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	host.up("w0", "10.1.0.1/24")
	pod.up("eth0", "10.1.0.2/24")
	host.carry("w0")
	pod.carry("eth0")
	pod.knows("10.1.0.1", "eth0", host.mac("w0"))
	judge := nsNewJudge(t)
	court := func() {
		switch their {
		case "tcx program":
			l, err := link.AttachTCX(link.TCXOptions{Interface: host.index("w0"), Program: judge.prog, Attach: ebpf.AttachTCXIngress})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		case "clsact filter of priority 1":
			host.clsact("w0")
			host.filter("w0", judge.prog, 1)
		default:
			host.clsact("w0")
			host.filter("w0", judge.prog, 9)
		}
	}
	const n = 40
	want := [2]uint64{}
	trial := func(when string) {
		t.Helper()
		if got := nsKnock(pod, host, "10.1.0.1", n); got != [2]int{n, 0} {
			t.Errorf("%s: datagrams received on the passed and on the dropped port: got %d, want %d and 0", when, got, n)
		}
		want[0], want[1] = want[0]+n, want[1]+n
		if got := judge.judged(); got != want {
			t.Errorf("%s: the foreign program saw %d, want %d", when, got, want)
		}
	}
	if first {
		court()
		trial("before the agent")
	}
	a := nsStart(t, Options{Hooks: hooks, Interfaces: []string{"w0"}})
	a.await(host, "w0")
	if !first {
		court()
	}
	trial("with the agent")
	at := a.live(host, "w0", flows.HookIngress).at
	a.stop()
	ours := uint64(n)
	if hooks == HooksClsact && (their == "tcx program" || their == "clsact filter of priority 1" && !first) {
		ours = 0 // theirs runs before and ends the chain: LIMITATIONS.md
	}
	for _, port := range []uint16{nsPassed, nsDropped} {
		if got := a.sum(at, func(f nsFlow) bool { return f.Key.Dst.Port() == port }); got.Packets != ours {
			t.Errorf("our count of port %d: got %d, want %d", port, got.Packets, ours)
		}
	}
	trial("after the agent")
}

// nsKnock sends n datagrams to each of the two ports, the passed one last, and
// returns how many came through.
func nsKnock(from, to *nsSpace, addr string, n int) (got [2]int) {
	to.t.Helper()
	var in [2]net.PacketConn
	to.do(func() (err error) {
		for i := range in {
			if in[i], err = net.ListenPacket("udp4", netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(nsPassed+i)).String()); err != nil {
				return err
			}
		}
		return nil
	})
	from.do(func() error {
		out, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer out.Close()
		for i := range 2 * n {
			to := in[1-i/n].LocalAddr()
			if _, err := out.WriteTo(make([]byte, 20), to); err != nil {
				return err
			}
		}
		return nil
	})
	buf := make([]byte, 64)
	for i, c := range in {
		patience := nsPatience
		if i > 0 {
			patience = time.Millisecond // what came has come before
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			to.t.Fatal(err)
		}
		for got[i] < n {
			if _, _, err := c.ReadFrom(buf); err != nil {
				break
			}
			got[i]++
		}
		c.Close()
	}
	return got
}

// TestFirstPriorityTakenByAnotherProtocol has a foreign filter where clsact filters
// of ours want to be, which takes none of ours beside it.
func TestFirstPriorityTakenByAnotherProtocol(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	host.clsact("w0")
	err := host.h.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: host.index("w0"), Parent: netlink.HANDLE_MIN_INGRESS, Protocol: unix.ETH_P_IP, Priority: 1,
		},
		Fd: nsVerdict(t, -1).FD(), Name: "theirs", DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	a := nsStart(t, Options{Hooks: HooksClsact, Interfaces: []string{"w0"}})
	a.await(host, "w0")
	pod.up("eth0")
	host.up("w0")
	host.carry("w0")
	pod.carry("eth0")
	a.sendMarked(pod.raw("eth0"), 10, host, "w0", flows.HookIngress)
	a.stop()
	host.onlyTheirs("w0")
}
