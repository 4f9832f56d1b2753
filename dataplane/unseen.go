// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// unseenEvery is how often devices that are new are asked; of the others the figure hardly moves. The second reading
// comes soon, since it tells how they count.
const (
	unseenEvery = 30 * time.Second
	unseenSoon  = 3 * time.Second
)

// unseenDue reports whether devices are to be asked now.
func (a *spaces) unseenDue() bool {
	every := unseenEvery
	if a.unseenReads < 2 {
		every = unseenSoon
	}
	return a.unseenReads == 0 || time.Since(a.unseenRead) >= every
}

// readUnseen finds what passed each device before it was watched: what it has counted, less what its points
// have. a.mu is held.
func (a *spaces) readUnseen() {
	a.unseenRead = time.Now()
	a.unseenReads++
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
			d := flows.DeviceFrames{At: flows.Point{Netns: s.cookie, Ifindex: uint32(attrs.Index)}}
			packets, frames := a.d.points.passed(dev.points)
			for i, counted := range [2]uint64{attrs.Statistics.RxPackets, attrs.Statistics.TxPackets} {
				c := &dev.counts[i]
				c.read(counted, packets[i], frames[i], i == 0 && dev.class == flows.ClassNIC)
				d.Counted += counted
				d.Unseen += c.unseen()
				d.Segments[i] = c.segments
			}
			out = append(out, d)
		}
	}
	a.d.unseen.Store(&out)
}

// passed is what TC points have seen of what the device received and sent: packets, and frames, of which a GSO frame is one.
func (t *pointTable) passed(points []*point) (packets, frames [2]uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range points {
		i := 0
		switch p.at.Hook {
		case flows.HookXDP:
			continue
		case flows.HookEgress:
			i = 1
		}
		acct := t.read(p.id)
		packets[i] += minus(acct.After, p.base.After).Packets
		frames[i] = packets[i] - minus(acct.GSO, p.base.GSO).Packets
	}
	return packets, frames
}

// counts are what a device and its points have counted in one direction, as last read.
type counts struct {
	known                    bool
	counted, packets, frames uint64
	segments                 bool // the device counts each segment of a GSO frame
}

// read notes new figures, and how the device counts where GSO frames passed since the last ones. Before that
// it is guessed.
func (c *counts) read(counted, packets, frames uint64, guess bool) {
	if !c.known {
		c.segments = guess
	} else if p, f := packets-c.packets, frames-c.frames; p != f && packets > c.packets { // else it is watched anew
		n := counted - c.counted
		c.segments = apart(n, p) < apart(n, f)
	}
	c.known, c.counted, c.packets, c.frames = true, counted, packets, frames
}

func apart(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// unseen is what the device has counted and no point saw.
func (c *counts) unseen() int64 {
	if c.segments {
		return int64(c.counted - c.packets)
	}
	return int64(c.counted - c.frames)
}
