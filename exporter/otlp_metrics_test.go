// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

func TestLedgerMetricsAreCumulativeFromOneStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		start := time.Now()
		o := r.start(t, OTLPConfig{Metrics: 10 * time.Second})
		for i := range 3 {
			l := fullLedger()
			l.At = l.At.Add(time.Duration(i) * time.Second)
			if err := o.Export(t.Context(), flows.Window{Ledger: l}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(r.metrics.requests); n != 4 {
			t.Fatalf("got %d requests, want 3 and a last one", n)
		}
		for i, req := range r.metrics.requests {
			for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
				sum := m.GetSum()
				if sum.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
					t.Errorf("%s: got %v, want a cumulative sum", m.Name, sum)
				}
				mayFall := false
				for _, name := range []string{".open.", ".in_table.", ".unaccounted", ".pending", ".waiting"} {
					mayFall = mayFall || strings.Contains(m.Name, name)
				}
				if sum.GetIsMonotonic() == mayFall {
					t.Errorf("%s: got monotonic %t, want %t", m.Name, sum.GetIsMonotonic(), !mayFall)
				}
				for _, p := range sum.DataPoints {
					if p.StartTimeUnixNano != uint64(start.UnixNano()) || p.TimeUnixNano != uint64(t0.Add(time.Duration(min(i, 2))*time.Second).UnixNano()) {
						t.Errorf("%s: got start %d time %d, want the sink's start and the ledger's time", m.Name, p.StartTimeUnixNano, p.TimeUnixNano)
					}
				}
			}
		}
	})
}

// Prometheus refuses a request whose resource is older than that of the one before.
func TestLedgerAndHistogramsOfOneExportHaveOneTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		o := r.start(t, OTLPConfig{Metrics: 10 * time.Second})
		l := fullLedger()
		if err := o.Export(t.Context(), flows.Window{End: l.At.Add(-time.Second), Ledger: l, Latencies: allMeasures()}); err != nil {
			t.Fatal(err)
		}
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(r.metrics.requests); n != 3 {
			t.Fatalf("got %d requests, want the ledger's, what was left out, and the histograms", n)
		}
		for i, req := range r.metrics.requests {
			for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
				times := map[uint64]bool{}
				for _, p := range m.GetSum().GetDataPoints() {
					times[p.TimeUnixNano] = true
				}
				for _, p := range m.GetExponentialHistogram().GetDataPoints() {
					times[p.TimeUnixNano] = true
				}
				if len(times) != 1 || !times[uint64(l.At.UnixNano())] {
					t.Errorf("request %d, %s: got times %v, want the ledger's %d alone", i, m.Name, times, l.At.UnixNano())
				}
			}
		}
	})
}

func TestFailingMetricsTouchNoRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.metrics.err = status.Error(codes.Unimplemented, "no metrics here")
		o := r.start(t, OTLPConfig{})
		if err := o.Export(t.Context(), flows.Window{Records: records(10), Ledger: fullLedger()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Second)
		s := o.Status()
		if s.MetricsFailed != 2 || s.MetricsSent != 0 || !strings.HasPrefix(s.State, "metrics refused: ") || s.Account.Acknowledged != 10 || s.Target != "http://127.0.0.1" {
			t.Errorf("got %v, want 2 failed requests and 10 acknowledged records", s)
		}
	})
}

func TestManyPointsAreSplitOverRequests(t *testing.T) {
	l := fullLedger()
	p := l.Points[0]
	for i := range 4096 {
		p.At.Ifindex, p.Hop.Interface = uint32(i), "veth"+strings.Repeat("x", 8)+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))
		l.Points = append(l.Points, p)
	}
	e := newEncoder(map[string]string{"service.name": "weft"}, "1", t0)
	made, points := 0, 0
	for _, b := range e.metricBatches(&l) {
		if n := proto.Size(b); n > 7<<19 {
			t.Errorf("got a request of %d bytes, want at most 3.5 MiB", n)
		}
		for _, m := range b.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			switch m.Name {
			case "weft.ledger.records.made":
				made++
			case "weft.ledger.seen.packets":
				points += len(m.GetSum().DataPoints)
			}
		}
	}
	if made != 1 || points != 4096+5 { // 5: of fullLedger, two of which are one, and those gone
		t.Errorf("got records.made %d times and %d points, want 1 and %d", made, points, 4096+5)
	}
}
