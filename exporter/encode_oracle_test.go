// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// logBatches is what [LogEncoder] is compared with: it encodes records as log records and cuts them into requests by
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
