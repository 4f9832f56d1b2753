// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"

	"weft/flows"
)

// forMany reports whether addr is not one holder's: a multicast group, everybody, or all
// of a network that d, or the bridge it is a port of, has an address in.
func forMany(addr netip.Addr, d *Device) bool {
	if addr = addr.Unmap(); addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	for _, one := range []*Device{d, d.Master} {
		if one == nil || !addr.Is4() {
			continue
		}
		for _, p := range one.Addrs {
			// Its last address: the one behind it is not in the network any more.
			if p.Bits() < 31 && p.Contains(addr) && !p.Contains(addr.Next()) {
				return true
			}
		}
	}
	return false
}

// spread reports whether as many packets as went into d went out of another port of its
// bridge: so a bridge does that does not know where their address is.
func spread(t *Topology, hops []flows.HopCount, h *flows.HopCount, d *Device) bool {
	for i := range hops {
		o := &hops[i]
		if o.Reverse != h.Reverse || o.At.Hook != flows.HookEgress || o.Packets < h.Packets || d.Master == nil {
			continue
		}
		if at := t.Device(o.At.Netns, o.At.Ifindex); at != nil && at != d && at.Master == d.Master {
			return true
		}
	}
	return false
}
