// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// Namespaces that go while they are being read, with devices, addresses and sockets
// in them, are no fault and leave nothing behind; those that stay are still told.
func TestNamespacesThatGoWhileTheyAreReadLeaveNothing(t *testing.T) {
	host, stays := newNetns(t, "stays0"), newNetns(t, "stays1")
	pairUp(t, host, "veth0", stays, "eth0")
	addAddress(t, stays, "eth0", "10.9.0.2/24")
	m := openMirror(t, everything)
	c := OpenCensus(m.Topology, CensusOptions{Processes: true})
	defer c.Close()
	before := len(m.Topology().Spaces)
	s := newSockets(c.log, m.Topology) // looks all the time, where the census's own rests
	done, looked := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-done:
				looked <- nil
				return
			default:
			}
			if err := s.look(); err != nil {
				looked <- err
				return
			}
		}
	}()
	gone := map[uint64]bool{}
	for i := range 60 {
		brief := newNetns(t, fmt.Sprint("brief", i))
		gone[cookieOf(t, brief)] = true
		pairUp(t, host, fmt.Sprint("b", i), brief, "eth0")
		addAddress(t, brief, "eth0", fmt.Sprintf("10.9.1.%d/24", i+1))
		dropNetns(t, brief)
	}
	close(done)
	if err := <-looked; err != nil {
		t.Errorf("looking for sockets meanwhile: %v", err)
	}
	now := eventually(t, m, "the brief ones are gone", func(now *Topology) error {
		for _, s := range now.Spaces {
			if gone[s.Netns] {
				return fmt.Errorf("%s is still there", s.Path)
			}
		}
		return nil
	})
	if len(now.Off) > 0 || before > len(now.Spaces)+20 {
		t.Errorf("got %d namespaces, %+v off; want those of before and nothing off", len(now.Spaces), now.Off)
	}
	scope := now.Domain(cookieOf(t, stays), 0)
	waitFor(t, "who stays has a name", func() bool {
		return c.Resolver().Resolve(flows.Scope{Netns: scope}, addrOf("10.9.0.2"), m.Topology().At.UnixNano()) != nil
	})
	for _, st := range c.Status() {
		if st.Err != "" && !st.Absent {
			t.Errorf("%s: %s", st.Name, st.Err)
		}
	}
}

// An end is the same Entity for as long as nothing about it changes, whatever else
// does: what was encoded of it can be remembered.
func TestEndKeepsItsEntityWhileNothingAboutItChanges(t *testing.T) {
	host, pod := newNetns(t, "khost"), newNetns(t, "kpod")
	pairUp(t, host, "veth0", pod, "eth0")
	addAddress(t, host, "veth0", "10.9.2.1/24")
	addAddress(t, pod, "eth0", "10.9.2.2/24")
	waitFor(t, "the address is usable", func() bool { return ping(t, pod, "10.9.2.1") })
	pid, at := opens(t, host, "keeper tcp=10.9.2.1:0")
	c := counted(t)
	scope := min(cookieOf(t, host), cookieOf(t, pod))
	src := netip.MustParseAddrPort("10.9.2.2:9")
	var first flows.Record
	waitFor(t, "both ends have names", func() bool {
		first = ends(c, scope, flows.ProtoTCP, src, at[0], flows.InitiatorSYN)
		return first.Source != nil && first.Destination != nil && first.Destination.PID == pid
	})
	for i := range 5 {
		was := c.topology()
		in(t, host, func(h *netlink.Handle) error {
			return h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("more", i)}})
		})
		waitFor(t, "the topology is another", func() bool { return c.topology() != was })
		c.tell()
		again := ends(c, scope, flows.ProtoTCP, src, at[0], flows.InitiatorSYN)
		if again.Source != first.Source || again.Destination != first.Destination {
			t.Fatalf("after another device: got %p and %p, want %p and %p as before: %+v", again.Source, again.Destination, first.Source, first.Destination, again.Destination)
		}
	}
}
