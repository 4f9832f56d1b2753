// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"log/slog"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

// minSplit is the size up to which a request that the receiver finds too large is
// not split further, in bytes: about a dozen records. It bounds what a receiver
// that finds everything too large costs, to some 450 requests a batch.
const minSplit = 16 << 10

// batch is a serialised ExportLogsServiceRequest.
type batch struct {
	body    []byte
	records int
	from    *spooled // where it waits on disk; nil: only here
}

// nameBatchID is the attribute of the scope that is the same in every try.
const nameBatchID = "weft.batch.id"

func newBatch(m *collogs.ExportLogsServiceRequest) (batch, error) {
	b := batch{records: logCount(m)}
	var err error
	if b.body, err = proto.Marshal(m); err != nil {
		return b, fmt.Errorf("encode %d records: %w", b.records, err)
	}
	return b, nil
}

// splits reports whether halves can make two of it.
func (b batch) splits() bool { return b.records > 1 && len(b.body) > minSplit }

// halves is b as two requests of as many records. It is rare, and so goes by
// decoding what was encoded here.
func (b batch) halves() ([]batch, error) {
	var m collogs.ExportLogsServiceRequest
	if err := proto.Unmarshal(b.body, &m); err != nil {
		return nil, fmt.Errorf("split %d records: %w", b.records, err)
	}
	rl := m.ResourceLogs[0]
	sl := rl.ScopeLogs[0]
	var parts []batch
	for i, half := range [][]*logs.LogRecord{sl.LogRecords[:b.records/2], sl.LogRecords[b.records/2:]} {
		part, err := newBatch(&collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
			Resource: rl.Resource, SchemaUrl: rl.SchemaUrl,
			ScopeLogs: []*logs.ScopeLogs{{Scope: halfScope(sl.Scope, i), SchemaUrl: sl.SchemaUrl, LogRecords: half}},
		}}})
		if err != nil {
			return nil, err
		}
		part.from = b.from
		parts = append(parts, part)
	}
	return parts, nil
}

// halfScope is scope with an id of its own for the i-th half: the same in every try.
func halfScope(scope *common.InstrumentationScope, i int) *common.InstrumentationScope {
	half := &common.InstrumentationScope{Name: scope.GetName(), Version: scope.GetVersion()}
	for _, a := range scope.GetAttributes() {
		if a.GetKey() == nameBatchID {
			a = keyValue(slog.String(nameBatchID, fmt.Sprintf("%s.%d", a.GetValue().GetStringValue(), i)))
		}
		half.Attributes = append(half.Attributes, a)
	}
	return half
}
