// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// unseenEvery is how often devices that are new are asked; of the others the figure hardly moves.
const unseenEvery = 30 * time.Second

// readUnseen finds what passed each device before it was watched: what it has counted, less what its points
// have. a.mu is held.
func (a *spaces) readUnseen() {
	out := []flows.DeviceFrames{}
	for _, s := range a.byCookie {
		links, err := s.handle.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			a.d.log.Debug("cannot read device statistics", "netns", s.name, "err", err)
			continue
		}
		for _, l := range links {
			attrs := l.Attrs()
			dev := s.devices[attrs.Index]
			if dev == nil || dev.on == nil || attrs.Statistics == nil {
				continue
			}
			counted := attrs.Statistics.RxPackets + attrs.Statistics.TxPackets
			out = append(out, flows.DeviceFrames{
				At: flows.Point{Netns: s.cookie, Ifindex: uint32(attrs.Index)}, Counted: counted, Unseen: int64(counted) - a.d.points.frames(dev.points),
			})
		}
	}
	a.d.unseen.Store(&out)
}

// frames is what TC points have seen, as devices count it: a GSO frame is one.
func (t *pointTable) frames(points []*point) (n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range points {
		if p.at.Hook == flows.HookXDP {
			continue
		}
		acct := t.read(p.id)
		n += int64(minus(acct.After, p.base.After).Packets - minus(acct.GSO, p.base.GSO).Packets)
	}
	return n
}
