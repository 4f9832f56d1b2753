// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
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
}

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
	for _, half := range [][]*logs.LogRecord{sl.LogRecords[:b.records/2], sl.LogRecords[b.records/2:]} {
		part, err := newBatch(&collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
			Resource: rl.Resource, SchemaUrl: rl.SchemaUrl,
			ScopeLogs: []*logs.ScopeLogs{{Scope: sl.Scope, SchemaUrl: sl.SchemaUrl, LogRecords: half}},
		}}})
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return parts, nil
}
