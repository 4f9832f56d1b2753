// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"

	"weft/flows"
)

// world is what an agent counts, cumulative, with interfaces that come, go and are
// replaced by others of their names.
type world struct {
	r      *rand.Rand
	at     time.Time
	ledger flows.Ledger
	next   uint32 // ifindex
	lat    []flows.Latency
	anew   bool // histograms do
}

// step counts something, and returns the histograms that ended.
func (w *world) step() (ended []flows.Latency) {
	w.at = w.at.Add(time.Duration(1+w.r.IntN(20)) * time.Second)
	for i := 0; i < len(w.ledger.Points); i++ {
		p := &w.ledger.Points[i]
		p.Seen.Add(flows.Count{Packets: w.r.Uint64N(9), Bytes: w.r.Uint64N(900)})
		p.Skipped[w.r.IntN(3)].Add(flows.Count{Packets: w.r.Uint64N(3), Bytes: w.r.Uint64N(90)})
		if w.r.IntN(4) == 0 { // detached: what it had is in Gone from now on
			w.ledger.Gone.Seen.Add(p.Seen)
			for k, c := range p.Skipped {
				w.ledger.Gone.Skipped[k].Add(c)
			}
			w.ledger.Points[i] = w.ledger.Points[len(w.ledger.Points)-1]
			w.ledger.Points = w.ledger.Points[:len(w.ledger.Points)-1]
			i--
		}
	}
	for len(w.ledger.Points) < 4 {
		w.next++
		w.ledger.Points = append(w.ledger.Points, flows.PointLedger{
			At: flows.Point{Ifindex: w.next, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: fmt.Sprintf("veth%d", w.r.IntN(5))},
		})
	}
	w.ledger.Made += w.r.Uint64N(5)
	w.ledger.At = w.at
	for i := range w.lat {
		l := &w.lat[i]
		if w.anew && w.r.IntN(8) == 0 {
			ended = append(ended, *l)
			*l = flows.Latency{Key: l.Key, Start: w.at.UnixNano() - 1}
		}
		for range w.r.IntN(6) {
			bucket := w.r.IntN(40) - 60
			l.Merge(&flows.Latency{Offset: bucket, Counts: []uint64{1}, Count: 1, Sum: 1 + w.r.Uint64N(1e9)})
			l.Exemplars = append(l.Exemplars, flows.Exemplar{
				Value: time.Duration(math.Exp2((float64(bucket)+0.5)/8) * 1e9), At: max(l.Start+1, w.at.UnixNano()-w.r.Int64N(1e9)), ConnectionID: w.r.Uint64(),
			})
			l.Exemplars = l.Exemplars[max(0, len(l.Exemplars)-8):]
		}
	}
	return ended
}

// setBack sets the clock back, and as the data plane does the starts that would be ahead of it.
func (w *world) setBack(by time.Duration) {
	w.at = w.at.Add(-by)
	for i := range w.lat {
		if l := &w.lat[i]; l.Start >= w.at.UnixNano() {
			l.Start -= int64(by)
		}
	}
}

func (w *world) round(e encoder) []*colmetrics.ExportMetricsServiceRequest {
	return append(e.metricBatches(&w.ledger), e.latencyBatches(Latencies{At: w.at, All: w.lat})...)
}

func newWorld(seed uint64) *world {
	w := &world{r: rand.New(rand.NewPCG(seed, 1)), at: time.Unix(1_700_000_000, 0)}
	for i := range 3 {
		w.lat = append(w.lat, flows.Latency{
			Key:   flows.LatencyKey{Server: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 443), Protocol: flows.ProtoTCP, Measure: flows.RTTServer},
			Start: w.at.UnixNano(),
		})
	}
	return w
}

// tally adds up what a receiver was told. Sums are by metric, since an interface and the detached
// ones share what they counted.
type tally struct {
	sums      map[string]int64
	counts    map[string]uint64 // by histogram and bucket
	seconds   float64
	exemplars int
	ends      map[string]uint64 // by series: where the last delta ended
}

func newTally() *tally {
	return &tally{sums: map[string]int64{}, counts: map[string]uint64{}, ends: map[string]uint64{}}
}

func (y *tally) add(t *testing.T, m *colmetrics.ExportMetricsServiceRequest, delta bool) {
	t.Helper()
	for _, m := range m.ResourceMetrics[0].ScopeMetrics[0].Metrics {
		if s := m.GetSum(); s != nil && s.IsMonotonic {
			if got := s.AggregationTemporality == metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA; got != delta {
				t.Fatalf("%s: got delta %t, want %t", m.Name, got, delta)
			}
			for _, p := range s.DataPoints {
				key := m.Name + attribute(p.Attributes, nameReason)
				y.sums[key] += p.GetAsInt()
				y.check(t, seriesKey(m.Name, p.Attributes, false), p.StartTimeUnixNano, p.TimeUnixNano, delta)
			}
		}
		for _, p := range m.GetExponentialHistogram().GetDataPoints() {
			key := seriesKey(m.Name, p.Attributes, false)
			y.check(t, key, p.StartTimeUnixNano, p.TimeUnixNano, delta)
			if p.Count == 0 {
				t.Fatalf("%s: got an empty histogram", m.Name)
			}
			var n uint64
			for k, c := range p.Positive.BucketCounts {
				y.counts[fmt.Sprint(key, int(p.Positive.Offset)+k)] += c
				n += c
			}
			if n != p.Count {
				t.Fatalf("%s: got a count of %d, %d in buckets", m.Name, p.Count, n)
			}
			y.seconds += p.GetSum()
			for _, e := range p.Exemplars {
				k := int(math.Ceil(math.Log2(e.GetAsDouble())*8)) - 1 - int(p.Positive.Offset)
				if e.TimeUnixNano <= p.StartTimeUnixNano || e.TimeUnixNano > p.TimeUnixNano || k < 0 || k >= len(p.Positive.BucketCounts) || p.Positive.BucketCounts[k] == 0 {
					t.Fatalf("%s: got exemplar %v in %v, want one of its times", m.Name, e, p)
				}
				y.exemplars++
			}
		}
	}
}

// histogram adds a cumulative one.
func (y *tally) histogram(l *flows.Latency) {
	p := encoder{}.histograms([]*flows.Latency{l}, 0)[0]
	for k, c := range l.Counts {
		y.counts[fmt.Sprint(seriesKey(p.Name, p.GetExponentialHistogram().DataPoints[0].Attributes, false), l.Offset+k)] += c
	}
	y.seconds += float64(l.Sum) / 1e9
}

// check wants a delta to begin where the last one ended, or later when it began anew.
func (y *tally) check(t *testing.T, key string, start, end uint64, delta bool) {
	t.Helper()
	if delta && (start >= end && end != 0 || start < y.ends[key]) {
		t.Fatalf("%q: got %d to %d, the last one ended at %d", key, start, end, y.ends[key])
	}
	y.ends[key] = end
}

func TestDeltasAddUpToWhatIsCumulative(t *testing.T) {
	for name, c := range map[string]struct{ failing, cut, back bool }{
		"every third request fails": {failing: true}, "histograms begin anew": {},
		"requests are cut, and a third of the parts fails": {failing: true, cut: true}, "the clock is set back": {failing: true, back: true},
	} {
		t.Run(name, func(t *testing.T) {
			failing := c.failing
			for seed := range uint64(200) {
				w, got, want := newWorld(seed), newTally(), newTally()
				w.anew = !failing // what is not told when a histogram ends, nobody can tell
				e, d := newEncoder(nil, "1", w.at), newDeltas(Delta)
				for i := range 40 {
					if c.back && w.r.IntN(8) == 0 {
						w.setBack(time.Duration(w.r.IntN(600)) * time.Second)
						d.setBack(uint64(w.at.UnixNano()) + 1)
						e.start = min(e.start, uint64(w.at.UnixNano()))
						got.ends = map[string]uint64{}
					}
					for _, l := range w.step() {
						want.histogram(&l)
					}
					parts := d.of(w.round(e))
					for c.cut && len(parts) < 20 {
						k := w.r.IntN(len(parts))
						if r := parts[k]; r.points > 1 {
							parts = append(parts[:k:k], append(r.halves(), parts[k+1:]...)...)
						}
					}
					for _, r := range parts {
						if n := pointCount(r.m); n != r.points || n == 0 {
							t.Fatalf("seed %d: got a request of %d points that says %d", seed, n, r.points)
						}
						if !failing || i == 39 || w.r.IntN(3) > 0 {
							got.add(t, r.m, true)
							d.acknowledged(r)
						}
					}
				}
				for _, r := range w.round(e) {
					want.add(t, r, false)
				}
				if !maps.Equal(got.sums, nonzero(want.sums)) || !maps.Equal(nonzero(got.counts), nonzero(want.counts)) {
					t.Fatalf("seed %d: got %v and %v\nwant %v and %v", seed, got.sums, got.counts, want.sums, want.counts)
				}
				if got.exemplars < 20 {
					t.Fatalf("seed %d: got %d exemplars, want most of what there were", seed, got.exemplars)
				}
				if math.Abs(got.seconds-want.seconds) > 1e-6*want.seconds {
					t.Fatalf("seed %d: got %g s, want %g", seed, got.seconds, want.seconds)
				}
			}
		})
	}
}

func pointCount(r *colmetrics.ExportMetricsServiceRequest) (n int) {
	for _, m := range r.ResourceMetrics[0].ScopeMetrics[0].Metrics {
		n += len(m.GetSum().GetDataPoints()) + len(m.GetExponentialHistogram().GetDataPoints())
	}
	return n
}

func nonzero[N int64 | uint64](m map[string]N) map[string]N {
	maps.DeleteFunc(m, func(_ string, n N) bool { return n == 0 })
	return m
}

func TestLowMemoryMakesDeltasOfHistogramsOnly(t *testing.T) {
	w := newWorld(1)
	e, d := newEncoder(nil, "1", w.at), newDeltas(LowMemory)
	w.step()
	for _, r := range d.of(w.round(e)) {
		for _, m := range r.m.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			sum, h := m.GetSum(), m.GetExponentialHistogram()
			if sum != nil && sum.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE ||
				h != nil && h.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA {
				t.Errorf("%s: got sum %v, histogram %v", m.Name, sum.GetAggregationTemporality(), h.GetAggregationTemporality())
			}
		}
	}
}

func TestTemporalityIsTheConfigurationsOrTheVariables(t *testing.T) {
	for _, c := range []struct {
		own  Temporality
		env  string
		want Temporality
		err  string
	}{
		{"", "", Cumulative, ""}, {"", " DELTA ", Delta, ""}, {Cumulative, "delta", Cumulative, ""}, {"", "LowMemory", LowMemory, ""},
		{"", "both", "", envTemporality + `="both": want cumulative`},
	} {
		o := OTLPConfig{Endpoint: "http://collector:4317", Temporality: c.own, Getenv: func(name string) string {
			return map[string]string{envTemporality: c.env}[name]
		}}
		err := o.Check()
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q, %q: got %v, want %q", c.own, c.env, err, c.err)
		}
		if got := o.InForce().Temporality; got != c.want {
			t.Errorf("%q, %q: got %q, want %q", c.own, c.env, got, c.want)
		}
	}
}
