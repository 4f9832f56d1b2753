// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/vishvananda/netlink"

// A packet that crosses a veth pair is seen in both namespaces, and is to be
// counted once. So watched namespaces that veth pairs join are one domain, named
// by the cookie of the one that has been watched longest (so that none that joins
// later renames it, and cuts its conversations in two), and conversations are told
// apart by domain. What stays in a namespace (its loopback) has the
// namespace's own cookie.

// link notes what is at the far end of a veth pair. netlink tells the far
// namespace by a number that only this namespace knows.
func (s *space) link(dev *device, l netlink.Link) {
	far := uint64(0)
	if id := l.Attrs().NetNsID; id >= 0 && l.Type() == "veth" {
		far = s.peer(id)
	}
	was := dev.far
	if dev.far = far; was == far {
		return
	}
	if was != 0 {
		s.all.joinDomains() // they may have come apart
		return
	}
	s.all.join(s, s.all.byCookie[far])
}

// peer is the cookie of the watched namespace that s knows by a number; 0: none.
// Those that s knows by another number are not asked for. The agent's own is
// asked for first: it is at the far end of most.
func (s *space) peer(id int) uint64 {
	if c, ok := s.peers[id]; ok {
		if s.all.byCookie[c] != nil {
			return c
		}
		delete(s.peers, id)
	}
	known := map[uint64]bool{s.cookie: true}
	for _, c := range s.peers {
		known[c] = true
	}
	for _, own := range []bool{true, false} {
		for _, t := range s.all.byCookie {
			if known[t.cookie] || own != (t.fd == s.all.own) {
				continue
			}
			if got, err := s.handle.GetNetNsIdByFd(t.fd); err == nil && got == id {
				s.peers[id] = t.cookie
				return t.cookie
			}
		}
	}
	return 0
}

// join makes the domains of two namespaces one. It is nothing for all but the
// first pair between them.
func (a *spaces) join(s, far *space) {
	if far == nil || a.byCookie[s.cookie] == nil || s.domain.Load() == far.domain.Load() {
		return // one is not watched yet: when it is, its end of the pair joins
	}
	domains := map[uint64]uint64{}
	for c, t := range a.byCookie {
		domains[c] = t.domain.Load()
	}
	a.merge(domains, s.cookie, far.cookie)
	a.setDomains(domains)
}

// joinDomains gives every space its domain. A pair
// is known from both ends, so that whichever namespace is watched last joins.
func (a *spaces) joinDomains() {
	domains := map[uint64]uint64{}
	for c := range a.byCookie {
		domains[c] = c
	}
	for c, s := range a.byCookie {
		for _, dev := range s.devices {
			if a.byCookie[dev.far] != nil {
				a.merge(domains, c, dev.far)
			}
		}
	}
	a.setDomains(domains)
}

func (a *spaces) merge(domains map[uint64]uint64, one, other uint64) {
	one, other = domains[one], domains[other]
	if one == other {
		return
	}
	if a.age(one) > a.age(other) {
		one, other = other, one
	}
	for c, d := range domains {
		if d == other {
			domains[c] = one
		}
	}
}

// age orders namespaces as they were watched; one that is gone, and whose name a
// domain still has, comes first.
func (a *spaces) age(cookie uint64) uint32 {
	if s := a.byCookie[cookie]; s != nil {
		return s.number
	}
	return 0
}

func (a *spaces) setDomains(domains map[uint64]uint64) {
	for c, s := range a.byCookie {
		s.domain.Store(domains[c])
	}
	a.domains.Store(&domains)
}

// domainOf is the domain of a namespace; 0: it is not known.
func (a *spaces) domainOf(netns uint64) uint64 {
	if ask := a.d.opts.Domains; ask != nil {
		if now := ask(); now != nil && now.Domain(netns, 0) != 0 {
			return now.Domain(netns, 0)
		}
	}
	if domains := a.domains.Load(); domains != nil {
		return (*domains)[netns]
	}
	return 0
}
