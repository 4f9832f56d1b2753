// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"weft/flows"
)

// maxLatencySeries bounds the histograms that are exported. The data plane keeps
// fewer; if there ever are more, the oldest are exported and the rest counted.
const maxLatencySeries = 2048

// Latencies are all histograms as they were at a time, and what they have not.
// The zero value: nothing is measured.
type Latencies struct {
	At   time.Time
	All  []flows.Latency // nil: nothing is measured
	Left flows.TCPAccount
	Who  []flows.NamedServer // the servers of All, as far as known
}

func latenciesOf(w flows.Window) Latencies { return Latencies{w.End, w.Latencies, w.TCP, w.Servers} }

// leftFigures are what measuring TCP left out, as Prometheus (with _total) and
// OTLP (with dots) both export it.
var leftFigures = []struct {
	name, unit, help string
	of               func(*flows.TCPAccount) uint64
}{
	{"weft.tcp.untracked.packets", "{packet}", "Packets of TCP connections for which there was no room: in flows, and not measured.",
		func(a *flows.TCPAccount) uint64 { return a.Untracked }},
	{"weft.latency.overflowed", "{measurement}", "Times in the histograms without a server, because there was no room for another server.",
		func(a *flows.TCPAccount) uint64 { return a.Overflowed }},
	{"weft.latency.lost", "{measurement}", "Times that were measured and are in no histogram.",
		func(a *flows.TCPAccount) uint64 { return a.Lost }},
}

// latencyMetric is a measure as it is exported.
type latencyMetric struct{ name, help, side string }

const (
	helpRTT       = "Round trips from an observation point to one side of TCP connections and back, the side's own delay of acknowledgements included."
	helpHandshake = "From SYN to SYN-ACK (side server) and from SYN-ACK to its acknowledgement (side client) at an observation point."
	helpDNS       = "From DNS question to answer at an observation point."

	helpLatencyOver = "Histograms that are not exported because there are too many."
)

var latencyMetrics = [flows.NumMeasures]latencyMetric{
	flows.RTTServer:       {"weft.tcp.rtt", helpRTT, "server"},
	flows.RTTClient:       {"weft.tcp.rtt", helpRTT, "client"},
	flows.HandshakeServer: {"weft.tcp.handshake.duration", helpHandshake, "server"},
	flows.HandshakeClient: {"weft.tcp.handshake.duration", helpHandshake, "client"},
	flows.DNSLookup:       {"dns.lookup.duration", helpDNS, ""},
}

// prometheusName is what OTLP receivers of Prometheus make of the name and its unit.
func (m latencyMetric) prometheusName() string { return underscored(m.name) + "_seconds" }

func underscored(name string) string { return strings.ReplaceAll(name, ".", "_") }

// exportable is those that are exported, in a stable order, and how many are not.
func (l Latencies) exportable() (some []*flows.Latency, over int) {
	for i := range l.All {
		if l := &l.All[i]; l.Count > 0 && l.Key.Measure < flows.NumMeasures {
			some = append(some, l)
		}
	}
	slices.SortFunc(some, func(a, b *flows.Latency) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), a.Key.Server.Compare(b.Key.Server), cmp.Compare(a.Key.Protocol, b.Key.Protocol),
			cmp.Compare(a.Key.Measure, b.Key.Measure), cmp.Compare(a.Key.Class, b.Key.Class))
	})
	if len(some) > maxLatencySeries {
		some, over = some[:maxLatencySeries], len(some)-maxLatencySeries
	}
	return some, over
}
