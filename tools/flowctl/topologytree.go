// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// tree draws every namespace with its devices: the ports of a bridge or bond under
// it, what sends through a device under that.
func (d *topologyDocument) tree(wide bool) []byte {
	var b bytes.Buffer
	for i := range d.Namespaces {
		n := &d.Namespaces[i]
		roots, under := n.branches(wide)
		if len(roots) == 0 && !n.Own {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(visible(n.title()) + n.Entity.sure())
		if wide {
			b.WriteString(visible(": " + n.Entity.Reason))
		}
		b.WriteByte('\n')
		d.branch(&b, n, "", roots, under, wide)
	}
	if d.Over > 0 {
		fmt.Fprintf(&b, "\n%d more devices: the agent has no room for them\n", d.Over)
	}
	for _, o := range d.Off {
		fmt.Fprintf(&b, "\nnot read: %s: %s\n", visible(o.Name), visible(o.Err))
	}
	return b.Bytes()
}

// branches are the devices that hang on no other of the namespace, and those that
// hang on each.
func (n *namespaceDocument) branches(wide bool) (roots []*linkDocument, under map[uint32][]*linkDocument) {
	under = map[uint32][]*linkDocument{}
	here := map[uint32]*linkDocument{}
	for i := range n.Devices {
		here[n.Devices[i].Ifindex] = &n.Devices[i]
	}
	parent := func(d *linkDocument) uint32 {
		switch {
		case here[d.Master] != nil:
			return d.Master
		case d.Under != nil && d.Under.Netns == n.Netns && here[d.Under.Ifindex] != nil:
			return d.Under.Ifindex
		}
		return 0
	}
	for i := range n.Devices {
		d := &n.Devices[i]
		if d.Loopback && !wide {
			continue
		}
		up, steps := parent(d), 0
		for p := up; p != 0 && steps <= len(here); steps++ { // a picture taken while they moved may have a circle
			p = parent(here[p])
		}
		if up == 0 || steps > len(here) {
			roots = append(roots, d)
			continue
		}
		under[up] = append(under[up], d)
	}
	return roots, under
}

func (d *topologyDocument) branch(b *bytes.Buffer, n *namespaceDocument, indent string, devices []*linkDocument, under map[uint32][]*linkDocument, wide bool) {
	for i, dev := range devices {
		mark, more := "├─ ", "│  "
		if i == len(devices)-1 {
			mark, more = "└─ ", "   "
		}
		b.WriteString(indent + mark + visible(d.line(n, dev, wide)) + "\n")
		d.branch(b, n, indent+more, under[dev.Ifindex], under, wide)
	}
}

// line is one device: what it is, what it leads to, and its layer when that is not
// its namespace's.
func (d *topologyDocument) line(n *namespaceDocument, dev *linkDocument, wide bool) string {
	text := dev.Interface
	if about := d.about(n, dev); len(about) > 0 {
		text += "  " + strings.Join(about, ", ")
	}
	switch far := d.device(dev.Far); {
	case far != nil && far.netns == n.Netns:
		text += " ⇄ " + far.Interface
	case far != nil:
		text += " ⇄ " + far.Interface + " in " + d.spaces[far.netns].title()
	case dev.Behind != nil:
		text += " → " + dev.Behind.who() + dev.Behind.sure()
	case dev.Unseen != "" && (dev.Kind == "veth" || dev.Kind == "netkit"):
		text += " ⇄ ?: " + dev.Unseen
	}
	if n.Entity == nil || dev.Layer != n.Entity.Layer {
		text += "  [" + dev.Layer + percent(dev.Confidence) + "]"
	}
	if wide && (n.Entity == nil || dev.Reason != n.Entity.Reason) {
		text += ": " + dev.Reason
	}
	return text
}

// about is what a device is.
func (d *topologyDocument) about(n *namespaceDocument, dev *linkDocument) []string {
	var about []string
	add := func(format string, values ...any) { about = append(about, fmt.Sprintf(format, values...)) }
	switch {
	case dev.Kind != "" && dev.Mode != "":
		add("%s %s", dev.Kind, dev.Mode)
	case dev.Kind != "":
		add("%s", dev.Kind)
	case dev.Driver != "":
		add("%s", dev.Driver)
	}
	if dev.Plugin != "" {
		add("of %s", dev.Plugin)
	}
	if dev.Network != "" || dev.NetPlugin != "" {
		add("network %s", strings.TrimSpace(dev.Network+" "+dev.NetPlugin))
	}
	if dev.Speed > 0 {
		add("%d Mbit/s", dev.Speed)
	}
	if dev.VLAN != 0 {
		add("id %d", dev.VLAN)
		if dev.VLANProtocol != "802.1q" { // what nobody need be told
			add("%s", dev.VLANProtocol)
		}
	}
	if dev.Table != 0 {
		add("table %d", dev.Table)
	}
	if t := dev.Tunnel; t != nil {
		if t.ID != 0 {
			add("%s %d", map[bool]string{true: "key", false: "VNI"}[strings.Contains(dev.Kind, "gre")], t.ID)
		}
		if t.External {
			add("peers chosen per packet")
		}
		if t.Remote != "" {
			add("to %s", t.Remote)
		}
		others := slices.DeleteFunc(slices.Clone(t.Peers), func(p string) bool { return p == t.Remote })
		if len(others) > 4 {
			add("to %s and %d more", strings.Join(others[:4], ", "), len(others)-4)
		} else if len(others) > 0 {
			add("to %s", strings.Join(others, ", "))
		}
		if t.Local != "" {
			add("from %s", t.Local)
		}
	}
	addresses := slices.DeleteFunc(slices.Clone(dev.Addresses), func(a string) bool { return strings.HasPrefix(a, "fe80:") }) // all have one
	about = append(about, addresses[:min(len(addresses), 4)]...)
	if more := len(addresses) - 4; more > 0 {
		add("%d more addresses", more)
	}
	if dev.Port != "" {
		add("%s", dev.Port)
	}
	if under := d.device(dev.Under); under != nil && (dev.Master != 0 || under.netns != n.Netns) {
		on := "on " + under.Interface
		if under.netns != n.Netns {
			on += " in " + d.spaces[under.netns].title()
		}
		add("%s", on)
	}
	if !dev.Up {
		add("down")
	}
	return slices.DeleteFunc(about, func(s string) bool { return s == "" })
}

func (d *topologyDocument) device(p *placeDocument) *linkDocument {
	if p == nil {
		return nil
	}
	return d.devices[*p]
}

// sure is the confidence when it is worth a word.
func (e *entityDocument) sure() string {
	if e == nil || e.Confidence >= 90 {
		return ""
	}
	return fmt.Sprintf(" (%d %%)", e.Confidence)
}

func percent(n uint32) string {
	if n >= 90 {
		return ""
	}
	return fmt.Sprintf(" %d %%", n)
}
