// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"weft/flows"
)

// The classic buckets end at powers of two seconds, from 31 us to 16 s:
// edges of the exponential buckets too, so their counts are exact. Rounder bounds
// would cut through buckets.
const (
	firstClassic = -15
	lastClassic  = 4
)

// latencyCollector is histograms as native ones, for scrapers that ask for
// protobuf, and with classic buckets for all others. Both come from the same
// counters. Its cardinality is at most maxLatencySeries.
type latencyCollector struct {
	latest func() Latencies
	descs  map[string]*prometheus.Desc // by name in OTLP
	left   []*prometheus.Desc          // as leftFigures
	over   *prometheus.Desc
}

// NewLatencyCollector collects what latest returns.
func NewLatencyCollector(latest func() Latencies) prometheus.Collector {
	c := &latencyCollector{latest: latest, descs: map[string]*prometheus.Desc{},
		over: prometheus.NewDesc("weft_latency_over_limit", helpLatencyOver, nil, nil)}
	for _, m := range latencyMetrics {
		if c.descs[m.name] == nil {
			c.descs[m.name] = prometheus.NewDesc(m.prometheusName(), m.help, m.labels(), nil)
		}
	}
	for _, f := range leftFigures {
		c.left = append(c.left, prometheus.NewDesc(underscored(f.name)+"_total", f.help, nil, nil))
	}
	return c
}

// labels are empty in the series of servers for which the kernel had no room.
func (m latencyMetric) labels() []string {
	l := []string{"server_address", "server_port", "transport", "class"}
	if m.side != "" {
		l = append(l, "side")
	}
	return l
}

// Describe sends every description.
func (c *latencyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
	for _, d := range c.left {
		ch <- d
	}
	ch <- c.over
	ch <- serverInfo
}

// Collect sends the latest histograms.
func (c *latencyCollector) Collect(ch chan<- prometheus.Metric) {
	latest := c.latest()
	if latest.All == nil {
		return
	}
	some, over := latest.exportable()
	for _, l := range some {
		m := latencyMetrics[l.Key.Measure]
		server, port := "", ""
		if l.Key.Server.IsValid() {
			server, port = l.Key.Server.Addr().String(), strconv.Itoa(int(l.Key.Server.Port()))
		}
		values := []string{server, port, flows.ProtoName(l.Key.Protocol), l.Key.Class.String()}
		if m.side != "" {
			values = append(values, m.side)
		}
		d := c.descs[m.name]
		ch <- &histogram{desc: d, labels: prometheus.MakeLabelPairs(d, values), of: l}
	}
	for i, f := range leftFigures {
		ch <- prometheus.MustNewConstMetric(c.left[i], prometheus.CounterValue, float64(f.of(&latest.Left)))
	}
	ch <- prometheus.MustNewConstMetric(c.over, prometheus.GaugeValue, float64(over))
	for _, n := range latest.named(some) {
		ch <- prometheus.MustNewConstMetric(serverInfo, prometheus.GaugeValue, 1, serverLabels(&n)...)
	}
}

// histogram is a native histogram with classic buckets.
type histogram struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	of     *flows.Latency
}

// Desc is what it was made with.
func (h *histogram) Desc() *prometheus.Desc { return h.desc }

// Write fills in both kinds of buckets. The native ones are one span, as counts
// are, and each is told as the difference to the one before.
func (h *histogram) Write(out *dto.Metric) error {
	l, deltas, last := h.of, make([]int64, len(h.of.Counts)), int64(0)
	for k, n := range l.Counts {
		deltas[k], last = signed(n)-last, signed(n)
	}
	out.Label = h.labels
	out.Histogram = &dto.Histogram{
		SampleCount: proto.Uint64(l.Count), SampleSum: proto.Float64(float64(l.Sum) / 1e9),
		Bucket: classicBuckets(l), CreatedTimestamp: timestamppb.New(time.Unix(0, l.Start)),
		Schema: proto.Int32(flows.HistogramScale), ZeroThreshold: proto.Float64(0), ZeroCount: proto.Uint64(0),
		PositiveSpan: []*dto.BucketSpan{{
			// Prometheus numbers a bucket by its upper edge.
			Offset: proto.Int32(int32(l.Offset + 1)), Length: proto.Uint32(uint32(len(deltas))),
		}},
		PositiveDelta: deltas,
	}
	for i := range l.Exemplars {
		e := exemplar(&l.Exemplars[i])
		out.Histogram.Exemplars = append(out.Histogram.Exemplars, e)
		k := slices.IndexFunc(out.Histogram.Bucket, func(b *dto.Bucket) bool { return e.GetValue() <= b.GetUpperBound() })
		if k < 0 { // the one of all is only written out where it has an exemplar
			k = len(out.Histogram.Bucket)
			out.Histogram.Bucket = append(out.Histogram.Bucket, &dto.Bucket{CumulativeCount: proto.Uint64(l.Count), UpperBound: proto.Float64(math.Inf(1))})
		}
		if b := out.Histogram.Bucket[k]; b.Exemplar == nil || b.Exemplar.Timestamp.AsTime().Before(e.Timestamp.AsTime()) {
			b.Exemplar = e // the latest of a wider bucket
		}
	}
	return nil
}

func exemplar(e *flows.Exemplar) *dto.Exemplar {
	return &dto.Exemplar{
		Label: []*dto.LabelPair{{Name: proto.String(underscored(nameConnection)), Value: proto.String(connectionText(e.ConnectionID))}},
		Value: proto.Float64(e.Value.Seconds()), Timestamp: timestamppb.New(time.Unix(0, e.At)),
	}
}

// classicBuckets are l's counts up to each of the fixed bounds.
func classicBuckets(l *flows.Latency) []*dto.Bucket {
	var buckets []*dto.Bucket
	seen, k := uint64(0), 0
	for exponent := firstClassic; exponent <= lastClassic; exponent++ {
		for ; k < len(l.Counts) && l.Offset+k < exponent<<flows.HistogramScale; k++ {
			seen += l.Counts[k]
		}
		buckets = append(buckets, &dto.Bucket{
			CumulativeCount: proto.Uint64(seen), UpperBound: proto.Float64(math.Ldexp(1, exponent)),
		})
	}
	return buckets
}
