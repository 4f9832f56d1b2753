// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"testing"
	"time"

	"weft/flows"
)

// handOverNow has devices handed over as soon as they are a moment old.
func (a *nsAgent) handOverNow(in *nsSpace, dev string) {
	a.t.Helper()
	s := a.d.spaces
	s.mu.Lock()
	s.handOverAge = 0
	s.mu.Unlock()
	nsUntil(a.t, dev+" has tcx links and no filter", func() bool {
		select {
		case s.ripen <- struct{}{}:
		case <-time.After(time.Millisecond):
		}
		at := in.attached(dev)
		return at.tcx == 2 && len(at.filters) == 0
	})
}

func nsNeedTCX(t *testing.T) {
	t.Helper()
	nsRequire(t)
	if !nsTCX(t) {
		t.Skip("left out: this kernel has no tcx, and nothing is handed over")
	}
}

// TestHandOverCountsEveryPacketOnce floods devices in both directions, on both
// CPUs, while their filters give way to links.
func TestHandOverCountsEveryPacketOnce(t *testing.T) {
	nsNeedTCX(t)
	trials := 6
	if testing.Short() {
		trials = 1
	}
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			for i := range trials {
				host, pod := nsHost(t), nsNew(t, fmt.Sprintf("pod%d", i))
				a := nsStart(t, Options{Backend: backend, Interfaces: []string{"n*"}})
				host.veth("n0", pod, "eth0", 1500)
				pod.up("eth0", "10.7.0.2/24")
				host.up("n0", "10.7.0.1/24")
				host.carry("n0")
				pod.carry("eth0")
				host.knows("10.7.0.2", "n0", pod.mac("eth0"))
				pod.knows("10.7.0.1", "eth0", host.mac("n0"))
				a.await(host, "n0")
				if at := host.attached("n0"); at.tcx != 0 || len(at.filters) != 2 {
					t.Fatalf("a new device: got %+v, want two filters and no link", at)
				}
				a.expect(host, "n0", false)
				a.truths[0].lossy = true // a flood may overrun the peer's backlog, behind the hook; the count is compared all the same
				out, in := host.spray("10.7.0.2", 50), pod.spray("10.7.0.1", 50)
				floods := func(n uint64) {
					begin := a.seen(host, "n0", flows.HookIngress).Packets + n
					nsUntil(t, "traffic flows", func() bool { return a.seen(host, "n0", flows.HookIngress).Packets > begin })
				}
				floods(500)
				a.handOverNow(host, "n0")
				floods(500)
				out()
				in()
				host.settle("n0")
				a.stop() // compares with the interface
				host.untouched(t, "n0")
				if err := host.h.LinkDel(host.link("n0")); err != nil {
					t.Fatal(err)
				}
				pod.forget()
				pod.close()
			}
		})
	}
}

// TestHandOverLeavesOthersAlone hands a device over that has a filter of somebody else.
func TestHandOverLeavesOthersAlone(t *testing.T) {
	nsNeedTCX(t)
	host, pod := nsHost(t), nsNew(t, "pod")
	a := nsStart(t, Options{Interfaces: []string{"n*"}})
	host.veth("n0", pod, "eth0", 1500)
	a.await(host, "n0")
	host.clsact("n0")
	host.filter("n0", nsVerdict(t, -1), 9)
	s := a.d.spaces
	s.mu.Lock()
	s.handOverAge = 0
	s.mu.Unlock()
	nsUntil(t, "n0 has tcx links", func() bool {
		select {
		case s.ripen <- struct{}{}:
		case <-time.After(time.Millisecond):
		}
		at := host.attached("n0")
		return at.tcx == 2 && len(at.filters) == 1
	})
	a.stop()
	host.onlyTheirs("n0")
}

// TestDeviceThatGoesWhileItIsHandedOver deletes, moves, and turns away devices at the
// moment of the hand-over.
func TestDeviceThatGoesWhileItIsHandedOver(t *testing.T) {
	nsNeedTCX(t)
	host, pod, other := nsHost(t), nsNew(t, "pod"), nsNew(t, "other")
	a := nsStart(t, Options{Interfaces: []string{"n*"}, Netns: []string{"other"}})
	s := a.d.spaces
	s.mu.Lock()
	s.handOverAge = 0
	s.mu.Unlock()
	devices := 12
	if testing.Short() {
		devices = 6
	}
	for i := range devices {
		name := fmt.Sprintf("n%d", i)
		host.veth(name, pod, fmt.Sprintf("p%d", i), 1500)
		a.await(host, name)
		nsUntil(t, "the hand-over begins", func() bool {
			select {
			case s.ripen <- struct{}{}:
			case <-time.After(time.Millisecond):
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.fresh) == 0
		})
		l := host.link(name)
		var err error
		switch i % 3 {
		case 0:
			err = host.h.LinkDel(l)
		case 1:
			err = host.h.LinkSetNsFd(l, other.fd)
		case 2:
			err = a.d.Reload([]string{"m*"}, nil)
			host.untouched(t, name)
			if err == nil {
				err = a.d.Reload([]string{"n*"}, nil)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 1 {
			a.await(other, name)
			if err := other.h.LinkDel(other.link(name)); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 2 {
			a.await(host, name)
			host.up(name)
			pod.up(fmt.Sprintf("p%d", i))
			host.carry(name)
			pod.carry(fmt.Sprintf("p%d", i))
			a.sendMarked(pod.raw(fmt.Sprintf("p%d", i)), 20, host, name, flows.HookIngress)
		}
	}
	a.stop()
	for i := 2; i < devices; i += 3 {
		host.untouched(t, fmt.Sprintf("n%d", i))
	}
}
