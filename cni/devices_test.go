// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// named is the attributes of a new device.
func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// on is the attributes of a device over another.
func on(name string, under netlink.Link) netlink.LinkAttrs {
	a := named(name)
	a.ParentIndex = under.Attrs().Index
	return a
}

// A device of every kind is told with what it hangs on and what it was told. Kinds
// that this kernel lacks are in the guests of other kernels.
func TestEveryKindOfDeviceIsTold(t *testing.T) {
	m := openMirror(t, everything)
	local, remote := net.IPv4(10, 79, 2, 1), net.IPv4(10, 79, 2, 2)
	from, to := netip.MustParseAddr("10.79.2.1"), netip.MustParseAddr("10.79.2.2")
	macvlan := func(name string, under netlink.Link) netlink.Macvlan {
		return netlink.Macvlan{LinkAttrs: on(name, under), Mode: netlink.MACVLAN_MODE_BRIDGE}
	}
	for name, c := range map[string]struct {
		make  func(under netlink.Link) netlink.Link
		under bool
		want  Link
	}{
		"bridge": {make: func(netlink.Link) netlink.Link { return &netlink.Bridge{LinkAttrs: named("it")} }, want: Link{Kind: "bridge"}},
		"vlan": {
			make: func(u netlink.Link) netlink.Link {
				return &netlink.Vlan{LinkAttrs: on("it", u), VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD}
			},
			under: true, want: Link{Kind: "vlan", VLAN: 7, VLANProtocol: "802.1ad"},
		},
		"macvlan": {make: func(u netlink.Link) netlink.Link { l := macvlan("it", u); return &l }, under: true, want: Link{Kind: "macvlan", Mode: "bridge"}},
		"macvtap": {
			make:  func(u netlink.Link) netlink.Link { return &netlink.Macvtap{Macvlan: macvlan("it", u)} },
			under: true, want: Link{Kind: "macvtap", Mode: "bridge"},
		},
		"ipvlan": {
			make: func(u netlink.Link) netlink.Link {
				return &netlink.IPVlan{LinkAttrs: on("it", u), Mode: netlink.IPVLAN_MODE_L3}
			},
			under: true, want: Link{Kind: "ipvlan", Mode: "l3"},
		},
		"bond": {
			make: func(netlink.Link) netlink.Link {
				b := netlink.NewLinkBond(named("it"))
				b.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
				return b
			},
			want: Link{Kind: "bond", Mode: "active-backup"},
		},
		"vrf": {make: func(netlink.Link) netlink.Link { return &netlink.Vrf{LinkAttrs: named("it"), Table: 9} }, want: Link{Kind: "vrf", Table: 9}},
		"vxlan": {
			make: func(u netlink.Link) netlink.Link {
				return &netlink.Vxlan{LinkAttrs: named("it"), VxlanId: 1234567, VtepDevIndex: u.Attrs().Index, SrcAddr: local, Group: remote, Port: 8472, Learning: true}
			},
			under: true, want: Link{Kind: "vxlan", Tunnel: &Tunnel{ID: 1234567, Local: from, Remote: to, Port: 8472}},
		},
		"external vxlan": {
			make: func(netlink.Link) netlink.Link {
				return &netlink.Vxlan{LinkAttrs: named("it"), FlowBased: true, Port: 4789, Learning: true}
			},
			want: Link{Kind: "vxlan", Tunnel: &Tunnel{Port: 4789, External: true}},
		},
		"geneve": {
			make: func(netlink.Link) netlink.Link {
				return &netlink.Geneve{LinkAttrs: named("it"), ID: 77, Remote: remote, Dport: 6081}
			},
			want: Link{Kind: "geneve", Tunnel: &Tunnel{ID: 77, Remote: to, Port: 6081}},
		},
		"gre": {
			make: func(u netlink.Link) netlink.Link {
				return &netlink.Gretun{LinkAttrs: named("it"), Link: uint32(u.Attrs().Index), Local: local, Remote: remote, IKey: 5, OKey: 5, IFlags: 0x2000, OFlags: 0x2000}
			},
			under: true, want: Link{Kind: "gre", Tunnel: &Tunnel{ID: 5, Local: from, Remote: to}},
		},
		"ipip": {
			make: func(u netlink.Link) netlink.Link {
				return &netlink.Iptun{LinkAttrs: named("it"), Link: uint32(u.Attrs().Index), Local: local, Remote: remote}
			},
			under: true, want: Link{Kind: "ipip", Tunnel: &Tunnel{Local: from, Remote: to}},
		},
		"tap": {
			make: func(netlink.Link) netlink.Link {
				return &netlink.Tuntap{LinkAttrs: named("it"), Mode: netlink.TUNTAP_MODE_TAP, Owner: 1234, Group: 99}
			},
			want: Link{Kind: "tap", Tap: &Tap{Persistent: true, Owner: 1234, Group: 99}},
		},
		"tun": {
			make: func(netlink.Link) netlink.Link {
				return &netlink.Tuntap{LinkAttrs: named("it"), Mode: netlink.TUNTAP_MODE_TUN}
			},
			want: Link{Kind: "tun", Tap: &Tap{Tun: true, Persistent: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNetns(t, strings.ReplaceAll(name, " ", "-"))
			missing := false
			in(t, ns, func(h *netlink.Handle) error {
				if err := h.LinkAdd(&netlink.Veth{LinkAttrs: named("under"), PeerName: "other"}); err != nil {
					return err
				}
				under, err := h.LinkByName("under")
				if err != nil {
					return err
				}
				err = h.LinkAdd(c.make(under))
				if missing = lacking(err); missing {
					return nil
				}
				return err
			})
			if missing {
				t.Skip("this kernel has no such device")
			}
			cookie := cookieOf(t, ns)
			now := eventually(t, m, "it is told", func(now *Topology) error {
				d := now.named(cookie, "it")
				if d == nil || c.under && d.Under == nil {
					return fmt.Errorf("got %+v", d)
				}
				// owner and persistence are set, and told, after the device is made
				if got, want := fmt.Sprintf("%+v", d.Tap), fmt.Sprintf("%+v", c.want.Tap); got != want {
					return fmt.Errorf("got tap %s, want %s", got, want)
				}
				return nil
			})
			d := now.named(cookie, "it")
			if c.under && d.Under.Name != "under" {
				t.Errorf("it hangs on %s, want under", d.Under.Name)
			}
			if d.Kind != c.want.Kind || d.Mode != c.want.Mode || d.VLAN != c.want.VLAN || d.VLANProtocol != c.want.VLANProtocol || d.Table != c.want.Table {
				t.Errorf("got %+v, want %+v", d.Link, c.want)
			}
			if got, want := fmt.Sprintf("%+v %+v", d.Tunnel, d.Tap), fmt.Sprintf("%+v %+v", c.want.Tunnel, c.want.Tap); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// A bridge that tells VLANs apart says so: its ports are not all in one network.
func TestBridgeThatFiltersVLANsSaysSo(t *testing.T) {
	m := openMirror(t, everything)
	ns := newNetns(t, "filters")
	cookie, filters := cookieOf(t, ns), true
	missing := false
	in(t, ns, func(h *netlink.Handle) error {
		err := h.LinkAdd(&netlink.Bridge{LinkAttrs: named("it"), VlanFiltering: &filters})
		if missing = lacking(err); missing {
			return nil
		}
		return err
	})
	if missing {
		t.Skip("this kernel's bridges do not filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")
	}
	eventually(t, m, "the bridge says that it filters", func(now *Topology) error {
		if d := now.named(cookie, "it"); d == nil || d.Mode != "vlan-filtering" {
			return fmt.Errorf("got %+v", d)
		}
		return nil
	})
}

// A port knows its bridge, and forgets it when it is taken out.
func TestPortKnowsItsBridge(t *testing.T) {
	m := openMirror(t, everything)
	ns := newNetns(t, "ports")
	cookie := cookieOf(t, ns)
	port := func(f func(*netlink.Handle, netlink.Link, netlink.Link) error) {
		in(t, ns, func(h *netlink.Handle) error {
			p, err := h.LinkByName("port")
			if err != nil {
				return err
			}
			b, err := h.LinkByName("br")
			if err != nil {
				return err
			}
			return f(h, p, b)
		})
	}
	in(t, ns, func(h *netlink.Handle) error {
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: named("br")}); err != nil {
			return err
		}
		return h.LinkAdd(&netlink.Veth{LinkAttrs: named("port"), PeerName: "other"})
	})
	master := func(want string) func(*Topology) error {
		return func(now *Topology) error {
			got := "none"
			d := now.named(cookie, "port")
			if d != nil && d.Master != nil {
				got = d.Master.Name
			}
			if d == nil || got != want {
				return fmt.Errorf("the port %v is in %s, want %s", d, got, want)
			}
			return nil
		}
	}
	port(func(h *netlink.Handle, p, b netlink.Link) error { return h.LinkSetMaster(p, b) })
	eventually(t, m, "it is in", master("br"))
	port(func(h *netlink.Handle, p, _ netlink.Link) error { return h.LinkSetNoMaster(p) })
	eventually(t, m, "it is out", master("none"))
}

// The peers of a VXLAN device are those that its forwarding table has.
func TestVXLANTellsItsPeers(t *testing.T) {
	ns := newNetns(t, "peers")
	in(t, ns, func(h *netlink.Handle) error {
		v := &netlink.Vxlan{LinkAttrs: named("vx"), VxlanId: 1, Port: 8472}
		if err := h.LinkAdd(v); err != nil {
			return err
		}
		for i := range 3 { // two where all packets go that are for many, and one of a known address
			if err := h.NeighAppend(&netlink.Neigh{
				LinkIndex: v.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{byte(i / 2 * 2), 0, 0, 0, 0, 0}, IP: net.IPv4(10, 79, 4, byte(3-i)),
			}); err != nil {
				return err
			}
		}
		return nil
	})
	m := openMirror(t, everything)
	d := m.Topology().named(cookieOf(t, ns), "vx")
	if d == nil {
		t.Fatal("the device is not there")
	}
	if got, want := fmt.Sprint(d.Peers), "[10.79.4.1 10.79.4.2 10.79.4.3]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The ports of a bond tell which of them carries.
func TestPortsOfABondTellTheirState(t *testing.T) {
	ns := newNetns(t, "bond")
	cookie := cookieOf(t, ns)
	m := openMirror(t, everything)
	missing := false
	in(t, ns, func(h *netlink.Handle) error {
		b := netlink.NewLinkBond(named("bond0"))
		b.Mode, b.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 10
		if err := h.LinkAdd(b); err != nil {
			missing = lacking(err)
			return map[bool]error{false: err}[missing]
		}
		if err := h.LinkSetUp(b); err != nil {
			return err
		}
		for _, name := range []string{"one", "two"} {
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: named(name), PeerName: name + "far"}); err != nil {
				return err
			}
			for _, end := range []string{name + "far", name} {
				l, err := h.LinkByName(end)
				if err != nil {
					return err
				}
				if end == name {
					if err := h.LinkSetMaster(l, b); err != nil {
						return err
					}
				}
				if err := h.LinkSetUp(l); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if missing {
		t.Skip("this kernel has no bonds")
	}
	eventually(t, m, "one carries and the other waits", func(now *Topology) error {
		states := map[string]int{}
		for _, name := range []string{"one", "two"} {
			if d := now.named(cookie, name); d != nil && d.Master != nil && d.Master.Name == "bond0" {
				states[d.Port]++
			}
		}
		if states["active"] != 1 || states["backup"] != 1 {
			return fmt.Errorf("got %v, want one active and one backup", states)
		}
		return nil
	})
}

// A device under another may be in another namespace.
func TestLowerDeviceOfAnotherNamespaceIsFound(t *testing.T) {
	m := openMirror(t, everything)
	node, pod := newNetns(t, "node"), newNetns(t, "pod")
	in(t, node, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: named("nic"), PeerName: "wire"})
	})
	in(t, node, func(h *netlink.Handle) error {
		nic, err := h.LinkByName("nic")
		if err != nil {
			return err
		}
		if err := h.LinkAdd(&netlink.Macvlan{LinkAttrs: on("mv", nic), Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return err
		}
		mv, err := h.LinkByName("mv")
		if err != nil {
			return err
		}
		fd, err := openNetns(pod, must(t, pod))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return h.LinkSetNsFd(mv, fd)
	})
	a, b := cookieOf(t, node), cookieOf(t, pod)
	eventually(t, m, "it is found", func(now *Topology) error {
		mv, nic := now.named(b, "mv"), now.named(a, "nic")
		if mv == nil || nic == nil || mv.Under != nic {
			return fmt.Errorf("the macvlan is %+v, the nic %+v", mv, nic)
		}
		return nil
	})
}

func must(t *testing.T, path string) inode {
	t.Helper()
	i, err := inodeOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// What cannot be a device of this machine's own is told with its driver.
func TestRealDevicesHaveALayerOfTheirOwn(t *testing.T) {
	m := openMirror(t, everything)
	for _, s := range m.Topology().Spaces {
		for _, d := range s.Devices {
			if d.Plug == nil {
				continue
			}
			if d.Layer != flows.LayerHardware && d.Layer != flows.LayerParavirtual || d.Confidence == 0 || d.Why == "" {
				t.Errorf("%s on bus %s is in layer %q (%d %%, %q), want hardware or paravirtual", d.Name, d.Bus, d.Layer, d.Confidence, d.Why)
			}
			if strings.HasPrefix(d.Bus, "virtio") && (d.Layer != flows.LayerParavirtual || d.Driver != "virtio_net") {
				t.Errorf("%s has driver %q and is in layer %q, want virtio_net, paravirtual", d.Name, d.Driver, d.Layer)
			}
		}
	}
}
