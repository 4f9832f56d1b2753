// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"weft/flows"
)

func startFile(t *testing.T, c FileConfig) (*File, *syncBuffer) {
	t.Helper()
	log := &syncBuffer{}
	c.Log, c.Getenv = slog.New(slog.NewTextHandler(log, nil)), func(string) string { return "" }
	if c.Flush == 0 {
		c.Flush = time.Millisecond
	}
	f, err := NewFile(c)
	if err != nil {
		t.Fatal(err)
	}
	return f, log
}

func closeFile(t *testing.T, f *File) {
	t.Helper()
	if err := f.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
	checkBalance(t, f.Account())
}

// settled waits until the sink says that n records are in the file.
func settled(t *testing.T, f *File, n uint64) {
	t.Helper()
	eventually(t, "the records to be in the file", func() bool { return f.Account().Acknowledged == n })
}

// folder is the names of what is in dir, in order.
func folder(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// plainFile is what a file has, unpacked.
func plainFile(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r io.Reader = bytes.NewReader(raw)
	switch filepath.Ext(path) {
	case ".gz":
		r, err = gzip.NewReader(r)
	case ".zst":
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return text
}

// writtenBytes is weft.flow.bytes of every record in the files of a folder, in the order
// of their names, but the longer ones, which are renamed, first.
func writtenBytes(t *testing.T, dir string) (all []int64) {
	t.Helper()
	names := folder(t, dir)
	slices.SortStableFunc(names, func(a, b string) int { return len(b) - len(a) }) // flows.jsonl last
	for _, name := range names {
		text := plainFile(t, filepath.Join(dir, name))
		if len(text) > 0 && text[len(text)-1] != '\n' {
			t.Errorf("%s: ends within a line", name)
		}
		for line := range bytes.Lines(text) {
			if len(line) > maxLine {
				t.Errorf("%s: got a line of %d bytes, want at most %d", name, len(line), maxLine)
			}
			var m collogs.ExportLogsServiceRequest
			if err := protojson.Unmarshal(line, &m); err != nil {
				t.Fatalf("%s: %v in %.80q", name, err, line)
			}
			for _, lr := range m.ResourceLogs[0].ScopeLogs[0].LogRecords {
				for _, a := range lr.Attributes {
					if a.Key == "weft.flow.bytes" {
						all = append(all, a.Value.GetIntValue())
					}
				}
			}
		}
	}
	return all
}

// numbered is n records that their bytes tell apart, from the number first on.
func numbered(first, n int) []flows.Record {
	all := records(n)
	for i := range all {
		all[i].Bytes = uint64(first + i)
	}
	return all
}

// checkNumbers wants each of 0..n-1 once and in order.
func checkNumbers(t *testing.T, got []int64, n int) {
	t.Helper()
	for i, v := range got {
		if v != int64(i) {
			t.Fatalf("record %d: got number %d", i, v)
		}
	}
	if len(got) != n {
		t.Errorf("got %d records, want %d", len(got), n)
	}
}

func TestFileHasEveryRecordOnceOverRenaming(t *testing.T) {
	for _, packed := range []struct{ by, ext string }{{"none", ""}, {"zstd", ".zst"}, {"gzip", ".gz"}} {
		t.Run(packed.by, func(t *testing.T) {
			checkNoLeak(t)
			dir := t.TempDir()
			f, log := startFile(t, FileConfig{Path: filepath.Join(dir, "flows.jsonl"), Size: 1 << 20, Keep: 100, Compression: packed.by})
			const n = 2000
			for first := 0; first < n; first += 500 {
				export(t, f, numbered(first, 500)...)
			}
			settled(t, f, n)
			eventually(t, "renamed files to be packed", func() bool {
				for _, name := range folder(t, dir) {
					if name != "flows.jsonl" && !strings.HasSuffix(name, ".jsonl"+packed.ext) {
						return false
					}
				}
				return true
			})
			closeFile(t, f)
			if got := folder(t, dir); len(got) < 3 || !slices.Contains(got, "flows.000001.jsonl"+packed.ext) {
				t.Errorf("got files %v, want several", got)
			}
			checkNumbers(t, writtenBytes(t, dir), n)
			if log.String() != "" {
				t.Errorf("got log %q, want none", log.String())
			}
		})
	}
}

func TestOnlySoManyRenamedFilesAreKeptAndNumbersGoOn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "flows.jsonl")
	for life := range 2 {
		f, _ := startFile(t, FileConfig{Path: path, Size: 1, Keep: 2})
		for i := range 5 {
			export(t, f, numbered(i, 1)...)
			settled(t, f, uint64(i+1))
		}
		last := []string{"flows.000004.jsonl", "flows.000009.jsonl"}[life]
		eventually(t, "the oldest to be removed", func() bool { return len(folder(t, dir)) == 3 })
		if got := folder(t, dir); !slices.Contains(got, last) {
			t.Errorf("life %d: got %v, want %s as the last renamed", life, got, last)
		}
		closeFile(t, f)
		if a := f.Account(); a.Acknowledged != 5 {
			t.Errorf("got %+v, want 5 acknowledged", a)
		}
	}
}

func TestOldFileIsRenamedByTheClock(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startFile(t, FileConfig{Path: filepath.Join(dir, "flows.jsonl"), Age: time.Hour})
		for i, wait := range []time.Duration{0, 59 * time.Minute, 2 * time.Minute, time.Minute} {
			time.Sleep(wait)
			export(t, f, numbered(i, 1)...)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if err := f.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if got := folder(t, dir); len(got) != 2 {
		t.Errorf("got %v, want one renamed and one that is written", got)
	}
	checkNumbers(t, writtenBytes(t, dir), 4)
}

func TestRecordsWaitForADiskThatTakesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		breakIt, mend func(dir string) error
		want          string
	}{
		"full": {
			func(dir string) error {
				if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o600); err == nil {
					return errors.New("the disk of 64 KiB took a MiB")
				}
				return nil
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "ballast")) }, "no space left",
		},
		"read-only": {
			func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
			func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT, "") }, "read-only file system",
		},
		"folder gone": {
			func(dir string) error { return os.Rename(filepath.Join(dir, "logs"), filepath.Join(dir, "other")) },
			func(dir string) error { return os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "logs")) },
			"no such file or directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkNoLeak(t)
			dir := smallDisk(t)
			logs := filepath.Join(dir, "logs")
			if err := os.Mkdir(logs, 0o700); err != nil {
				t.Fatal(err)
			}
			f, log := startFile(t, FileConfig{Path: filepath.Join(logs, "flows.jsonl")})
			export(t, f, numbered(0, 2)...)
			settled(t, f, 2)
			f.Reopen() // so that it can be mounted read-only
			if err := c.breakIt(dir); err != nil {
				t.Fatal(err)
			}
			export(t, f, numbered(2, 8)...)
			eventually(t, "the fault to be told", func() bool {
				return strings.HasPrefix(f.Status().GetState(), "retrying since") && strings.Contains(f.Status().GetState(), c.want)
			})
			if a := f.Account(); a.Waiting != 8 || a.Acknowledged != 2 {
				t.Errorf("got %+v, want 8 waiting", a)
			}
			if err := c.mend(dir); err != nil {
				t.Fatal(err)
			}
			settled(t, f, 10)
			closeFile(t, f)
			checkNumbers(t, writtenBytes(t, logs), 10)
			text := log.String()
			if strings.Count(text, "file cannot be written, records wait") != 1 || strings.Count(text, "written again") != 1 || !strings.Contains(text, c.want) {
				t.Errorf("got log %q, want one line when it broke, with %q, and one when it was mended", text, c.want)
			}
		})
	}
}

func TestClosingOnADeadDiskCountsWhatWaited(t *testing.T) {
	checkNoLeak(t)
	f, _ := startFile(t, FileConfig{Path: filepath.Join(t.TempDir(), "none", "flows.jsonl")})
	export(t, f, numbered(0, 10)...)
	eventually(t, "the fault to be told", func() bool { return f.Status().GetState() != stateOK })
	closeFile(t, f)
	if a := f.Account(); a.Lost["shutdown"] != 10 {
		t.Errorf("got %+v, want 10 lost at the shutdown", a)
	}
}

func TestTornLineIsCutAndAForeignFileLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "flows.jsonl")
	f, _ := startFile(t, FileConfig{Path: path})
	export(t, f, numbered(0, 3)...)
	settled(t, f, 3)
	closeFile(t, f)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, whole[:len(whole)/2]...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, log := startFile(t, FileConfig{Path: path})
	export(t, f, numbered(3, 3)...)
	settled(t, f, 3)
	closeFile(t, f)
	checkNumbers(t, writtenBytes(t, dir), 6)
	if !strings.Contains(log.String(), "torn") {
		t.Errorf("got log %q, want a line about the torn one", log.String())
	}

	for _, text := range []string{"root:x:0:0\n", "{" + strings.Repeat("x", 3*maxLine)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, _ = startFile(t, FileConfig{Path: path})
		export(t, f, numbered(0, 1)...)
		eventually(t, "the foreign file to be told of", func() bool { return strings.Contains(f.Status().GetState(), "something else") })
		closeFile(t, f)
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("got %.20q, %v: the foreign file was changed", got, err)
		}
	}
}

func TestTwoSinksDoNotWriteOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.jsonl")
	a, _ := startFile(t, FileConfig{Path: path})
	export(t, a, numbered(0, 1)...)
	settled(t, a, 1)
	b, log := startFile(t, FileConfig{Path: path})
	export(t, b, numbered(1, 1)...)
	eventually(t, "the other to be told of", func() bool { return strings.Contains(log.String(), "another process or sink writes it") })
	closeFile(t, a)
	settled(t, b, 1)
	closeFile(t, b)
	checkNumbers(t, writtenBytes(t, filepath.Dir(path)), 2)
}

func TestFileRenamedByAnotherProgramIsBegunAnew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "flows.jsonl")
	f, _ := startFile(t, FileConfig{Path: path})
	for i := range 3 {
		export(t, f, numbered(i, 1)...)
		settled(t, f, uint64(i+1))
		if i == 2 {
			break
		}
		if err := os.Rename(path, filepath.Join(dir, []string{"flows.jsonl-older", "flows.jsonl-old"}[i])); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			f.Reopen()
			if f.out.file != nil {
				t.Error("got the renamed file open still, want it let go")
			}
		}
	}
	closeFile(t, f)
	checkNumbers(t, writtenBytes(t, dir), 3)
}

func TestFileOfFlowsHasOneRecordALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.jsonl")
	f, _ := startFile(t, FileConfig{Path: path, Format: LinesFlows, NoSync: true})
	export(t, f, numbered(0, 300)...)
	settled(t, f, 300)
	closeFile(t, f)
	n := 0
	for line := range bytes.Lines(plainFile(t, path)) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil || m["bytes"] != float64(n) {
			t.Fatalf("line %d: got %.60q, %v", n, line, err)
		}
		n++
	}
	if n != 300 {
		t.Errorf("got %d lines, want 300", n)
	}
}

func TestWrongFileSettingsAreAllTold(t *testing.T) {
	_, err := NewFile(FileConfig{Path: "flows.jsonl", Format: "xml", Compression: "lz4"})
	for _, want := range []string{"path=", "format:", "compression="} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s named", err, want)
		}
	}
}
