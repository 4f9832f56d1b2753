// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"bytes"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/ipc"

	"weft/exporter"
	"weft/flows"
)

// BenchmarkColumns is of the records of BenchmarkEncode as an Arrow stream, as the
// Flight sink sends it: dictionaries once, then a batch of ids after the other. Raw:
// the batch is made and serialised.
func BenchmarkColumns(b *testing.B) {
	for _, c := range []struct {
		name    string
		config  exporter.ColumnsConfig
		options []ipc.Option
		named   bool
	}{
		{name: "25-attributes/arrow/raw"},
		{name: "25-attributes/arrow/zstd", options: []ipc.Option{ipc.WithZstd()}},
		{name: "25-attributes/arrow+derived/raw", config: exporter.ColumnsConfig{Derived: true}},
		{name: "25-attributes/arrow+derived/zstd", config: exporter.ColumnsConfig{Derived: true}, options: []ipc.Option{ipc.WithZstd()}},
		{name: "named/arrow/raw", named: true},
		{name: "named/arrow/zstd", named: true, options: []ipc.Option{ipc.WithZstd()}},
	} {
		records := served(benchRecords, c.named)
		b.Run(c.name, func(b *testing.B) { benchColumns(b, c.config, c.options, records) })
	}
}

func benchColumns(b *testing.B, config exporter.ColumnsConfig, options []ipc.Option, records []flows.Record) {
	columns := exporter.NewColumns(config)
	var out bytes.Buffer
	var w *ipc.Writer
	round := func() {
		out.Reset()
		for left := records; len(left) > 0; {
			n := columns.Append(left)
			left = left[n:]
			batch := columns.Batch()
			if w == nil {
				w = ipc.NewWriter(&out, append(options, ipc.WithSchema(batch.Schema()), ipc.WithDictionaryDeltas(true))...)
			}
			if err := w.Write(batch); err != nil {
				b.Fatal(err)
			}
			batch.Release()
			columns.Reset()
		}
	}
	round()
	first := out.Len()
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		round()
	}
	perRecord := float64((cpu(b) - before).Nanoseconds()) / float64(b.N) / float64(len(records))
	b.ReportMetric(perRecord, "cpu-ns/record")
	b.ReportMetric(1e9/perRecord, "records/s")
	b.ReportMetric(float64(out.Len())/float64(len(records)), "B/record")
	b.ReportMetric(float64(first)/float64(len(records)), "first-B/record")
}
