// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// nsNet is client -- router (the host) -- server:
//
//	client eth0 -- host w0    10.1.0.0/24, fd01::/64
//	server eth0 -- host w1    10.2.0.0/24, fd02::/64
type nsNet struct {
	host, client, server *nsSpace
	a                    *nsAgent
}

const (
	nsServer4 = "10.2.0.2"
	nsServer6 = "fd02::2"
)

// nsRouted makes the network, sets it up and starts the agent, which watches the
// host and those of client and server that o.Netns names. segmented: no device takes
// a frame larger than the MTU.
func nsRouted(t *testing.T, o Options, mtu int, segmented bool) *nsNet {
	t.Helper()
	r := &nsNet{host: nsHost(t), client: nsNew(t, "client"), server: nsNew(t, "server")}
	r.a = nsStart(t, o)
	r.host.veth("w0", r.client, "eth0", mtu)
	r.host.veth("w1", r.server, "eth0", mtu)
	for _, x := range r.ends() {
		if segmented {
			x.in.offload(x.name, false, nsSegmentation)
		}
		x.in.offload(x.name, false, nsTagging)
	}
	r.host.up("w0", "10.1.0.1/24", "fd01::1/64")
	r.host.up("w1", "10.2.0.1/24", "fd02::1/64")
	r.client.up("eth0", "10.1.0.2/24", "fd01::2/64")
	r.server.up("eth0", "10.2.0.2/24", "fd02::2/64")
	for _, x := range r.ends() {
		x.in.carry(x.name)
	}
	r.client.route("10.2.0.0/24", "10.1.0.1")
	r.client.route("fd02::/64", "fd01::1")
	r.server.route("10.1.0.0/24", "10.2.0.1")
	r.server.route("fd01::/64", "fd02::1")
	for _, x := range r.ends() {
		if x.in == r.host || slices.Contains(o.Netns, x.in.name) {
			r.a.await(x.in, x.name)
			r.a.expect(x.in, x.name, segmented)
		}
	}
	return r
}

// nsBoth names both ends of the network.
var nsBoth = []string{"client", "server"}

type nsEnd struct {
	in   *nsSpace
	name string
}

func (r *nsNet) ends() []nsEnd {
	return []nsEnd{{r.client, "eth0"}, {r.host, "w0"}, {r.host, "w1"}, {r.server, "eth0"}}
}

// lossy allows devices to drop what a flood brings too fast for them.
func (r *nsNet) lossy() {
	for i := range r.a.truths {
		r.a.truths[i].lossy = true
	}
}

// settle waits until nothing is under way.
func (r *nsNet) settle() {
	for _, x := range r.ends() {
		x.in.settle(x.name)
	}
}

func TestEveryPointCountsWhatItsInterfaceCounts(t *testing.T) {
	for i, kind := range nsAllKinds(t) {
		segmented := i == 0 || i == 3 // both ways of attaching and both tables, each with and without
		name := kind.String() + map[bool]string{false: "/GSO on", true: "/GSO off"}[segmented]
		t.Run(name, func(t *testing.T) {
			r := nsRouted(t, Options{Backend: kind.backend, Hooks: kind.hooks, Netns: nsBoth}, 1500, segmented)
			r.client.tcp(r.server, nsServer4, 4<<20)
			r.client.tcp(r.server, nsServer6, 4<<20)
			r.client.udp(r.server, nsServer4, 500, 64)
			r.client.udp(r.server, nsServer6, 500, 1400)
			r.client.udp(r.server, nsServer4, 50, 8000) // six fragments each
			r.client.udp(r.server, nsServer6, 50, 8000)
			r.host.frames("w0")
			r.client.frames("eth0")
			r.settle()
			r.a.stop()
			sent, received := r.a.last(r.client, "eth0", flows.HookEgress), r.a.last(r.host, "w0", flows.HookIngress)
			if large := received.GSO != (flows.Count{}); large == segmented {
				t.Errorf("w0 ingress: larger frames came: got %v (%+v), want %v", large, received.GSO, !segmented)
			}
			for reason, n := range nsReasons() {
				if sent.Skipped[reason].Packets != n || received.Skipped[reason].Packets != n {
					t.Errorf("skipped[%s]: sent %d, got %d at eth0 egress and %d at w0 ingress",
						reason, n, sent.Skipped[reason].Packets, received.Skipped[reason].Packets)
				}
			}
		})
	}
}

// nsCarried reports whether a frame of the parser's test can be sent, and is not
// refused on receipt before any hook.
func nsCarried(name string, l3 bool) bool { return !l3 && name != "tag cut short" }

// nsReasons is how many of those frames must be skipped, by reason. ARP is not
// among them: the stack sends its own.
func nsReasons() map[flows.SkipReason]uint64 {
	n := map[flows.SkipReason]uint64{}
	for _, p := range places {
		if nsCarried(p.name, p.l3) && p.want.skipped && p.want.skip != flows.SkipARP {
			n[p.want.skip]++
		}
	}
	return n
}

// frames sends every frame of the parser's test out of a device.
func (n *nsSpace) frames(dev string) {
	n.t.Helper()
	out := n.raw(dev)
	for _, p := range places {
		if !nsCarried(p.name, p.l3) {
			continue
		}
		if err := out.send(p.frame); err != nil {
			n.t.Fatalf("send %s: %v", p.name, err)
		}
	}
}

// TestThrashingTableConserves sends ten times more flows than the table has room
// for, from two CPUs, with a ring that holds few of those that have to leave.
func TestThrashingTableConserves(t *testing.T) {
	for _, o := range []Options{
		{Backend: BackendSlots, Slots: 256}, {Backend: BackendSlots, Slots: 256, MaxMemory: 2 << 20}, {Backend: BackendHash, Slots: 256},
	} {
		t.Run(fmt.Sprintf("%s/memory %d", o.Backend, o.MaxMemory), func(t *testing.T) {
			r := nsRouted(t, o, 1500, false)
			r.lossy()
			const slots, count = 2 * 256, 8000 // of both CPUs; of one thread
			r.client.flood(nsServer4, 10*slots, count)
			r.client.flood(nsServer6, 10*slots, count)
			r.settle()
			at := r.a.live(r.host, "w0", flows.HookIngress).at
			evictions := r.a.d.drain.Load().Evictions
			r.a.stop()
			p := r.a.accounts[at]
			if p.After.Packets < 3*count { // the client's own device may drop some
				t.Errorf("w0 ingress: got %d packets, want about %d", p.After.Packets, 4*count)
			}
			full := p.Skipped[flows.SkipTableFull].Packets
			if evictions == 0 && full == 0 {
				t.Error("no flow had to leave and none was refused: the table did not thrash")
			}
			t.Logf("w0 ingress: %d packets; at all points %d evictions; %d refused at w0", p.After.Packets, evictions, full)
		})
	}
}

// TestShutdownInTheMiddleOfTraffic ends the agent while traffic flows.
func TestShutdownInTheMiddleOfTraffic(t *testing.T) {
	for _, kind := range nsKinds(t) {
		t.Run(kind.String(), func(t *testing.T) {
			r := nsRouted(t, Options{Backend: kind.backend, Hooks: kind.hooks, Slots: 512}, 1500, false)
			r.lossy()
			end := r.client.spray(nsServer4, 5000)
			defer end()
			nsUntil(t, "traffic flows", func() bool { return r.a.seen(r.host, "w1", flows.HookEgress).Packets > 2000 })
			r.a.stop()
			sent := r.client.counters("eth0").tx.Packets
			nsUntil(t, "traffic still flows", func() bool { return r.client.counters("eth0").tx.Packets > sent })
		})
	}
}

// TestVLANDevicesConserve sends through 802.1Q devices on top of the pair.
func TestVLANDevicesConserve(t *testing.T) {
	for _, inserted := range []string{"by the stack", "by the device"} {
		t.Run("tag inserted "+inserted, func(t *testing.T) {
			r := nsRouted(t, Options{Netns: nsBoth[:1]}, 1500, true)
			if inserted == "by the device" { // whose counters then lack the tag
				r.client.offload("eth0", true, nsTagging)
				r.a.truths = r.a.truths[2:]
			}
			counted, began := r.a.still(r.client, "eth0")
			r.client.vlan("eth0.7", "eth0", 7)
			r.host.vlan("w0.7", "w0", 7)
			r.a.await(r.client, "eth0.7")
			r.a.await(r.host, "w0.7")
			r.host.up("w0.7", "10.7.0.1/24", "fd07::1/64")
			r.client.up("eth0.7", "10.7.0.2/24", "fd07::2/64")
			r.client.tcp(r.host, "10.7.0.1", 1<<20)
			r.client.tcp(r.host, "fd07::1", 1<<20)
			r.client.udp(r.host, "10.7.0.1", 20, 8000)
			c, now := r.a.still(r.client, "eth0")
			at := r.a.live(r.client, "eth0", flows.HookEgress).at
			r.settle()
			r.a.stop()
			tagged := r.a.sum(at, func(f nsFlow) bool { return f.VLAN == flows.VLAN{Outer: 7} })
			if tagged.Packets < 700 {
				t.Errorf("eth0 egress: %+v in VLAN 7, want most of %+v", tagged, c.tx)
			}
			if inserted == "by the device" {
				got, want := minus(now[flows.HookEgress].After, began[flows.HookEgress].After), minus(c.tx, counted.tx)
				arp := now[flows.HookEgress].Skipped[flows.SkipARP].Packets // of both networks
				if d := got.Bytes - want.Bytes; got.Packets != want.Packets || d < 4*(tagged.Packets-2) || d > 4*(tagged.Packets+arp) {
					t.Errorf("eth0 egress: got %+v, the interface %+v and 4 bytes more for each of %d tagged", got, want, tagged.Packets)
				}
			}
		})
	}
}

// vlan adds an 802.1Q device.
func (n *nsSpace) vlan(name, under string, id int) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, n.index(under)
	if !n.add(&netlink.Vlan{LinkAttrs: attrs, VlanId: id}) {
		n.t.Skip("left out: this kernel has no 802.1Q devices; tagged frames of a packet socket are in TestEveryPointCountsWhatItsInterfaceCounts")
	}
}
