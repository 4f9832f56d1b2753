// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/exporter/api"
	"weft/flows"
)

// toWire writes r into m and reuses what m holds. Hops' times are written as
// distances from the record's, which are mostly zero and then cost nothing.
func toWire(m *api.Record, r *flows.Record) {
	hops := m.Hops[:0]
	m.SourceAddress = addrBytes(m.SourceAddress[:0], r.Key.Src.Addr())
	m.DestinationAddress = addrBytes(m.DestinationAddress[:0], r.Key.Dst.Addr())
	m.SourcePort, m.DestinationPort = uint32(r.Key.Src.Port()), uint32(r.Key.Dst.Port())
	m.Protocol = uint32(r.Key.Proto)
	m.Netns, m.Vlan, m.InnerVlan = r.Scope.Netns, uint32(r.Scope.VLAN.Outer), uint32(r.Scope.VLAN.Inner)
	m.Initiator, m.EndReason = uint32(r.Initiator), uint32(r.EndReason)
	start, end := nanos(r.Start), nanos(r.End)
	m.Start, m.Length, m.NoEnd = start, end-start, r.End.IsZero()
	m.Packets, m.Bytes = r.Packets, r.Bytes
	m.ReversePackets, m.ReverseBytes = r.ReversePackets, r.ReverseBytes
	m.TcpFlags, m.ReverseTcpFlags = uint32(r.TCPFlags), uint32(r.ReverseTCPFlags)
	m.Fragment, m.Dscp, m.ConnectionId = r.Fragment, uint32(r.DSCP), r.ConnectionID
	for i := range r.Hops {
		if len(hops) < cap(hops) {
			hops = hops[:len(hops)+1]
		} else {
			hops = append(hops, nil)
		}
		if hops[i] == nil {
			hops[i] = &api.Hop{}
		}
		hopToWire(hops[i], &r.Hops[i], start, end)
	}
	m.Hops = hops
	m.Nat = natToWire(r.NAT)
	m.SamplingRate, m.Redacted = r.SamplingRate, r.Redacted
	healthToWire(m, r)
}

func natToWire(n *flows.NAT) *api.NAT {
	if n == nil {
		return nil
	}
	return &api.NAT{
		SourceAddress: addrBytes(nil, n.Source.Addr()), SourcePort: uint32(n.Source.Port()),
		DestinationAddress: addrBytes(nil, n.Destination.Addr()), DestinationPort: uint32(n.Destination.Port()), Basis: uint32(n.Basis),
	}
}

func natFromWire(m *api.NAT) *flows.NAT {
	if m == nil {
		return nil
	}
	return &flows.NAT{
		Source:      netip.AddrPortFrom(bytesAddr(m.SourceAddress), uint16(m.SourcePort)),
		Destination: netip.AddrPortFrom(bytesAddr(m.DestinationAddress), uint16(m.DestinationPort)), Basis: flows.NATBasis(m.Basis),
	}
}

func hopToWire(m *api.Hop, h *flows.HopCount, start, end int64) {
	m.Netns, m.Ifindex, m.Hook = h.At.Netns, h.At.Ifindex, uint32(h.At.Hook)
	m.Interface = append(m.Interface[:0], h.Hop.Interface...)
	m.NetnsName = append(m.NetnsName[:0], h.Hop.Netns...)
	m.Reverse, m.Chosen, m.Nat, m.Layer = h.Reverse, h.Chosen, uint32(h.NAT), uint32(h.Layer)
	m.Packets, m.Bytes = h.Packets, h.Bytes
	m.First, m.NoFirst = nanos(h.First)-start, h.First.IsZero()
	m.Last, m.NoLast = end-nanos(h.Last), h.Last.IsZero()
}

// fromWire is the inverse of toWire. Every time is UTC; what cannot be an
// address becomes the zero address.
func fromWire(m *api.Record) flows.Record {
	end := m.Start + m.Length
	r := flows.Record{
		Scope: flows.Scope{Netns: m.Netns, VLAN: flows.VLAN{Outer: uint16(m.Vlan), Inner: uint16(m.InnerVlan)}},
		Key: flows.Key{
			Src:   netip.AddrPortFrom(bytesAddr(m.SourceAddress), uint16(m.SourcePort)),
			Dst:   netip.AddrPortFrom(bytesAddr(m.DestinationAddress), uint16(m.DestinationPort)),
			Proto: uint8(m.Protocol),
		},
		Initiator: flows.InitiatorBasis(m.Initiator), EndReason: flows.EndReason(m.EndReason),
		Start: wall(m.Start, m.Start == 0), End: wall(end, m.NoEnd),
		Packets: m.Packets, Bytes: m.Bytes, ReversePackets: m.ReversePackets, ReverseBytes: m.ReverseBytes,
		TCPFlags: uint8(m.TcpFlags), ReverseTCPFlags: uint8(m.ReverseTcpFlags),
		Fragment: m.Fragment, DSCP: uint8(m.Dscp), ConnectionID: m.ConnectionId,
		SamplingRate: m.SamplingRate, Redacted: m.Redacted,
	}
	if len(m.Hops) > 0 {
		r.Hops = make([]flows.HopCount, len(m.Hops))
	}
	for i, h := range m.Hops {
		r.Hops[i] = flows.HopCount{
			At:  flows.Point{Netns: h.Netns, Ifindex: h.Ifindex, Hook: flows.Hook(h.Hook)},
			Hop: flows.Hop{Interface: string(h.Interface), Netns: string(h.NetnsName)},
			NAT: flows.NATStage(h.Nat), Layer: flows.Layer(h.Layer), Reverse: h.Reverse, Chosen: h.Chosen, Packets: h.Packets, Bytes: h.Bytes,
			First: wall(m.Start+h.First, h.NoFirst), Last: wall(end-h.Last, h.NoLast),
		}
	}
	r.NAT = natFromWire(m.Nat)
	healthFromWire(&r, m)
	return r
}

func addrBytes(dst []byte, a netip.Addr) []byte {
	dst, _ = a.AppendBinary(dst) // cannot fail: the error exists for the interface's sake
	return dst
}

func bytesAddr(b []byte) netip.Addr {
	var a netip.Addr
	if a.UnmarshalBinary(b) != nil {
		return netip.Addr{}
	}
	return a
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func wall(ns int64, none bool) time.Time {
	if none {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func countToWire(c flows.Count) *api.Count { return &api.Count{Packets: c.Packets, Bytes: c.Bytes} }

func countFromWire(m *api.Count) flows.Count {
	return flows.Count{Packets: m.GetPackets(), Bytes: m.GetBytes()}
}

// PointToWire is p and its device as API message, for whoever fills a status.
func PointToWire(p flows.Point, h flows.Hop) *api.Point {
	return &api.Point{
		Netns: p.Netns, Ifindex: p.Ifindex, Hook: uint32(p.Hook),
		Interface: []byte(h.Interface), NetnsName: []byte(h.Netns),
	}
}

// PointFromWire is the inverse of [PointToWire].
func PointFromWire(m *api.Point) (flows.Point, flows.Hop) {
	return flows.Point{Netns: m.GetNetns(), Ifindex: m.GetIfindex(), Hook: flows.Hook(m.GetHook())},
		flows.Hop{Interface: string(m.GetInterface()), Netns: string(m.GetNetnsName())}
}

// AccountToWire is a sink's account as API message.
func AccountToWire(a flows.SinkAccount) *api.SinkAccount {
	return &api.SinkAccount{
		Name: a.Name, Offered: a.Offered, Acknowledged: a.Acknowledged, Waiting: a.Waiting, Lost: a.Lost, LeftOut: a.LeftOut,
	}
}

// AccountFromWire is the inverse of [AccountToWire].
func AccountFromWire(m *api.SinkAccount) flows.SinkAccount {
	return flows.SinkAccount{
		Name: m.GetName(), Offered: m.GetOffered(), Acknowledged: m.GetAcknowledged(),
		Waiting: m.GetWaiting(), Lost: m.GetLost(), LeftOut: m.GetLeftOut(),
	}
}

func ledgerToWire(l *flows.Ledger) *api.Ledger {
	m := &api.Ledger{At: nanos(l.At), Gone: pointLedgerToWire(&l.Gone), GoneUnbalanced: l.GoneUnbalanced, Made: l.Made}
	for i := range l.Points {
		m.Points = append(m.Points, pointLedgerToWire(&l.Points[i]))
	}
	for _, a := range l.Sinks {
		m.Sinks = append(m.Sinks, AccountToWire(a))
	}
	sourcesToWire(m, l)
	return m
}

func ledgerFromWire(m *api.Ledger) flows.Ledger {
	l := flows.Ledger{
		At: wall(m.GetAt(), m.GetAt() == 0), Gone: pointLedgerFromWire(m.GetGone()),
		GoneUnbalanced: m.GetGoneUnbalanced(), Made: m.GetMade(),
	}
	for _, p := range m.GetPoints() {
		l.Points = append(l.Points, pointLedgerFromWire(p))
	}
	for _, a := range m.GetSinks() {
		l.Sinks = append(l.Sinks, AccountFromWire(a))
	}
	sourcesFromWire(&l, m)
	return l
}

func pointLedgerToWire(p *flows.PointLedger) *api.PointLedger {
	m := &api.PointLedger{
		At: PointToWire(p.At, p.Hop), Seen: countToWire(p.Seen), Gso: countToWire(p.GSO),
		Flows: countToWire(p.Flows), Recorded: countToWire(p.Recorded), Open: countToWire(p.Open),
		InTable:            countToWire(p.InTable),
		UnaccountedPackets: p.Unaccounted.Packets, UnaccountedBytes: p.Unaccounted.Bytes,
	}
	for reason, c := range p.Skipped {
		if c != (flows.Count{}) {
			m.Skipped = append(m.Skipped, &api.Skipped{Reason: flows.SkipReason(reason).String(), Count: countToWire(c)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Foreign)) {
		m.Skipped = append(m.Skipped, &api.Skipped{Reason: name, Count: countToWire(p.Foreign[name])})
	}
	return m
}

func pointLedgerFromWire(m *api.PointLedger) flows.PointLedger {
	p := flows.PointLedger{
		Seen: countFromWire(m.GetSeen()), GSO: countFromWire(m.GetGso()), Flows: countFromWire(m.GetFlows()),
		Recorded: countFromWire(m.GetRecorded()), Open: countFromWire(m.GetOpen()),
		InTable:     countFromWire(m.GetInTable()),
		Unaccounted: flows.SignedCount{Packets: m.GetUnaccountedPackets(), Bytes: m.GetUnaccountedBytes()},
	}
	p.At, p.Hop = PointFromWire(m.GetAt())
	for _, s := range m.GetSkipped() {
		n := countFromWire(s.Count)
		if reason, ok := flows.SkipReasonNamed(s.Reason); ok {
			p.Skipped[reason].Add(n)
			continue
		}
		if p.Foreign == nil {
			p.Foreign = map[string]flows.Count{}
		}
		p.Foreign[s.Reason] = p.Foreign[s.Reason].Plus(n)
	}
	return p
}
