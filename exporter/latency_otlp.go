// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"log/slog"
	"slices"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"

	"weft/flows"
)

// The attributes of a histogram: the server it is about; without one it is that
// of all servers for which the kernel had no room.
const (
	nameServer     = "server.address"
	nameServerPort = "server.port"
	nameSide       = "weft.tcp.side"  // client or server: the end that the time was to
	nameClass      = "weft.hop.class" // kind of device that it was measured at
)

// latencyBatches encodes histograms: cumulative, each from its own start, a
// bounded number a request, after one with what was left out. No request when
// nothing is measured.
func (e encoder) latencyBatches(l Latencies) []*colmetrics.ExportMetricsServiceRequest {
	if l.All == nil {
		return nil
	}
	some, over := l.exportable()
	s := e.sums(l.At)
	s.add("weft.latency.over_limit", "{series}", helpLatencyOver, false, int64(over))
	for _, f := range leftFigures {
		s.add(f.name, f.unit, f.help, true, signed(f.of(&l.Left)))
	}
	batches := []*colmetrics.ExportMetricsServiceRequest{e.metricsRequest(s.metrics)}
	for part := range slices.Chunk(some, maxBatchPoints) {
		batches = append(batches, e.metricsRequest(e.histograms(part, s.at)))
	}
	if e.partial {
		return batches // of servers whose records it does not get
	}
	return append(batches, e.serverBatches(l, some)...)
}

// histograms are the metrics of all, in the order of their first measure.
func (e encoder) histograms(all []*flows.Latency, at uint64) []*metrics.Metric {
	var list []*metrics.Metric
	byName := map[string]*metrics.ExponentialHistogram{}
	for _, l := range all {
		m := latencyMetrics[l.Key.Measure]
		h := byName[m.name]
		if h == nil {
			h = &metrics.ExponentialHistogram{AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE}
			byName[m.name] = h
			list = append(list, &metrics.Metric{
				Name: m.name, Unit: "s", Description: m.help, Data: &metrics.Metric_ExponentialHistogram{ExponentialHistogram: h},
			})
		}
		sum := float64(l.Sum) / 1e9 // s
		h.DataPoints = append(h.DataPoints, &metrics.ExponentialHistogramDataPoint{
			StartTimeUnixNano: uint64(l.Start), TimeUnixNano: at, Attributes: latencyAttributes(l, m),
			Count: l.Count, Sum: &sum, Scale: flows.HistogramScale,
			Positive: &metrics.ExponentialHistogramDataPoint_Buckets{Offset: int32(l.Offset), BucketCounts: l.Counts},
		})
		if !e.partial {
			h.DataPoints[len(h.DataPoints)-1].Exemplars = exemplars(l, at)
		}
	}
	return list
}

// exemplars are l's, of up to that time. What they have beyond the series is the
// connection's identifier, by which its records are found.
func exemplars(l *flows.Latency, at uint64) (all []*metrics.Exemplar) {
	for _, e := range l.Exemplars {
		all = append(all, &metrics.Exemplar{
			FilteredAttributes: []*common.KeyValue{keyValue(slog.String(nameConnection, connectionText(e.ConnectionID)))},
			TimeUnixNano:       min(uint64(e.At), at), Value: &metrics.Exemplar_AsDouble{AsDouble: e.Value.Seconds()},
		})
	}
	return all
}

func connectionText(id uint64) string { return fmt.Sprintf("%016x", id) }

func latencyAttributes(l *flows.Latency, m latencyMetric) []*common.KeyValue {
	var attrs []*common.KeyValue
	add := func(a slog.Attr) { attrs = append(attrs, keyValue(a)) }
	if l.Key.Server.IsValid() {
		add(slog.String(nameServer, l.Key.Server.Addr().String()))
		add(slog.Int64(nameServerPort, int64(l.Key.Server.Port())))
	}
	add(slog.String(nameTransport, flows.ProtoName(l.Key.Protocol)))
	if m.side != "" {
		add(slog.String(nameSide, m.side))
	}
	add(slog.String(nameClass, l.Key.Class.String()))
	return attrs
}
