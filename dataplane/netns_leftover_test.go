// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

func nsPath(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// nsChild is a process that a test starts from this program. It says "ready" on
// standard output and goes on when its standard input ends, or says more.
func nsChild(role string) int {
	if role == "wait" {
		_, _ = io.Copy(io.Discard, os.Stdin) // until it ends
		return 0
	}
	if os.Getenv(sockEnv) != "" {
		return nsSay(sockChild(role))
	}
	hooks, end, _ := strings.Cut(role, "/")
	d, err := Open(Options{Hooks: Hooks(hooks), Interfaces: []string{"w*"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan flows.Batch)
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx, out) }()
	go func() {
		for range out { // a consumer that keeps nothing
		}
	}()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	switch end {
	case "panic":
		panic("as the test wants it")
	case "cancel": // and no Close
		cancel()
		return nsSay(<-ran)
	}
	cancel()
	if nsSay(<-ran) != 0 {
		return 1
	}
	if err := d.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// nsOther is an agent in another process.
type nsOther struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.Closer
	done bool
}

// nsAgentProcess starts an agent that watches w*, and waits until it does.
func nsAgentProcess(t testing.TB, hooks Hooks, end string) *nsOther {
	t.Helper()
	return nsAgentProcessIn(t, hooks, end, 0)
}

// nsAgentProcessIn starts it in new namespaces.
func nsAgentProcessIn(t testing.TB, hooks Hooks, end string, namespaces uintptr) *nsOther {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), nsEnv+"="+string(hooks)+"/"+end)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Cloneflags: namespaces}
	if end != "panic" {
		cmd.Stderr = t.Output()
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &nsOther{t: t, cmd: cmd, in: in}
	t.Cleanup(o.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("agent process says %q: %v", line, err)
	}
	return o
}

// finish has it end as it was told to.
func (o *nsOther) finish() {
	o.in.Close()
	_ = o.cmd.Wait() // it may panic
	o.done = true
}

// kill is kill -9.
func (o *nsOther) kill() {
	if o.done {
		return
	}
	if err := o.cmd.Process.Kill(); err != nil {
		o.t.Error(err)
	}
	o.finish()
}

// nsAttached is everything of BPF and traffic control on a device.
type nsAttached struct {
	tcx, xdp int
	filters  []string // names, ingress and egress
	clsact   bool
}

func (n *nsSpace) attached(dev string) (a nsAttached) {
	n.t.Helper()
	l := n.link(dev)
	if nsTCX(n.t) {
		n.do(func() error {
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				q, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
				if err != nil {
					return err
				}
				a.tcx += len(q.Programs)
			}
			return nil
		})
	}
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		a.xdp++
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := n.h.FilterList(l, parent)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, f := range filters {
			name := f.Type()
			if b, ok := f.(*netlink.BpfFilter); ok {
				name = b.Name
			}
			a.filters = append(a.filters, name)
		}
	}
	qdiscs, err := n.h.QdiscList(l)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, q := range qdiscs {
		a.clsact = a.clsact || q.Type() == "clsact"
	}
	return a
}

// untouched checks that there is nothing of BPF and traffic control on devices.
func (n *nsSpace) untouched(t testing.TB, devs ...string) {
	t.Helper()
	for _, dev := range devs {
		if a := n.attached(dev); a.tcx+a.xdp+len(a.filters) > 0 || a.clsact {
			t.Errorf("%s: got %+v, want nothing left behind", dev, a)
		}
	}
}

// clsact makes sure that a device has the qdisc.
func (n *nsSpace) clsact(dev string) {
	n.t.Helper()
	if err := n.h.QdiscAdd(nsClsact(n.index(dev))); err != nil && !errors.Is(err, unix.EEXIST) {
		n.t.Fatal(err)
	}
}

func nsClsact(index int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
}

// filter adds a direct-action filter named "theirs" to a device's ingress.
func (n *nsSpace) filter(dev string, p *ebpf.Program, priority uint16) {
	n.t.Helper()
	if err := n.h.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: n.index(dev), Parent: netlink.HANDLE_MIN_INGRESS, Protocol: unix.ETH_P_ALL, Priority: priority,
		},
		Fd: p.FD(), Name: "theirs", DirectAction: true,
	}); err != nil {
		n.t.Fatalf("add a filter to %s: %v", dev, err)
	}
}

// onlyTheirs checks that a device has the foreign filter and its qdisc and
// nothing else.
func (n *nsSpace) onlyTheirs(dev string) {
	n.t.Helper()
	if a := n.attached(dev); a.tcx+a.xdp > 0 || !slices.Equal(a.filters, []string{"theirs"}) || !a.clsact {
		n.t.Errorf("%s: got %+v, want only the foreign filter and its qdisc", dev, a)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	for _, hooks := range nsHooks(t) {
		for _, end := range []string{"close", "cancel", "panic", "kill"} {
			t.Run(string(hooks)+"/"+end, func(t *testing.T) {
				host, pod := nsHost(t), nsNew(t, "pod")
				host.veth("w0", pod, "p0", 1500)
				host.veth("w1", pod, "p1", 1500)
				host.clsact("w1")
				host.filter("w1", nsVerdict(t, -1), 1)
				agent := nsAgentProcess(t, hooks, end)
				if a := host.attached("w0"); a.tcx+len(a.filters) != 2 {
					t.Fatalf("w0 while watched: got %+v, want two programs", a)
				}
				if a := host.attached("w1"); a.tcx+len(a.filters) != 3 {
					t.Fatalf("w1 while watched: got %+v, want two programs and the foreign filter", a)
				}
				if end == "kill" {
					agent.kill()
				} else {
					agent.finish()
				}
				if hooks == HooksClsact && (end == "panic" || end == "kill") {
					if a := host.attached("w0"); len(a.filters) != 2 {
						t.Fatalf("w0 after the death: got %+v, want the filters of the dead agent", a)
					}
					nsStart(t, Options{Interfaces: []string{"nothing*"}}).stop()
				}
				host.untouched(t, "w0")
				host.onlyTheirs("w1")
			})
		}
	}
}

func TestAgentsAtOnceKeepTheirOwnFilters(t *testing.T) {
	nsRequire(t)
	for _, first := range []string{"maker", "guest"} {
		t.Run("the "+first+" of the qdisc ends first", func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			host.veth("w0", pod, "p0", 1500)
			maker := nsAgentProcess(t, HooksClsact, "close")
			guest := nsStart(t, Options{Hooks: HooksClsact, Interfaces: []string{"w0"}})
			if a := host.attached("w0"); len(a.filters) != 4 {
				t.Fatalf("w0 with two agents: got %+v, want four filters", a)
			}
			if first == "maker" {
				maker.finish()
			} else {
				guest.stop()
			}
			if a := host.attached("w0"); len(a.filters) != 2 || !a.clsact {
				t.Errorf("w0 when one has ended: got %+v, want the other's two filters and the qdisc", a)
			}
			if first == "maker" {
				guest.stop()
			} else {
				maker.finish()
			}
			host.untouched(t, "w0")
		})
	}
}

func TestQdiscThatWasThereStays(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "p0", 1500)
	host.clsact("w0")
	a := nsStart(t, Options{Hooks: HooksClsact, Interfaces: []string{"w0"}})
	a.await(host, "w0")
	a.stop()
	if a := host.attached("w0"); len(a.filters) != 0 || !a.clsact {
		t.Errorf("w0: got %+v, want no filter, and the qdisc that was there before", a)
	}
}

// nsSay is the exit status for err, which it prints.
func nsSay(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
