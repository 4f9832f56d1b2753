// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"

	"weft/flows"
)

// What one request holds at most: servers usually refuse more than 4 MiB.
const (
	maxBatchRecords = 4000
	maxBatchBytes   = 7 << 19 // 3.5 MiB of protobuf, before compression
)

// The fields that a log record of ours has, in the messages of opentelemetry.proto
// named before the dash. Its attributes' are in encodewire.go.
const (
	fieldResourceLogs  = 1  // ExportLogsServiceRequest - ResourceLogs
	fieldResource      = 1  // ResourceLogs - Resource
	fieldScopeLogs     = 2  // ResourceLogs - ScopeLogs
	fieldScope         = 1  // ScopeLogs - InstrumentationScope
	fieldScopeKeyValue = 3  // InstrumentationScope - KeyValue
	fieldLogRecord     = 2  // ScopeLogs - LogRecord
	fieldTime          = 1  // LogRecord - fixed64
	fieldSeverity      = 2  // LogRecord - enum
	fieldSeverityText  = 3  // LogRecord - text
	fieldAttribute     = 6  // LogRecord - KeyValue
	fieldObserved      = 11 // LogRecord - fixed64
	fieldEventName     = 12 // LogRecord - text
	severityInfo       = 9
	requestLengthBytes = 4 // of the two messages around all records: up to 256 MiB
)

// LogEncoder writes flow records as OTLP log records: complete, serialised requests
// of a bounded size. It is for one goroutine. Its memory: the encoded attributes of
// the ends that it met last, at most 4 MiB.
type LogEncoder struct {
	// CommunityID adds weft.flow.community_id to each record. It is a hash of the record's
	// addresses, ports and protocol, so it does not compress: a third of the bytes with zstd.
	CommunityID bool

	limit           int    // bytes of a request that its receiver is known not to take more of; 0: none known
	resource, scope []byte // the two messages with their tags and lengths
	plainScope      []byte // the scope alone, without the id of a batch
	tail            []byte // what ends every record of the request: observed time and event name
	who             whoCache
	words           words
	attrs           []slog.Attr
}

// NewLogEncoder is an encoder of records that the resource with these attributes
// reports; version is the agent's.
func NewLogEncoder(attrs map[string]string, version string) (*LogEncoder, error) {
	r := &resource.Resource{}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		r.Attributes = append(r.Attributes, keyValue(slog.String(name, attrs[name])))
	}
	e := &LogEncoder{}
	for _, part := range []struct {
		to    *[]byte
		field protowire.Number
		m     proto.Message
	}{{&e.resource, fieldResource, r}, {&e.scope, fieldScope, &common.InstrumentationScope{Name: "weft", Version: version}}} {
		b, err := proto.Marshal(part.m)
		if err != nil {
			return nil, err
		}
		e.plainScope = b // the last is the scope
		*part.to = protowire.AppendBytes(protowire.AppendTag(nil, part.field, protowire.BytesType), b)
	}
	return e, nil
}

// Batch sets weft.batch.id of the scope of the requests that follow: the same id
// twice is the same request twice, and a receiver may drop the second.
func (e *LogEncoder) Batch(id string) {
	b := appendKeyValues(slices.Clone(e.plainScope), fieldScopeKeyValue, []slog.Attr{slog.String(nameBatchID, id)})
	e.scope = protowire.AppendBytes(protowire.AppendTag(e.scope[:0], fieldScope, protowire.BytesType), b)
}

// Append appends one serialised ExportLogsServiceRequest with the first n of records
// to dst, as many as fit into 4,000 records and 3.5 MiB; observed is when they came
// out of the data plane. n is 0, and dst as it was, when there are no records and when
// the first alone is larger than a request may be: it cannot be sent, and the caller
// has to count it and to go on behind it.
func (e *LogEncoder) Append(dst []byte, records []flows.Record, observed time.Time) (request []byte, n int) {
	e.tail = appendFixed64(e.tail[:0], fieldObserved, uint64(observed.UnixNano()))
	e.tail = appendString(e.tail, fieldEventName, EventName)

	start := len(dst)
	b, resourceLogs := openWide(dst, fieldResourceLogs)
	b = append(b, e.resource...)
	b, scopeLogs := openWide(b, fieldScopeLogs)
	b = append(b, e.scope...)
	for n < min(len(records), maxBatchRecords) {
		end := len(b)
		b = e.appendRecord(b, &records[n])
		if size := len(b) - start; size > maxBatchBytes || n > 0 && e.limit > 0 && size > e.limit {
			b = b[:end]
			break
		}
		n++
	}
	if n == 0 {
		return b[:start], 0
	}
	closeWide(b, scopeLogs)
	closeWide(b, resourceLogs)
	return b, n
}

// appendRecord appends r as a log record of a ScopeLogs.
func (e *LogEncoder) appendRecord(b []byte, r *flows.Record) []byte {
	b, m := open(b, fieldLogRecord)
	b = appendFixed64(b, fieldTime, uint64(nanos(r.End)))
	b = append(b, fieldSeverity<<3|byte(protowire.VarintType), severityInfo)
	b = appendString(b, fieldSeverityText, "INFO")

	e.words.reset()
	e.attrs = appendMeasured(e.attrs[:0], &e.words, r, e.CommunityID)
	b = appendKeyValues(b, fieldAttribute, e.attrs)
	b = e.who.append(b, &sourceWho, r.Source, r.SourceProcess != nil)
	b = e.who.append(b, &destinationWho, r.Destination, r.DestinationProcess != nil)
	e.attrs = appendSockets(e.attrs[:0], &e.words, r)
	for _, t := range totals {
		e.attrs = append(e.attrs, slog.Int64(t.otlp, signed(t.of(r))))
	}
	if !r.Start.IsZero() {
		e.attrs = append(e.attrs, slog.Int64(nameStart, nanos(r.Start)))
	}
	b = appendKeyValues(b, fieldAttribute, e.attrs)
	for l := range numLists {
		if l.len(r) > 0 {
			b = e.appendList(b, l, r)
		}
	}
	return shut(append(b, e.tail...), m)
}

// appendList appends a list of r as an attribute of its log record.
func (e *LogEncoder) appendList(b []byte, l list, r *flows.Record) []byte {
	b, attribute := open(b, fieldAttribute)
	_, name := l.names()
	b = appendString(b, fieldKey, name)
	b, value := open(b, fieldValue)
	b, rows := open(b, fieldArray)
	for i := range l.len(r) {
		b2, row := open(b, fieldArrayValue)
		b2, fields := open(b2, fieldKeyValueList)
		e.attrs = l.appendRow(e.attrs[:0], r, i)
		b = shut(shut(appendKeyValues(b2, fieldListed, e.attrs), fields), row)
	}
	return shut(shut(shut(b, rows), value), attribute)
}
