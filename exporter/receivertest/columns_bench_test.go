// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"bytes"
	"os"
	"path/filepath"
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

// BenchmarkParquet is of the same records through the sink into a finished file:
// queued, written, synced and renamed.
func BenchmarkParquet(b *testing.B) {
	for _, c := range []struct {
		name   string
		config exporter.ParquetConfig
		named  bool
	}{
		{name: "25-attributes/zstd", config: exporter.ParquetConfig{Compression: "zstd"}},
		{name: "25-attributes/snappy", config: exporter.ParquetConfig{Compression: "snappy"}},
		{name: "25-attributes+derived/zstd", config: exporter.ParquetConfig{Compression: "zstd", Derived: true}},
		{name: "named/zstd", config: exporter.ParquetConfig{Compression: "zstd"}, named: true},
	} {
		records := served(benchRecords, c.named)
		b.Run(c.name, func(b *testing.B) {
			before, size := cpu(b), int64(0)
			for b.Loop() {
				c.config.Dir = b.TempDir()
				size = writeParquet(b, c.config, records)
			}
			perRecord := float64((cpu(b) - before).Nanoseconds()) / float64(b.N) / float64(len(records))
			b.ReportMetric(perRecord, "cpu-ns/record")
			b.ReportMetric(1e9/perRecord, "records/s")
			b.ReportMetric(float64(size)/float64(len(records)), "B/record")
		})
	}
}

// writeParquet is the size of the file that records make.
func writeParquet(b *testing.B, c exporter.ParquetConfig, records []flows.Record) int64 {
	b.Helper()
	p, err := exporter.NewParquet(c, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Export(b.Context(), flows.Window{Records: records}); err != nil {
		b.Fatal(err)
	}
	if err := p.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(c.Dir, "*.parquet"))
	if a := p.Account(); err != nil || len(files) != 1 || a.Acknowledged != uint64(len(records)) {
		b.Fatalf("got files %v, account %+v, error %v; want one file of all records", files, a, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}
