// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/plog"

	"weft/exporter"
	"weft/flows"
)

// unreliable is a pipeline that now and then fails, before or after it took what
// it was given: the second is how duplicates come about.
type unreliable struct {
	consumertest.LogsSink
	mu      sync.Mutex
	n       int
	batches map[string]map[int64]uint64 // by id: number of the record, bytes
	twice   int
}

func (u *unreliable) ConsumeLogs(_ context.Context, ld plog.Logs) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n++; u.n%10 == 3 {
		return errors.New("refused before it was taken")
	}
	scope := ld.ResourceLogs().At(0).ScopeLogs().At(0)
	id, _ := scope.Scope().Attributes().Get("weft.batch.id")
	batch := map[int64]uint64{}
	for i := range scope.LogRecords().Len() {
		attrs := scope.LogRecords().At(i).Attributes()
		number, _ := attrs.Get("weft.flow.packets")
		size, _ := attrs.Get("weft.flow.bytes")
		batch[number.Int()] = uint64(size.Int())
	}
	if before, again := u.batches[id.Str()]; again {
		u.twice++
		if !maps.Equal(before, batch) {
			return fmt.Errorf("batch %s came twice with different records", id.Str())
		}
	}
	u.batches[id.Str()] = batch
	if u.n%10 == 7 {
		return errors.New("failed after it was taken")
	}
	return nil
}

// counts is how often each record came, after batches that came twice are taken once.
func (u *unreliable) counts(t *testing.T) map[int64]int {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	times := map[int64]int{}
	for _, batch := range u.batches {
		for number, size := range batch {
			times[number]++
			if size != uint64(1000+number) {
				t.Errorf("record %d: got %d bytes, want %d", number, size, 1000+number)
			}
		}
	}
	return times
}

// TestChaosAgent is not a test: it is the process that TestKilled... kills. It
// exports records with running numbers and says how many are safe.
func TestChaosAgent(t *testing.T) {
	dir, endpoint, from := os.Getenv("CHAOS_SPOOL"), os.Getenv("CHAOS_ENDPOINT"), os.Getenv("CHAOS_FROM")
	if dir == "" {
		t.Skip("run by TestKilledAgentsLoseNothingThatWasSafe")
	}
	next, err := strconv.Atoi(from)
	if err != nil {
		t.Fatal(err)
	}
	o := newSink(t, endpoint, exporter.OTLPConfig{Flush: time.Millisecond, Spool: exporter.SpoolConfig{Dir: dir}})
	for ; ; next += 50 {
		batch := corpus(50, 1)
		for i := range batch {
			batch[i].Packets, batch[i].Bytes = uint64(next+i), uint64(1000+next+i)
		}
		export(t, o, flows.Window{Records: batch})
		eventually(t, "the disk", func() bool { return o.Account().Waiting == o.Spooled() })
		fmt.Printf("safe %d\n", next+50)
	}
}

func TestKilledAgentsLoseNothingThatWasSafe(t *testing.T) {
	dir := t.TempDir()
	pipeline := &unreliable{batches: map[string]map[int64]uint64{}}
	receiver := startCollector(t, "", pipeline, new(consumertest.MetricsSink))
	safe := map[int]int{} // by the first record of a life
	for life := range 12 {
		switch life % 4 {
		case 1: // an outage over this life and the next
			receiver.stop(t)
		case 3:
			receiver = startCollector(t, receiver.endpoint, pipeline, new(consumertest.MetricsSink))
		}
		safe[life*1e6] = live(t, dir, receiver.endpoint, life*1e6)
	}
	o := newSink(t, receiver.endpoint, exporter.OTLPConfig{Spool: exporter.SpoolConfig{Dir: dir}})
	eventually(t, "the spool to be empty", func() bool { return len(left(t, dir)) == 0 })
	closeSink(t, o)

	times, total := pipeline.counts(t), 0
	unsaid := len(times)
	for from, to := range safe {
		for n := from; n < to; n++ {
			if times[int64(n)] != 1 {
				t.Errorf("record %d: got it %d times, want once", n, times[int64(n)])
			}
		}
		total += to - from
	}
	for n, got := range times {
		if got != 1 {
			t.Errorf("record %d: got it in %d different batches, want one", n, got)
		}
	}
	// A request may be on disk before it was said to be: one of 50 a life.
	if unsaid -= total; unsaid < 0 || unsaid > 50*len(safe) {
		t.Errorf("got %d records that were not said to be safe, want at most %d", unsaid, 50*len(safe))
	}
	t.Logf("%d records safe in 12 lives, %d batches, %d of them twice, %d records safe but not said to be", total, len(pipeline.batches), pipeline.twice, unsaid)
	if pipeline.twice == 0 {
		t.Error("got no batch twice: the test does not show what the ids are for")
	}
}

// live runs an agent that numbers records from from on, kills it when it has made
// some requests, and returns up to which number records are safe.
func live(t *testing.T, dir, endpoint string, from int) int {
	t.Helper()
	agent := exec.Command(os.Args[0], "-test.run=^TestChaosAgent$")
	agent.Env = append(os.Environ(), "CHAOS_SPOOL="+dir, "CHAOS_ENDPOINT="+endpoint, "CHAOS_FROM="+strconv.Itoa(from))
	agent.Stderr = os.Stderr
	gate, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	safe, said := from, 0
	lines := bufio.NewScanner(gate)
	for lines.Scan() { // to the end: also what it said before the kill reached it
		number, ok := strings.CutPrefix(lines.Text(), "safe ")
		if !ok {
			continue
		}
		if safe, err = strconv.Atoi(number); err != nil {
			t.Fatal(err)
		}
		if said++; said == 20 {
			if err := agent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := agent.Wait(); err == nil || said < 20 {
		t.Fatalf("agent ended by itself after %d requests: %v", said, err)
	}
	return safe
}

func left(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".otlp.zst") {
			names = append(names, f.Name())
		}
	}
	return slices.Clip(names)
}
