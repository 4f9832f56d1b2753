// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// watched lists the devices of a namespace that are watched.
func (a *nsAgent) watched(in *nsSpace) []string {
	var names []string
	for _, p := range a.d.points.status() {
		if p.At.Netns == in.cookie() && p.At.Hook == flows.HookIngress && p.Attached {
			names = append(names, p.Hop.Interface)
		}
	}
	slices.Sort(names)
	return names
}

func (a *nsAgent) wantWatched(in *nsSpace, names ...string) {
	a.t.Helper()
	if got := a.watched(in); !slices.Equal(got, names) {
		a.t.Errorf("watched in %q: got %q, want %q", in.name, got, names)
	}
}

func TestPatternsChooseDevicesAndReloadChangesThem(t *testing.T) {
	for _, hooks := range nsHooks(t) {
		t.Run(string(hooks), func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			for _, name := range []string{"wan0", "wan1", "lan0"} {
				host.veth(name, pod, name, 1500)
				pod.up(name)
				host.up(name)
				host.carry(name)
				pod.carry(name)
			}
			a := nsStart(t, Options{Hooks: hooks, Interfaces: []string{"wan?", "lo"}, Exclude: []string{"*1"}, Interval: 200 * time.Millisecond})
			a.wantWatched(host, "lo", "wan0")
			fromPod := pod.raw("wan0")
			a.sendMarked(fromPod, 20, host, "wan0", flows.HookIngress)
			reload := func(interfaces, exclude []string, want ...string) {
				t.Helper()
				if err := a.d.Reload(interfaces, exclude); err != nil {
					t.Fatal(err)
				}
				a.wantWatched(host, want...)
			}
			reload(nil, []string{"lo"}, "lan0", "wan0", "wan1")
			reload([]string{"lan0"}, nil, "lan0")
			if err := fromPod.send(nsMarked); err != nil { // nobody watches
				t.Fatal(err)
			}
			reload([]string{"wan*"}, nil, "wan0", "wan1") // within a drain: the old account goes on
			a.sendMarked(fromPod, 20, host, "wan0", flows.HookIngress)
			if err := a.d.Reload([]string{"[wan"}, nil); err == nil || !strings.Contains(err.Error(), "[wan") {
				t.Errorf("reload with a bad pattern: got %v, want an error that names it", err)
			}
			a.wantWatched(host, "wan0", "wan1")
			at := a.live(host, "wan0", flows.HookIngress).at
			a.stop()
			if got := a.accounts[at].Skipped[flows.SkipEthertype].Packets; got != 40 {
				t.Errorf("frames while watched: got %d, want 40", got)
			}
		})
	}
}

func TestUnknownInterfaceIsNamedWithThoseThatExist(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	_, err := Open(Options{Interfaces: []string{"w0", "nosuch0", "nosuch*", "nosuch1"}, Netns: []string{"nosuchns"}})
	if err == nil {
		t.Fatal("opened")
	}
	for _, want := range []string{`"nosuch0"`, `"nosuch1"`, "lo, w0", `"nosuchns"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error: got %q, want %s in it", err, want)
		}
	}
	if strings.Contains(err.Error(), "nosuch*") {
		t.Errorf("error: got %q, but a pattern may match nothing", err)
	}
	host.untouched(t, "w0")
}

func TestEqualIfindexesOfTwoNamespacesStayApart(t *testing.T) {
	host, one, two := nsHost(t), nsNew(t, "one"), nsNew(t, "two")
	a := nsStart(t, Options{Netns: []string{"one", namespacePath("two"), "two", "/proc/thread-self/ns/net"}}) // two twice, and the host's own
	sent := map[*nsSpace]int{one: 30, two: 50}
	host.veth("w1", one, "eth0", 1500)
	host.veth("w2", two, "eth0", 1500)
	if i, j := one.index("eth0"), two.index("eth0"); i != j {
		t.Fatalf("ifindexes: got %d and %d, want equal ones", i, j)
	}
	for in, n := range sent {
		a.await(in, "eth0")
		in.up("eth0")
		a.sendMarked(in.raw("eth0"), n, in, "eth0", flows.HookEgress)
	}
	for in, n := range sent {
		if got := a.marked(in, "eth0", flows.HookEgress); got != n {
			t.Errorf("eth0 of %s: got %d frames, want %d", in.name, got, n)
		}
		hop, _ := a.d.Hop(a.live(in, "eth0", flows.HookEgress).at)
		if want := (flows.Hop{Interface: "eth0", Netns: namespacePath(in.name)}); hop != want {
			t.Errorf("hop: got %+v, want %+v", hop, want)
		}
	}
}

// TestDeletedNamespaceIsLetGo deletes a namespace that the agent watches. The
// kernel frees it, and what is in it, once nobody holds it.
func TestDeletedNamespaceIsLetGo(t *testing.T) {
	for _, how := range []string{"named in the options", "found by all"} {
		t.Run(how, func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			watch := namespacePath("pod")
			if how == "found by all" {
				watch = "all"
			}
			a := nsStart(t, Options{Netns: []string{watch}})
			host.veth("w0", pod, "eth0", 1500)
			a.await(host, "w0")
			a.await(pod, "eth0")
			pod.up("eth0")
			host.up("w0")
			host.carry("w0")
			pod.carry("eth0")
			fromPod := pod.raw("eth0")
			a.sendMarked(fromPod, 10, host, "w0", flows.HookIngress)
			fromPod.close()
			at := a.live(pod, "eth0", flows.HookEgress).at
			pod.forget()
			pod.close()
			began := time.Now()
			nsUntil(t, "w0 goes, as its peer is freed with the namespace", func() bool {
				_, err := host.h.LinkByName("w0")
				return err != nil
			})
			took := time.Since(began)
			if took > 3*time.Second {
				t.Errorf("let go after %s, want about 1 s", took)
			}
			t.Logf("let go after %s", took.Round(time.Millisecond))
			nsUntil(t, "the point's last account", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return a.accounts[at].Gone
			})
		})
	}
}

func TestAllFindsNamespacesThatComeLater(t *testing.T) {
	host := nsHost(t)
	a := nsStart(t, Options{Netns: []string{"all"}})
	named := nsNew(t, "late")
	began := time.Now()
	host.veth("w0", named, "eth0", 1500)
	a.await(named, "eth0")
	t.Logf("a new namespace with a device is watched after %s", time.Since(began).Round(time.Millisecond))

	unnamed := nsProcess(t)
	host.veth("w1", unnamed.nsSpace, "eth0", 1500)
	a.await(unnamed.nsSpace, "eth0")
	hop, ok := a.d.Hop(a.live(unnamed.nsSpace, "eth0", flows.HookIngress).at)
	if !ok || !strings.HasPrefix(hop.Netns, "/proc/") {
		t.Errorf("hop of a namespace without a name: got %+v, want a path of its process", hop)
	}
	unnamed.end()
	nsUntil(t, "w1 goes with the namespace of a process that ended", func() bool {
		_, err := host.h.LinkByName("w1")
		return err != nil
	})
	a.wantWatched(named, "eth0", "lo")
}

func TestMemoryOfEachNamespacesProgramsIsStated(t *testing.T) {
	host := nsHost(t)
	a := nsStart(t, Options{Netns: []string{"all"}})
	stated := func() uint64 {
		for _, m := range a.d.Status().Memory {
			if m.Name == "programs" {
				return m.Bytes
			}
		}
		return 0
	}
	alone := stated()
	const more = 3
	for i := range more {
		n := nsNew(t, fmt.Sprintf("n%d", i))
		host.veth(fmt.Sprintf("w%d", i), n, "eth0", 1500)
		a.await(n, "eth0")
	}
	each := (stated() - alone) / more
	t.Logf("programs: %d bytes for the agent's own namespace, %d for each more", alone, each)
	if alone < 100<<10 || each < alone {
		t.Errorf("programs: got %d bytes and %d for each more namespace, want at least 100 KiB, and as much and its relays", alone, each)
	}
}

// TestShortLivedNamespacesAreWatched makes namespaces with a device one after the
// other, as tools for containers do, and lets each go when it is watched.
func TestShortLivedNamespacesAreWatched(t *testing.T) {
	host := nsHost(t)
	a := nsStart(t, Options{Netns: []string{"all"}})
	trials := 30
	if testing.Short() {
		trials = 2
	}
	var named, unnamed []time.Duration
	for i := range trials {
		began := time.Now()
		n := nsNew(t, fmt.Sprintf("brief%d", i))
		host.veth("w0", n, "eth0", 1500)
		a.await(n, "eth0")
		named = append(named, time.Since(began))
		n.forget()
		n.close()
		p := nsProcess(t)
		began = time.Now() // the process has started
		host.veth("w1", p.nsSpace, "eth0", 1500)
		a.await(p.nsSpace, "eth0")
		unnamed = append(unnamed, time.Since(began))
		p.end()
		nsUntil(t, "both went", func() bool {
			_, err := host.h.LinkByName("w0")
			_, err1 := host.h.LinkByName("w1")
			return err != nil && err1 != nil
		})
	}
	t.Logf("from the making to a watched device: named %s; of a process %s", nsSpread(named), nsSpread(unnamed))
}

// nsProc is a process in a network namespace that has no other name.
type nsProc struct {
	*nsSpace
	cmd *exec.Cmd
	in  io.Closer
}

func nsProcess(t *testing.T) *nsProc {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{nsEnv + "=wait"}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &nsProc{cmd: cmd, in: in}
	t.Cleanup(p.end)
	p.nsSpace = nsOpen(t, "", nsPath(cmd.Process.Pid))
	return p
}

// end lets the process end; it may be called twice.
func (p *nsProc) end() {
	if p.cmd == nil {
		return
	}
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.t.Error(err)
	}
	p.close()
	p.cmd = nil
}
