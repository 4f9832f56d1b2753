// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"context"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/plog"

	"weft/exporter"
	"weft/flows"
)

// BenchmarkDelivery is how long a record takes from when its flow ended and it was made to
// the receiver's answer that has it: 10,000 records a second, ten each millisecond, over
// gRPC to an otlpreceiver in this process.
func BenchmarkDelivery(b *testing.B) {
	for _, flush := range []time.Duration{10 * time.Millisecond, time.Second} {
		b.Run("flush-"+flush.String(), func(b *testing.B) {
			receiver := startCollector(b, "", consumertest.NewNop(), consumertest.NewNop())
			o := newSink(b, receiver.endpoint, exporter.OTLPConfig{Flush: flush})
			records := served(benchRecords, false)
			deliver(b, o, records[:100]) // the connection is there
			var took []time.Duration
			for b.Loop() {
				took = append(took, deliver(b, o, records)...)
			}
			slices.Sort(took)
			p50, p99, longest := took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
			b.ReportMetric(0, "ns/op")
			for name, d := range map[string]time.Duration{"p50": p50, "p99": p99, "max": longest, "p99-over-flush": p99 - flush} {
				b.ReportMetric(float64(d.Microseconds())/1000, "ms-"+name)
			}
		})
	}
}

// deliver offers records, ten each millisecond, and is how long each took to be acknowledged.
// They are sent in order, so the n-th was when n are.
func deliver(b *testing.B, o *exporter.OTLP, records []flows.Record) []time.Duration {
	const atOnce = 10
	before, offered := o.Account().Acknowledged, make([]time.Time, 0, len(records))
	took := make([]time.Duration, 0, len(records))
	began, deadline := time.Now(), time.Now().Add(time.Minute)
	for len(took) < len(records) {
		now := time.Now()
		if n := len(offered); n < len(records) && now.Sub(began) >= time.Duration(n/atOnce)*time.Millisecond {
			export(b, o, flows.Window{Records: records[n:min(n+atOnce, len(records))]})
			for range min(atOnce, len(records)-n) {
				offered = append(offered, now)
			}
		}
		for done := int(o.Account().Acknowledged - before); len(took) < done; {
			took = append(took, now.Sub(offered[len(took)]))
		}
		if now.After(deadline) {
			b.Fatalf("%d of %d records acknowledged in a minute", len(took), len(records))
		}
		time.Sleep(100 * time.Microsecond)
	}
	return took
}

// BenchmarkSpoolWrite is what a record costs until its request is on disk, against the
// encoding of the same records alone: no receiver answers.
func BenchmarkSpoolWrite(b *testing.B) {
	records := served(benchRecords, false)
	b.Run("encoded-only", func(b *testing.B) {
		appendAll := appenders(b)["wire"]
		var body []byte
		for b.Loop() {
			for left := records; len(left) > 0; {
				var n int
				body, n = appendAll(body[:0], left)
				left = left[n:]
			}
		}
		perRecord(b, b.N*len(records), 0)
	})
	for name, noSync := range map[string]bool{"fsync": false, "no-fsync": true} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			o := newSink(b, freePort(b), exporter.OTLPConfig{Flush: time.Millisecond, Finish: time.Millisecond, Spool: exporter.SpoolConfig{Dir: dir, NoSync: noSync}})
			for b.Loop() {
				spoolAll(b, o, records)
			}
			perRecord(b, b.N*len(records), folderSize(b, dir))
		})
	}
}

// spoolAll returns when all of records are on disk, with what was there before.
func spoolAll(b *testing.B, o *exporter.OTLP, records []flows.Record) {
	want := o.Spooled() + uint64(len(records))
	export(b, o, flows.Window{Records: records})
	for deadline := time.Now().Add(time.Minute); o.Spooled() < want; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d records on disk after a minute", o.Spooled(), want)
		}
	}
}

func perRecord(b *testing.B, n int, bytes int64) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
	if bytes > 0 {
		b.ReportMetric(float64(bytes)/float64(n), "B/record")
	}
}

func folderSize(b *testing.B, dir string) (bytes int64) {
	files, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			b.Fatal(err)
		}
		bytes += info.Size()
	}
	return bytes
}

// BenchmarkSpoolRecovery is what the next run does with 1 GiB that an agent left on disk
// without having reached anybody: how long it takes to be ready, to the first records that
// the receiver has, and to the last.
func BenchmarkSpoolRecovery(b *testing.B) {
	const least = 1 << 30
	records := served(benchRecords, false)
	var ready, first, all time.Duration
	total, rounds := uint64(0), 0
	for b.Loop() {
		if rounds++; rounds > 1 {
			continue // one is long enough
		}
		dir := b.TempDir()
		config := exporter.OTLPConfig{Flush: time.Millisecond, Finish: time.Millisecond, Compression: "zstd", Spool: exporter.SpoolConfig{Dir: dir, Size: 2 << 30, NoSync: true}}
		o := newSink(b, freePort(b), config)
		for n := 0; ; n++ {
			spoolAll(b, o, records)
			if n%100 == 99 && folderSize(b, dir) >= least {
				break
			}
		}
		left := o.Spooled()
		closeSink(b, o)
		var got atomic.Uint64
		count, err := consumer.NewLogs(func(_ context.Context, ld plog.Logs) error {
			got.Add(uint64(ld.LogRecordCount()))
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		receiver := startCollector(b, "", count, consumertest.NewNop())
		began := time.Now()
		o = newSink(b, receiver.endpoint, config)
		ready = time.Since(began)
		for one := false; ; time.Sleep(time.Millisecond) {
			n := got.Load()
			if n > 0 && !one {
				one = true
				first = time.Since(began)
			}
			if n == left {
				break
			}
			if time.Since(began) > 10*time.Minute {
				b.Fatalf("%d of %d records delivered in ten minutes", n, left)
			}
		}
		all = time.Since(began)
		total = left
		closeSink(b, o)
		receiver.stop(b)
	}
	b.ReportMetric(0, "ns/op")
	for name, d := range map[string]time.Duration{"ready": ready, "first": first, "delivered": all} {
		b.ReportMetric(float64(d.Milliseconds()), "ms-"+name)
	}
	b.ReportMetric(float64(total)/all.Seconds(), "records/s")
}
