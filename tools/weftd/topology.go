// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"weft/cni"
	"weft/exporter"
	"weft/exporter/api"
)

// openTopology follows the devices and who is behind them. That they cannot be read
// takes nothing from the flows: it is one thing that is off.
func (a *agent) openTopology() {
	s := a.cfg.CNI
	mirror, err := cni.Open(cni.Options{Log: a.log, Containers: s.containers, VMs: s.vms, Sandboxes: s.sandboxes})
	if err != nil {
		a.log.Warn("cannot follow the topology", "err", err)
		a.mirrorErr = err
		return
	}
	a.mirror = mirror
}

// tellTopology lets flowctl ask for the topology, with what CNI wrote down of it.
func (a *agent) tellTopology() {
	if a.mirror == nil {
		return
	}
	a.socket.SetTopology(func() *api.TopologyResponse {
		var networks cni.Networks
		if a.census != nil {
			networks = a.census.Networks()
		}
		return topologyToWire(a.mirror.Topology(), networks)
	})
}

// topologyOff is what of the topology cannot be seen, and why. It is called once
// the agent is open.
func (a *agent) topologyOff() []*api.Capability {
	if a.mirror == nil {
		return []*api.Capability{{Name: "topology", Needs: "netlink and /proc", Err: a.mirrorErr.Error()}}
	}
	t := a.mirror.Topology()
	var off []*api.Capability
	if t.Over > 0 {
		off = append(off, &api.Capability{Name: "topology", Needs: fmt.Sprintf("at most %d devices", cni.MaxLinks),
			Err: fmt.Sprintf("%d devices of this host are not mirrored", t.Over)})
	}
	for _, o := range t.Off {
		off = append(off, &api.Capability{Name: "topology of " + o.Name, Needs: "CAP_SYS_ADMIN and CAP_SYS_PTRACE", Err: o.Why})
	}
	return off
}

func topologyToWire(t *cni.Topology, networks cni.Networks) *api.TopologyResponse {
	m := &api.TopologyResponse{At: t.At.UnixNano(), Over: uint32(t.Over)}
	for _, o := range t.Off {
		m.Off = append(m.Off, &api.TopologyOff{Name: []byte(o.Name), Why: []byte(o.Why)})
	}
	for _, s := range t.Spaces {
		space := &api.TopologySpace{Netns: s.Netns, Path: []byte(s.Path), Own: s.Own, Host: s.Host, Entity: exporter.EntityToWire(s.Entity)}
		for _, d := range s.Devices {
			space.Devices = append(space.Devices, deviceToWire(d, networks))
		}
		m.Spaces = append(m.Spaces, space)
	}
	return m
}

func deviceToWire(d *cni.Device, networks cni.Networks) *api.TopologyDevice {
	m := &api.TopologyDevice{
		Ifindex: d.Index, Name: []byte(d.Name), Alias: []byte(d.Alias), Kind: d.Kind, Mode: d.Mode, Mac: d.MAC, Mtu: d.MTU,
		Up: d.Up, Carrier: d.Carrier, Loopback: d.Loopback, Master: d.Link.Master, Port: d.Port,
		Under: placeToWire(d.Under), Far: placeToWire(d.Far), Unseen: d.Unseen,
		Vlan: uint32(d.VLAN), VlanProtocol: d.VLANProtocol, Table: d.Table, Bus: d.Bus, BusAddress: d.Address, VirtualFunctions: uint32(d.VFs),
		Layer: uint32(d.Layer), Confidence: uint32(d.Confidence), Why: []byte(d.Why), Behind: exporter.EntityToWire(d.Behind),
		Plugin: d.Plugin(),
	}
	if n, ok := networks.Of(d); ok {
		m.Network, m.NetworkPlugin = []byte(n.Name), []byte(n.Plugin)
	}
	for _, p := range d.Addrs {
		m.Addresses = append(m.Addresses, p.String())
	}
	if p := d.Plug; p != nil {
		m.Driver, m.SpeedMbps, m.PhysicalFunction = p.Driver, p.Speed, p.PF
	}
	if t := d.Tunnel; t != nil {
		m.Tunnel = &api.TopologyTunnel{Id: t.ID, Local: addrText(t.Local), Remote: addrText(t.Remote), Port: uint32(t.Port), External: t.External}
		for _, p := range d.Peers {
			m.Tunnel.Peers = append(m.Tunnel.Peers, p.String())
		}
	}
	if t := d.Tap; t != nil {
		m.Tap = &api.TopologyTap{Persistent: t.Persistent, Owner: t.Owner, Group: t.Group, Queues: uint32(t.Queues)}
	}
	return m
}

func placeToWire(d *cni.Device) *api.TopologyPlace {
	if d == nil {
		return nil
	}
	return &api.TopologyPlace{Netns: d.Space.Netns, Ifindex: d.Index}
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
