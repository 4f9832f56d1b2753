// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"

	"weft/flows"
)

// paravirtual is the drivers of devices that a hypervisor makes up.
var paravirtual = map[string]string{
	"virtio_net": "virtio", "vmxnet3": "VMware", "ena": "AWS Nitro", "hv_netvsc": "Hyper-V", "mana": "Azure",
	"gve": "Google", "vif": "Xen", "xen-netfront": "Xen", "ibmveth": "PowerVM",
}

// virtualFunctions is the drivers that only run an SR-IOV virtual function: where
// the physical one is not seen, it was passed into this machine.
var virtualFunctions = map[string]bool{
	"iavf": true, "ixgbevf": true, "igbvf": true, "cxgb4vf": true, "fm10k": true, "liquidio_vf": true, "nicvf": true, "rvu_nicvf": true,
}

// classifier gives the devices of a topology their layers.
type classifier struct {
	t      *Topology
	people *people
	opts   Options
	taps   map[string]int // of each name
}

// classify says what a packet runs in at a device, the strongest evidence first:
// who has it open, what it is plugged into, whose namespace it is in.
func (c *classifier) classify(d *Device) {
	if d.Far != nil && d.Far.Space != d.Space && !d.Far.Space.Host {
		d.Behind = d.Far.Space.Entity
	}
	switch {
	case c.held(d), c.plugged(d):
		return
	}
	who := d.Space.Entity
	d.Layer, d.Confidence, d.Why = who.Layer, who.Confidence, who.Why
}

// held classifies by the process that has the device open.
func (c *classifier) held(d *Device) bool {
	var all []*holder
	switch {
	case d.Tap != nil:
		all = c.people.taps[d.Name]
	case d.Kind == "macvtap" || d.Kind == "ipvtap":
		all = c.people.macvtaps[d.Index]
	default:
		return false
	}
	h, sure, why := c.choose(d, all)
	if h == nil {
		if d.Tap != nil && (d.Carrier || d.Tap.Queues > 0) {
			c.t.unheld = true
		}
		return false
	}
	e := *h.entity
	if e.Confidence = min(e.Confidence, sure); why != "" {
		e.Why += "; " + why
	}
	d.Behind = &e
	if e.Layer == flows.LayerHost {
		return false // a VPN, say: its packets stay where they are
	}
	d.Layer, d.Confidence, d.Why = e.Layer, e.Confidence, e.Why
	return true
}

// choose is which of the processes that name a device has this one. A name says
// nothing of the namespace: a process in the device's own is believed most.
func (c *classifier) choose(d *Device, all []*holder) (h *holder, sure uint8, why string) {
	var here, far []*holder
	for _, h := range all {
		if h.ns == d.Space.ino {
			here = append(here, h)
		} else {
			far = append(far, h)
		}
	}
	sure = 97
	if len(here) == 0 {
		if d.Tap != nil && c.taps[d.Name] > 1 {
			return nil, 0, ""
		}
		here, sure, why = far, 70, "it is in another network namespace, and the name is the only evidence"
	}
	for _, one := range here {
		switch {
		case h == nil || one.guest && !h.guest:
			h = one
		case one.guest == h.guest:
			sure, why = min(sure, 40), fmt.Sprintf("processes %d and %d both have it open", h.pid, one.pid)
		}
	}
	return h, sure, why
}

// plugged classifies by the bus that the device is on.
func (c *classifier) plugged(d *Device) bool {
	if d.Plug == nil {
		return false
	}
	where := d.Bus + " " + d.Address
	d.Layer, d.Confidence = flows.LayerHardware, 90
	switch by := paravirtual[d.Driver]; {
	case by != "":
		d.Layer, d.Why = flows.LayerParavirtual, fmt.Sprintf("driver %s of %s on %s", d.Driver, by, where)
		if d.Guest {
			d.Confidence, d.Why = 99, d.Why+", and the CPU says that a hypervisor is below"
		}
	case d.Bus == "virtio" || d.Bus == "vmbus" || d.Bus == "xen":
		d.Layer, d.Why = flows.LayerParavirtual, "on bus "+where
	case d.PF != "":
		d.Confidence, d.Why = 99, fmt.Sprintf("driver %s, SR-IOV virtual function %s of %s", d.Driver, d.Address, d.PF)
	case virtualFunctions[d.Driver]:
		d.Why = fmt.Sprintf("driver %s: an SR-IOV virtual function, its physical function is not in this machine", d.Driver)
	case d.Driver == "":
		d.Confidence, d.Why = 60, "on "+where+", driver not known"
	default:
		d.Why = fmt.Sprintf("driver %s on %s", d.Driver, where)
		if d.Guest {
			d.Confidence, d.Why = 70, d.Why+", but a hypervisor is below: it may be emulated"
		}
	}
	if d.Bus == "netdevsim" {
		d.Layer, d.Confidence, d.Why = d.Space.Entity.Layer, 80, "netdevsim, which only pretends to be a device"
	}
	return true
}
