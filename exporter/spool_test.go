// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// testSpool is a spool of small requests with its log.
func testSpool(t *testing.T, c SpoolConfig) (*spool, *syncBuffer) {
	t.Helper()
	log := &syncBuffer{}
	s := newSpool(c, 7, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(func() {
		if s.lock != nil {
			_ = s.lock.Close() // a test that cares has closed it before
		}
	})
	return s, log
}

func put(t *testing.T, s *spool, body string) (kept bool, lost []evicted) {
	t.Helper()
	ok, kept, lost := s.put([]byte(body), 10, flows.Count{})
	if !ok {
		t.Fatalf("put %q: no room", body)
	}
	return kept, lost
}

// drain takes everything and returns the bodies, and the reasons of what was lost.
func drain(t *testing.T, s *spool) (bodies, lost []string) {
	t.Helper()
	for {
		e, body, gone, _ := s.take()
		for _, g := range gone {
			lost = append(lost, fmt.Sprint(g.reason, " ", g.records))
		}
		if e == nil {
			return bodies, lost
		}
		bodies = append(bodies, string(body))
		s.done(e)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"+spoolSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSpoolReplaysInOrderAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s, _ := testSpool(t, SpoolConfig{Dir: dir})
	for _, body := range []string{"a", "b", "c"} {
		put(t, s, body)
	}
	if err := s.lock.Close(); err != nil { // as a killed process leaves it
		t.Fatal(err)
	}
	half := filepath.Join(dir, spoolName(batchID(99, 7), 10)+".tmp")
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, log := testSpool(t, SpoolConfig{Dir: dir})
	put(t, again, "d")
	if got, lost := drain(t, again); strings.Join(got, "") != "abcd" || lost != nil {
		t.Errorf("got %q, lost %v, want abcd in order", got, lost)
	}
	if _, err := os.Stat(half); err == nil || len(files(t, dir)) != 0 {
		t.Errorf("got files %v and %v, want none left", files(t, dir), half)
	}
	if !strings.Contains(log.String(), "records=30") {
		t.Errorf("got log %q, want it to tell of 30 records", log.String())
	}
}

func TestDamagedSpoolFilesAreCountedAndTheOthersSent(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"torn":        func(b []byte) []byte { return b[:len(b)/2] },
		"empty":       func([]byte) []byte { return nil },
		"bit flipped": func(b []byte) []byte { b[len(b)-6] ^= 4; return b },
		"foreign":     func([]byte) []byte { return []byte("not zstd at all") },
	} {
		dir := t.TempDir()
		s, log := testSpool(t, SpoolConfig{Dir: dir})
		for _, body := range []string{"first of them", "second of them", "third of them"} {
			put(t, s, body)
		}
		hit := files(t, dir)[1]
		content, err := os.ReadFile(hit)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(hit, damage(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, lost := drain(t, s)
		if strings.Join(got, "|") != "first of them|third of them" || len(lost) != 1 || lost[0] != "spool_damaged 10" {
			t.Errorf("%s: got %q, lost %v, want the first, the third, and 10 records counted", name, got, lost)
		}
		if n := strings.Count(log.String(), "spooled request is damaged, its records are lost"); n != 1 || !strings.Contains(log.String(), filepath.Base(hit)) {
			t.Errorf("%s: got log %q, want one line that names the file", name, log.String())
		}
	}
}

func TestSpoolLosesTheOldestFirstAndCountsThem(t *testing.T) {
	dir := t.TempDir()
	s, _ := testSpool(t, SpoolConfig{Dir: dir, Size: 100})
	var lost []evicted
	for i := range 20 {
		_, gone := put(t, s, fmt.Sprintf("request %02d", i))
		lost = append(lost, gone...)
		if s.bytes > 100 {
			t.Fatalf("got %d bytes after request %d, want at most 100", s.bytes, i)
		}
	}
	got, _ := drain(t, s)
	if len(got)+len(lost) != 20 || len(got) < 2 || got[len(got)-1] != "request 19" || got[0] != fmt.Sprintf("request %02d", len(lost)) {
		t.Errorf("got %q after %d were lost, want the newest of 20", got, len(lost))
	}
	if lost[0].reason != "spool_full" || lost[0].records != 10 || s.bytes != 0 {
		t.Errorf("got %+v, %d bytes left, want spool_full of 10 records and none", lost[0], s.bytes)
	}
}

func TestAgeCountsFromAClockThatCannotBeSet(t *testing.T) {
	dir := t.TempDir()
	s, _ := testSpool(t, SpoolConfig{Dir: dir})
	put(t, s, "from the future")
	put(t, s, "a day old")
	put(t, s, "new")
	all := files(t, dir)
	for file, age := range map[string]time.Duration{all[0]: -1000 * time.Hour, all[1]: 25 * time.Hour} {
		at := time.Now().Add(-age)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, log := testSpool(t, SpoolConfig{Dir: dir})
	got, lost := drain(t, again)
	if strings.Join(got, "|") != "from the future|new" || len(lost) != 1 || lost[0] != "spool_age 10" {
		t.Errorf("got %q, lost %v, want the one of a day ago lost", got, lost)
	}
	if !strings.Contains(log.String(), "clock was set back: spooled requests are from the future and count as new") {
		t.Errorf("got log %q, want a line about the clock", log.String())
	}
}

// smallDisk is a file system of 64 KiB of the test's own.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("weft-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskThatTakesNothingHoldsUpNothing(t *testing.T) {
	for name, c := range map[string]struct {
		breakIt, mend func(dir string) error
		want          string
	}{
		"full": {
			func(dir string) error {
				err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o600)
				if err == nil {
					return fmt.Errorf("the disk of 64 KiB took a MiB")
				}
				return nil
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "ballast")) }, "no space left",
		},
		"read-only": {
			func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
			func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT, "") }, "read-only file system",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := smallDisk(t)
			s, log := testSpool(t, SpoolConfig{Dir: filepath.Join(dir, "spool")})
			if kept, _ := put(t, s, "0"); !kept {
				t.Fatal("got a request in memory, want it on disk")
			}
			if err := c.breakIt(dir); err != nil {
				t.Fatal(err)
			}
			for i := 1; i <= maxHeld; i++ {
				if kept, _ := put(t, s, fmt.Sprint(i)); kept {
					t.Errorf("request %d: got it on a disk that takes nothing", i)
				}
			}
			if ok, _, _ := s.put([]byte("5"), 10, flows.Count{}); ok {
				t.Error("got room for more requests in memory than maxHeld")
			}
			if err := c.mend(dir); err != nil {
				t.Fatal(err)
			}
			if kept, _ := put(t, s, "5"); !kept {
				t.Error("got a request in memory, want it on the mended disk")
			}
			if got, lost := drain(t, s); strings.Join(got, "") != "012345" || lost != nil {
				t.Errorf("got %q, lost %v, want all in order", got, lost)
			}
			text := log.String()
			if strings.Count(text, "spool cannot be written, requests wait in memory") != 1 || strings.Count(text, "written again") != 1 || !strings.Contains(text, c.want) {
				t.Errorf("got log %q, want one line when it broke, with %q, and one when it was mended", text, c.want)
			}
		})
	}
}

func TestRecordsOutliveTheirAgentAndArriveOnceByTheirID(t *testing.T) {
	dir := t.TempDir()
	down := &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
		return nil, status.Error(codes.Unavailable, "down")
	}}
	sink := func(r *receiver) *OTLP {
		o, err := NewOTLP(OTLPConfig{
			Endpoint: "http://" + r.listen(t), Getenv: env(), Flush: time.Millisecond, Finish: 100 * time.Millisecond, Queue: 100, Spool: SpoolConfig{Dir: dir},
		})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	first := sink(down)
	for range 5 { // five times what the queue in memory holds
		export(t, first, records(100)...)
		eventually(t, "the disk", func() bool {
			first.queue.mu.Lock()
			defer first.queue.mu.Unlock()
			return first.queue.parked == first.queue.account.Waiting
		})
	}
	if err := closeOTLP(t, first, 10*time.Second); err != nil {
		t.Error(err)
	}
	if a := first.Account(); a.Waiting != 500 || a.TotalLost() != 0 {
		t.Errorf("after the stop: got %+v, want 500 waiting and none lost", a)
	}
	checkBalance(t, first.Account())

	up := &receiver{}
	second := sink(up)
	export(t, second, records(7)...)
	eventually(t, "everything", func() bool { return second.Account().Acknowledged == 7 && second.recovered[0].Load() == 500 })
	if err := closeOTLP(t, second, 10*time.Second); err != nil {
		t.Error(err)
	}
	checkBalance(t, second.Account())
	if up.taken != 507 || len(files(t, dir)) != 0 {
		t.Errorf("got %d records and files %v, want 507 and none", up.taken, files(t, dir))
	}
}

func TestEveryBatchHasAnIDThatItsHalvesExtend(t *testing.T) {
	e, err := NewLogEncoder(nil, "1")
	if err != nil {
		t.Fatal(err)
	}
	e.Batch("here-1")
	body, n := e.Append(nil, records(100), t0)
	halves, err := batch{body: body, records: n}.halves()
	if err != nil {
		t.Fatal(err)
	}
	got := batchIDs(t, append([]batch{{body: body, records: n}}, halves...))
	if want := "here-1 100,here-1.0 50,here-1.1 50"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func batchIDs(t *testing.T, all []batch) string {
	t.Helper()
	var ids []string
	for _, b := range all {
		var m collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(b.body, &m); err != nil {
			t.Fatal(err)
		}
		for _, a := range m.ResourceLogs[0].ScopeLogs[0].Scope.Attributes {
			ids = append(ids, fmt.Sprint(a.Value.GetStringValue(), " ", logCount(&m)))
		}
	}
	return strings.Join(ids, ",")
}

// Only what is damaged is lost: a file that cannot be read now waits for its turn.
func TestSpoolKeepsWhatItCannotReadNow(t *testing.T) {
	dir := t.TempDir()
	s, log := testSpool(t, SpoolConfig{Dir: dir})
	for _, body := range []string{"a", "b"} {
		put(t, s, body)
	}
	first := files(t, dir)[0]
	if err := os.Rename(first, first+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(first, 0o700); err != nil { // reading it fails, and not because it is gone
		t.Fatal(err)
	}
	for range 3 {
		if got, lost := drain(t, s); got != nil || lost != nil {
			t.Errorf("unreadable: got %q, lost %v, want nothing of either", got, lost)
		}
	}
	if n := strings.Count(log.String(), "spool cannot be read"); n != 1 {
		t.Errorf("the log tells of it %d times, want once: %s", n, log.String())
	}
	if err := errors.Join(os.Remove(first), os.Rename(first+".away", first)); err != nil {
		t.Fatal(err)
	}
	if got, lost := drain(t, s); strings.Join(got, "") != "ab" || lost != nil {
		t.Errorf("readable again: got %q, lost %v, want ab in order", got, lost)
	}
	if !strings.Contains(log.String(), "spool is read again") {
		t.Errorf("got log %q, want that it is over", log.String())
	}
}

func TestWhatAKilledRunHadIsMissedByTheNext(t *testing.T) {
	dir := t.TempDir()
	var log *syncBuffer
	run := func(flowing, safe uint64) (s *spool) {
		s, log = testSpool(t, SpoolConfig{Dir: dir})
		if flowing > 0 {
			s.told(flows.Count{Packets: flowing, Bytes: 10 * flowing}, &flows.Ledger{})
			if ok, _, _ := s.put([]byte("x"), 1, flows.Count{Packets: safe, Bytes: 10 * safe}); !ok {
				t.Fatal("no room")
			}
		}
		return s
	}
	killed := func(s *spool) { // its lock goes, as with a process
		if err := s.lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
	killed(run(1000, 900))
	s := run(500, 450)
	if got := s.missing(); got != 100 || s.tally.Missing.Bytes != 1000 {
		t.Errorf("after a kill: got %d missing, want 100 packets", got)
	}
	says(t, "after a kill", log.String(), "last run was killed, packets that it had for this sink are in no record")
	killed(s)
	s = run(70, 10)
	if got := s.missing(); got != 150 {
		t.Errorf("after two: got %d missing, want 150", got)
	}
	if _, err := s.close(); err != nil {
		t.Fatal(err)
	}
	s, log = testSpool(t, SpoolConfig{Dir: dir})
	if got := s.missing(); got != 150 || strings.Contains(log.String(), "killed") {
		t.Errorf("after a stop: got %d missing and %q, want 150 and no word of a kill", got, log)
	}
}

func TestRequestsThatWereSafeBeforeTheTallyKnewAreNotMissing(t *testing.T) {
	dir := t.TempDir()
	s, _ := testSpool(t, SpoolConfig{Dir: dir})
	all := records(10)
	var want flows.Count
	for i := range all {
		want.Add(hopCount(&all[i]))
	}
	s.told(want, &flows.Ledger{})
	before, err := os.ReadFile(filepath.Join(dir, tallyName))
	if err != nil {
		t.Fatal(err)
	}
	body, n := newTestEncoder(t).Append(nil, all, t0)
	if ok, _, _ := s.put(body, n, want); !ok || n != 10 || want.Packets == 0 {
		t.Fatalf("got %d records of %+v in, want 10", n, want)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, tallyName), before, 0o600), s.lock.Close()); err != nil { // as if killed between the two
		t.Fatal(err)
	}
	next, log := testSpool(t, SpoolConfig{Dir: dir})
	if got := next.missing(); got != 0 {
		t.Errorf("got %d missing, want nothing: it is on disk; log %s", got, log)
	}
}
