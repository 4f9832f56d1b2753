// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

// nsMarked is a frame of an ethertype for experiments, which nothing else sends:
// it counts as skipped, not_ip_other.
var nsMarked = frame(eth(0x88b5), make([]byte, 46))

// marked is how many of those a point counted until now; -1: it is not watched.
func (a *nsAgent) marked(in *nsSpace, name string, hook flows.Hook) int {
	return a.markedAt(a.live(in, name, hook))
}

func (a *nsAgent) markedAt(p *point) int {
	if p == nil {
		return -1
	}
	return int(a.d.points.read(p.id).Skipped[flows.SkipEthertype].Packets - p.base.Skipped[flows.SkipEthertype].Packets)
}

// sendMarked sends n marked frames and checks that exactly those arrive at a point.
func (a *nsAgent) sendMarked(r *nsRaw, n int, in *nsSpace, name string, hook flows.Hook) {
	a.t.Helper()
	before := a.marked(in, name, hook)
	for range n {
		if err := r.send(nsMarked); err != nil {
			a.t.Fatal(err)
		}
	}
	for end := time.Now().Add(20 * time.Second); a.marked(in, name, hook)-before < n && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := a.marked(in, name, hook) - before; got != n {
		a.t.Errorf("%s %s: %d of %d frames counted", name, hook, got, n)
	}
}

// nsEmulated: the machine is emulated, and its CPUs stand still for milliseconds at
// any time. What depends on that is bounded more widely; what is counted is not.
var nsEmulated = os.Getenv("WEFT_EMULATED") == "1"

// soonEnough is how late the first counted packet may be, in each direction: 20 ms,
// and on an emulated machine, whose every step takes that much longer, 200 ms.
func soonEnough() time.Duration {
	if nsEmulated {
		return 200 * time.Millisecond
	}
	return 20 * time.Millisecond
}

// TestNewDeviceIsWatchedAtOnce makes pairs, sets them up without a pause and sends
// through them in both directions until both are counted. A pair during which the
// test itself was kept waiting is allowed as much more.
func TestNewDeviceIsWatchedAtOnce(t *testing.T) {
	trials := 250
	if testing.Short() {
		trials = 20
	}
	for _, hooks := range append(nsHooks(t), HooksAuto) {
		trials := trials
		t.Run(cmp.Or(string(hooks), "auto"), func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			a := nsStart(t, Options{Hooks: hooks})
			var in, out []time.Duration
			missed, late := 0, 0
			if hooks == HooksTCX { // which waits for grace periods: measured, and not promised
				trials = min(trials, 20)
			}
			for i := range trials {
				name, peer := fmt.Sprintf("n%d", i), fmt.Sprintf("p%d", i)
				host.veth(name, pod, peer, 1500)
				fromHost, fromPod := host.raw(name), pod.raw(peer)
				pod.up(peer)
				host.up(name)
				began := time.Now()
				ingress := flows.Point{Netns: host.cookie(), Ifindex: uint32(fromHost.to.Ifindex), Hook: flows.HookIngress}
				egress := ingress
				egress.Hook = flows.HookEgress
				first := func(r *nsRaw, at flows.Point) (sent time.Duration, counted bool) {
					sent = time.Since(began)
					if err := r.send(nsMarked); err != nil {
						t.Fatal(err)
					}
					return sent, a.markedAt(a.liveAt(at)) > 0
				}
				stalled, last := time.Duration(0), began
				for len(in) == i || len(out) == i {
					stalled = max(stalled, time.Since(last)-time.Millisecond)
					last = time.Now()
					if sent, counted := first(fromPod, ingress); len(in) == i && counted {
						in = append(in, sent)
					} else if len(in) == i {
						missed++
					}
					if sent, counted := first(fromHost, egress); len(out) == i && counted {
						out = append(out, sent)
					} else if len(out) == i {
						missed++
					}
					if time.Since(began) > 2*time.Second {
						t.Fatalf("%s: not watched within 2 s of being up", name)
					}
					time.Sleep(200 * time.Microsecond)
				}
				if d := max(in[i], out[i]) - max(stalled, 0); d > soonEnough() && hooks != HooksTCX {
					late++
					t.Logf("%s: first counted %s (in) and %s (out) after it was up, with the test kept waiting for %s; want %s at most",
						name, in[i], out[i], stalled, soonEnough())
				}
				host.carry(name)
				pod.carry(peer)
				a.sendMarked(fromPod, 50, host, name, flows.HookIngress)
				a.sendMarked(fromHost, 50, host, name, flows.HookEgress)
			}
			// the lock of network configuration is the whole machine's: others may have held it
			if late > len(in)/50 {
				t.Errorf("%d of %d devices were watched too late", late, len(in))
			}
			t.Logf("from up to the first packet counted: ingress %s, egress %s; %d packets before that", nsSpread(in), nsSpread(out), missed)
		})
	}
}

// nsSpread describes times.
func nsSpread(d []time.Duration) string {
	slices.Sort(d)
	at := func(p int) time.Duration { return d[(len(d)-1)*p/100].Round(10 * time.Microsecond) }
	return fmt.Sprintf("min %s median %s p90 %s max %s", at(0), at(50), at(90), at(100))
}

// TestManyNewDevicesAreAllWatched makes pairs as fast as one process can, both ends
// in watched namespaces.
func TestManyNewDevicesAreAllWatched(t *testing.T) {
	count := 200
	if testing.Short() {
		count = 40
	}
	host, pod := nsHost(t), nsNew(t, "pod")
	a := nsStart(t, Options{Netns: []string{"all"}})
	began := time.Now()
	for i := range count {
		host.veth(fmt.Sprintf("n%d", i), pod, fmt.Sprintf("p%d", i), 1500)
	}
	made := time.Since(began)
	for i := range count {
		a.await(host, fmt.Sprintf("n%d", i))
		a.await(pod, fmt.Sprintf("p%d", i))
	}
	lag := time.Since(began) - made
	t.Logf("%d pairs made in %s, all watched %s later", count, made.Round(time.Millisecond), lag.Round(time.Millisecond))
	began = time.Now()
	a.stop()
	t.Logf("stopped after %s", time.Since(began).Round(time.Millisecond))
}

func TestRenamedDeviceKeepsItsPointsAndCounts(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	a := nsStart(t, Options{})
	host.veth("old0", pod, "eth0", 1500)
	a.await(host, "old0")
	pod.up("eth0")
	fromPod := pod.raw("eth0")
	host.up("old0")
	host.carry("old0")
	pod.carry("eth0")
	a.sendMarked(fromPod, 10, host, "old0", flows.HookIngress)
	at := a.live(host, "old0", flows.HookIngress).at
	l := host.link("old0")
	if err := host.h.LinkSetDown(l); err != nil {
		t.Fatal(err)
	}
	if err := host.h.LinkSetName(l, "new0"); err != nil {
		t.Fatal(err)
	}
	nsUntil(t, "the hop has the new name", func() bool {
		hop, ok := a.d.Hop(at)
		return ok && hop.Interface == "new0"
	})
	host.up("new0")
	host.carry("new0")
	pod.carry("eth0")
	a.expect(host, "new0", false)
	a.sendMarked(fromPod, 10, host, "new0", flows.HookIngress)
	if p := a.live(host, "new0", flows.HookIngress); p.at != at {
		t.Errorf("point: got %+v, want %+v as before", p.at, at)
	}
	if got := a.marked(host, "new0", flows.HookIngress); got != 20 {
		t.Errorf("frames before and after the new name: got %d, want 20", got)
	}
	host.settle("new0")
	a.stop()
	if hop := a.last(host, "new0", flows.HookIngress).Hop; hop.Interface != "new0" {
		t.Errorf("name in the last account: got %q, want new0", hop.Interface)
	}
	if err := host.h.LinkDel(host.link("new0")); err != nil {
		t.Fatal(err)
	}
}

func TestRenameIntoAndOutOfThePatterns(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	a := nsStart(t, Options{Interfaces: []string{"in*"}})
	host.veth("out0", pod, "eth0", 1500)
	t.Cleanup(func() { _ = pod.h.LinkDel(pod.link("eth0")) })
	l := host.link("out0")
	for i, name := range []string{"in0", "out1", "in1"} {
		if err := host.h.LinkSetName(l, name); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "in") {
			a.await(host, name)
			continue
		}
		nsUntil(t, fmt.Sprintf("rename %d ends the watch", i), func() bool { return a.live(host, name, flows.HookIngress) == nil })
	}
}

func TestDeletedDeviceLeavesABalancedAccount(t *testing.T) {
	for _, kind := range nsKinds(t) {
		t.Run(kind.String(), func(t *testing.T) {
			r := nsRouted(t, Options{Backend: kind.backend, Hooks: kind.hooks, Slots: 256, Netns: nsBoth[:1]}, 1500, false)
			r.a.truths = nil
			points := map[string]flows.Point{}
			for _, hook := range []flows.Hook{flows.HookIngress, flows.HookEgress} {
				points["w0 "+hook.String()] = r.a.at(r.host, "w0", hook)
				points["w1 "+hook.String()] = r.a.at(r.host, "w1", hook)
				points["client "+hook.String()] = r.a.at(r.client, "eth0", hook)
			}
			end := r.client.spray(nsServer4, 2000)
			defer end()
			nsUntil(t, "traffic flows", func() bool { return r.a.seen(r.host, "w0", flows.HookIngress).Packets > 2000 })
			if err := r.host.h.LinkDel(r.host.link("w0")); err != nil { // and client's eth0 with it
				t.Fatal(err)
			}
			end()
			nsUntil(t, "the points of both ends are gone", func() bool {
				r.a.mu.Lock()
				defer r.a.mu.Unlock()
				return r.a.accounts[points["w0 ingress"]].Gone && r.a.accounts[points["w0 egress"]].Gone &&
					r.a.accounts[points["client egress"]].Gone
			})
			nsUntil(t, "the hop has no name any more", func() bool {
				_, ok := r.a.d.Hop(points["w0 ingress"])
				return !ok
			})
			if r.a.accounts[points["w1 egress"]].Gone {
				t.Error("w1 is gone, and nobody deleted it")
			}
			r.a.stop()
			if n := r.a.accounts[points["w0 ingress"]].After.Packets; n < 2000 {
				t.Errorf("w0 ingress: got %d packets, want at least 2000", n)
			}
		})
	}
}

func TestMovedDeviceIsWatchedWhereItIs(t *testing.T) {
	for _, hooks := range nsHooks(t) {
		t.Run(string(hooks), func(t *testing.T) {
			host, other, pod := nsHost(t), nsNew(t, "other"), nsNew(t, "pod")
			a := nsStart(t, Options{Hooks: hooks, Netns: []string{"other"}})
			host.veth("m0", pod, "eth0", 1500)
			t.Cleanup(func() { _ = pod.h.LinkDel(pod.link("eth0")) })
			pod.up("eth0")
			fromPod := pod.raw("eth0")
			here, there := host, other
			for i := range 4 {
				a.await(here, "m0")
				here.up("m0")
				here.carry("m0")
				pod.carry("eth0")
				at := a.live(here, "m0", flows.HookIngress).at
				a.sendMarked(fromPod, 100, here, "m0", flows.HookIngress)
				if err := here.h.LinkSetNsFd(here.link("m0"), there.fd); err != nil {
					t.Fatal(err)
				}
				nsUntil(t, fmt.Sprintf("move %d is noticed", i), func() bool {
					hop, ok := a.d.Hop(at)
					a.d.points.mu.Lock()
					defer a.d.points.mu.Unlock()
					return !ok || a.d.points.byAt[at].leaving > 0 || hop.Interface == ""
				})
				here, there = there, here
			}
			a.await(here, "m0")
			a.stop()
			var counted uint64
			for _, p := range a.closed {
				if p.Hop.Interface == "m0" && p.At.Hook == flows.HookIngress {
					counted += p.Skipped[flows.SkipEthertype].Packets
				}
			}
			if counted != 400 {
				t.Errorf("frames in the last accounts of m0, here and there: got %d, want 400", counted)
			}
		})
	}
}
