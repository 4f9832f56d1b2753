// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"weft/exporter/api"
	"weft/flows"
)

// sourcesToWire adds to m what l has beside points and sinks.
func sourcesToWire(m *api.Ledger, l *flows.Ledger) {
	m.TcpUntracked, m.TcpOverflowed, m.TcpLost = l.TCP.Untracked, l.TCP.Overflowed, l.TCP.Lost
	m.SocketsUnmatched = l.SocketsUnmatched
	for _, s := range l.Sources {
		m.Sources = append(m.Sources, &api.SourceAccount{
			Name: s.Name, Seen: s.Seen, Drained: s.Drained, Lost: s.Lost, Pending: s.Pending, Missed: s.Missed, Unaccounted: s.Unaccounted,
		})
	}
	for _, d := range l.Devices {
		m.Devices = append(m.Devices, &api.DeviceDrops{
			At: PointToWire(d.At, d.Hop), RxDropped: d.RxDropped, TxDropped: d.TxDropped,
			RxMissed: d.RxMissed, RxFifo: d.RxFIFO, TxFifo: d.TxFIFO, Qdisc: d.Qdisc,
		})
	}
	for _, d := range l.Unseen {
		m.Unseen = append(m.Unseen, &api.DeviceFrames{At: PointToWire(d.At, flows.Hop{}), Counted: d.Counted, Unseen: d.Unseen, RxSegments: d.Segments[0], TxSegments: d.Segments[1]})
	}
}

// sourcesFromWire is the other way.
func sourcesFromWire(l *flows.Ledger, m *api.Ledger) {
	l.TCP = flows.TCPAccount{Untracked: m.GetTcpUntracked(), Overflowed: m.GetTcpOverflowed(), Lost: m.GetTcpLost()}
	l.SocketsUnmatched = m.GetSocketsUnmatched()
	for _, s := range m.GetSources() {
		l.Sources = append(l.Sources, flows.SourceAccount{
			Name: s.GetName(), Seen: s.GetSeen(), Drained: s.GetDrained(), Lost: s.GetLost(), Pending: s.GetPending(), Missed: s.GetMissed(), Unaccounted: s.GetUnaccounted(),
		})
	}
	for _, d := range m.GetDevices() {
		at, hop := PointFromWire(d.GetAt())
		l.Devices = append(l.Devices, flows.DeviceDrops{
			At: at, Hop: hop, RxDropped: d.GetRxDropped(), TxDropped: d.GetTxDropped(),
			RxMissed: d.GetRxMissed(), RxFIFO: d.GetRxFifo(), TxFIFO: d.GetTxFifo(), Qdisc: d.GetQdisc(),
		})
	}
	for _, d := range m.GetUnseen() {
		at, _ := PointFromWire(d.GetAt())
		l.Unseen = append(l.Unseen, flows.DeviceFrames{At: at, Counted: d.GetCounted(), Unseen: d.GetUnseen(), Segments: [2]bool{d.GetRxSegments(), d.GetTxSegments()}})
	}
}
