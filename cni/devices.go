// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is one network device as the kernel describes it. Source: rtnetlink, of the
// namespace that the device is in. A Link is never written to once it is shared.
type Link struct {
	Index       uint32
	Name, Alias string // as the kernel gives them: any byte but a slash and a NUL
	Kind        string // of rtnetlink: veth, bridge, vlan, ...; empty: a real device or the loopback
	Mode        string // of a bond, macvlan or ipvlan; vlan-filtering of a bridge that tells VLANs apart
	MAC         string // empty: it has none
	MTU         uint32 // bytes
	Up          bool   // set up by the administrator
	Carrier     bool
	Loopback    bool

	Master uint32 // ifindex of the bridge, bond or VRF that it is a port of; 0: none
	Port   string // its state as a bond's port: active, backup; empty: no such

	// Lower is the ifindex of what the device hangs on: the far end of a veth, the
	// device under a VLAN, macvlan or tunnel. 0: nothing. LowerID is the number that
	// the device's namespace has for the namespace of Lower; -1: its own.
	Lower   uint32
	LowerID int

	VLAN         uint16 // 0: none
	VLANProtocol string // 802.1q, 802.1ad
	Table        uint32 // of a VRF; 0: none

	Tunnel *Tunnel // nil: none
	Tap    *Tap    // nil: no tun or tap device

	// Bus and Address say where a real device is plugged in, such as pci and
	// 0000:00:03.0. VFs counts its SR-IOV virtual functions.
	Bus, Address string
	VFs          int
}

// Tunnel is what an encapsulating device was told.
type Tunnel struct {
	ID            uint32     // VNI of VXLAN and GENEVE, output key of GRE; 0: none
	Local, Remote netip.Addr // invalid: not fixed; a multicast Remote is a group
	Port          uint16     // UDP destination; 0: not UDP, or not known
	External      bool       // each packet brings its own parameters
}

// Tap is what a tun or tap device was told.
type Tap struct {
	Tun          bool   // carries IP packets instead of frames
	Persistent   bool   // stays when nobody has it open
	Owner, Group uint32 // who may open it without privilege; 0: root, or nobody was named
	Queues       int    // that processes have open, of a device with several; else 0
}

// newLink is what the house keeps of a device.
func newLink(from netlink.Link) *Link {
	a := from.Attrs()
	l := &Link{
		Index: uint32(a.Index), Name: a.Name, Alias: bounded(a.Alias), MTU: uint32(a.MTU),
		Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, Loopback: a.Flags&net.FlagLoopback != 0,
		Master: uint32(a.MasterIndex), Lower: uint32(a.ParentIndex), LowerID: a.NetNsID,
		Bus: a.ParentDevBus, Address: a.ParentDev, VFs: len(a.Vfs),
	}
	if kind := from.Type(); kind != "device" {
		l.Kind = kind
	}
	if len(a.HardwareAddr) == 6 {
		l.MAC = a.HardwareAddr.String()
	}
	if s, ok := a.Slave.(*netlink.BondSlave); ok {
		l.Port = strings.ToLower(s.State.String())
	}
	if l.Lower == l.Index && l.LowerID < 0 {
		l.Lower = 0 // the loopback of some kernels
	}
	l.describe(from)
	return l
}

// describe adds what only the kind of the device has.
func (l *Link) describe(from netlink.Link) {
	switch d := from.(type) {
	case *netlink.Vlan:
		l.VLAN, l.VLANProtocol = uint16(d.VlanId), strings.ToLower(d.VlanProtocol.String())
	case *netlink.Bridge:
		if d.VlanFiltering != nil && *d.VlanFiltering {
			l.Mode = "vlan-filtering"
		}
	case *netlink.Bond:
		l.Mode = d.Mode.String()
	case *netlink.Vrf:
		l.Table = d.Table
	case *netlink.Macvlan:
		l.Mode = macvlanModes[d.Mode]
	case *netlink.Macvtap:
		l.Mode = macvlanModes[d.Mode]
	case *netlink.IPVlan:
		l.Mode = ipvlanModes[d.Mode]
	case *netlink.Tuntap:
		l.Tap = &Tap{
			Tun: d.Mode == netlink.TUNTAP_MODE_TUN, Persistent: !d.NonPersist,
			Owner: d.Owner, Group: d.Group, Queues: d.Queues + d.DisabledQueues,
		}
		if l.Kind = "tap"; l.Tap.Tun {
			l.Kind = "tun"
		}
	default:
		l.tunnel(from)
	}
}

// tunnel adds what encapsulates; under says which device it leaves by.
func (l *Link) tunnel(from netlink.Link) {
	under := uint32(0)
	switch d := from.(type) {
	case *netlink.Vxlan:
		l.Tunnel = &Tunnel{uint32(d.VxlanId), ip(d.SrcAddr), ip(d.Group), uint16(d.Port), d.FlowBased}
		under = uint32(d.VtepDevIndex)
	case *netlink.Geneve:
		l.Tunnel = &Tunnel{d.ID, netip.Addr{}, ip(d.Remote), d.Dport, d.FlowBased}
		under = d.Link
	case *netlink.Gretun:
		l.Tunnel = &Tunnel{d.OKey, ip(d.Local), ip(d.Remote), 0, d.FlowBased}
		under = d.Link
	case *netlink.Gretap:
		l.Tunnel = &Tunnel{d.OKey, ip(d.Local), ip(d.Remote), 0, d.FlowBased}
		under = d.Link
	case *netlink.Iptun:
		l.Tunnel = &Tunnel{0, ip(d.Local), ip(d.Remote), 0, d.FlowBased}
		under = d.Link
	case *netlink.Ip6tnl:
		l.Tunnel = &Tunnel{0, ip(d.Local), ip(d.Remote), 0, d.FlowBased}
		under = d.Link
	case *netlink.Sittun:
		l.Tunnel = &Tunnel{0, ip(d.Local), ip(d.Remote), 0, false}
		under = d.Link
	case *netlink.Vti:
		l.Tunnel = &Tunnel{d.OKey, ip(d.Local), ip(d.Remote), 0, false}
		under = d.Link
	case *netlink.BareUDP:
		l.Tunnel = &Tunnel{Port: d.Port, External: true}
	}
	if l.Lower == 0 {
		l.Lower = under
	}
}

// pair reports whether Lower is the far end of a pair instead of a device below.
func (l *Link) pair() bool { return l.Kind == "veth" || l.Kind == "netkit" }

var macvlanModes = map[netlink.MacvlanMode]string{
	netlink.MACVLAN_MODE_PRIVATE: "private", netlink.MACVLAN_MODE_VEPA: "vepa", netlink.MACVLAN_MODE_BRIDGE: "bridge",
	netlink.MACVLAN_MODE_PASSTHRU: "passthru", netlink.MACVLAN_MODE_SOURCE: "source",
}

var ipvlanModes = map[netlink.IPVlanMode]string{
	netlink.IPVLAN_MODE_L2: "l2", netlink.IPVLAN_MODE_L3: "l3", netlink.IPVLAN_MODE_L3S: "l3s",
}

// ip is the zero Addr for no address and for the unspecified one.
func ip(from net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(from)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// maxName bounds a name that somebody else chose, in bytes.
const maxName = 253

func bounded(s string) string {
	if len(s) > maxName {
		return s[:maxName]
	}
	return s
}

// maxAddresses bounds what is kept of one device. What is over it is not found by address.
const maxAddresses = 256

// parseAddress reads an RTM_NEWADDR or RTM_DELADDR message.
func parseAddress(m []byte) (index uint32, p netip.Prefix, ok bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	bits, index := int(m[1]), native.Uint32(m[4:8])
	var address netip.Addr
	for m = m[unix.SizeofIfAddrmsg:]; len(m) >= unix.SizeofRtAttr; {
		n := int(native.Uint16(m[0:2]))
		if n < unix.SizeofRtAttr || n > len(m) {
			break
		}
		value, kind := m[unix.SizeofRtAttr:n], native.Uint16(m[2:4])
		// IFA_ADDRESS is the far end's of a point-to-point device that has IFA_LOCAL.
		if a, good := netip.AddrFromSlice(value); good && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !address.IsValid()) {
			address = a
		}
		m = m[min(len(m), (n+3)&^3):]
	}
	return index, netip.PrefixFrom(address, bits), address.IsValid()
}

// withAddress is all with p, or without it. all itself is left as it is: a
// snapshot may have it.
func withAddress(all []netip.Prefix, p netip.Prefix, there bool) []netip.Prefix {
	i := slices.Index(all, p)
	switch {
	case there && i < 0 && len(all) < maxAddresses:
		return append(slices.Clip(all), p)
	case !there && i >= 0:
		return slices.Delete(slices.Clone(all), i, i+1)
	}
	return all
}
