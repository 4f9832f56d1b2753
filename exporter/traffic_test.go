// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"weft/flows"
)

// gathered sums what t's counters of a name have, by series.
func gathered(t *testing.T, c prometheus.Collector, names ...string) (sum float64, series map[string]float64) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series = map[string]float64{}
	for _, f := range all {
		for _, n := range names {
			if f.GetName() != n {
				continue
			}
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
				series[fmt.Sprint(n, m.GetLabel())] += m.GetCounter().GetValue()
			}
		}
	}
	return sum, series
}

// Whoever has series, and whoever lost theirs: all packets and bytes of all records are
// there at every time, series never outgrow the limit, and no counter falls while it is there.
func TestTrafficAddsUpWhoeverHasSeries(t *testing.T) {
	const limit = 8
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tr, now, bytes, packets := NewTraffic(limit), time.Unix(1e9, 0), uint64(0), uint64(0)
		before := map[string]float64{}
		moved := 0
		for round := range 60 {
			var records []flows.Record
			for range rng.IntN(200) {
				who := rng.IntN(40)
				r := flows.Record{
					Key: flows.Key{Proto: flows.ProtoTCP}, Packets: 1, ReversePackets: rng.Uint64N(9), ReverseBytes: rng.Uint64N(1000),
					// Each of the 40 has its time of being the biggest.
					Bytes:  60 + uint64(rng.IntN(1+100_000>>min(16, (who-round+80)%40))),
					Source: &flows.Entity{Unit: "client.service"}, Destination: &flows.Entity{Namespace: "shop", Workload: fmt.Sprint("w", who)},
				}
				if who == 0 {
					r.Destination = nil
				}
				bytes, packets = bytes+r.Bytes+r.ReverseBytes, packets+r.Packets+r.ReversePackets
				records = append(records, r)
			}
			now = now.Add(30 * time.Second)
			tr.Add(records, now)
			sum, series := gathered(t, tr, "weft_traffic_bytes_total", "weft_traffic_left_bytes_total")
			if sum != float64(bytes) {
				t.Fatalf("seed %d, round %d: bytes of all series: got %.0f, want %d", seed, round, sum, bytes)
			}
			if sum, _ := gathered(t, tr, "weft_traffic_packets_total", "weft_traffic_left_packets_total"); sum != float64(packets) {
				t.Fatalf("seed %d, round %d: packets of all series: got %.0f, want %d", seed, round, sum, packets)
			}
			if got := len(tr.series); got > limit || len(tr.waiting) > 2*limit {
				t.Fatalf("seed %d: %d pairs have series and %d wait, want at most %d and %d", seed, got, len(tr.waiting), limit, 2*limit)
			}
			for name, v := range before {
				if is, there := series[name]; there && is < v && is != 0 {
					t.Errorf("seed %d, round %d: %s fell from %.0f to %.0f", seed, round, name, v, is)
				} else if !there {
					moved++
				}
			}
			before = series
		}
		if moved == 0 {
			t.Errorf("seed %d: no pair ever gave its place to another", seed)
		}
	}
}

// The pair that carries most gets series of its own, though others were there before it.
func TestTheHeaviestPairHasSeriesSoon(t *testing.T) {
	tr, now := NewTraffic(2), time.Unix(1e9, 0)
	add := func(name string, bytes uint64) {
		tr.Add([]flows.Record{{Key: flows.Key{Proto: flows.ProtoUDP}, Packets: 1, Bytes: bytes, Destination: &flows.Entity{Workload: name, Service: "front"}}}, now)
	}
	add("small", 10)
	now = now.Add(trafficTurn)
	add("medium", 1000)
	for range 100 {
		add("big", 5000)
		add("tiny", 1)
	}
	now = now.Add(trafficTurn)
	add("medium", 1000)
	now = now.Add(time.Second)
	add("big", 7)
	_, series := gathered(t, tr, "weft_traffic_bytes_total")
	for name, v := range series {
		if strings.Contains(name, `"small"`) || strings.Contains(name, `"tiny"`) || strings.Contains(name, `"big"`) && strings.Contains(name, "forward") && v != 7 {
			t.Errorf("%s has %.0f, want series of medium, big (7) and other alone", name, v)
		}
	}
	if len(tr.series) != 2 {
		t.Errorf("got %d pairs with series, want 2: %v", len(tr.series), series)
	}
}

// A name that is not UTF-8 is no fault of the page; what failed and was dropped counts.
func TestTrafficOfStrangeNames(t *testing.T) {
	tr := NewTraffic(4)
	r := flows.Record{Key: flows.Key{Proto: flows.ProtoTCP}, Packets: 3, Bytes: 180, Dropped: 2, TCP: &flows.TCPRecord{Failure: flows.FailRefused},
		Source: &flows.Entity{Process: "a\xff"}, Destination: &flows.Entity{Process: "a\xfe"}}
	other := r
	other.Source = &flows.Entity{Process: "a\xfe"}
	tr.Add([]flows.Record{r, other}, time.Unix(1e9, 0))
	if err := testutil.CollectAndCompare(tr, strings.NewReader(`
# HELP weft_traffic_dropped_packets_total Packets of flow records that the kernel of this host threw away.
# TYPE weft_traffic_dropped_packets_total counter
weft_traffic_dropped_packets_total{destination="a�",destination_namespace="",destination_service="",source="a�",source_namespace="",transport="tcp"} 4
weft_traffic_dropped_packets_total{destination="other",destination_namespace="other",destination_service="other",source="other",source_namespace="other",transport="other"} 0
# HELP weft_traffic_failed_total Records of TCP connections that failed.
# TYPE weft_traffic_failed_total counter
weft_traffic_failed_total{destination="a�",destination_namespace="",destination_service="",source="a�",source_namespace="",transport="tcp"} 2
weft_traffic_failed_total{destination="other",destination_namespace="other",destination_service="other",source="other",source_namespace="other",transport="other"} 0
`), "weft_traffic_dropped_packets_total", "weft_traffic_failed_total"); err != nil {
		t.Error(err)
	}
}
