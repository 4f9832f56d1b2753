// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"

	"weft/flows"
)

// maxBatchPoints bounds a metrics request: a point has about 16 data points of up to
// 200 bytes.
const maxBatchPoints = 1000

// encoder makes OTLP requests of metrics. Resource and scope are the same in all of them.
type encoder struct {
	resource *resource.Resource
	scope    *common.InstrumentationScope
	start    uint64 // of every cumulative sum, Unix nanoseconds
	partial  bool   // the sink gets a part of the records: no exemplar tells of the others
}

func newEncoder(attrs map[string]string, version string, start time.Time) encoder {
	r := &resource.Resource{}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		r.Attributes = append(r.Attributes, keyValue(slog.String(name, attrs[name])))
	}
	return encoder{
		resource: r, start: uint64(start.UnixNano()),
		scope: &common.InstrumentationScope{Name: "weft", Version: version},
	}
}

// logCount is how many records a request has.
func logCount(m *collogs.ExportLogsServiceRequest) int {
	return len(m.ResourceLogs[0].ScopeLogs[0].LogRecords)
}

// keyValue is a as OTLP has it. Text must be UTF-8 there; the kernel's names
// need not be, and one of them must not spoil a batch.
func keyValue(a slog.Attr) *common.KeyValue {
	v := &common.AnyValue{}
	switch a.Value.Kind() {
	case slog.KindInt64:
		v.Value = &common.AnyValue_IntValue{IntValue: a.Value.Int64()}
	case slog.KindFloat64:
		v.Value = &common.AnyValue_DoubleValue{DoubleValue: a.Value.Float64()}
	case slog.KindBool:
		v.Value = &common.AnyValue_BoolValue{BoolValue: a.Value.Bool()}
	default:
		v.Value = &common.AnyValue_StringValue{StringValue: strings.ToValidUTF8(a.Value.String(), "\uFFFD")}
	}
	return &common.KeyValue{Key: a.Key, Value: v}
}

// metricBatches encodes a ledger as cumulative sums, a bounded number of points
// a request; the last one has the sums over records as well.
func (e encoder) metricBatches(l *flows.Ledger) []*colmetrics.ExportMetricsServiceRequest {
	order, points := ledgerPoints(l)
	var batches []*colmetrics.ExportMetricsServiceRequest
	for part := range slices.Chunk(order, maxBatchPoints) {
		s := e.sums(l.At)
		for _, at := range part {
			s.point(at, points[at])
		}
		if len(batches) == (len(order)-1)/maxBatchPoints {
			s.records(l)
		}
		batches = append(batches, e.metricsRequest(s.metrics))
	}
	return batches
}

func (e encoder) metricsRequest(list []*metrics.Metric) *colmetrics.ExportMetricsServiceRequest {
	return &colmetrics.ExportMetricsServiceRequest{
		ResourceMetrics: []*metrics.ResourceMetrics{{
			Resource: e.resource, ScopeMetrics: []*metrics.ScopeMetrics{{Scope: e.scope, Metrics: list}},
		}},
	}
}

// sums collects data points by metric.
type sums struct {
	start, at uint64
	metrics   []*metrics.Metric
	byName    map[string]*metrics.Sum
}

func (e encoder) sums(at time.Time) *sums {
	return &sums{start: e.start, at: uint64(at.UnixNano()), byName: map[string]*metrics.Sum{}}
}

func (s *sums) add(name, unit, help string, monotonic bool, v int64, attrs ...*common.KeyValue) {
	sum := s.byName[name]
	if sum == nil {
		sum = &metrics.Sum{
			AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE, IsMonotonic: monotonic,
		}
		s.byName[name] = sum
		s.metrics = append(s.metrics, &metrics.Metric{
			Name: name, Unit: unit, Description: help, Data: &metrics.Metric_Sum{Sum: sum},
		})
	}
	sum.DataPoints = append(sum.DataPoints, &metrics.NumberDataPoint{
		StartTimeUnixNano: s.start, TimeUnixNano: s.at, Attributes: attrs,
		Value: &metrics.NumberDataPoint_AsInt{AsInt: v},
	})
}

func (s *sums) count(name, help string, monotonic bool, packets, bytes int64, attrs ...*common.KeyValue) {
	s.add("weft.ledger."+name+".packets", "{packet}", "Wire packets "+help+".", monotonic, packets, attrs...)
	s.add("weft.ledger."+name+".bytes", "By", "L2 bytes "+help+".", monotonic, bytes, attrs...)
}

func (s *sums) point(at labels, p *flows.PointLedger) {
	var attrs []*common.KeyValue
	for _, a := range []slog.Attr{
		slog.String(nameInterface, at.iface), slog.String(nameDirection, at.direction),
		slog.String(nameHook, at.hook), slog.String(nameNetns, at.netns),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, keyValue(a))
		}
	}
	for _, f := range pointFigures {
		n := f.of(p)
		s.count(f.name, f.help, f.total, signed(n.Packets), signed(n.Bytes), attrs...)
	}
	for reason, n := range p.Skipped {
		if n != (flows.Count{}) {
			why := keyValue(slog.String(nameReason, flows.SkipReason(reason).String()))
			s.count("skipped", helpSkipped, true, signed(n.Packets), signed(n.Bytes), append(slices.Clone(attrs), why)...)
		}
	}
	s.count("unaccounted", helpUnaccounted, false, p.Unaccounted.Packets, p.Unaccounted.Bytes, attrs...)
}

func (s *sums) records(l *flows.Ledger) {
	add := func(name, help string, monotonic bool, v uint64, attrs ...*common.KeyValue) {
		s.add("weft.ledger.records."+name, "{record}", help, monotonic, signed(v), attrs...)
	}
	s.add("weft.ledger.gone.unbalanced", "{point}", helpGoneUnbalanced, true, signed(l.GoneUnbalanced))
	for i := range l.Sources {
		for _, f := range sourceFigures {
			s.add("weft.ledger.source."+f.name+".events", "{event}", f.help, f.total, f.of(&l.Sources[i]), keyValue(slog.String(nameSource, l.Sources[i].Name)))
		}
	}
	add("made", "Flow records made.", true, l.Made)
	for _, a := range l.Sinks {
		sink := keyValue(slog.String(nameSink, a.Name))
		add("offered", "Flow records given to a sink.", true, a.Offered, sink)
		add("acknowledged", "Flow records that a sink's receiver said it has.", true, a.Acknowledged, sink)
		add("waiting", "Flow records queued or in flight in a sink.", false, a.Waiting, sink)
		for _, reason := range slices.Sorted(maps.Keys(a.Lost)) {
			add("lost", "Flow records that a sink lost, by reason.", true, a.Lost[reason], sink,
				keyValue(slog.String(nameReason, reason)))
		}
		for _, reason := range slices.Sorted(maps.Keys(a.LeftOut)) {
			add("left_out", "Flow records that were not for a sink as it is configured, by reason.", true, a.LeftOut[reason], sink,
				keyValue(slog.String(nameReason, reason)))
		}
	}
}
