// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Peers of tunnels are asked for: their events come with those of every neighbour,
// which a busy host has thousands of.
const (
	peersEvery = 10 * time.Second
	maxPeers   = 64 // of one device; further ones are left out
)

// readPeers asks the forwarding table of each VXLAN device that was told no peer.
func (m *Mirror) readPeers(s *space) {
	for index, l := range s.links {
		if l.Kind != "vxlan" || l.Tunnel.External {
			continue
		}
		peers, err := m.peersOf(s, index)
		if err != nil && !gone(err) {
			m.opts.Log.Debug("cannot list the peers of a tunnel", "iface", l.Name, "netns", s.path, "err", err)
		}
		if err == nil && !slices.Equal(peers, s.tunnels[index]) {
			s.tunnels[index], m.dirty = peers, true
		}
	}
}

func (m *Mirror) peersOf(s *space, index uint32) (peers []netip.Addr, err error) {
	err = m.ask(s, func(h *netlink.Handle) error {
		all, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(int(index), unix.AF_BRIDGE) })
		if err != nil {
			return fmt.Errorf("list the forwarding table of ifindex %d: %w", index, err)
		}
		for _, n := range all {
			if a := ip(n.IP); a.IsValid() && len(peers) < maxPeers && !slices.Contains(peers, a) {
				peers = append(peers, a)
			}
		}
		slices.SortFunc(peers, netip.Addr.Compare)
		return nil
	})
	return peers, err
}
