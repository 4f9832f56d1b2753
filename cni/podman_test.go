// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// podmanHere is a real Podman, which no daemon watches over, with a store and networks of its own in
// a network namespace of its own.
type podmanHere struct {
	t           *testing.T
	host, store string
	args, env   []string
	network     string
}

func newPodman(t *testing.T) *podmanHere {
	images := filepath.Dir(testbed(t, "img/bb.tar"))
	podman, runc, dir := needTool(t, "podman"), needTool(t, "runc"), t.TempDir()
	run, err := os.MkdirTemp("", "weft") // Podman takes no long path for it
	if err != nil {
		t.Fatal(err)
	}
	p := &podmanHere{t: t, host: newNetns(t, "phost"), store: filepath.Join(dir, "storage"), network: fmt.Sprint("weft-test-", os.Getpid())}
	t.Cleanup(func() {
		// host-local keeps its leases by the network's name, in a folder that Podman does not choose.
		if err := errors.Join(os.RemoveAll(run), os.RemoveAll(filepath.Join(DefaultLeases, p.network))); err != nil {
			t.Error(err)
		}
	})
	in(t, p.host, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	// Without the limits that Podman sets itself, which root here may not raise.
	limits := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(limits, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.env = append(os.Environ(), "CONTAINERS_CONF="+limits)
	p.args = []string{"--net=" + p.host, podman, "--root", p.store, "--runroot", run, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
		"--runtime", runc, "--network-config-dir", filepath.Join(dir, "net")}
	for _, image := range []string{"bb.tar", "pause.tar"} {
		p.must("load", "--input", filepath.Join(images, image))
	}
	p.must("network", "create", "--disable-dns", "--subnet", "10.78.7.0/24", p.network)
	return p
}

func (p *podmanHere) call(args ...string) error {
	cmd := exec.Command("nsenter", append(slices.Clone(p.args), args...)...)
	cmd.Env = p.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (p *podmanHere) must(args ...string) {
	p.t.Helper()
	if err := p.call(args...); err != nil {
		p.t.Fatal(err)
	}
}

// start runs a container that sleeps until the test ends, on the network or in what more says.
func (p *podmanHere) start(name string, more ...string) {
	p.t.Helper()
	p.must(slices.Concat([]string{"run", "--detach", "--name", name}, more, []string{"docker.io/local/bb:1", "-c", "exec sleep 100"})...)
	p.t.Cleanup(func() {
		if err := p.call("rm", "--force", "--ignore", "--time", "0", name); err != nil {
			p.t.Error(err)
		}
	})
}

// census counts what Podman has.
func (p *podmanHere) census() *Census {
	none := filepath.Join(p.store, "none")
	m := openMirror(p.t, everything)
	c := OpenCensus(m.Topology, CensusOptions{Containers: true, Runtimes: []string{}, Results: none, Leases: none, Docker: none, Podman: p.store})
	p.t.Cleanup(c.Close)
	return c
}

// ends is a record of a packet between two addresses at a time.
func (p *podmanHere) ends(c *Census, src, dst string, at time.Time) (from, to *flows.Entity) {
	netns := cookieOf(p.t, p.host)
	r := flows.Record{Scope: flows.Scope{Netns: c.topology().Domain(netns, 0)}, Start: at, End: at}
	r.Key = flows.Key{Src: addrPort(src + ":4000"), Dst: addrPort(dst + ":80"), Proto: flows.ProtoTCP}
	c.Annotate(&r)
	return r.Source, r.Destination
}

// Every container of Podman's has its name, id and runtime: on its own network, started with
// --rm, alone in a pod beside what holds the pod's namespaces.
func TestPodmanContainersHaveTheirNames(t *testing.T) {
	p := newPodman(t)
	c := p.census()
	name := func(s string) string { return fmt.Sprint(s, "-", os.Getpid()) }
	p.start(name("web"), "--network", p.network, "--ip", "10.78.7.10")
	p.start(name("once"), "--network", p.network, "--ip", "10.78.7.11", "--rm")
	p.must("pod", "create", "--name", name("pod"), "--network", p.network, "--ip", "10.78.7.12", "--infra-image", "docker.io/local/pause:1")
	t.Cleanup(func() {
		if err := p.call("pod", "rm", "--force", "--time", "0", name("pod")); err != nil {
			t.Error(err)
		}
	})
	p.start(name("db"), "--pod", name("pod"))
	is := func(e *flows.Entity, who string) bool {
		return e != nil && e.Container == name(who) && e.Runtime == "podman" && len(e.ContainerID) == 64 && e.Layer == flows.LayerContainer && e.Confidence >= 90
	}
	for _, pair := range [][4]string{{"web", "10.78.7.10", "once", "10.78.7.11"}, {"once", "10.78.7.11", "db", "10.78.7.12"}} {
		var from, to *flows.Entity
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if from, to = p.ends(c, pair[1], pair[3], time.Now()); is(from, pair[0]) && is(to, pair[2]) {
				break
			}
		}
		if !is(from, pair[0]) || !is(to, pair[2]) {
			t.Errorf("%s to %s: got %+v and %+v", pair[0], pair[2], from, to)
		}
	}
}

// A container that was removed keeps the packets of its time, and the next one with its address
// has none of them.
func TestPodmanContainerThatIsGoneKeepsItsPackets(t *testing.T) {
	p := newPodman(t)
	c := p.census()
	const addr = "10.78.7.20"
	var last string
	var then time.Time
	for i := range 4 {
		name := fmt.Sprint("turn", i, "-", os.Getpid())
		p.start(name, "--network", p.network, "--ip", addr, "--rm")
		started := time.Now()
		waitFor(t, name+" has the address", func() bool {
			e, _ := p.ends(c, addr, "10.78.7.1", time.Now())
			return e != nil && e.Container == name
		})
		for what, at := range map[string]time.Time{"when it was started": started, "now": time.Now()} {
			if e, _ := p.ends(c, addr, "10.78.7.1", at); e == nil || e.Container != name {
				t.Errorf("%s, %s: got %+v", name, what, e)
			}
		}
		if last != "" {
			if e, _ := p.ends(c, addr, "10.78.7.1", then); e == nil || e.Container != last {
				t.Errorf("a packet of %s, told after %s has its address: got %+v", last, name, e)
			}
		}
		last, then = name, time.Now()
		p.must("rm", "--force", "--time", "0", name)
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if e, _ := p.ends(c, addr, "10.78.7.1", then); e == nil || e.Container != last {
				t.Fatalf("a packet of %s, told after its end: got %+v", last, e)
			}
		}
	}
}
