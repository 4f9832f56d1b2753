// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// readDeviceDrops reads the statistics of every watched device: one dump of
// links and one of queueing disciplines a namespace. A namespace that cannot be
// read has none. a.mu is held.
func (a *spaces) readDeviceDrops() {
	out := []flows.DeviceDrops{}
	for _, s := range a.byCookie {
		devices, err := s.deviceDrops()
		if err != nil {
			a.d.log.Debug("cannot read device statistics", "netns", s.name, "err", err)
			continue
		}
		out = append(out, devices...)
	}
	a.d.devices.Store(&out)
}

func (s *space) deviceDrops() ([]flows.DeviceDrops, error) {
	links, err := s.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	queues, err := s.handle.QdiscList(nil)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	dropped := map[int]uint64{}
	for _, q := range queues {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Queue != nil {
			dropped[a.LinkIndex] = uint64(a.Statistics.Queue.Drops)
		}
	}
	var out []flows.DeviceDrops
	for _, l := range links {
		attrs := l.Attrs()
		dev := s.devices[attrs.Index]
		if dev == nil || len(dev.points) == 0 || attrs.Statistics == nil {
			continue
		}
		st := attrs.Statistics
		out = append(out, flows.DeviceDrops{
			At:        flows.Point{Netns: s.cookie, Ifindex: uint32(attrs.Index)},
			Hop:       flows.Hop{Interface: attrs.Name, Netns: s.name},
			RxDropped: st.RxDropped, TxDropped: st.TxDropped, RxMissed: st.RxMissedErrors,
			RxFIFO: st.RxFifoErrors, TxFIFO: st.TxFifoErrors, Qdisc: dropped[attrs.Index],
		})
	}
	return out, nil
}
