// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// The receiver takes 100 kB at most, acknowledges one part and hangs; the next one takes everything. No part that the
// first one has comes again under another id, though the whole would fit now.
func TestHalvesThatWereSentAreNotSentAgainInTheWhole(t *testing.T) {
	dir := t.TempDir()
	var answered atomic.Int32
	small := &receiver{answer: func(ctx context.Context, _ int) (*collogs.ExportLogsServiceResponse, error) {
		if answered.Add(1) > 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return &collogs.ExportLogsServiceResponse{}, nil
	}}
	sink := func(r *receiver, most int) *OTLP {
		o, err := NewOTLP(OTLPConfig{
			Endpoint: "http://" + r.listen(t, grpc.MaxRecvMsgSize(most)), Getenv: env(), Flush: time.Millisecond, Finish: 100 * time.Millisecond, Spool: SpoolConfig{Dir: dir},
		})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	const n = 400
	first := sink(small, 100_000)
	export(t, first, records(n)...)
	eventually(t, "the second part", func() bool { return answered.Load() == 2 })
	acknowledged := first.Account().Acknowledged
	if err := closeOTLP(t, first, 10*time.Second); err != nil {
		t.Error(err)
	}
	if a := first.Account(); acknowledged == 0 || acknowledged > n/2 || a.Waiting != n-acknowledged || a.TotalLost() != 0 {
		t.Fatalf("got %+v, %d acknowledged, want a part acknowledged and the others waiting", a, acknowledged)
	}
	checkBalance(t, first.Account())
	large := &receiver{}
	second := sink(large, 4<<20)
	eventually(t, "everything", func() bool { return second.recovered[0].Load() == n-acknowledged })
	if err := closeOTLP(t, second, 10*time.Second); err != nil {
		t.Error(err)
	}
	ids := slices.Concat(small.ids, large.ids)
	slices.Sort(ids)
	if len(slices.Compact(slices.Clone(ids))) != len(ids) || len(large.ids) < 2 || small.taken+large.taken != n {
		t.Errorf("got %d and %d records under the ids %q, want %d and no id twice", small.taken, large.taken, ids, n)
	}
	for _, id := range large.ids {
		if strings.HasPrefix(small.ids[0], id) || len(files(t, dir)) > 0 {
			t.Errorf("got %q of which %q was there, files %v", id, small.ids[0], files(t, dir))
		}
	}
}

// A run that is killed while it splits leaves the request, with none, one or both of its halves: then nothing of them was sent.
func TestRequestsThatWereBeingSplitAreWholeAfterAKill(t *testing.T) {
	id := batchID(3, 7)
	for name, c := range map[string]struct{ there, left []string }{
		"first half":       {[]string{id, id + ".0"}, []string{id}},
		"both halves":      {[]string{id, id + ".0", id + ".1"}, []string{id}},
		"done":             {[]string{id + ".0", id + ".1"}, []string{id + ".0", id + ".1"}},
		"one half sent":    {[]string{id + ".1"}, []string{id + ".1"}},
		"a half of a half": {[]string{id + ".0", id + ".0.0", id + ".1"}, []string{id + ".0", id + ".1"}},
	} {
		dir := t.TempDir()
		for _, name := range c.there {
			packed, err := packers["zstd"]([]byte(name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, spoolName(name, 10)), packed, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, _ := testSpool(t, SpoolConfig{Dir: dir})
		if got, lost := drain(t, s); !slices.Equal(got, c.left) || lost != nil || s.bytes != 0 || len(files(t, dir)) > 0 {
			t.Errorf("%s: got %q, lost %v, %d bytes and %v left, want %q and nothing left", name, got, lost, s.bytes, files(t, dir), c.left)
		}
	}
}

// On a disk that turned read-only nothing can be made room for: what waits there has not gone, and is sent when it can be.
func TestFullSpoolOnAReadOnlyDiskLosesNothing(t *testing.T) {
	dir := smallDisk(t)
	s, log := testSpool(t, SpoolConfig{Dir: filepath.Join(dir, "spool"), Size: 60})
	for _, body := range []string{"first", "second"} {
		if kept, lost := put(t, s, body); !kept || lost != nil {
			t.Fatalf("got kept %v, lost %v, want it on disk", kept, lost)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for range maxHeld {
		if kept, lost := put(t, s, "a request that has no room beside the others"); kept || lost != nil {
			t.Fatalf("got kept %v, lost %v, want it in memory and nothing lost", kept, lost)
		}
	}
	e, body, lost, _ := s.take()
	if e == nil || string(body) != "first" || lost != nil {
		t.Fatalf("got %q, lost %v, want the first", body, lost)
	}
	s.done(e)
	if len(s.dropped) != 1 || len(files(t, s.c.Dir)) != 2 {
		t.Errorf("got %d to be removed later and the files %v, want the one that was sent, and both", len(s.dropped), files(t, s.c.Dir))
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if got, lost := drain(t, s); len(got) != 1+maxHeld || got[0] != "second" || lost != nil || len(files(t, s.c.Dir)) > 0 || s.bytes != 0 {
		t.Errorf("got %q, lost %v, files %v, %d bytes, want all in order and nothing left", got, lost, files(t, s.c.Dir), s.bytes)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("got %d warnings, want one:\n%s", n, log)
	}
}
