// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/flows"
)

// away is a receiver that takes nothing.
func away() *receiver {
	return &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
		return nil, status.Error(codes.Unavailable, "away")
	}}
}

// The disk hangs in that the tally's file is a pipe that nobody reads: opening it waits.
func TestSpoolOnADiskThatHangsHoldsUpNeitherTheStopNorMetrics(t *testing.T) {
	dir, log := t.TempDir(), &syncBuffer{}
	o, err := NewOTLP(OTLPConfig{
		Endpoint: "http://" + away().listen(t), Getenv: env(), Flush: time.Millisecond, NoLedger: true, Spool: SpoolConfig{Dir: dir},
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	export(t, o, records(10)...)
	eventually(t, "ten records on disk", func() bool { return o.Spooled() == 10 })
	pipe := filepath.Join(dir, tallyName+".tmp")
	eventually(t, "the pipe", func() bool { // the worker may be writing the file just now
		_ = os.Remove(pipe)
		return unix.Mkfifo(pipe, 0o600) == nil
	})
	t.Cleanup(func() { // ends the worker that is left behind
		reader, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		o.work.Wait()
		_ = reader.Close()
	})
	export(t, o, records(7)...)
	eventually(t, "the hanging disk", func() bool {
		if o.spool.mu.TryLock() {
			o.spool.mu.Unlock()
			return false
		}
		return true
	})
	scraped := make(chan int, 1)
	go func() {
		metrics := make(chan prometheus.Metric, 100)
		o.Collect(metrics)
		scraped <- len(metrics)
	}()
	select {
	case n := <-scraped:
		if n == 0 {
			t.Error("got no metrics")
		}
	case <-time.After(5 * time.Second):
		t.Error("metrics wait for the disk")
	}
	began := time.Now()
	if err := closeOTLP(t, o, time.Second); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("got a stop in %s, want little more than the second it was given", took)
	}
	a := o.Account()
	checkBalance(t, a)
	if a.Waiting < 10 || a.Waiting+a.Lost["shutdown"] != 17 {
		t.Errorf("got %+v, want ten that wait on disk, and the rest lost or there too", a)
	}
	if !strings.Contains(log.String(), "disk hangs and is left behind") {
		t.Errorf("got log %q, want a line about the disk", log)
	}
}

// A sink that gets a part of the records knows what it took: after a kill the next run
// says what of that is not on disk.
func TestKilledSinkThatGetsAPartMissesWhatItTook(t *testing.T) {
	filter, err := flows.ParseFilter([]flows.Term{{Kind: "from-ip", Value: "10.0.0.4/30"}})
	if err != nil {
		t.Fatal(err)
	}
	host := flows.Ledger{At: t0, Gone: flows.PointLedger{Flows: flows.Count{Packets: 1 << 40}}}
	for name, c := range map[string]struct {
		intake Intake
		ledger flows.Ledger
		takes  int
	}{
		"filtered": {Intake{Filter: filter}, host, 4},
		"sampled":  {Intake{Sample: Sample{Rate: 0.5}}, host, -1},
		"tenant":   {Intake{}, flows.Ledger{}, 10},
	} {
		t.Run(name, func(t *testing.T) {
			all := records(10)
			taken, _, _ := c.intake.choose(all)
			if c.takes >= 0 && len(taken) != c.takes || len(taken) == 0 || c.takes < 0 && len(taken) == len(all) {
				t.Fatalf("got %d records taken, want %d", len(taken), c.takes)
			}
			var took flows.Count
			for i := range taken {
				took.Add(hopCount(&taken[i]))
			}
			dir := t.TempDir()
			start := func() *OTLP {
				o, err := NewOTLP(OTLPConfig{Endpoint: "http://" + away().listen(t), Getenv: env(), Flush: time.Minute, NoLedger: true,
					Finish: time.Millisecond, Intake: c.intake, Spool: SpoolConfig{Dir: dir}})
				if err != nil {
					t.Fatal(err)
				}
				return o
			}
			o := start()
			if err := o.Export(t.Context(), flows.Window{Records: all, Ledger: c.ledger}); err != nil {
				t.Fatal(err)
			}
			path, snapshot := filepath.Join(dir, tallyName), []byte(nil)
			eventually(t, "a tally of what was taken", func() bool {
				var tally spoolTally
				snapshot, err = os.ReadFile(path)
				return err == nil && json.Unmarshal(snapshot, &tally) == nil && tally.Flows == took
			})
			if err := closeOTLP(t, o, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			for _, f := range files(t, dir) { // as if killed before anything was spooled
				if err := os.Remove(f); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path, snapshot, 0o600); err != nil {
				t.Fatal(err)
			}
			next := start()
			if got := next.spool.missing(); got != took.Packets {
				t.Errorf("got %d packets missing, want the %d that it took", got, took.Packets)
			}
			if err := closeOTLP(t, next, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSpoolWhoseFolderWasRemovedIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s, log := testSpool(t, SpoolConfig{Dir: dir})
	s.told(flows.Count{Packets: 5}, &flows.Ledger{})
	put(t, s, "0")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if kept, _ := put(t, s, "1"); kept {
		t.Error("got a request on a disk that has no folder")
	}
	if kept, _ := put(t, s, "2"); !kept {
		t.Error("got a request in memory, want a folder made anew")
	}
	if got := s.tally.Flows.Packets; got != 5 {
		t.Errorf("got a tally of %d packets, want the 5 that were told", got)
	}
	if got, lost := drain(t, s); strings.Join(got, "") != "12" || len(lost) != 1 || lost[0] != "spool_damaged 10" {
		t.Errorf("got %q, lost %v, want what was removed counted and the rest in order", got, lost)
	}
	if !strings.Contains(log.String(), "spool is written again") {
		t.Errorf("got log %s, want the end of the fault", log)
	}
}

func TestSpoolWhoseFolderComesBackHasEachRequestOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s, _ := testSpool(t, SpoolConfig{Dir: dir})
	put(t, s, "0")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "1")
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if kept, _ := put(t, s, "2"); !kept {
		t.Error("got a request in memory, want it in the folder that came back")
	}
	if got, lost := drain(t, s); strings.Join(got, "") != "012" || lost != nil {
		t.Errorf("got %q, lost %v, want each once", got, lost)
	}
	if s.bytes != 0 {
		t.Errorf("got %d bytes on disk when all are sent", s.bytes)
	}
}
