// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/vishvananda/netlink"

// A packet that crosses a veth pair is seen in both namespaces, and is to be
// counted once. So watched namespaces that veth pairs join are one domain, named
// by the least of their cookies (the oldest namespace), and conversations are
// told apart by domain. What stays in a namespace (its loopback) has the
// namespace's own cookie.

// link notes what is at the far end of a veth pair. netlink tells the far
// namespace by a number that only this namespace knows.
func (s *space) link(dev *device, l netlink.Link) {
	far := uint64(0)
	if id := l.Attrs().NetNsID; id >= 0 && l.Type() == "veth" {
		far = s.peer(id)
	}
	if far != dev.far {
		dev.far = far
		s.all.joinDomains()
	}
}

// peer is the cookie of the watched namespace that s knows by a number; 0: none.
// The agent's own is asked for first: it is at the far end of most.
func (s *space) peer(id int) uint64 {
	if c, ok := s.peers[id]; ok && s.all.byCookie[c] != nil {
		return c
	}
	ask := func(t *space) bool {
		if t == s {
			return false
		}
		got, err := s.handle.GetNetNsIdByFd(t.fd)
		return err == nil && got == id
	}
	for _, t := range s.all.byCookie {
		if t.fd == s.all.own && ask(t) {
			s.peers[id] = t.cookie
			return t.cookie
		}
	}
	for _, t := range s.all.byCookie {
		if t.fd != s.all.own && ask(t) {
			s.peers[id] = t.cookie
			return t.cookie
		}
	}
	return 0
}

// joinDomains gives every space the least cookie that it is joined with. A pair
// is known from both ends, so that whichever namespace is watched last joins.
func (a *spaces) joinDomains() {
	least := map[uint64]uint64{}
	for c := range a.byCookie {
		least[c] = c
	}
	for changed := true; changed; {
		changed = false
		for c, s := range a.byCookie {
			for _, dev := range s.devices {
				far, watched := least[dev.far]
				if !watched || far == least[c] {
					continue
				}
				least[c] = min(far, least[c])
				least[dev.far] = least[c]
				changed = true
			}
		}
	}
	for c, s := range a.byCookie {
		s.domain.Store(least[c])
	}
}
