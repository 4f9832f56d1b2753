// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
)

// smallReceiver takes requests of up to six tenths of the first one, keeps them once for
// each id, and may go away.
type smallReceiver struct {
	t  *testing.T
	mu sync.Mutex

	up      bool
	limit   int
	ids     map[string]int // records, by weft.batch.id
	refused int
	number  string // of the request in whose half it goes away
	half    string // .0 or .1; empty: it does not
}

func (s *smallReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var m collogs.ExportLogsServiceRequest
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = proto.Unmarshal(body, &m)
	}
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.up {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if s.limit == 0 {
		s.limit = len(body) * 6 / 10
	}
	if len(body) > s.limit {
		s.refused++
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	id := m.ResourceLogs[0].ScopeLogs[0].Scope.Attributes[0].Value.GetStringValue()
	s.ids[id] = logCount(&m)
	s.up = s.half == "" || !strings.HasPrefix(id, s.number) || !strings.HasSuffix(id, s.half)
}

func (s *smallReceiver) records() (sum int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.ids {
		sum += n
	}
	return sum
}

// comeUp serves until it took a half of the request with that number.
func (s *smallReceiver) comeUp(number, half string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.number, s.half = true, number, half
}

func (s *smallReceiver) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

// The limit that one run learnt is not known to the next, and every request must be split
// as before: the second is between the receiver's limit and half of the first.
func TestSplitRequestsArriveOnceByTheirIDsOverARestart(t *testing.T) {
	for name, c := range map[string]struct{ number, half string }{
		"stopped between halves of the first":   {"0000000000000000-", ".0"},
		"stopped after the first":               {"0000000000000000-", ".1"},
		"stopped in the second, if it is split": {"0000000000000001-", ".0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &smallReceiver{t: t, ids: map[string]int{}}
			server := httptest.NewServer(s)
			defer server.Close()
			config := OTLPConfig{
				Endpoint: server.URL, Protocol: protocolHTTP, Compression: "none", Getenv: env(), Flush: time.Millisecond, Finish: 100 * time.Millisecond,
				Spool: SpoolConfig{Dir: t.TempDir()},
			}
			first, err := NewOTLP(config)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{1000, 560} {
				export(t, first, records(n)...)
				eventually(t, "the disk", func() bool {
					first.queue.mu.Lock()
					defer first.queue.mu.Unlock()
					return first.queue.parked == first.queue.account.Waiting
				})
			}
			s.comeUp(c.number, c.half)
			eventually(t, "a part of it, or all", func() bool { return !s.isUp() || s.records() == 1560 })
			if err := closeOTLP(t, first, 10*time.Second); err != nil {
				t.Error(err)
			}
			s.comeUp("", "")
			second, err := NewOTLP(config)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the rest", func() bool { return len(files(t, config.Spool.Dir)) == 0 })
			export(t, second, records(1000)...) // the limit is known now
			eventually(t, "new ones", func() bool { return second.Account().Acknowledged == 1000 })
			if err := closeOTLP(t, second, 10*time.Second); err != nil {
				t.Error(err)
			}
			if got := s.records(); got != 2560 {
				t.Errorf("got %d records by the ids %v, want 2560", got, s.ids)
			}
			if s.refused > 2 {
				t.Errorf("got %d refusals, want the first request's in each run only", s.refused)
			}
		})
	}
}
