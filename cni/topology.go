// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/flows"
)

// Topology is what the mirror saw at one time: devices, what they hang on and who
// is behind them. It never changes and any goroutine may read it.
type Topology struct {
	At     time.Time
	Spaces []*Space // the agent's own first, then the oldest
	Links  int      // devices in all of them
	Over   int      // devices that there are and that there was no room for
	Off    []Off

	Resyncs uint64 // times that events were lost and everything was listed again

	devices map[place]*Device
	spaces  map[uint64]*Space
	local   map[heldAddr]*Device
	domains map[uint64]uint64 // of each segment
	holders map[netip.Addr][]*Device
	unheld  bool // a tap is in use and its process is not known
}

// Off is something that could not be seen, and why.
type Off struct {
	Name string // what: a namespace's path
	Why  string // the kernel's word
}

// Space is one network namespace.
type Space struct {
	Netns      uint64        // cookie
	Path       string        // where it was found: a name, or a process of it
	Own        bool          // the agent's
	Host       bool          // the host's own
	Entity     *flows.Entity // who is in it; never nil
	Containers []Container   // in it, at most 16
	Devices    []*Device     // by ifindex

	ino        inode
	guestSince time.Time
}

// Device is a link in its place.
type Device struct {
	*Link
	*Plug                // nil: no real device
	Space *Space         // that it is in
	Addrs []netip.Prefix // its own, at most 256
	Peers []netip.Addr   // of a VXLAN device without a fixed one, as its forwarding table has them; at most 64

	Master *Device // bridge, bond or VRF that it is a port of; nil: none, or not seen
	Under  *Device // that it sends through; nil: none, or not seen
	Far    *Device // the other end of a pair; nil: no pair, or not seen
	Unseen string  // why Under or Far is nil although there is one; empty: it is not

	// Layer is what a packet runs in at the device, with the confidence in percent and
	// the evidence in words.
	Layer      flows.Layer
	Confidence uint8
	Why        string

	// Behind is who the device leads to: the namespace at the far end of a pair, the
	// virtual machine or process that has the tap open. nil: nobody in particular.
	Behind *flows.Entity

	segment uint64
}

type place struct {
	netns uint64
	index uint32
}

type heldAddr struct {
	netns uint64
	addr  netip.Addr
}

// Device is the device with an ifindex in the namespace with a cookie; nil: not known.
func (t *Topology) Device(netns uint64, ifindex uint32) *Device {
	return t.devices[place{netns, ifindex}]
}

// Space is the namespace with a cookie; nil: not known.
func (t *Topology) Space(netns uint64) *Space { return t.spaces[netns] }

// Local is the device that has an address of its own in one namespace; nil: none.
func (t *Topology) Local(netns uint64, a netip.Addr) *Device {
	return t.local[heldAddr{netns, a.WithZone("").Unmap()}]
}

// Holders are the devices of all namespaces that have an address: more than one
// where tenants overlap. The slice is not to be written to.
func (t *Topology) Holders(a netip.Addr) []*Device { return t.holders[a.WithZone("").Unmap()] }

// snapshot is the picture as it is now.
func (m *Mirror) snapshot() *Topology {
	t := &Topology{
		At: time.Now(), Links: m.links, Resyncs: m.resyncs, devices: make(map[place]*Device, m.links), spaces: make(map[uint64]*Space, len(m.spaces)),
		local: make(map[heldAddr]*Device, m.links), holders: make(map[netip.Addr][]*Device, m.links),
	}
	ordered := m.byAge(nil)
	for _, s := range ordered {
		t.addSpace(m, s)
	}
	for _, s := range slices.Backward(ordered) {
		t.connect(m, s)
	}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			t.pair(d)
		}
	}
	m.domains = t.segments(m.domains)
	b := classifier{t, m.people, m.opts, tapNames(t)}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			b.classify(d)
		}
	}
	for ino, why := range m.refused {
		t.Off = append(t.Off, Off{m.people.found[ino], why})
	}
	slices.SortFunc(t.Off, func(a, b Off) int { return cmp.Compare(a.Name, b.Name) })
	return t
}

// byAge is all spaces but one: the agent's own, then as they were opened.
func (m *Mirror) byAge(but *space) []*space {
	all := make([]*space, 0, len(m.spaces))
	for _, s := range m.spaces {
		if s != but {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *space) int {
		switch {
		case a.fd == m.own:
			return -1
		case b.fd == m.own:
			return 1
		}
		return cmp.Compare(a.opened, b.opened)
	})
	return all
}

func (t *Topology) addSpace(m *Mirror, from *space) {
	s := &Space{Netns: from.cookie, Path: from.path, Own: from.fd == m.own, Host: from.ino == m.people.host, ino: from.ino}
	if c := m.people.spaces[from.ino]; c != nil {
		s.Entity, s.Containers, s.guestSince = c.entity, c.containers, c.guestSince
	} else {
		s.Entity = m.people.describe(from.ino, &crowd{}, nil)
	}
	t.Spaces, t.spaces[s.Netns] = append(t.Spaces, s), s
	t.Over += from.over
	devices := make([]Device, len(from.links))
	s.Devices = make([]*Device, 0, len(from.links))
	for index, l := range from.links {
		d := &devices[len(s.Devices)]
		*d = Device{Link: l, Plug: from.plugs[index], Space: s, Addrs: from.addrs[index], Peers: from.tunnels[index]}
		s.Devices = append(s.Devices, d)
		t.devices[place{s.Netns, index}] = d
		for _, p := range d.Addrs {
			a := p.Addr()
			t.local[heldAddr{s.Netns, a}] = d
			if !a.IsLoopback() && !a.IsLinkLocalUnicast() { // which everybody has
				t.holders[a] = append(t.holders[a], d)
			}
		}
	}
	slices.SortFunc(s.Devices, func(a, b *Device) int { return cmp.Compare(a.Index, b.Index) })
}

// connect finds what each device of a namespace hangs on. The two ends of a pair
// name each other, so it is enough when one namespace knows the other: the agent's
// own, which may have thousands, comes last and is seldom asked. A pair's second
// end is announced before it has a first: it may not name it yet.
func (t *Topology) connect(m *Mirror, from *space) {
	for _, d := range t.spaces[from.cookie].Devices {
		if d.Link.Master != 0 {
			d.Master = t.Device(from.cookie, d.Link.Master)
		}
		if d.Lower == 0 {
			continue
		}
		netns := from.cookie
		if d.LowerID >= 0 {
			if d.Far != nil {
				continue
			}
			netns = m.peer(from, d.LowerID)
		}
		other := t.Device(netns, d.Lower)
		switch {
		case other == nil:
		case !d.Link.pair():
			d.Under = other
		case other.Link.pair() && (other.Lower == d.Index || other.Lower == 0):
			d.Far, other.Far = other, d
		}
	}
}

// pair says why an end is not seen.
func (t *Topology) pair(d *Device) {
	if d.Lower == 0 || d.Under != nil || d.Far != nil {
		return
	}
	if d.Unseen = "it is not among the devices that are mirrored"; d.LowerID >= 0 {
		d.Unseen = fmt.Sprintf("it is in network namespace id %d, which has no name and no process here", d.LowerID)
	}
}

// tapNames counts the taps of each name in all namespaces: a process says the name
// of its tap and not the namespace.
func tapNames(t *Topology) map[string]int {
	all := map[string]int{}
	for _, s := range t.Spaces {
		for _, d := range s.Devices {
			if d.Tap != nil {
				all[d.Name]++
			}
		}
	}
	return all
}
