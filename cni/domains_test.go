// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// Bridges without an address are tenants of their own, with all that is joined to
// them; a bridge that the host routes for is the host's. The same address on two of
// them is two holders'.
func TestBridgesThatNothingRoutesAreTenants(t *testing.T) {
	host := newNetns(t, "host")
	in(t, host, func(h *netlink.Handle) error {
		for _, name := range []string{"br0", "br1", "br2"} {
			if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
				return err
			}
		}
		err := h.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx1"}, VxlanId: 42, Group: net.IPv4(192, 0, 2, 1), Port: 4789})
		return errors.Join(err, enslave(h, "vx1", "br1"))
	})
	addAddress(t, host, "br2", "10.6.0.1/24")
	spaces := map[string]string{}
	for i, name := range []string{"a0", "b0", "a1", "a2"} { // two on br0, one each on br1 and br2
		spaces[name] = newNetns(t, name)
		pairUp(t, host, "p"+name, spaces[name], "eth0")
		addAddress(t, spaces[name], "eth0", fmt.Sprintf("10.5.0.%d/24", []int{1, 2, 1, 3}[i]))
		in(t, host, func(h *netlink.Handle) error { return enslave(h, "p"+name, "br"+name[1:]) })
	}
	m := openMirror(t, everything)
	hub := cookieOf(t, host)
	var domains map[string]uint64
	now := eventually(t, m, "every port is on its bridge", func(now *Topology) error {
		domains = map[string]uint64{"host": now.Domain(hub, 0)}
		for _, name := range []string{"br0", "br1", "br2", "vx1", "pa0", "pb0", "pa1", "pa2"} {
			d := now.named(hub, name)
			if d == nil || name[0] == 'p' && (d.Far == nil || d.Master == nil) || name == "br2" && len(d.Addrs) == 0 {
				return fmt.Errorf("%s is not yet as it was made", name)
			}
			domains[name] = now.Domain(hub, d.Index)
		}
		for name, path := range spaces {
			domains[name] = now.Domain(cookieOf(t, path), 0)
		}
		return nil
	})
	for _, same := range [][]string{{"br0", "pa0", "pb0", "a0", "b0"}, {"br1", "vx1", "pa1", "a1"}, {"host", "br2", "pa2", "a2"}} {
		for name, d := range domains {
			want := false
			for _, s := range same {
				want = want || s == name
			}
			if (d == domains[same[0]]) != want || d == 0 {
				t.Errorf("%s is in domain %#x, %s in %#x; want the same: %t", name, d, same[0], domains[same[0]], want)
			}
		}
	}
	if now.Domain(hub, 9999) != 0 || now.Domain(1<<40, 0) != 0 {
		t.Error("a device that is not known has a domain")
	}
	c := OpenCensus(m.Topology, CensusOptions{})
	defer c.Close()
	for name, pid := range map[string]string{"a0": spaces["a0"], "a1": spaces["a1"]} {
		if got := c.Resolver().Resolve(flows.Scope{Netns: domains[name]}, addrOf("10.5.0.1"), now.At.UnixNano()); got != c.spaces[cookieOf(t, pid)].who || got == nil {
			t.Errorf("10.5.0.1 in the domain of %s: got %+v", name, got)
		}
	}
}

func enslave(h *netlink.Handle, port, master string) error {
	l, err := h.LinkByName(port)
	if err != nil {
		return err
	}
	m, err := h.LinkByName(master)
	if err != nil {
		return err
	}
	return h.LinkSetMaster(l, m)
}

// Each VRF is a tenant, with the bridges in it, whatever addresses those have.
func TestEachVRFIsATenant(t *testing.T) {
	host := &Space{Netns: 7}
	add := func(index uint32, kind string, master *Device) *Device {
		d := &Device{Link: &Link{Index: index, Kind: kind}, Space: host, Master: master}
		host.Devices = append(host.Devices, d)
		return d
	}
	red, blue := add(10, "vrf", nil), add(11, "vrf", nil)
	bridge := add(12, "bridge", red)
	port, other, plain := add(13, "veth", bridge), add(14, "veth", blue), add(15, "veth", nil)
	topo := &Topology{Spaces: []*Space{host}, devices: map[place]*Device{}}
	for _, d := range host.Devices {
		topo.devices[place{7, d.Index}] = d
	}
	names := topo.segments(naming{})
	of := func(d *Device) uint64 { return topo.Domain(7, d.Index) }
	if of(port) != of(red) || of(bridge) != of(red) || of(other) != of(blue) || of(red) == of(blue) || of(plain) != 7 || of(red) == 7 || of(blue) == 7 {
		t.Errorf("red %#x with bridge %#x and port %#x, blue %#x with port %#x, in none %#x: want red's alike, blue's alike, 7",
			of(red), of(bridge), of(port), of(blue), of(other), of(plain))
	}
	port.Far, other.Far = &Device{Link: &Link{Index: 2, Kind: "veth"}, Space: &Space{Netns: 3}}, nil
	port.Far.Far, port.Far.Space.Devices = port, []*Device{port.Far}
	topo.Spaces = append(topo.Spaces, port.Far.Space)
	was := of(red)
	if topo.segments(names); of(red) != was || of(blue) == was || topo.Domain(3, 0) != was {
		t.Errorf("with namespace 3 on red's bridge: red %#x, blue %#x, the namespace %#x; want %#x, another, %#[4]x", of(red), of(blue), topo.Domain(3, 0), was)
	}
}

// A namespace that is found later, as when its first process starts, joins a domain and
// does not rename it, whatever its cookie: conversations go on.
func TestADomainKeepsItsName(t *testing.T) {
	pair := func(a, b *Space) {
		one, other := &Device{Link: &Link{Index: uint32(len(a.Devices) + 1), Kind: "veth"}, Space: a}, &Device{Link: &Link{Index: uint32(len(b.Devices) + 1), Kind: "veth"}, Space: b}
		one.Far, other.Far = other, one
		a.Devices, b.Devices = append(a.Devices, one), append(b.Devices, other)
	}
	own, early, late := &Space{Netns: 9, Own: true}, &Space{Netns: 8}, &Space{Netns: 3}
	topo := &Topology{Spaces: []*Space{own, early}}
	var names naming
	want := func(own, early, late uint64) {
		t.Helper()
		names = topo.segments(names)
		if o, e, l := topo.Domain(9, 0), topo.Domain(8, 0), topo.Domain(3, 0); o != own || e != early || l != late {
			t.Errorf("domains: got %d of the agent's namespace, %d, %d; want %d, %d, %d", o, e, l, own, early, late)
		}
	}
	want(9, 8, 0)
	topo.Spaces = append(topo.Spaces, late)
	pair(early, late)
	want(9, 8, 8)
	// Nor does a bridge that nothing routes for, which is a segment of its own.
	bridge := &Device{Link: &Link{Index: 7, Kind: "bridge"}, Space: own}
	port := &Device{Link: &Link{Index: 8, Kind: "veth"}, Space: own, Master: bridge, Far: &Device{Link: &Link{Index: 9, Kind: "veth"}, Space: late}}
	port.Far.Far = port
	own.Devices, late.Devices = append(own.Devices, bridge, port), append(late.Devices, port.Far)
	want(9, 8, 8)
	pair(late, own)
	want(9, 9, 9)
}

// The namespace that gave a domain its name goes, as of a router's container that is
// replaced: what the others talk about goes on under that name, and by it they are found.
// Where the domain falls apart two parts never have one name.
func TestADomainKeepsTheNameOfWhatIsGone(t *testing.T) {
	spaces := map[uint64]*Space{}
	var names naming
	// domains are of the namespaces of which pairs lead from one to the next.
	domains := func(of ...[]uint64) (got []uint64) {
		topo := &Topology{}
		for _, chain := range of {
			for i, n := range chain {
				spaces[n] = &Space{Netns: n}
				topo.Spaces = append(topo.Spaces, spaces[n])
				if i == 0 {
					continue
				}
				was := spaces[chain[i-1]]
				one, other := &Device{Link: &Link{Index: 1, Kind: "veth"}, Space: was}, &Device{Link: &Link{Index: 2, Kind: "veth"}, Space: spaces[n]}
				one.Far, other.Far = other, one
				was.Devices, spaces[n].Devices = append(was.Devices, one), append(spaces[n].Devices, other)
			}
		}
		names = topo.segments(names)
		for _, s := range topo.Spaces {
			got = append(got, topo.Domain(s.Netns, 0))
			if d := topo.Domain(s.Netns, 0); topo.Domain(d, 0) != d {
				t.Errorf("namespace %d is in domain %d, which is asked for by that name: got %d", s.Netns, d, topo.Domain(d, 0))
			}
		}
		return got
	}
	for _, c := range []struct {
		name string
		now  [][]uint64
		want []uint64
	}{
		{"found", [][]uint64{{5, 6, 7, 8}}, []uint64{5, 5, 5, 5}},
		{"the first goes", [][]uint64{{6, 7, 8}}, []uint64{5, 5, 5}},
		{"another comes in its place", [][]uint64{{2, 6, 7, 8}}, []uint64{5, 5, 5, 5}},
		{"a part leaves", [][]uint64{{2, 6}, {7, 8}}, []uint64{5, 5, 7, 7}},
		{"and comes again", [][]uint64{{8, 7, 6, 2}}, []uint64{5, 5, 5, 5}},
		{"the first one of old is elsewhere", [][]uint64{{5, 4}, {8, 7, 6, 2}}, []uint64{5, 5, 6, 6, 6, 6}},
		{"and stays there", [][]uint64{{4}, {8, 7, 6, 2}}, []uint64{5, 6, 6, 6, 6}},
		{"all are gone", nil, nil},
		{"others", [][]uint64{{3, 1}}, []uint64{3, 3}},
	} {
		if got := domains(c.now...); !slices.Equal(got, c.want) {
			t.Errorf("%s, %v: got %v, want %v", c.name, c.now, got, c.want)
		}
	}
	if len(names.rank) != 2 {
		t.Errorf("names known: got %v, want those of two namespaces", names.rank)
	}
}
