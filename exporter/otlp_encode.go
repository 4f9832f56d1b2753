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
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// What one request holds at most: servers usually refuse more than 4 MiB.
const (
	maxBatchRecords = 4000
	maxBatchBytes   = 7 << 19 // 3.5 MiB of protobuf, before compression
	// maxBatchPoints bounds a metrics request: a point has about 16 data points
	// of up to 200 bytes.
	maxBatchPoints = 1000
)

// encoder makes OTLP requests. Resource and scope are the same in all of them.
type encoder struct {
	resource *resource.Resource
	scope    *common.InstrumentationScope
	start    uint64 // of every cumulative sum, Unix nanoseconds
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

// logBatches encodes records as log records and cuts them into requests by
// number and by encoded size. A record is far below the limit of bytes: it has
// at most two hops for each of the data plane's few thousand points.
func (e encoder) logBatches(records []flows.Record, observed time.Time) []*collogs.ExportLogsServiceRequest {
	var batches []*collogs.ExportLogsServiceRequest
	var scope *logs.ScopeLogs
	size := maxBatchBytes
	for i := range records {
		m := e.logRecord(&records[i], observed)
		n := proto.Size(m)
		n += 1 + protowire.SizeVarint(uint64(n))
		if scope == nil || size+n > maxBatchBytes || len(scope.LogRecords) == maxBatchRecords {
			scope = &logs.ScopeLogs{Scope: e.scope}
			batches = append(batches, &collogs.ExportLogsServiceRequest{
				ResourceLogs: []*logs.ResourceLogs{{Resource: e.resource, ScopeLogs: []*logs.ScopeLogs{scope}}},
			})
			// Two lengths around the records may grow by 3 bytes each.
			size = proto.Size(batches[len(batches)-1]) + 6
		}
		scope.LogRecords = append(scope.LogRecords, m)
		size += n
	}
	return batches
}

func logCount(m *collogs.ExportLogsServiceRequest) int {
	return len(m.ResourceLogs[0].ScopeLogs[0].LogRecords)
}

func (e encoder) logRecord(r *flows.Record, observed time.Time) *logs.LogRecord {
	var room [96]slog.Attr
	attrs := AppendAttributes(room[:0], r)
	m := &logs.LogRecord{
		TimeUnixNano: uint64(nanos(r.End)), ObservedTimeUnixNano: uint64(observed.UnixNano()),
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: EventName, Attributes: make([]*common.KeyValue, 0, len(attrs)+len(totals)+1+int(numLists)),
	}
	for _, a := range attrs {
		m.Attributes = append(m.Attributes, keyValue(a))
	}
	for _, t := range totals {
		m.Attributes = append(m.Attributes, keyValue(slog.Int64(t.otlp, signed(t.of(r)))))
	}
	if !r.Start.IsZero() {
		m.Attributes = append(m.Attributes, keyValue(slog.Int64(nameStart, nanos(r.Start))))
	}
	for l := range numLists {
		if l.len(r) > 0 {
			m.Attributes = append(m.Attributes, listValue(l, r))
		}
	}
	return m
}

func listValue(l list, r *flows.Record) *common.KeyValue {
	var room [16]slog.Attr
	rows := &common.ArrayValue{Values: make([]*common.AnyValue, l.len(r))}
	for i := range rows.Values {
		fields := &common.KeyValueList{}
		for _, a := range l.appendRow(room[:0], r, i) {
			fields.Values = append(fields.Values, keyValue(a))
		}
		rows.Values[i] = &common.AnyValue{Value: &common.AnyValue_KvlistValue{KvlistValue: fields}}
	}
	_, name := l.names()
	return &common.KeyValue{Key: name, Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: rows}}}
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
	}
}
