// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/exporter/api"
	"weft/flows"
)

// listen serves s at path and returns how to stop it.
func listen(t *testing.T, path string, s *Store) (stop func()) {
	t.Helper()
	server, err := ListenSocket(path, "", s, func() *api.StatusResponse { return &api.StatusResponse{} })
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}

// told collects what a client says, and the records of a follower.
type told struct {
	lines   chan string
	records chan flows.Record
}

// follow reads from the agent at path until the test ends.
func follow(t *testing.T, path string, q Query) *told {
	t.Helper()
	all := &told{lines: make(chan string, 100), records: make(chan flows.Record, 1000)}
	c, err := Dial(t.Context(), ClientOptions{Server: path, Patience: 5 * time.Second, Say: func(line string) { all.lines <- line }})
	if err != nil {
		t.Fatal(err)
	}
	q.Follow = true
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for o, err := range c.Observe(ctx, q) {
			if err != nil {
				done <- err
				return
			}
			if o.Record != nil {
				all.records <- *o.Record
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follow: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return all
}

// want fails unless exactly these records come next.
func (a *told) want(t *testing.T, what string, want ...flows.Record) {
	t.Helper()
	var got []flows.Record
	for range want {
		select {
		case r := <-a.records:
			got = append(got, r)
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: got %d records, want %d", what, len(got), len(want))
		}
	}
	checkRecords(t, what, got, want)
}

// says fails unless the next line has text in it.
func (a *told) says(t *testing.T, text string) {
	t.Helper()
	select {
	case line := <-a.lines:
		if !strings.Contains(line, text) {
			t.Errorf("got %q, want %q in it", line, text)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing was said, want %q", text)
	}
}

func TestFollowerOfARestartedAgentGetsEveryRecordOnce(t *testing.T) {
	checkNoLeak(t)
	path := filepath.Join(t.TempDir(), "weft.sock")
	all := records(40)
	first, second := NewStore(100), NewStore(100)
	export(t, first, all[:10]...)
	stop := listen(t, path, first)
	f := follow(t, path, Query{Last: 5})
	f.want(t, "the newest five", all[5:10]...)
	export(t, first, all[10:20]...)
	stop() // at once: what was just stored is read first
	f.want(t, "last words", all[10:20]...)
	f.says(t, path+" stopped; waiting for it to come back")

	export(t, second, all[20:30]...) // before anybody can ask for it
	stop = listen(t, path, second)
	f.want(t, "of the new agent", all[20:30]...)
	f.says(t, "restarted; no record was missed")
	export(t, second, all[30:]...)
	f.want(t, "live again", all[30:]...)
	stop()
	f.says(t, "stopped")
	if n := len(f.records); n > 0 {
		t.Errorf("got %d records twice, want none", n)
	}
}

func TestFollowerOfACutOffAgentGoesOnWhereItWas(t *testing.T) {
	checkNoLeak(t)
	path := filepath.Join(t.TempDir(), "weft.sock")
	all := records(20)
	s := NewStore(100)
	server, err := ListenSocket(path, "", s, nil)
	if err != nil {
		t.Fatal(err)
	}
	export(t, s, all[:10]...)
	f := follow(t, path, Query{Last: 10})
	f.want(t, "before", all[:10]...)
	server.grpc.Stop() // as if killed: no last words
	<-server.done
	f.says(t, "went away")
	export(t, s, all[10:]...)
	stop := listen(t, path, s)
	f.want(t, "after", all[10:]...)
	f.says(t, "going on where it was left")
	stop()
	f.says(t, "stopped")

	other := NewStore(100)
	server, err = ListenSocket(path, "", other, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.says(t, "no record was missed")
	server.grpc.Stop()
	<-server.done
	f.says(t, "went away")
	defer listen(t, path, NewStore(10))()
	f.says(t, "of the run before may have been missed")
}

func TestStopEndsAFollowerThatDoesNotRead(t *testing.T) {
	s := NewStore(20_000)
	path := filepath.Join(t.TempDir(), "weft.sock")
	stop := listen(t, path, s)
	export(t, s, records(20_000)...)
	c := dial(t, path)
	for _, err := range c.Observe(t.Context(), Query{Follow: true, Last: 20_000}) {
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		stop()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("stopping took %s beside a reader that does not read, want about %s", took, lastWords)
		}
		break
	}
}

func TestResumedReaderIsToldExactlyWhatItMissed(t *testing.T) {
	s := NewStore(10)
	all := records(30)
	export(t, s, all[:10]...)
	at := Cursor{s.id, 8}
	export(t, s, all[10:]...)
	for name, c := range map[string]struct {
		after Cursor
		lost  uint64
	}{"of this run": {at, 12}, "of another run": {Cursor{s.id ^ 1, 8}, 20}, "in the future": {Cursor{s.id, 99}, 0}} {
		var got []flows.Record
		var lost uint64
		err := s.Observe(t.Context(), Query{Last: 1, after: c.after}, func(r []flows.Record, n uint64, next Cursor) error {
			got, lost = append(got, slices.Clone(r)...), lost+n
			if want := (Cursor{s.id, 30}); next != want {
				t.Errorf("%s: got place %+v, want %+v", name, next, want)
			}
			return nil
		})
		want := all[20:]
		if c.after.Next > 30 {
			want = nil
		}
		if err != nil || lost != c.lost || !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s: got %d records and %d lost, error %v, want %d and %d", name, len(got), lost, err, len(want), c.lost)
		}
	}
}

// silentAgent listens like a stopped agent: connections wait in the backlog.
func silentAgent(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "weft.sock")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	return path
}

func TestAgentThatDoesNotAnswerIsAnErrorInTime(t *testing.T) {
	checkNoLeak(t)
	path := silentAgent(t)
	began := time.Now()
	_, err := Dial(t.Context(), ClientOptions{Server: path, Patience: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "did not answer within 50ms") ||
		!strings.Contains(err.Error(), "--timeout") {
		t.Errorf("got %v, want an error with the socket and the mend", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s, want about 50 ms", took)
	}

	// Connected, and then stuck: no ledger ever comes, and the status hangs.
	hang := make(chan struct{})
	path = serve(t, NewStore(1), func() *api.StatusResponse { <-hang; return &api.StatusResponse{} })
	c, err := Dial(t.Context(), ClientOptions{Server: path, Patience: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "read status: weftd at "+path+" did not answer") {
		t.Errorf("status: got %v, want that the agent did not answer", err)
	}
	for _, err := range c.Ledger(t.Context(), false) {
		if err == nil || !strings.Contains(err.Error(), "read ledger: weftd at "+path+" did not answer") {
			t.Errorf("ledger: got %v, want that the agent did not answer", err)
		}
	}
	close(hang)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestSlowReaderIsNotASilentAgent(t *testing.T) {
	s := NewStore(20_000)
	export(t, s, records(20_000)...)
	path := serve(t, s, nil)
	c, err := Dial(t.Context(), ClientOptions{Server: path, Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := 0
	for _, err := range c.Observe(t.Context(), Query{}) {
		if err != nil {
			t.Fatalf("after %d records: %v", n, err)
		}
		if n++; n == 1 {
			<-time.After(1500 * time.Millisecond) // longer than its patience
		}
	}
	if n != 20_000 {
		t.Errorf("got %d records, want 20000", n)
	}
}
