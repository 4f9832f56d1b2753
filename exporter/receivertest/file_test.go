// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/plog"

	"weft/exporter"
	"weft/flows"
)

// TestCollectorsDecoderReadsFilesOfFlows reads each line as the Collector's receiver
// of OTLP JSON files does.
func TestCollectorsDecoderReadsFilesOfFlows(t *testing.T) {
	dir := t.TempDir()
	f, err := exporter.NewFile(exporter.FileConfig{
		Path: filepath.Join(dir, "flows.jsonl"), Size: 1 << 20, Keep: 100, Flush: 10 * time.Millisecond, Getenv: noEnv,
	})
	if err != nil {
		t.Fatal(err)
	}
	all := corpus(3000, 3)
	if err := f.Export(t.Context(), flows.Window{End: time.Now(), Records: all}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkAccount(t, f.Account(), len(all))
	names, err := filepath.Glob(filepath.Join(dir, "flows*.jsonl"))
	if err != nil || len(names) < 3 {
		t.Fatalf("got files %v, %v, want several", names, err)
	}
	// By name, flows.000001.jsonl comes before flows.jsonl.
	sink, decoder := &consumertest.LogsSink{}, &plog.JSONUnmarshaler{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			ld, err := decoder.UnmarshalLogs(line)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := sink.ConsumeLogs(t.Context(), ld); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := received(sink)
	if len(got) != len(all) {
		t.Fatalf("got %d records, want %d", len(got), len(all))
	}
	for i := range all {
		if g, w := got[i].Attributes().AsRaw(), want(&all[i]); !reflect.DeepEqual(g, w) {
			t.Fatalf("record %d: got %v, want %v", i, g, w)
		}
	}
}
