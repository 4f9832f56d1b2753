// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// nsFull leaves no room for a program on a device's ingress, as the kernel sees it.
func (n *nsSpace) nsFull(dev string, hooks Hooks) (makeRoom func()) {
	n.t.Helper()
	p := nsVerdict(n.t, -1)
	index := n.index(dev)
	if hooks == HooksTCX {
		var links []io.Closer
		n.do(func() error {
			for {
				l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: nsVerdict(n.t, -1), Attach: ebpf.AttachTCXIngress})
				if errors.Is(err, unix.ERANGE) {
					return nil // it is full
				}
				if err != nil {
					return err
				}
				links = append(links, l)
				n.t.Cleanup(func() { l.Close() })
			}
		})
		return func() { links[0].Close() }
	}
	n.clsact(dev)
	theirs := func(priority uint16) *netlink.BpfFilter { // of another protocol: it takes no other
		return &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Protocol: unix.ETH_P_IP, Priority: priority},
			Fd:          p.FD(), Name: "theirs", DirectAction: true,
		}
	}
	for i := range lastPriority {
		if err := n.h.FilterAdd(theirs(uint16(i + 1))); err != nil {
			n.t.Fatal(err)
		}
	}
	return func() {
		if err := n.h.FilterDel(theirs(lastPriority)); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (a *nsAgent) statusOf(in *nsSpace, dev string, hook flows.Hook) (s PointStatus) {
	for _, p := range a.d.Status().Points {
		if p.At.Netns == in.cookie() && p.Hop.Interface == dev && p.At.Hook == hook {
			return p
		}
	}
	return PointStatus{}
}

func TestRefusedDeviceIsTriedAgain(t *testing.T) {
	for _, hooks := range nsHooks(t) {
		t.Run(string(hooks), func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			host.veth("w0", pod, "eth0", 1500)
			makeRoom := host.nsFull("w0", hooks)
			a := nsStart(t, Options{Hooks: hooks, Interfaces: []string{"w*", "lo"}})
			for _, hook := range []flows.Hook{flows.HookIngress, flows.HookEgress} {
				if s := a.statusOf(host, "w0", hook); s.Attached || !strings.Contains(s.Err, "tried 1 times, next at ") {
					t.Errorf("%s while there is no room: got %+v, want not attached, why, and when it is tried again", hook, s)
				}
			}
			nsUntil(t, "it is tried again", func() bool {
				return strings.Contains(a.statusOf(host, "w0", flows.HookIngress).Err, "tried 2 times")
			})
			makeRoom()
			a.await(host, "w0")
			if s := a.statusOf(host, "w0", flows.HookEgress); !s.Attached || s.Err != "" {
				t.Errorf("status when there is room: got %+v, want attached", s)
			}
			pod.up("eth0")
			host.up("w0")
			host.carry("w0")
			pod.carry("eth0")
			a.sendMarked(pod.raw("eth0"), 20, host, "w0", flows.HookIngress)
		})
	}
}

// TestRefusedSubscriptionIsTriedAgain overruns the socket that tells of links, and
// takes away what the next one needs.
func TestRefusedSubscriptionIsTriedAgain(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	a := nsStart(t, Options{Interfaces: []string{"w*"}})
	a.await(host, "w0")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(restore)
	l := host.link("w0")
	host.veth("w1", pod, "eth1", 1500)
	a.await(host, "w1")
	s := a.d.spaces.byCookie[host.cookie()]
	a.d.spaces.mu.Lock() // nobody reads what comes
	for i := range 20000 {
		if err := host.h.LinkSetMTU(l, 1400+i%2); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	a.d.spaces.mu.Unlock()
	nsUntil(t, "a subscription is refused", func() bool { return s.refusals.Load() > 0 })
	host.veth("w2", pod, "eth2", 1500) // with sockets that are open
	restore()
	a.await(host, "w2")
}

func TestLiteralNameIsLookedForInEveryNamespace(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "inside0", 1500)
	a := nsStart(t, Options{Interfaces: []string{"inside0"}, Netns: []string{"pod"}})
	a.wantWatched(pod, "inside0")
	a.wantWatched(host)
}

func TestReloadWithAnUnknownNameChangesNothing(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "inside0", 1500)
	a := nsStart(t, Options{Interfaces: []string{"w0"}, Netns: []string{"pod"}})
	err := a.d.Reload([]string{"w0", "nosuch0"}, nil)
	if err == nil || !errors.Is(err, ErrOptions) {
		t.Fatalf("reload: got %v, want ErrOptions", err)
	}
	for _, want := range []string{"dataplane.interfaces", `"nosuch0"`, "inside0, lo, w0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("reload: got %q, want %s in it", err, want)
		}
	}
	host.veth("w1", pod, "inside1", 1500)
	if err := a.d.Reload([]string{"nosuch*"}, nil); err != nil { // a pattern may match nothing
		t.Fatal(err)
	}
	a.wantWatched(host)
	if err := a.d.Reload([]string{"inside0"}, nil); err != nil {
		t.Fatal(err)
	}
	a.wantWatched(pod, "inside0")
}

func TestWhatIsNoNamespaceIsNamed(t *testing.T) {
	nsRequire(t)
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"nosuch":            "no such file",
		"/nosuch/net":       "no such file",
		file:                file + " is no network namespace",
		"/proc/self/ns/mnt": "/proc/self/ns/mnt is no network namespace",
	} {
		_, err := Open(Options{Netns: []string{name}})
		if !errors.Is(err, ErrOptions) {
			t.Errorf("%s: got %v, want ErrOptions", name, err)
			continue
		}
		if got := err.Error(); !strings.Contains(got, want) || !strings.Contains(got, "dataplane.netns") || strings.Contains(got, "CAP_") {
			t.Errorf("%s: got %q, want %q and dataplane.netns in it and no capability", name, got, want)
		}
	}
}

// TestOwnersInOtherPIDNamespacesAreKnown runs an agent where process numbers are
// others, and kills one there.
func TestOwnersInOtherPIDNamespacesAreKnown(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "p0", 1500)
	elsewhere := nsAgentProcessIn(t, HooksClsact, "close", unix.CLONE_NEWPID)
	nsStart(t, Options{Interfaces: []string{"nothing*"}}).stop()
	if a := host.attached("w0"); len(a.filters) != 2 {
		t.Errorf("w0 while its agent lives in another pid namespace: got %+v, want its two filters", a)
	}
	elsewhere.kill()
	if a := host.attached("w0"); len(a.filters) != 2 {
		t.Fatalf("w0 after the death: got %+v, want the filters of the dead agent", a)
	}
	nsStart(t, Options{Interfaces: []string{"nothing*"}}).stop()
	host.untouched(t, "w0")
}

// TestStopIsSoonHoweverManyLinks stops an agent with links, each of which takes the
// kernel a grace period to close.
func TestStopIsSoonHoweverManyLinks(t *testing.T) {
	nsNeedTCX(t)
	host, pod := nsHost(t), nsNew(t, "pod")
	const count = 40
	for i := range count {
		host.veth(fmt.Sprintf("w%d", i), pod, fmt.Sprintf("p%d", i), 1500)
	}
	a := nsStart(t, Options{Hooks: HooksTCX})
	began := time.Now()
	a.cancel()
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	ran := time.Since(began)
	began = time.Now()
	if err := a.d.Close(); err != nil {
		t.Error(err)
	}
	closed := time.Since(began)
	a.stopped = true
	for _, w := range a.wrong {
		t.Error(w)
	}
	t.Logf("%d devices: all was drained after %s, all links closed after %s more", count, ran, closed)
	if ran > closed/2 && ran > 50*time.Millisecond { // a guest's grace periods are expedited: 40 links close in 25 ms
		t.Errorf("Run ended %s after its context, with %s of closing to come: it waited for links", ran, closed)
	}
	host.untouched(t, "w0", "w39")
}
