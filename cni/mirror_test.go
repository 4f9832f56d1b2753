// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// A pair of devices in two namespaces is seen from both ends, with its addresses,
// however late either comes; and nothing of it stays when it is gone.
func TestPairIsSeenFromBothEnds(t *testing.T) {
	early := newNetns(t, "early")
	m := openMirror(t, everything)
	late := newNetns(t, "late")
	pairUp(t, early, "one", late, "two")
	addAddress(t, early, "one", "10.79.0.1/24")
	addAddress(t, late, "two", "10.79.0.2/24")
	addAddress(t, late, "two", "fd00:79::2/64")
	a, b := cookieOf(t, early), cookieOf(t, late)
	now := eventually(t, m, "both ends know each other", func(now *Topology) error {
		one, two := now.named(a, "one"), now.named(b, "two")
		if one == nil || two == nil || one.Far != two || two.Far != one {
			return fmt.Errorf("one is %+v, two is %+v", one, two)
		}
		if now.Local(b, netip.MustParseAddr("fd00:79::2")) != two || now.Local(a, netip.MustParseAddr("10.79.0.1")) != one {
			return fmt.Errorf("addresses are %v and %v", one.Addrs, two.Addrs)
		}
		return nil
	})
	one := now.named(a, "one")
	if one.Kind != "veth" || one.Behind != one.Far.Space.Entity || one.Layer != flows.LayerContainer || one.Unseen != "" {
		t.Errorf("one has kind %q, behind %+v, layer %s, unseen %q; want a veth with who is at its far end, in a namespace of its own",
			one.Kind, one.Behind, one.Layer, one.Unseen)
	}
	if got := now.Device(a, one.Index); got != one {
		t.Errorf("by ifindex: got %v, want %v", got, one)
	}
	if got := now.Local(a, netip.MustParseAddr("10.79.0.2")); got != nil {
		t.Errorf("the far end's address is found in this namespace too, on %s", got.Name)
	}
	dropNetns(t, late)
	eventually(t, m, "the pair is gone", func(now *Topology) error {
		if now.Space(b) != nil || now.named(a, "one") != nil {
			return errors.New("it is still there")
		}
		return nil
	})
}

// Two tenants with the same address are told apart by their namespace.
func TestEqualAddressesOfTwoTenantsStayApart(t *testing.T) {
	m := openMirror(t, everything)
	hub, left, right := newNetns(t, "hub"), newNetns(t, "left"), newNetns(t, "right")
	pairUp(t, hub, "toleft", left, "eth0")
	pairUp(t, hub, "toright", right, "eth0")
	same := netip.MustParseAddr("10.79.1.2")
	addAddress(t, left, "eth0", "10.79.1.2/24")
	addAddress(t, right, "eth0", "10.79.1.2/24")
	l, r := cookieOf(t, left), cookieOf(t, right)
	eventually(t, m, "each has its own", func(now *Topology) error {
		a, b := now.Local(l, same), now.Local(r, same)
		if a == nil || b == nil || a == b || a.Space.Netns != l || b.Space.Netns != r {
			return fmt.Errorf("left %v, right %v", a, b)
		}
		if got := now.Holders(same); len(got) != 2 {
			return fmt.Errorf("%d devices hold it, want 2", len(got))
		}
		return nil
	})
}

// A pair whose other end is in a namespace with neither name nor process says so.
func TestUnseenEndIsSaid(t *testing.T) {
	here, hidden := newNetns(t, "here"), newNetns(t, "hidden")
	pairUp(t, here, "one", hidden, "two")
	held, err := os.Open(hidden) // keeps it alive
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	dropNetns(t, hidden)
	m := openMirror(t, everything)
	d := m.Topology().named(cookieOf(t, here), "one")
	if d == nil || d.Far != nil || d.Unseen == "" {
		t.Errorf("got %+v, want a device whose far end is said to be out of sight", d)
	}
}

// Devices over the bound are counted, and found when others make room.
func TestLinksOverTheBoundAreCounted(t *testing.T) {
	ns := newNetns(t, "many")
	const pairs = 20
	in(t, ns, func(h *netlink.Handle) error {
		for i := range pairs {
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("a", i)}, PeerName: fmt.Sprint("b", i)}); err != nil {
				return err
			}
		}
		return nil
	})
	all := openMirror(t, everything) // sees what others on this machine do meanwhile, too
	opts := everything
	opts.MaxLinks = all.Topology().Links - pairs
	m := openMirror(t, opts)
	adds := func(over bool) func(*Topology) error {
		return func(now *Topology) error {
			total := all.Topology().Links
			if now.Links != min(total, opts.MaxLinks) || now.Links+now.Over != total || over != (now.Over > 0) {
				return fmt.Errorf("got %d devices and %d over the bound %d, want together %d", now.Links, now.Over, opts.MaxLinks, total)
			}
			return nil
		}
	}
	eventually(t, m, "the bound holds and the rest is counted", adds(true))
	in(t, ns, func(h *netlink.Handle) error {
		for i := range pairs {
			l, err := h.LinkByName(fmt.Sprint("a", i))
			if err != nil {
				return err
			}
			if err := h.LinkDel(l); err != nil {
				return err
			}
		}
		return nil
	})
	eventually(t, m, "there is room for all", adds(false))
}

// When the kernel had no room for an event, everything is listed again.
func TestLostEventsAreMadeUpFor(t *testing.T) {
	needRoot(t)
	ns := newNetns(t, "flood")
	m, err := read(everything) // and nobody reads its events
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	const devices = 300
	in(t, ns, func(h *netlink.Handle) error {
		for i := range devices {
			if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: named(fmt.Sprint("br", i))}); err != nil {
				return err
			}
		}
		l, err := h.LinkByName("br0")
		for i := 0; i < 3000 && err == nil; i++ { // 2 events of more than a kilobyte each
			if err = h.LinkSetUp(l); err == nil {
				err = h.LinkSetDown(l)
			}
		}
		return err
	})
	s := m.space(cookieOf(t, ns))
	before := len(s.links)
	m.read(s)
	for range 100 {
		m.read(s)
	}
	if len(s.links) != before+devices || s.stale {
		t.Errorf("%d devices before and %d after, stale %t; want %d more", before, len(s.links), s.stale, devices)
	}
	if m.resyncs == 0 {
		t.Error("no event was lost: the test has shown nothing")
	}
}
