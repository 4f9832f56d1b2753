// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// left is what these tests' data plane could not measure.
var left = flows.TCPAccount{Untracked: 3, Overflowed: 4, Lost: 5}

var web = netip.MustParseAddrPort("192.0.2.1:443")

// roundTrips is n round trips between 150 us and 10 s, and their histogram as the
// kernel keeps it.
func roundTrips(key flows.LatencyKey, n int) (values []uint64, l flows.Latency) {
	r := rand.New(rand.NewPCG(uint64(n), uint64(key.Measure)))
	l = flows.Latency{Key: key, Start: t0.UnixNano()}
	for range n {
		v := uint64(150e3 * math.Exp2(r.Float64()*16))
		values = append(values, v)
		i := int(math.Ceil(math.Log2(float64(v)/1e9)*8)) - 1 // no random value is on an edge
		l.Merge(&flows.Latency{Count: 1, Sum: v, Offset: i, Counts: []uint64{1}})
	}
	return values, l
}

func allMeasures() []flows.Latency {
	var all []flows.Latency
	for m := range flows.NumMeasures {
		key := flows.LatencyKey{Server: web, Protocol: flows.ProtoTCP, Measure: m, Class: flows.ClassVeth}
		_, l := roundTrips(key, 100)
		all = append(all, l)
		key.Server = netip.AddrPort{}
		_, l = roundTrips(key, 10)
		all = append(all, l)
	}
	return append(all, flows.Latency{Key: flows.LatencyKey{Server: web, Class: flows.ClassBond}}) // nothing counted yet
}

// scrape is what a Prometheus that asks for protobuf reads of all.
func scrape(t *testing.T, all []flows.Latency) map[string]*dto.MetricFamily {
	t.Helper()
	return scrapeAll(t, func() Latencies { return Latencies{All: all, Left: left} })
}

func scrapeAll(t *testing.T, latest func() Latencies) map[string]*dto.MetricFamily {
	t.Helper()
	url := startWeb(t, WebOptions{Ledger: func() flows.Ledger { return flows.Ledger{} }, Latencies: latest})
	_, body, header := fetch(t, url+"/metrics", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	families := map[string]*dto.MetricFamily{}
	for dec := expfmt.NewDecoder(strings.NewReader(body), expfmt.ResponseFormat(header)); ; {
		f := &dto.MetricFamily{}
		if err := dec.Decode(f); errors.Is(err, io.EOF) {
			return families
		} else if err != nil {
			t.Fatal(err)
		}
		families[f.GetName()] = f
	}
}

// TestScrapersReadExemplars: in the native histogram, in the classic bucket that each is in,
// and in OpenMetrics, which Prometheus asks for when it may not have protobuf.
func TestScrapersReadExemplars(t *testing.T) {
	_, l := roundTrips(flows.LatencyKey{Server: web, Protocol: flows.ProtoTCP, Measure: flows.RTTServer, Class: flows.ClassNIC}, 3000)
	l.Exemplars = []flows.Exemplar{
		{Value: 700 * time.Microsecond, At: t0.UnixNano(), ConnectionID: 0x123}, {Value: 900 * time.Microsecond, At: t0.UnixNano() + 5e6, ConnectionID: 0xabc},
		{Value: 9 * time.Second, At: t0.UnixNano() + 7e6, ConnectionID: 0xdef}, {Value: 20 * time.Second, At: t0.UnixNano() + 9e6, ConnectionID: 0x456},
	}
	h := scrape(t, []flows.Latency{l})["weft_tcp_rtt_seconds"].Metric[0].GetHistogram()
	text := func(e *dto.Exemplar) string {
		return fmt.Sprint(e.GetLabel()[0].GetName(), " ", e.GetLabel()[0].GetValue(), " ", e.GetValue(), " ", e.GetTimestamp().AsTime().Sub(t0))
	}
	var native, classic []string
	for _, e := range h.Exemplars {
		native = append(native, text(e))
	}
	for _, b := range h.Bucket {
		if b.Exemplar != nil {
			classic = append(classic, fmt.Sprint(b.GetUpperBound(), ": ", text(b.Exemplar)))
		}
	}
	const id = "weft_connection_id 0000000000000"
	if want := []string{id + "123 0.0007 0s", id + "abc 0.0009 5ms", id + "def 9 7ms", id + "456 20 9ms"}; !slices.Equal(native, want) {
		t.Errorf("native: got %q, want %q", native, want)
	}
	if want := []string{"0.0009765625: " + id + "abc 0.0009 5ms", "16: " + id + "def 9 7ms", "+Inf: " + id + "456 20 9ms"}; !slices.Equal(classic, want) {
		t.Errorf("classic: got %q, want %q", classic, want)
	}
	_, body, header := fetch(t, startWeb(t, WebOptions{
		Ledger: func() flows.Ledger { return flows.Ledger{} }, Latencies: func() Latencies { return Latencies{All: []flows.Latency{l}, Left: left} },
	})+"/metrics", "application/openmetrics-text;version=1.0.0")
	kind := header.Get("Content-Type")
	if !strings.HasPrefix(kind, "application/openmetrics-text") || !strings.HasSuffix(body, "# EOF\n") ||
		!strings.Contains(body, `le="16.0"} 3000 # {weft_connection_id="0000000000000def"} 9.0 `) ||
		!strings.Contains(body, `le="+Inf"} 3000 # {weft_connection_id="0000000000000456"} 20.0 `) || strings.Count(body, `le="+Inf"} 3000`) != 1 {
		t.Errorf("OpenMetrics: got %s, without the exemplar of 9 s:\n%s", kind, body)
	}
}

// nativeBuckets are a native histogram's counts by number, as Prometheus reads them.
func nativeBuckets(h *dto.Histogram) map[int]uint64 {
	buckets := map[int]uint64{}
	at, count, deltas := 0, int64(0), h.PositiveDelta
	for _, span := range h.PositiveSpan {
		at += int(span.GetOffset())
		for range span.GetLength() {
			count += deltas[0]
			deltas = deltas[1:]
			if count > 0 {
				buckets[at] = uint64(count)
			}
			at++
		}
	}
	return buckets
}

func TestPrometheusReadsNativeAndClassicHistogramsOfTheSameCounts(t *testing.T) {
	values, l := roundTrips(flows.LatencyKey{Server: web, Protocol: flows.ProtoTCP, Measure: flows.RTTServer, Class: flows.ClassNIC}, 3000)
	f := scrape(t, []flows.Latency{l})["weft_tcp_rtt_seconds"]
	if f == nil || len(f.Metric) != 1 {
		t.Fatalf("got %v, want one series of weft_tcp_rtt_seconds", f)
	}
	h := f.Metric[0].GetHistogram()
	if h.GetSampleCount() != 3000 || h.GetSampleSum() != float64(l.Sum)/1e9 || h.GetSchema() != 3 || h.GetZeroCount() != 0 || !h.GetCreatedTimestamp().AsTime().Equal(t0) {
		t.Errorf("got count %d sum %v schema %d zero %d from %s, want 3000, %v, 3, 0 from %s", h.GetSampleCount(), h.GetSampleSum(), h.GetSchema(),
			h.GetZeroCount(), h.GetCreatedTimestamp().AsTime(), float64(l.Sum)/1e9, t0)
	}
	// Every value in seconds lies in its bucket.
	want := map[int]uint64{}
	for _, v := range values {
		want[int(math.Ceil(math.Log2(float64(v)/1e9)*8))]++
	}
	got := nativeBuckets(h)
	for i := range 400 {
		if i -= 300; got[i] != want[i] {
			t.Errorf("bucket %d, to %v s: got %d, want %d", i, math.Exp2(float64(i)/8), got[i], want[i])
		}
	}
	for _, b := range h.Bucket {
		var n uint64
		for _, v := range values {
			if float64(v) <= b.GetUpperBound()*1e9 {
				n++
			}
		}
		if b.GetCumulativeCount() != n {
			t.Errorf("classic bucket to %v s: got %d, want exactly %d", b.GetUpperBound(), b.GetCumulativeCount(), n)
		}
	}
	if len(h.Bucket) != 20 || h.Bucket[0].GetUpperBound() != 0.000030517578125 || h.Bucket[19].GetUpperBound() != 16 {
		t.Errorf("got classic bounds %v, want 20 from 2^-15 to 16", h.Bucket)
	}
}

func TestOldScrapersGetClassicHistograms(t *testing.T) {
	all := allMeasures()
	url := startWeb(t, WebOptions{Ledger: func() flows.Ledger { return flows.Ledger{} }, Latencies: func() Latencies { return Latencies{All: all, Left: left} }})
	_, body := get(t, url+"/metrics")
	for _, want := range []string{
		`weft_tcp_rtt_seconds_bucket{class="veth",server_address="192.0.2.1",server_port="443",side="server",transport="tcp",le="16"} 100`,
		`weft_tcp_rtt_seconds_bucket{class="veth",server_address="192.0.2.1",server_port="443",side="client",transport="tcp",le="+Inf"} 100`,
		`weft_tcp_handshake_duration_seconds_count{class="veth",server_address="192.0.2.1",server_port="443",side="client",transport="tcp"} 100`,
		`weft_tcp_handshake_duration_seconds_count{class="veth",server_address="",server_port="",side="server",transport="tcp"} 10`,
		`dns_lookup_duration_seconds_count{class="veth",server_address="192.0.2.1",server_port="443",transport="tcp"} 100`,
		`weft_latency_over_limit 0`, `weft_tcp_untracked_packets_total 3`, `weft_latency_overflowed_total 4`, `weft_latency_lost_total 5`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("got no %s in /metrics", want)
		}
	}
	if strings.Contains(body, "bond") {
		t.Error("got a series of a histogram that counted nothing, want none")
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.Contains(p.Metric, "weft_") || strings.Contains(p.Metric, "dns_") {
			t.Errorf("got %s: %s, want names as Prometheus has them", p.Metric, p.Text)
		}
	}
	none := startWeb(t, WebOptions{Ledger: func() flows.Ledger { return flows.Ledger{} }, Latencies: func() Latencies { return Latencies{} }})
	if _, body := get(t, none+"/metrics"); strings.Contains(body, "weft_latency") || strings.Contains(body, "rtt") {
		t.Errorf("nothing measured: got %s, want no histograms and no figures of them", body)
	}
}

// many is n histograms, the i-th of which began at second i.
func many(n int) []flows.Latency {
	all := make([]flows.Latency, n)
	for i := range all {
		server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 443)
		all[n-1-i] = flows.Latency{
			Key: flows.LatencyKey{Server: server, Protocol: flows.ProtoTCP}, Start: t0.Add(time.Duration(i) * time.Second).UnixNano(),
			Count: 240, Sum: 1, Offset: -184, Counts: make([]uint64, 240),
		}
		for k := range 240 {
			all[n-1-i].Counts[k] = 1
		}
	}
	return all
}

func TestHistogramsAreBoundedAndTheRestIsCounted(t *testing.T) {
	all := many(maxLatencySeries + 7)
	families := scrape(t, all)
	if n := len(families["weft_tcp_rtt_seconds"].Metric); n != maxLatencySeries {
		t.Errorf("got %d series, want %d", n, maxLatencySeries)
	}
	if n := families["weft_latency_over_limit"].Metric[0].GetGauge().GetValue(); n != 7 {
		t.Errorf("got %v over the limit, want 7", n)
	}
	some, _ := Latencies{All: all}.exportable()
	if first, last := some[0].Start, some[len(some)-1].Start; first != t0.UnixNano() || last != t0.Add((maxLatencySeries-1)*time.Second).UnixNano() {
		t.Errorf("got those from %d to %d, want the oldest", first, last)
	}
	e := newEncoder(map[string]string{"service.name": "weft"}, "1", t0)
	points, over, lost := 0, int64(0), int64(0)
	for _, b := range e.latencyBatches(Latencies{At: t0.Add(time.Hour), All: all, Left: left}) {
		if n := proto.Size(b); n > maxBatchBytes {
			t.Errorf("got a request of %d bytes, want at most %d", n, maxBatchBytes)
		}
		for _, m := range b.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			switch m.Name {
			case "weft.latency.over_limit":
				over += m.GetSum().DataPoints[0].GetAsInt()
			case "weft.tcp.untracked.packets", "weft.latency.overflowed", "weft.latency.lost":
				if !m.GetSum().IsMonotonic {
					t.Errorf("%s: got a sum that may fall, want a counter", m.Name)
				}
				lost += m.GetSum().DataPoints[0].GetAsInt()
			}
			points += len(m.GetExponentialHistogram().GetDataPoints())
		}
	}
	if points != maxLatencySeries || over != 7 || lost != 3+4+5 {
		t.Errorf("OTLP: got %d histograms, %d over the limit, %d left out, want %d, 7 and 12", points, over, lost, maxLatencySeries)
	}
	if got := e.latencyBatches(Latencies{}); got != nil {
		t.Errorf("of none: got %d requests, want none", len(got))
	}
}

func BenchmarkScrapeOfManyHistograms(b *testing.B) {
	all := many(1024)
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewLatencyCollector(func() Latencies { return Latencies{All: all} }))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
