// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/vishvananda/netlink"

	"weft/flows"
)

// classes are the kinds of device that a kernel driver without hardware names.
var classes = map[string]flows.PointClass{
	"veth": flows.ClassVeth, "netkit": flows.ClassVeth,
	"bridge": flows.ClassBridge, "openvswitch": flows.ClassBridge,
	"vlan": flows.ClassVLAN, "macvlan": flows.ClassVLAN, "ipvlan": flows.ClassVLAN,
	"bond": flows.ClassBond, "team": flows.ClassBond,
	"vxlan": flows.ClassTunnel, "geneve": flows.ClassTunnel, "gre": flows.ClassTunnel, "gretap": flows.ClassTunnel,
	"ip6gre": flows.ClassTunnel, "ip6gretap": flows.ClassTunnel, "ipip": flows.ClassTunnel, "ip6tnl": flows.ClassTunnel,
	"sit": flows.ClassTunnel, "wireguard": flows.ClassTunnel, "xfrm": flows.ClassTunnel, "vti": flows.ClassTunnel,
	"tun": flows.ClassTap, "tuntap": flows.ClassTap, "macvtap": flows.ClassTap, "ipvtap": flows.ClassTap,
}

// classOf is the kind of a device. One that no driver of the list made and that has
// Ethernet framing is a network card's.
func classOf(l netlink.Link) flows.PointClass {
	if c, ok := classes[l.Type()]; ok {
		return c
	}
	switch {
	case l.Attrs().EncapType == "loopback":
		return flows.ClassLoopback
	case l.Type() == "device" && l.Attrs().EncapType == "ether":
		return flows.ClassNIC
	}
	return flows.ClassOther
}
