// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// maxResolvers bounds the resolvers that have figures of their own, and the histograms.
// Resolvers that have never answered take at most half of the places: who asks servers
// that do not exist keeps those that do out of no more than that. What is over the bound
// is in the series with a zero address.
const maxResolvers = 1024

// resolvers keeps what is told by server.
type resolvers struct {
	known    map[resolverKey]*DNSResolver
	silent   int // of those: never answered
	overflow [2]DNSResolver
	times    map[LatencyKey]*latencyCounts
}

type resolverKey struct {
	server netip.AddrPort
	proto  uint8
}

func newResolvers() resolvers {
	return resolvers{
		known: map[resolverKey]*DNSResolver{}, times: map[LatencyKey]*latencyCounts{},
		overflow: [2]DNSResolver{{Protocol: ProtoUDP}, {Protocol: ProtoTCP}},
	}
}

func (r *resolvers) find(server netip.AddrPort, proto uint8) *DNSResolver {
	k := resolverKey{server, proto}
	if s := r.known[k]; s != nil {
		return s
	}
	if len(r.known) >= maxResolvers || r.silent >= maxResolvers/2 {
		if proto == ProtoTCP {
			return &r.overflow[1]
		}
		return &r.overflow[0]
	}
	s := &DNSResolver{Server: server, Protocol: proto}
	r.known[k] = s
	r.silent++
	return s
}

// answers is told that s does, before the answer is counted.
func (r *resolvers) answers(s *DNSResolver) {
	if s.Server.IsValid() && s.Rcodes == [16]uint64{} {
		r.silent--
	}
}

// measured adds how long an answer took, ns.
func (r *resolvers) measured(q *dnsAsked, class PointClass, took int64) {
	k := LatencyKey{Server: q.server.Server, Protocol: q.server.Protocol, Measure: DNSLookup, Class: class}
	h := r.times[k]
	if h == nil && k.Server.IsValid() && len(r.times) >= maxResolvers {
		k.Server = netip.AddrPort{}
		h = r.times[k]
	}
	if h == nil {
		h = &latencyCounts{}
		r.times[k] = h
	}
	h.add(uint64(took))
}

// list copies what is known.
func (r *resolvers) list() []DNSResolver {
	out := make([]DNSResolver, 0, len(r.known)+len(r.overflow))
	for _, s := range r.known {
		out = append(out, *s)
	}
	for _, s := range r.overflow {
		if s.Queries > 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b DNSResolver) int {
		return cmp.Or(a.Server.Compare(b.Server), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// latencies copies the histograms, which all began at that time.
func (r *resolvers) latencies(start time.Time) []Latency {
	out := make([]Latency, 0, len(r.times))
	for k, h := range r.times {
		out = append(out, h.latency(k, start.UnixNano()))
	}
	slices.SortFunc(out, func(a, b Latency) int { return a.Key.compare(b.Key) })
	return out
}

func (k LatencyKey) compare(o LatencyKey) int {
	return cmp.Or(k.Server.Compare(o.Server), cmp.Compare(k.Protocol, o.Protocol),
		cmp.Compare(k.Measure, o.Measure), cmp.Compare(k.Class, o.Class))
}
