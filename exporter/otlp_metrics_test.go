// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
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

// manyPoints is fullLedger with that many points more.
func manyPoints(n int) flows.Ledger {
	l := fullLedger()
	p := l.Points[0]
	for i := range n {
		p.At.Ifindex, p.Hop.Interface = uint32(i), "veth"+strings.Repeat("x", 8)+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))
		l.Points = append(l.Points, p)
	}
	return l
}

// The receiver is a gRPC server that takes 100 kB at most, and says so in gRPC's words.
func TestMetricsThatAreTooLargeAreSentInParts(t *testing.T) {
	for _, temporality := range []Temporality{Cumulative, Delta} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{most: 100_000}
			var log syncBuffer
			o := r.start(t, OTLPConfig{Metrics: 10 * time.Second, Temporality: temporality, Log: slog.New(slog.NewTextHandler(&log, nil))})
			l := manyPoints(1500)
			for range 2 {
				if err := o.Export(t.Context(), flows.Window{Ledger: l}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				l.At = l.At.Add(time.Second)
				for i := range l.Points {
					l.Points[i].Seen.Packets++
				}
			}
			series := map[string]int{}
			for _, req := range r.metrics.requests {
				for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
					for _, p := range m.GetSum().GetDataPoints() {
						series[seriesKey(m.Name, p.Attributes, false)]++
					}
				}
			}
			want, seen := 2, 0 // how often each is told
			for key, n := range series {
				isSeen := strings.HasPrefix(key, "weft.ledger.seen.packets\x00")
				if isSeen {
					seen++
				}
				if n != want && (temporality == Cumulative || isSeen && !strings.Contains(key, goneInterface)) {
					t.Fatalf("%s: got %q %d times, want %d", temporality, key, n, want)
				}
			}
			s := o.Status()
			if seen < 1500 || s.PointsLost != 0 || s.State != stateOK && !strings.HasPrefix(s.State, stateIdle) || strings.Count(log.String(), "receiver takes smaller requests only") > 6 {
				t.Errorf("%s: got %d points and %v and the log\n%s\nwant all points and nothing lost", temporality, seen, s, log.String())
			}
		})
	}
}

func TestRejectedPointsAreCountedAndWarningsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		var log syncBuffer
		o := r.start(t, OTLPConfig{Metrics: 10 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))})
		export := func(partial *colmetrics.ExportMetricsPartialSuccess, err error) {
			r.metrics.mu.Lock()
			r.metrics.partial, r.metrics.err = partial, err
			r.metrics.mu.Unlock()
			if err := o.Export(t.Context(), flows.Window{Ledger: fullLedger()}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		warning := &colmetrics.ExportMetricsPartialSuccess{ErrorMessage: "unit of weft.x is odd"}
		export(warning, nil)
		export(warning, nil)
		export(&colmetrics.ExportMetricsPartialSuccess{RejectedDataPoints: 3, ErrorMessage: "too old"}, nil)
		if n := o.Status().PointsLost; n != 3 {
			t.Errorf("got %d points lost, want the 3 that were rejected", n)
		}
		export(nil, status.Error(codes.InvalidArgument, "no"))
		all := uint64(pointCount(r.metrics.requests[3]))
		if n := o.Status().PointsLost; n != 3+all || all == 0 {
			t.Errorf("got %d points lost, want 3 and the %d of the request that was refused", n, all)
		}
		if n := strings.Count(log.String(), "receiver took all and warns"); n != 1 || !strings.Contains(log.String(), "unit of weft.x is odd") {
			t.Errorf("got the warning %d times in\n%s\nwant it once", n, log.String())
		}
		outcomes := map[string]float64{}
		reg := prometheus.NewRegistry()
		reg.MustRegister(o)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "weft_otlp_points_total" {
				for _, m := range f.GetMetric() {
					outcomes[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
				}
			}
		}
		if outcomes[stateOK] != float64(3*all-3) || outcomes[statePartial] != 3 || outcomes[stateRefused] != float64(all) {
			t.Errorf("got points %v, want %d taken, 3 rejected, %d refused", outcomes, 3*all-3, all)
		}
	})
}

func TestNoPointStartsAfterItsTimeWhenTheClockIsSetBack(t *testing.T) {
	for _, temporality := range []Temporality{Cumulative, Delta} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{}
			var log syncBuffer
			o := r.start(t, OTLPConfig{Metrics: 10 * time.Second, Temporality: temporality, Log: slog.New(slog.NewTextHandler(&log, nil))})
			at := time.Now()
			for i := range 4 {
				l := fullLedger()
				if l.At = at.Add(time.Duration(i+1) * 10 * time.Second); i >= 2 {
					l.At = l.At.Add(-time.Hour)
				}
				l.Points[0].Seen.Packets += uint64(i)
				if err := o.Export(t.Context(), flows.Window{Ledger: l}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
			}
			told := 0
			for i, req := range r.metrics.requests {
				for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
					for _, p := range m.GetSum().GetDataPoints() {
						told++
						if p.StartTimeUnixNano > p.TimeUnixNano {
							t.Fatalf("%s, request %d: got %s from %d to %d", temporality, i, m.Name, p.StartTimeUnixNano, p.TimeUnixNano)
						}
					}
				}
			}
			if n := strings.Count(log.String(), "clock was set back: metrics go on from the new time, receivers may refuse them until it has passed the old one"); n != 1 || len(r.metrics.requests) != 4 || told == 0 {
				t.Errorf("%s: got %d requests, the setting of the clock was told %d times: want 4 and 1", temporality, len(r.metrics.requests), n)
			}
		})
	}
}

func TestManyPointsAreSplitOverRequests(t *testing.T) {
	l := manyPoints(4096)
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
