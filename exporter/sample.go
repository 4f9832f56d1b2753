// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/binary"
	"time"

	"weft/flows"
)

// Sample is how a sink samples. A record that tells of a fault or of a slow answer
// is always taken; of the others so many as Rate says, each with
// [flows.Record.SamplingRate]: a sum in which a record counts 1/SamplingRate times, and
// one without a rate once, is on average that over all records.
//
// What is taken is settled by the connection id, where there is one, and else by the
// 5-tuple: all periods of a conversation, at every point and agent, are taken or
// left together.
type Sample struct {
	Rate float64       // over 0, up to 1; 0 and 1: every record
	Slow time.Duration // a mean round trip, handshake or longest DNS answer over it is slow; 0: none is
}

func (s *Sample) on() bool { return s.Rate > 0 && s.Rate < 1 }

// keeps reports whether r is taken, and the rate at which such records are; 0: all. Where
// r was sampled before, as on its way to a tenant, that was by the same number: the
// lower of the two rates is that of both together.
func (s *Sample) keeps(r *flows.Record) (keep bool, rate float64) {
	if !s.on() || faulty(r) || s.slow(r) {
		return true, r.SamplingRate
	}
	rate = s.Rate
	if r.SamplingRate > 0 {
		rate = min(rate, r.SamplingRate)
	}
	return float64(identity(r)>>11)*0x1p-53 < rate, rate
}

// faulty reports whether r tells of a drop, a reset, a failure or an error.
func faulty(r *flows.Record) bool {
	if r.Dropped > 0 || (r.TCPFlags|r.ReverseTCPFlags)&flows.FlagRST != 0 || icmpError(r) {
		return true
	}
	if t := r.TCP; t != nil && (t.Failure != flows.FailNone || t.SourceReset || t.DestinationReset) {
		return true
	}
	for _, s := range [2]*flows.SocketFigures{r.SourceSocket, r.DestinationSocket} {
		if s != nil && (s.Errno != 0 || s.Failed || s.ResetsSent+s.ResetsReceived+s.RcvQueueFull > 0) {
			return true
		}
	}
	if r.DNS == nil {
		return false
	}
	for _, c := range r.DNS.Rcodes {
		if c.Rcode != 0 && c.Count > 0 {
			return true
		}
	}
	return r.DNS.Timeouts > 0
}

// icmpError reports whether r is ICMP that says that something was not delivered.
func icmpError(r *flows.Record) bool {
	kind := r.Key.Src.Port()
	switch {
	case r.Fragment:
		return false
	case r.Key.Proto == flows.ProtoICMP:
		return kind == 3 || kind == 11 || kind == 12 // unreachable, time exceeded, parameter problem
	case r.Key.Proto == flows.ProtoICMPv6:
		return kind >= 1 && kind <= 4 // the same, and too big
	}
	return false
}

func (s *Sample) slow(r *flows.Record) bool {
	if s.Slow == 0 {
		return false
	}
	if t := r.TCP; t != nil {
		for _, h := range [2]*flows.TCPHealth{&t.Source, &t.Destination} {
			if h.RTT.Mean() > s.Slow || h.Handshake > s.Slow {
				return true
			}
		}
	}
	return r.DNS != nil && r.DNS.Latency.Max > s.Slow
}

// identity is a number that all records of a conversation share, whichever side
// was taken for the source, and that is as good as random between conversations.
// It is the same in every agent: none has a seed.
func identity(r *flows.Record) uint64 {
	if r.ConnectionID != 0 {
		return scramble(r.ConnectionID)
	}
	k, _ := flows.Canonical(r.Key)
	x := uint64(k.Proto)
	for _, end := range [2]struct {
		addr [16]byte
		port uint16
	}{{k.Src.Addr().As16(), k.Src.Port()}, {k.Dst.Addr().As16(), k.Dst.Port()}} {
		x = scramble(x ^ binary.BigEndian.Uint64(end.addr[:8]))
		x = scramble(x ^ binary.BigEndian.Uint64(end.addr[8:]))
		x = scramble(x ^ uint64(end.port))
	}
	return x
}

// scramble is the finaliser of splitmix64, a bijection.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
