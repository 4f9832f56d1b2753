// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"weft/flows"
)

// DefaultTrafficSeries is how many pairs a [Traffic] has series of.
const DefaultTrafficSeries = 256

// trafficTurn is how often pairs without series may take the place of others.
const trafficTurn = time.Minute

// Traffic counts who talks to whom, for Prometheus: packets and bytes of records by
// what both ends are (workload, service, unit, ...; never an address, of which there is no
// end). So many pairs have series; all others are counted together, in the series
// whose labels are all "other". Each minute a pair of those that carried more than
// twice what the quietest series did takes its place, and begins at zero.
//
// The sum over all series and of weft_traffic_left_* is what all records had; none of
// them ever falls. Safe for concurrent use.
type Traffic struct {
	limit int

	mu      sync.Mutex
	series  map[trafficPair]*trafficSeries // at most limit
	other   trafficFigures                 // of pairs without series
	left    trafficFigures                 // of series that are no more
	waiting map[trafficPair]uint64         // bytes of pairs without series, this turn; at most 2 * limit
	folded  uint64                         // records in other
	turned  time.Time
}

// trafficPair is the labels of a series.
type trafficPair struct {
	srcNamespace, src, dstNamespace, dst, service, transport string
}

type trafficFigures struct {
	forward, reverse flows.Count
	dropped, failed  uint64
}

type trafficSeries struct {
	trafficFigures
	turn uint64 // bytes in this turn
}

// NewTraffic counts with series of so many pairs; 0: [DefaultTrafficSeries].
func NewTraffic(limit int) *Traffic {
	return &Traffic{limit: cmp.Or(limit, DefaultTrafficSeries), series: map[trafficPair]*trafficSeries{}, waiting: map[trafficPair]uint64{}}
}

// Add counts the records of a window that ended at.
func (t *Traffic) Add(records []flows.Record, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range records {
		t.add(&records[i])
	}
	if at.Sub(t.turned) >= trafficTurn {
		t.turn()
		t.turned = at
	}
}

func (t *Traffic) add(r *flows.Record) {
	pair, n := pairOf(r), trafficFigures{
		forward: flows.Count{Packets: r.Packets, Bytes: r.Bytes},
		reverse: flows.Count{Packets: r.ReversePackets, Bytes: r.ReverseBytes},
		dropped: r.Dropped,
	}
	if r.TCP != nil && r.TCP.Failure != flows.FailNone {
		n.failed = 1
	}
	s := t.series[pair]
	if s == nil && len(t.series) < t.limit {
		s = &trafficSeries{}
		t.series[pair] = s
	}
	if s != nil {
		s.add(n)
		s.turn += r.Bytes + r.ReverseBytes
		return
	}
	t.other.add(n)
	t.folded++
	if _, known := t.waiting[pair]; !known && len(t.waiting) >= 2*t.limit {
		t.forgetHalf()
	}
	t.waiting[pair] += r.Bytes + r.ReverseBytes
}

// pairOf is by what the ends are called, the most lasting name first.
func pairOf(r *flows.Record) (p trafficPair) {
	p.transport = flows.ProtoName(r.Key.Proto)
	p.srcNamespace, p.src = lastingName(r.Source)
	p.dstNamespace, p.dst = lastingName(r.Destination)
	if r.Destination != nil {
		p.service = text(r.Destination.Service)
	}
	return p
}

func lastingName(e *flows.Entity) (namespace, name string) {
	if e == nil {
		return "", ""
	}
	return text(e.Namespace), text(cmp.Or(e.Workload, e.Pod, e.VM, e.Sandbox, e.Container, e.ContainerID[:min(len(e.ContainerID), 12)], e.Unit, e.Process, e.Node))
}

// text is s as a label may be; else all of /metrics would fail.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// turn lets the pairs that carried most among those without series take the places
// of the quietest, if they carried more than twice as much.
func (t *Traffic) turn() {
	quiet := slices.SortedFunc(maps.Keys(t.series), func(a, b trafficPair) int {
		return cmp.Compare(t.series[a].turn, t.series[b].turn)
	})
	for _, pair := range t.heaviest() {
		if len(quiet) == 0 || t.waiting[pair] <= 2*t.series[quiet[0]].turn {
			break
		}
		t.left.add(t.series[quiet[0]].trafficFigures)
		delete(t.series, quiet[0])
		t.series[pair], quiet = &trafficSeries{}, quiet[1:]
	}
	clear(t.waiting)
	for _, s := range t.series {
		s.turn = 0
	}
}

func (t *Traffic) heaviest() []trafficPair {
	return slices.SortedFunc(maps.Keys(t.waiting), func(a, b trafficPair) int {
		return cmp.Compare(t.waiting[b], t.waiting[a])
	})
}

// forgetHalf makes room for pairs that come late in a turn.
func (t *Traffic) forgetHalf() {
	for _, pair := range t.heaviest()[t.limit:] {
		delete(t.waiting, pair)
	}
}

func (f *trafficFigures) add(n trafficFigures) {
	f.forward, f.reverse = f.forward.Plus(n.forward), f.reverse.Plus(n.reverse)
	f.dropped += n.dropped
	f.failed += n.failed
}

var (
	trafficLabels = []string{"source_namespace", "source", "destination_namespace", "destination", "destination_service", "transport"}
	toward        = append(slices.Clip(slices.Clone(trafficLabels)), "direction")
	leftLabels    = []string{"direction"}

	trafficPackets = prometheus.NewDesc("weft_traffic_packets_total",
		"Wire packets of flow records by what both ends are; direction forward is from source, who opened the conversation, to destination.", toward, nil)
	trafficBytes   = prometheus.NewDesc("weft_traffic_bytes_total", "L2 bytes of flow records by what both ends are.", toward, nil)
	trafficDropped = prometheus.NewDesc("weft_traffic_dropped_packets_total",
		"Packets of flow records that the kernel of this host threw away.", trafficLabels, nil)
	trafficFailed = prometheus.NewDesc("weft_traffic_failed_total", "Records of TCP connections that failed.", trafficLabels, nil)

	trafficLeftPackets = prometheus.NewDesc("weft_traffic_left_packets_total",
		"Wire packets of series that gave their place to others and are no more.", leftLabels, nil)
	trafficLeftBytes = prometheus.NewDesc("weft_traffic_left_bytes_total",
		"L2 bytes of series that gave their place to others and are no more.", leftLabels, nil)
	trafficFolded = prometheus.NewDesc("weft_traffic_folded_records_total", `Records in the series of all "other" pairs.`, nil, nil)
	trafficSizes  = prometheus.NewDesc("weft_traffic_series", "Pairs that have series of their own.", nil, nil)
)

// Describe sends every description.
func (t *Traffic) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{trafficPackets, trafficBytes, trafficDropped, trafficFailed,
		trafficLeftPackets, trafficLeftBytes, trafficFolded, trafficSizes} {
		ch <- d
	}
}

// Collect sends what was added.
func (t *Traffic) Collect(ch chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	send := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	both := func(packets, bytes *prometheus.Desc, f *trafficFigures, labels ...string) {
		for direction, n := range map[string]flows.Count{"forward": f.forward, "reverse": f.reverse} {
			l := append(slices.Clip(labels), direction)
			send(packets, n.Packets, l...)
			send(bytes, n.Bytes, l...)
		}
	}
	pair := func(p trafficPair, f *trafficFigures) {
		l := []string{p.srcNamespace, p.src, p.dstNamespace, p.dst, p.service, p.transport}
		both(trafficPackets, trafficBytes, f, l...)
		send(trafficDropped, f.dropped, l...)
		send(trafficFailed, f.failed, l...)
	}
	for p, s := range t.series {
		pair(p, &s.trafficFigures)
	}
	pair(trafficPair{"other", "other", "other", "other", "other", "other"}, &t.other)
	both(trafficLeftPackets, trafficLeftBytes, &t.left)
	send(trafficFolded, t.folded)
	ch <- prometheus.MustNewConstMetric(trafficSizes, prometheus.GaugeValue, float64(len(t.series)))
}
