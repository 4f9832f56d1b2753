// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"weft/exporter"
	"weft/flows"
)

// flaky is a pipeline that refuses one in three requests of metrics, by chance.
type flaky struct {
	consumertest.MetricsSink
	mu      sync.Mutex
	r       *rand.Rand
	refused int
}

func (f *flaky) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (f *flaky) ConsumeMetrics(ctx context.Context, m pmetric.Metrics) error {
	f.mu.Lock()
	no := f.r.IntN(3) == 0
	if no {
		f.refused++
	}
	f.mu.Unlock()
	if no {
		return errors.New("busy")
	}
	return f.MetricsSink.ConsumeMetrics(ctx, m)
}

// sums adds up the deltas that came.
func (f *flaky) sums(t *testing.T) (made int64, times uint64) {
	t.Helper()
	for _, all := range f.AllMetrics() {
		list := all.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
		for i := range list.Len() {
			switch m := list.At(i); m.Name() {
			case "weft.ledger.records.made":
				if m.Sum().AggregationTemporality() != pmetric.AggregationTemporalityDelta {
					t.Fatalf("got %s, want deltas", m.Sum().AggregationTemporality())
				}
				made += m.Sum().DataPoints().At(0).IntValue()
			case "weft.tcp.rtt":
				if m.ExponentialHistogram().AggregationTemporality() != pmetric.AggregationTemporalityDelta {
					t.Fatalf("got %s, want deltas", m.ExponentialHistogram().AggregationTemporality())
				}
				times += m.ExponentialHistogram().DataPoints().At(0).Count()
			}
		}
	}
	return made, times
}

func TestCollectorsDeltasAddUpAlthoughItRefusesSome(t *testing.T) {
	metrics := &flaky{r: rand.New(rand.NewPCG(1, 1))}
	c := startCollector(t, "", consumertest.NewNop(), metrics)
	o := newSink(t, c.endpoint, exporter.OTLPConfig{Temporality: exporter.Delta, Metrics: 5 * time.Millisecond})
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var last uint64
	for made := uint64(1); ; made++ {
		now := time.Now()
		export(t, o, flows.Window{
			End: now, Ledger: flows.Ledger{At: now, Made: made},
			Latencies: []flows.Latency{{
				Key:   flows.LatencyKey{Server: netip.MustParseAddrPort("10.0.0.1:443"), Protocol: flows.ProtoTCP, Measure: flows.RTTServer},
				Start: begin.UnixNano(), Count: 2 * made, Sum: made, Offset: -50, Counts: []uint64{made, made},
			}},
		})
		metrics.mu.Lock()
		refused := metrics.refused
		metrics.mu.Unlock()
		if last = made; refused >= 10 {
			break
		}
		<-tick.C
		if time.Since(begin) > 60*time.Second {
			t.Fatalf("got %d refused requests in a minute, want 10", refused)
		}
	}
	eventually(t, "everything to be told", func() bool {
		made, times := metrics.sums(t)
		return made == int64(last) && times == 2*last
	})
	closeSink(t, o)
	if made, times := metrics.sums(t); made != int64(last) || times != 2*last {
		t.Errorf("got %d records made and %d times, want %d and %d", made, times, last, 2*last)
	}
}
