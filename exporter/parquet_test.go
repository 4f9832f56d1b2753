// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// readParquet is every row of a file, read by Arrow's own reader.
func readParquet(t testing.TB, path string) (rows []map[string]any) {
	t.Helper()
	f, err := file.OpenParquetFile(path, false)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer f.Close()
	if v := f.MetaData().KeyValueMetadata().FindValue("service.name"); v == nil || *v != "weft" {
		t.Errorf("%s: got service.name %v, want weft", path, v)
	}
	r, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	table, err := r.ReadTable(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	batches := array.NewTableReader(table, 0)
	defer batches.Release()
	for batches.Next() {
		rec := batches.RecordBatch()
		for i := range int(rec.NumRows()) {
			rows = append(rows, gotRow(t, rec, i))
		}
	}
	return rows
}

// finished are the files of a folder that a reader would take, and other what else is there.
func finished(t testing.TB, dir string) (files, other []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range all {
		if strings.HasSuffix(f.Name(), ".parquet") {
			files = append(files, filepath.Join(dir, f.Name()))
		} else if f.Name() != ".weft.lock" {
			other = append(other, f.Name())
		}
	}
	return files, other
}

func newParquet(t testing.TB, c ParquetConfig, log *slog.Logger) *Parquet {
	t.Helper()
	c.Metadata = map[string]string{"service.name": "weft"}
	p, err := NewParquet(c, log)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func exportRecords(t testing.TB, s flows.Sink, records []flows.Record) {
	t.Helper()
	if err := s.Export(t.Context(), flows.Window{Records: records}); err != nil {
		t.Fatal(err)
	}
}

func requireBalanced(t testing.TB, a flows.SinkAccount) {
	t.Helper()
	if a.Offered != a.Acknowledged+a.Waiting+a.TotalLost() {
		t.Fatalf("account %+v does not balance", a)
	}
}

func TestParquetFilesHaveWhatTheTableOfNamesSays(t *testing.T) {
	for _, c := range []ParquetConfig{{Compression: "zstd", Derived: true}, {Compression: "snappy"}, {Compression: "none", Queue: 800}} {
		t.Run(c.Compression, func(t *testing.T) {
			r := rand.New(rand.NewPCG(12, 1))
			c.Dir = filepath.Join(t.TempDir(), "made")
			p := newParquet(t, c, nil)
			all := anyRecords(r, 800)
			for left := all; len(left) > 0; { // windows of any size; row groups of 400 with the small queue
				n := 1 + r.IntN(len(left))
				exportRecords(t, p, left[:n])
				left = left[n:]
			}
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if a := p.Account(); a.Acknowledged != uint64(len(all)) || a.Offered != a.Acknowledged {
				t.Fatalf("got account %+v, want %d acknowledged", a, len(all))
			}
			files, other := finished(t, c.Dir)
			if len(files) != 1 || other != nil {
				t.Fatalf("got files %v and %v, want one", files, other)
			}
			var want []map[string]any
			for i := range all {
				want = append(want, wantRow(&all[i], c.Derived))
			}
			requireRows(t, c.Compression, readParquet(t, files[0]), want)
		})
	}
}

// A table of a folder needs the same columns in all files, whatever their records have.
func TestParquetFilesHaveTheSameColumns(t *testing.T) {
	var first string
	for _, records := range [][]flows.Record{{tcpRecord(1)}, {dnsRecord(1)}, figured(3)} {
		dir := t.TempDir()
		p := newParquet(t, ParquetConfig{Dir: dir}, nil)
		exportRecords(t, p, records)
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		files, _ := finished(t, dir)
		f, err := file.OpenParquetFile(files[0], false)
		if err != nil {
			t.Fatal(err)
		}
		if schema := f.MetaData().Schema.String(); first == "" {
			first = schema
		} else if schema != first {
			t.Errorf("got schema\n%s\nwant\n%s", schema, first)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParquetFileIsFinishedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		p := newParquet(t, ParquetConfig{Dir: dir, Age: time.Minute}, nil)
		exportRecords(t, p, figured(10))
		time.Sleep(30 * time.Second) // the bubble's clock
		exportRecords(t, p, figured(5))
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if files, _ := finished(t, dir); files != nil || p.Account().Waiting != 15 {
			t.Fatalf("before its age: got files %v, account %+v; want none, and 15 waiting", files, p.Account())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		files, other := finished(t, dir)
		if a := p.Account(); len(files) != 1 || other != nil || a.Acknowledged != 15 || a.Waiting != 0 {
			t.Fatalf("got files %v and %v, account %+v; want one with 15 records", files, other, a)
		}
		time.Sleep(time.Hour) // and no empty ones
		exportRecords(t, p, figured(1))
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if files, _ = finished(t, dir); len(files) != 2 || len(readParquet(t, files[1])) != 1 {
			t.Errorf("got files %v, want a second one with one record", files)
		}
	})
}

func TestParquetFilesAreCutBySizeAndTheOldestGo(t *testing.T) {
	dir := t.TempDir()
	p := newParquet(t, ParquetConfig{Dir: dir, Size: 1 << 20, Keep: 3, Queue: 40_000}, nil)
	stranger := filepath.Join(dir, "a-table.parquet")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	offered := uint64(0)
	for range 12 {
		all := figured(20_000)
		for i := range all {
			all[i].ConnectionID = rand.Uint64()
			all[i].Bytes, all[i].ReverseBytes = rand.Uint64N(1e9), rand.Uint64N(1e9)
			all[i].Key.Src = anyEnd(rand.New(rand.NewPCG(1, uint64(i))))
			all[i].End = all[i].End.Add(time.Duration(rand.Int64N(1e10)))
		}
		exportRecords(t, p, all)
		offered += uint64(len(all))
		eventually(t, "the queue is nearly empty", func() bool { return p.Account().Waiting < 20_000 || waiting(p) < 20_000 })
		requireBalanced(t, p.Account())
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, other := finished(t, dir)
	if len(files) != 4 || other != nil || !slices.Contains(files, stranger) {
		t.Errorf("got files %v and %v, want three and the stranger", files, other)
	}
	if a := p.Account(); a.Acknowledged != offered {
		t.Errorf("got account %+v, want %d acknowledged", a, offered)
	}
}

// waiting are the records that wait outside of the disk.
func waiting(p *Parquet) uint64 {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return p.queue.account.Waiting - p.queue.parked
}

// disk is a file system of the test's own.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := smallDisk(t)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFullDiskHoldsRecordsAndLosesNone(t *testing.T) {
	dir := disk(t, "256k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 240<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p := newParquet(t, ParquetConfig{Dir: filepath.Join(dir, "flows"), Age: time.Second, Queue: 1000}, slog.New(slog.NewTextHandler(&log, nil)))
	all := figured(600)
	exportRecords(t, p, all)
	eventually(t, "the disk is full", func() bool { return p.State() != "" })
	if a := p.Account(); a.Waiting != 600 {
		t.Errorf("while it is full: got account %+v, want 600 waiting", a)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is finished", func() bool { return p.Account().Acknowledged == 600 })
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, other := finished(t, filepath.Join(dir, "flows"))
	if len(files) != 1 || other != nil || p.State() != "" {
		t.Fatalf("got files %v and %v, state %q; want one, and nothing wrong", files, other, p.State())
	}
	var want []map[string]any
	for i := range all {
		want = append(want, wantRow(&all[i], false))
	}
	requireRows(t, "after the disk was full", readParquet(t, files[0]), want)
	if text := log.String(); strings.Count(text, "Parquet files cannot be written, records wait") != 1 || !strings.Contains(text, "no space left") || strings.Count(text, "written again") != 1 {
		t.Errorf("got log\n%s\nwant one line that it is full and one that it is over", text)
	}
}

func TestReadOnlyDiskHoldsRecordsUntilTheDeadline(t *testing.T) {
	dir := disk(t, "1m")
	var log syncBuffer
	p := newParquet(t, ParquetConfig{Dir: dir, Age: time.Second, Queue: 100}, slog.New(slog.NewTextHandler(&log, nil)))
	exportRecords(t, p, figured(10))
	eventually(t, "the first file", func() bool { return p.Account().Acknowledged == 10 })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	exportRecords(t, p, figured(80))
	eventually(t, "the disk is read-only", func() bool { return strings.Contains(p.State(), "read-only") })
	exportRecords(t, p, figured(80))
	if a := p.Account(); a.Waiting != 100 || a.Lost["queue_full"] != 60 {
		t.Errorf("got account %+v, want 100 waiting and 60 lost as the queue was full", a)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	a := p.Account()
	requireBalanced(t, a)
	if a.Waiting != 0 || a.Lost["shutdown"] != 100 || a.Acknowledged != 10 {
		t.Errorf("got account %+v, want 100 lost to the shutdown", a)
	}
	<-p.done // nothing of it goes on
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "Parquet files cannot be written, records wait") {
		t.Errorf("got log\n%s\nwant one line", log.String())
	}
}

func TestRemovedFileIsLostAndTheNextIsNot(t *testing.T) {
	dir := t.TempDir()
	p := newParquet(t, ParquetConfig{Dir: dir, Age: time.Second, Queue: 20}, nil)
	exportRecords(t, p, figured(10)) // a row group
	eventually(t, "the file is begun", func() bool {
		_, other := finished(t, dir)
		return len(other) == 1 && strings.Contains(other[0], ".parquet.10.")
	})
	_, other := finished(t, dir)
	if err := os.Remove(filepath.Join(dir, other[0])); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is known", func() bool { return p.Account().Lost["file_removed"] == 10 })
	exportRecords(t, p, figured(3))
	eventually(t, "the next file", func() bool { return p.Account().Acknowledged == 3 })
	requireBalanced(t, p.Account())
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestNewestParquetFileOutlivesAClockThatWasSetBack(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 { // of a run whose clock was ahead
		name := fmt.Sprintf("weft-20990101T000000Z-0000abcd-%06d.parquet", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newParquet(t, ParquetConfig{Dir: dir, Age: time.Second, Keep: 2}, nil)
	for n := range 3 {
		exportRecords(t, p, figured(5))
		eventually(t, "a file", func() bool { return p.Account().Acknowledged == uint64(5*(n+1)) })
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, _ := finished(t, dir)
	if len(files) != 2 {
		t.Fatalf("got files %v, want the last two", files)
	}
	for _, f := range files {
		if rows := readParquet(t, f); len(rows) != 5 {
			t.Errorf("%s: got %d records, want 5 of the newest files", f, len(rows))
		}
	}
}

func TestParquetFolderThatWasRemovedIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lake")
	p := newParquet(t, ParquetConfig{Dir: dir, Age: time.Second}, nil)
	exportRecords(t, p, figured(3))
	eventually(t, "the first file", func() bool { return p.Account().Acknowledged == 3 })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	exportRecords(t, p, figured(4))
	eventually(t, "a file in the new folder", func() bool { return p.Account().Acknowledged == 7 })
	if files, _ := finished(t, dir); len(files) != 1 {
		t.Errorf("got files %v, want one", files)
	}
	requireBalanced(t, p.Account())
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestMain runs this test's binary as a sink that is to be killed.
func killedWriter(dir string) {
	p, err := NewParquet(ParquetConfig{Dir: dir, Age: time.Hour, Queue: 2000, Metadata: map[string]string{"service.name": "weft"}}, nil)
	if err != nil {
		panic(err)
	}
	if err := p.Export(context.Background(), flows.Window{Records: figured(1500)}); err != nil {
		panic(err)
	}
	select {}
}

func TestKilledWriterSaysWhatWasLost(t *testing.T) {
	dir := t.TempDir()
	if os.Getenv("PARQUET_KILLED") != "" {
		killedWriter(os.Getenv("PARQUET_KILLED"))
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run", "^TestKilledWriterSaysWhatWasLost$")
	cmd.Env = append(os.Environ(), "PARQUET_KILLED="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a row group is on the disk", func() bool {
		_, other := finished(t, dir)
		return len(other) == 1 && strings.Contains(other[0], ".parquet.1000.")
	})
	second := newParquet(t, ParquetConfig{Dir: dir}, nil)
	eventually(t, "the folder is in use", func() bool { return strings.Contains(second.State(), "another process") })
	if err := second.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	whole := filepath.Join(dir, "weft-20261123T000000Z-00000001-000000.parquet")
	if err := os.WriteFile(whole+".2.part", parquetBytes(t, figured(2)), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p := newParquet(t, ParquetConfig{Dir: dir}, slog.New(slog.NewTextHandler(&log, nil)))
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, other := finished(t, dir)
	if len(files) != 1 || files[0] != whole || other != nil || len(readParquet(t, whole)) != 2 {
		t.Errorf("got files %v and %v, want only the one that was whole", files, other)
	}
	if text := log.String(); !strings.Contains(text, "at_least_records=1000") || !strings.Contains(text, "records=2") {
		t.Errorf("got log\n%s\nwant 1,000 records lost and 2 found", text)
	}
}

// parquetBytes is a whole file.
func parquetBytes(t *testing.T, records []flows.Record) []byte {
	t.Helper()
	dir := t.TempDir()
	p := newParquet(t, ParquetConfig{Dir: dir}, nil)
	exportRecords(t, p, records)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, _ := finished(t, dir)
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParquetConfigNamesEachMistake(t *testing.T) {
	c := ParquetConfig{Size: 5, Age: time.Millisecond, Keep: -1, Compression: "rar"}
	err := c.Check()
	for _, key := range []string{"dir:", "size=5:", "age=1ms:", "keep=-1:", "compression=rar:"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v, want %s among it", err, key)
		}
	}
	if _, err := NewParquet(c, nil); err == nil {
		t.Error("got a sink of it, want the error")
	}
}
