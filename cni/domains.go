// SPDX-License-Identifier: Apache-2.0

package cni

// Who may own equal addresses is told apart by segment: a namespace's own routing, each
// of its VRFs, each of its bridges that nothing but their ports is on. A VXLAN device
// is in the segment of the bridge or VRF that its VNI is for. Segments that veth pairs
// join, or a device that hangs on another one's, are one domain.

// segmentOf is the name of a VRF's or a bridge's segment, by its device. That of a
// namespace's own routing is the cookie, which is less: the kernel counts them from 1.
func segmentOf(netns uint64, ifindex uint32) uint64 {
	return 1<<63 | uint64(ifindex&0x7fffffff)<<32 | netns&0xffffffff
}

// maxMasters bounds how far up masters are followed: a bond in a bridge in a VRF has three.
const maxMasters = 8

// segments gives every device its segment, and every segment its domain.
func (t *Topology) segments() {
	routed := t.routedBridges()
	t.domains = make(map[uint64]uint64, len(t.Spaces))
	for _, s := range t.Spaces {
		t.domains[s.Netns] = s.Netns
		for _, d := range s.Devices {
			d.segment = segmentOn(d, routed)
			t.domains[d.segment] = d.segment
		}
	}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			for _, other := range []*Device{d.Far, d.Under} {
				if other != nil && (other == d.Far || other.Space != s) {
					t.join(d.segment, other.segment)
				}
			}
		}
	}
	for n := range t.domains {
		t.domains[n] = t.root(n)
	}
}

// routedBridges is the bridges that the host itself, or a device on them, may take
// packets out of: those with an address that is not only the link's, and those that
// something is stacked on.
func (t *Topology) routedBridges() map[*Device]bool {
	routed := map[*Device]bool{}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			if d.Under != nil && d.Under.Kind == "bridge" {
				routed[d.Under] = true
			}
			for _, p := range d.Addrs {
				if d.Kind == "bridge" && !p.Addr().IsLinkLocalUnicast() {
					routed[d] = true
				}
			}
		}
	}
	return routed
}

func segmentOn(d *Device, routed map[*Device]bool) uint64 {
	segment := d.Space.Netns
	for range maxMasters {
		switch {
		case d.Kind == "vrf":
			return segmentOf(d.Space.Netns, d.Index)
		case d.Kind == "bridge" && !routed[d] && segment == d.Space.Netns:
			segment = segmentOf(d.Space.Netns, d.Index)
		}
		if d.Master == nil {
			break
		}
		d = d.Master
	}
	return segment
}

// root is the least segment of those that are joined with one, as far as is known.
func (t *Topology) root(n uint64) uint64 {
	for t.domains[n] != n {
		t.domains[n] = t.domains[t.domains[n]]
		n = t.domains[n]
	}
	return n
}

func (t *Topology) join(one, other uint64) {
	a, b := t.root(one), t.root(other)
	t.domains[max(a, b)] = min(a, b)
}

// Domain is what all devices share that see the same packets, and no other tenant's:
// the least cookie of the namespaces that are joined or, of a bridge or VRF that leads
// to none, a number of its own. ifindex 0 stands for the namespace's own routing.
// 0: the device is not known.
func (t *Topology) Domain(netns uint64, ifindex uint32) uint64 {
	if ifindex == 0 {
		return t.domains[netns]
	}
	if d := t.Device(netns, ifindex); d != nil {
		return t.domains[d.segment]
	}
	return 0
}
