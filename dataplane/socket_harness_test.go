// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// sockAgent is a data plane that asks sockets, and what they told. When it stops,
// their account must balance.
type sockAgent struct {
	t      testing.TB
	d      *Dataplane
	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	samples  []flows.SocketSample
	account  flows.SocketAccount
	before   uint64 // of the drain before
	drained  uint64 // summed here
	drains   int
	table    *flows.Table
	records  []flows.Record
	failures []string
	stopped  bool
}

func sockStart(t testing.TB, o Options) *sockAgent {
	t.Helper()
	nsRequire(t)
	o.Sockets, o.Slots = true, 4096
	if o.Interval == 0 {
		o.Interval = 10 * time.Millisecond
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range d.off {
		if strings.HasPrefix(name, "sockets") && (name != sockAccept || sockAccepts(t)) {
			t.Errorf("off: %+v", c)
		}
	}
	a := &sockAgent{t: t, d: d, done: make(chan error, 1), table: flows.NewTable(flows.TableOptions{Places: d})}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	out := make(chan flows.Batch)
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for b := range out {
			a.take(b)
		}
	}()
	go func() {
		err := d.Run(ctx, out)
		<-consumed
		a.done <- err
	}()
	t.Cleanup(a.stop)
	return a
}

// sockAccept is the capability that some kernels refuse: programs at functions.
const sockAccept = "sockets: who accepts, at once"

// sockAccepts reports whether this kernel lets a program run when a function returns.
func sockAccepts(t testing.TB) bool {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: "inet_csk_accept", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Logf("no program at inet_csk_accept here: %v", err)
		return false
	}
	p.Close()
	return true
}

func (a *sockAgent) take(b flows.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range b.Sockets {
		a.drained += s.Events
		if s.First > s.Last || s.Events == 0 {
			a.failures = append(a.failures, fmt.Sprintf("%+v: first is after last, or there is no event", s))
		}
		a.samples = append(a.samples, s)
	}
	if w, done := a.table.Fold(b); done {
		a.records = append(a.records, w.Records...)
	}
	if !b.Final {
		return
	}
	a.drains++
	acct := b.Seen.Sockets
	if acct.Drained != a.drained || acct.Drained+acct.Lost > acct.Seen || acct.Drained+acct.Lost < a.before {
		a.failures = append(a.failures, fmt.Sprintf("the samples add up to %d, the last Before was %d: %+v", a.drained, a.before, acct))
	}
	a.account, a.before = acct, acct.Before
}

// stop ends the agent and checks the account. It may be called twice.
func (a *sockAgent) stop() {
	a.t.Helper()
	if a.stopped {
		return
	}
	a.stopped = true
	a.cancel()
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("run: %v", err)
		}
	case <-time.After(nsPatience):
		a.t.Fatal("Run does not end within 20 s of its context")
	}
	if err := a.d.Close(); err != nil {
		a.t.Errorf("close: %v", err)
	}
	a.records = append(a.records, a.table.Close(time.Now()).Records...)
	if acct := a.account; acct.Seen != acct.Drained+acct.Lost {
		a.t.Errorf("seen %d, drained %d + lost %d", acct.Seen, acct.Drained, acct.Lost)
	}
	for _, f := range a.failures {
		a.t.Error(f)
	}
	a.t.Logf("%d drains, %+v", a.drains, a.account)
}

// passed waits until everything told until now has been drained.
func (a *sockAgent) passed() {
	a.t.Helper()
	a.mu.Lock()
	from := a.drains
	a.mu.Unlock()
	nsUntil(a.t, "two drains", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.drains >= from+2
	})
}

// in sums up what the sockets of a namespace told that match; the process and error
// are the last ones told.
func (a *sockAgent) in(n *nsSpace, match func(flows.Key) bool) (sum flows.SocketSample) {
	cookie := n.cookie()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.samples {
		if s.Netns != cookie || !match(s.Key) {
			continue
		}
		sum.Key, sum.Domain = s.Key, s.Domain
		sum.Events += s.Events
		sum.Retransmits += s.Retransmits
		sum.ResetsSent += s.ResetsSent
		sum.ResetsReceived += s.ResetsReceived
		sum.RcvQueueFull += s.RcvQueueFull
		if s.Process.PID != 0 {
			sum.Process = s.Process
		}
		if s.Failed || s.Errno != 0 {
			sum.Failed, sum.Errno = s.Failed, s.Errno
		}
	}
	return sum
}

func sockAny(flows.Key) bool { return true }

// sockPort matches the flows of a port, at either end.
func sockPort(port uint16) func(flows.Key) bool {
	return func(k flows.Key) bool { return k.Src.Port() == port || k.Dst.Port() == port }
}

// sockNet is client -- server, in namespaces of their own.
type sockNet struct {
	client, server *nsSpace
}

const (
	sockClient4, sockServer4 = "10.3.0.1", "10.3.0.2"
	sockClient6, sockServer6 = "fd03::1", "fd03::2"
)

func sockPair(t testing.TB) *sockNet {
	t.Helper()
	p := &sockNet{client: nsNew(t, "client"), server: nsNew(t, "server")}
	p.client.veth("eth0", p.server, "eth0", 1500)
	p.client.up("lo")
	p.server.up("lo")
	p.client.up("eth0", sockClient4+"/24", sockClient6+"/64")
	p.server.up("eth0", sockServer4+"/24", sockServer6+"/64")
	p.client.carry("eth0")
	p.server.carry("eth0")
	for _, addr := range []string{sockServer4, sockServer6} {
		p.client.knows(addr, "eth0", p.server.mac("eth0"))
	}
	for _, addr := range []string{sockClient4, sockClient6} {
		p.server.knows(addr, "eth0", p.client.mac("eth0"))
	}
	return p
}

// sockClosings counts, with a program of its own, how often the kernel tells that the socket of a port is closed.
func sockClosings(t *testing.T) func(port uint16) uint64 {
	t.Helper()
	inet, err := sockKernel(t).AnyTypeByName("inet_sock")
	if err != nil {
		t.Fatal(err)
	}
	at := int32(-1)
	for _, m := range inet.(*btf.Struct).Members {
		if m.Name == "inet_sport" {
			at = int32(m.Offset.Bytes())
		}
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1 << 16})
	if err != nil || at < 0 {
		t.Fatalf("inet_sport at %d: %v", at, err)
	}
	t.Cleanup(func() { counts.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state", License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R3, asm.R1, 0, asm.DWord),  // the socket
			asm.LoadMem(asm.R4, asm.R1, 16, asm.DWord), // its new state
			asm.JNE.Imm(asm.R4, 7, "out"),              // TCP_CLOSE
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Add.Imm(asm.R3, at), asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, -4), asm.Mov.Imm(asm.R2, 2), asm.FnProbeReadKernel.Call(),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4), asm.LoadMapPtr(asm.R1, counts.FD()), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"), asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return func(port uint16) (n uint64) {
		key := uint32(port>>8 | port<<8) // as it is in memory
		if err := counts.Lookup(key, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// down takes a device down.
func (n *nsSpace) down(dev string) {
	n.t.Helper()
	if err := n.h.LinkSetDown(n.link(dev)); err != nil {
		n.t.Fatal(err)
	}
}

// netCounter is a counter of /proc/net/snmp or netstat in the namespace, such as Tcp RetransSegs.
func (n *nsSpace) netCounter(group, name string) (value uint64) {
	n.t.Helper()
	n.do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		more, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		text = append(text, more...)
		var names []string
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			switch {
			case words[0] != group+":":
			case names == nil:
				names = words
			default:
				for i := range names {
					if names[i] == name {
						value, err = strconv.ParseUint(words[i], 10, 64)
						return err
					}
				}
			}
		}
		return fmt.Errorf("no counter %s of %s", name, group)
	})
	return value
}

// lose drops one packet in every so many at random, of what a device receives or is
// about to send, until the test ends. No kernel lacks it.
func (n *nsSpace) lose(dev string, egress bool, every int32) {
	n.t.Helper()
	p, err := nsLoad(ebpf.SchedCLS,
		asm.FnGetPrandomU32.Call(),
		asm.Mod.Imm32(asm.R0, every),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R0, 0), // TC_ACT_OK
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("drop"), // TC_ACT_SHOT
		asm.Return(),
	)
	if err != nil {
		n.t.Fatal(err)
	}
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if egress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	n.judge(dev, p, parent)
}

// sockProcess is another process, in a namespace, that connects or accepts.
type sockProcess struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	pid  uint32 // in the initial process namespace, which need not be the test's
	comm string
}

// process starts one that is called comm and does what role says; see sockChild.
func (n *nsSpace) process(comm, role, addr string) *sockProcess {
	n.t.Helper()
	p := &sockProcess{comm: comm, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), nsEnv+"="+role, sockEnv+"="+comm+" "+addr)
	p.cmd.Stderr = n.t.Output()
	in, err := p.cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	n.do(p.cmd.Start)
	n.t.Cleanup(func() { p.end(n.t) })
	pid, err := strconv.ParseUint(p.line(n.t), 10, 32)
	if err != nil {
		n.t.Fatal(err)
	}
	p.pid = uint32(pid)
	return p
}

// line is the next one that the process writes.
func (p *sockProcess) line(t testing.TB) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("%s says nothing: %v", p.comm, err)
	}
	return strings.TrimSpace(s)
}

// end waits until it has ended; it may be called twice.
func (p *sockProcess) end(t testing.TB) {
	t.Helper()
	p.in.Close()
	if p.cmd.ProcessState == nil {
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s: %v", p.comm, err)
		}
	}
}

const sockEnv = "WEFT_TEST_SOCKET"

// sockChild names itself, says its pid, then accepts one connection and echoes it,
// or connects and says from which port.
func sockChild(role string) error {
	comm, addr, _ := strings.Cut(os.Getenv(sockEnv), " ")
	// In a thread of another name: what counts is the process's.
	if err := os.WriteFile("/proc/self/comm", []byte(comm), 0); err != nil {
		return err
	}
	pid, err := initialPID()
	if err != nil {
		return err
	}
	fmt.Println(pid)
	switch role {
	case "accept":
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer ln.Close()
		fmt.Println(ln.Addr())
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.Copy(c, c)
		return err
	case "connect":
		c, err := net.DialTimeout("tcp", addr, nsPatience)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			return err
		}
		fmt.Println(c.LocalAddr())
		_, err = io.Copy(io.Discard, os.Stdin) // until the test has seen enough
		return err
	}
	return errors.New("no such role: " + role)
}

// initialPID asks the kernel, in a program that runs in this process's time.
func initialPID() (uint32, error) {
	p, err := nsLoad(ebpf.RawTracepoint,
		asm.FnGetCurrentPidTgid.Call(), asm.RSh.Imm(asm.R0, 32), asm.Return())
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return p.Run(&ebpf.RunOptions{})
}

// cgroupOf is the id of the process's cgroup v2.
func cgroupOf(t testing.TB) uint64 {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if words := strings.Fields(line); words[2] == "cgroup2" {
			root = words[1]
		}
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		path, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !v2 {
			continue
		}
		// The id is the file handle of the directory.
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(root, path), 0)
		if err != nil {
			t.Fatalf("find cgroup %s in %q: %v", path, root, err)
		}
		return binary.NativeEndian.Uint64(h.Bytes())
	}
	t.Fatal("this process is in no cgroup v2")
	return 0
}

// loseTo loses what a device receives for an IPv4 address, until the test ends.
func (n *nsSpace) loseTo(dev string, to [4]byte) {
	n.t.Helper()
	p, err := nsLoad(ebpf.SchedCLS,
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(14+16, asm.Word),
		asm.JEq.Imm(asm.R0, int32(binary.BigEndian.Uint32(to[:])), "drop"),
		asm.Mov.Imm(asm.R0, 0), // TC_ACT_OK
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("drop"), // TC_ACT_SHOT
		asm.Return(),
	)
	if err != nil {
		n.t.Fatal(err)
	}
	n.judge(dev, p, netlink.HANDLE_MIN_INGRESS)
}

// judge attaches a program that drops some packets.
func (n *nsSpace) judge(dev string, p *ebpf.Program, parent uint32) {
	n.t.Helper()
	n.t.Cleanup(func() { p.Close() })
	n.clsact(dev)
	if err := n.h.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: n.index(dev), Parent: parent, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          p.FD(), Name: "lose", DirectAction: true,
	}); err != nil {
		n.t.Fatalf("add a filter to %s: %v", dev, err)
	}
}

// netCounter6 is a counter of /proc/net/snmp6.
func (n *nsSpace) netCounter6(name string) (value uint64) {
	n.t.Helper()
	n.do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if words := strings.Fields(line); words[0] == name {
				value, err = strconv.ParseUint(words[1], 10, 64)
				return err
			}
		}
		return errors.New("no counter " + name)
	})
	return value
}

// sockKernel is the running kernel's BTF.
func sockKernel(t testing.TB) *btf.Spec {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}
