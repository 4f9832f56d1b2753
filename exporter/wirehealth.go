// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"weft/exporter/api"
	"weft/flows"
)

// healthToWire writes what was measured of r beside its packets into m. What was
// not is nil there and costs nothing; what m holds is reused.
func healthToWire(m *api.Record, r *flows.Record) {
	m.Tcp = tcpToWire(m.Tcp, r.TCP)
	m.Dropped, m.DropReason = r.Dropped, append(m.DropReason[:0], r.DropReason...)
	m.Dns = dnsToWire(r.DNS)
	m.SourceProcess, m.DestinationProcess = processToWire(r.SourceProcess), processToWire(r.DestinationProcess)
	m.SourceSocket, m.DestinationSocket = socketToWire(r.SourceSocket), socketToWire(r.DestinationSocket)
	m.Source, m.Destination = entityToWire(r.Source), entityToWire(r.Destination)
}

// healthFromWire is the inverse of healthToWire.
func healthFromWire(r *flows.Record, m *api.Record) {
	r.TCP = tcpFromWire(m.Tcp)
	r.Dropped, r.DropReason = m.Dropped, string(m.DropReason)
	r.DNS = dnsFromWire(m.Dns)
	r.SourceProcess, r.DestinationProcess = processFromWire(m.SourceProcess), processFromWire(m.DestinationProcess)
	r.SourceSocket, r.DestinationSocket = socketFromWire(m.SourceSocket), socketFromWire(m.DestinationSocket)
	r.Source, r.Destination = entityFromWire(m.Source), entityFromWire(m.Destination)
}

func socketToWire(s *flows.SocketFigures) *api.SocketFigures {
	if s == nil {
		return nil
	}
	return &api.SocketFigures{
		Retransmits: s.Retransmits, ResetsSent: s.ResetsSent, ResetsReceived: s.ResetsReceived,
		RcvQueueFull: s.RcvQueueFull, Errno: uint32(s.Errno), Failed: s.Failed,
	}
}

func socketFromWire(m *api.SocketFigures) *flows.SocketFigures {
	if m == nil {
		return nil
	}
	return &flows.SocketFigures{
		Retransmits: m.Retransmits, ResetsSent: m.ResetsSent, ResetsReceived: m.ResetsReceived,
		RcvQueueFull: m.RcvQueueFull, Errno: uint16(m.Errno), Failed: m.Failed,
	}
}

func tcpToWire(m *api.TCP, t *flows.TCPRecord) *api.TCP {
	if t == nil {
		return nil
	}
	if m == nil {
		m = &api.TCP{}
	}
	m.Source, m.Destination = sideToWire(m.Source, &t.Source), sideToWire(m.Destination, &t.Destination)
	m.SourceReset, m.DestinationReset, m.Failure = t.SourceReset, t.DestinationReset, uint32(t.Failure)
	return m
}

func tcpFromWire(m *api.TCP) *flows.TCPRecord {
	if m == nil {
		return nil
	}
	return &flows.TCPRecord{
		Source: sideFromWire(m.GetSource()), Destination: sideFromWire(m.GetDestination()),
		SourceReset: m.SourceReset, DestinationReset: m.DestinationReset, Failure: flows.Failure(m.Failure),
	}
}

func sideToWire(m *api.TCPHealth, h *flows.TCPHealth) *api.TCPHealth {
	if !measured(h) {
		return nil
	}
	if m == nil {
		m = &api.TCPHealth{}
	}
	m.RttCount, m.RttSum, m.RttMin, m.RttMax = h.RTT.Count, int64(h.RTT.Sum), int64(h.RTT.Min), int64(h.RTT.Max)
	m.Handshake = int64(h.Handshake)
	m.Retransmits, m.OutOfOrder, m.Lost, m.DupAcks = h.Retransmits, h.OutOfOrder, h.Lost, h.DupAcks
	m.ZeroWindows, m.ZeroWindow, m.Untracked = h.ZeroWindows, int64(h.ZeroWindow), h.Untracked
	m.Mss, m.WindowScale, m.Options = uint32(h.MSS), uint32(h.WindowScale), uint32(h.Options)
	return m
}

func sideFromWire(m *api.TCPHealth) flows.TCPHealth {
	return flows.TCPHealth{
		RTT:         rttFromWire(m.GetRttCount(), m.GetRttSum(), m.GetRttMin(), m.GetRttMax()),
		Handshake:   time.Duration(m.GetHandshake()),
		Retransmits: m.GetRetransmits(), OutOfOrder: m.GetOutOfOrder(), Lost: m.GetLost(), DupAcks: m.GetDupAcks(),
		ZeroWindows: m.GetZeroWindows(), ZeroWindow: time.Duration(m.GetZeroWindow()), Untracked: m.GetUntracked(),
		MSS: uint16(m.GetMss()), WindowScale: uint8(m.GetWindowScale()), Options: flows.TCPOptions(m.GetOptions()),
	}
}

func rttFromWire(count uint64, sum, least, most int64) flows.RTT {
	return flows.RTT{Count: count, Sum: time.Duration(sum), Min: time.Duration(least), Max: time.Duration(most)}
}

func dnsToWire(d *flows.DNS) *api.DNS {
	if d == nil {
		return nil
	}
	m := &api.DNS{
		Queries: d.Queries, Retries: d.Retries, Answers: d.Answers, Timeouts: d.Timeouts,
		LatencyCount: d.Latency.Count, LatencySum: int64(d.Latency.Sum), LatencyMin: int64(d.Latency.Min), LatencyMax: int64(d.Latency.Max),
	}
	for _, c := range d.Rcodes {
		m.Rcodes = append(m.Rcodes, &api.DNSRcode{Rcode: uint32(c.Rcode), Count: c.Count})
	}
	for i := range d.Questions {
		q := &d.Questions[i]
		m.Questions = append(m.Questions, &api.DNSQuestion{
			Name: []byte(q.Name), Type: uint32(q.Type), Rcode: uint32(q.Rcode), Records: uint32(q.Records),
			Latency: int64(q.Latency), Timeout: q.Timeout,
		})
	}
	return m
}

func dnsFromWire(m *api.DNS) *flows.DNS {
	if m == nil {
		return nil
	}
	d := &flows.DNS{
		Queries: m.Queries, Retries: m.Retries, Answers: m.Answers, Timeouts: m.Timeouts,
		Latency: rttFromWire(m.LatencyCount, m.LatencySum, m.LatencyMin, m.LatencyMax),
	}
	for _, c := range m.Rcodes {
		d.Rcodes = append(d.Rcodes, flows.DNSRcode{Rcode: uint16(c.Rcode), Count: c.Count})
	}
	for _, q := range m.Questions {
		d.Questions = append(d.Questions, flows.DNSQuestion{
			Name: string(q.Name), Type: uint16(q.Type), Rcode: uint16(q.Rcode), Records: uint16(q.Records),
			Latency: time.Duration(q.Latency), Timeout: q.Timeout,
		})
	}
	return d
}

func processToWire(p *flows.Process) *api.Process {
	if p == nil {
		return nil
	}
	return &api.Process{Pid: p.PID, Comm: []byte(p.Comm), Cgroup: p.Cgroup}
}

func processFromWire(m *api.Process) *flows.Process {
	if m == nil {
		return nil
	}
	return &flows.Process{PID: m.Pid, Comm: string(m.Comm), Cgroup: m.Cgroup}
}
