// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"

	"weft/flows"
)

// Temporality is what the sums and histograms of OTLP metrics count from.
type Temporality string

// The temporalities, as the OTLP exporter's specification has them: with Delta, sums
// that only grow and histograms count from where the last request that was acknowledged
// ended; with LowMemory only the histograms do, since the sums are observed counters.
// Sums that also shrink are cumulative in each of them.
const (
	Cumulative Temporality = "cumulative"
	Delta      Temporality = "delta"
	LowMemory  Temporality = "lowmemory"
)

// ParseTemporality is the one called s, in letters of any size; the error lists them all.
func ParseTemporality(s string) (Temporality, error) {
	switch t := Temporality(strings.ToLower(s)); t {
	case Cumulative, Delta, LowMemory:
		return t, nil
	}
	return "", fmt.Errorf("%q: want cumulative, delta or lowmemory", s)
}

// maxToldSeries bounds the series that are remembered: four times what a round has at most.
// Of those that are in no round any more, the ones seen last are kept.
const maxToldSeries = 1 << 16

// deltas makes requests of what was counted since a receiver acknowledged the last of
// them. What a request that failed had is in the next one.
type deltas struct {
	sums, histograms bool                  // which of them
	told             map[string]toldSeries // by series: what the receiver has of it
	round            uint64
}

func newDeltas(t Temporality) *deltas {
	return &deltas{sums: t == Delta, histograms: t == Delta || t == LowMemory, told: map[string]toldSeries{}}
}

// toldSeries is a series as it was when a receiver acknowledged it.
type toldSeries struct {
	start, end uint64 // of the cumulative point, Unix nanoseconds
	value      int64
	histogram  *metrics.ExponentialHistogramDataPoint // cumulative; nil: a sum
	heir       string                                 // the series that gets what this one had when its point is detached; empty: none
	round      uint64                                 // in which it was there last
}

// deltaRequest is a request and what to remember once a receiver has it.
type deltaRequest struct {
	m      *colmetrics.ExportMetricsServiceRequest
	points int
	commit map[string]commitment
}

// commitment is a series as the receiver will have it, and those that this one inherits from.
type commitment struct {
	series toldSeries
	from   map[string]toldSeries
}

// of turns one round of cumulative requests, which it changes, into those that are to be
// sent. Without anything new there are none.
func (d *deltas) of(round []*colmetrics.ExportMetricsServiceRequest) []deltaRequest {
	d.round++
	inherited := d.inherit(round)
	var all []deltaRequest
	for _, m := range round {
		r := deltaRequest{m: m, commit: map[string]commitment{}}
		scope := m.ResourceMetrics[0].ScopeMetrics[0]
		scope.Metrics = slices.DeleteFunc(scope.Metrics, func(m *metrics.Metric) bool {
			n := d.metric(m, inherited, r.commit)
			r.points += n
			return n == 0
		})
		if r.points > 0 {
			all = append(all, r)
		}
	}
	return all
}

// acknowledged remembers that a receiver has r.
func (d *deltas) acknowledged(r deltaRequest) {
	for key, c := range r.commit {
		c.series.round = d.round
		d.told[key] = c.series
		for key, t := range c.from {
			t.round = d.round
			d.told[key] = t
		}
	}
	if len(d.told) > maxToldSeries {
		for key, t := range d.told {
			if t.round+1 < d.round {
				delete(d.told, key)
			}
		}
	}
}

// setBack notes that the clock is at a time that the receiver was told of already: what is
// told next begins there, instead of waiting for the clock to come to where it was.
func (d *deltas) setBack(at uint64) {
	for key, t := range d.told {
		if t.end >= at {
			t.end = at - 1
			d.told[key] = t
		}
	}
}

// inheritance is what series that shrank or went were told of, and what is left of them:
// it is in their heir, the series of detached points, and so is known already.
type inheritance struct {
	value int64
	from  map[string]toldSeries
}

// inherit finds by heir what it inherits in this round. The series of an interface that was replaced
// by one of its name shrinks too; what the new one counted until then is told with the heir.
func (d *deltas) inherit(round []*colmetrics.ExportMetricsServiceRequest) map[string]inheritance {
	now := map[string]*metrics.NumberDataPoint{}
	for _, r := range round {
		for _, m := range r.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			for _, p := range m.GetSum().GetDataPoints() {
				now[seriesKey(m.Name, p.Attributes, false)] = p
			}
		}
	}
	all := map[string]inheritance{}
	for key, t := range d.told {
		p := now[key]
		if t.heir == "" || t.value == 0 || p != nil && p.GetAsInt() >= t.value {
			continue
		}
		i := all[t.heir]
		if i.from == nil {
			i.from = map[string]toldSeries{}
		}
		i.value += t.value
		t.value = 0 // if one of its name comes, it goes on where this one ended
		if p != nil {
			i.value -= p.GetAsInt()
			t.end, t.value = p.TimeUnixNano, p.GetAsInt()
		}
		i.from[key] = t
		all[t.heir] = i
	}
	return all
}

// metric makes deltas of m's points and returns how many there are.
func (d *deltas) metric(m *metrics.Metric, inherited map[string]inheritance, commit map[string]commitment) int {
	const temporality = metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA
	if s := m.GetSum(); s != nil {
		if !d.sums || !s.IsMonotonic {
			return len(s.DataPoints)
		}
		s.AggregationTemporality = temporality
		s.DataPoints = slices.DeleteFunc(s.DataPoints, func(p *metrics.NumberDataPoint) bool { return !d.sum(m.Name, p, inherited, commit) })
		return len(s.DataPoints)
	}
	h := m.GetExponentialHistogram()
	if !d.histograms {
		return len(h.DataPoints)
	}
	h.AggregationTemporality = temporality
	for i, p := range h.DataPoints {
		h.DataPoints[i] = d.histogram(m.Name, p, commit)
	}
	h.DataPoints = slices.DeleteFunc(h.DataPoints, func(p *metrics.ExponentialHistogramDataPoint) bool { return p == nil })
	return len(h.DataPoints)
}

// sum makes p a delta; false: there is nothing to tell.
func (d *deltas) sum(name string, p *metrics.NumberDataPoint, inherited map[string]inheritance, commit map[string]commitment) bool {
	key, was := seriesKey(name, p.Attributes, false), toldSeries{}
	if t, ok := d.told[key]; ok {
		was = t
		t.round = d.round
		d.told[key] = t
	}
	next := toldSeries{start: p.StartTimeUnixNano, end: p.TimeUnixNano, value: p.GetAsInt()}
	if of := attribute(p.Attributes, nameInterface); of != "" && of != goneInterface {
		next.heir = seriesKey(name, p.Attributes, true)
	}
	more := next.value - was.value - inherited[key].value
	if more <= 0 || next.end <= was.end {
		return false
	}
	if was.end > 0 {
		p.StartTimeUnixNano = was.end
	}
	p.Value = &metrics.NumberDataPoint_AsInt{AsInt: more}
	commit[key] = commitment{next, inherited[key].from}
	return true
}

// histogram is what p counted since it was told; nil: nothing. One that began anew is
// told from its beginning.
func (d *deltas) histogram(name string, p *metrics.ExponentialHistogramDataPoint, commit map[string]commitment) *metrics.ExponentialHistogramDataPoint {
	key := seriesKey(name, p.Attributes, false)
	kept := &metrics.ExponentialHistogramDataPoint{Count: p.Count, Sum: p.Sum, Positive: p.Positive} // all that the next one needs
	next := toldSeries{start: p.StartTimeUnixNano, end: p.TimeUnixNano, histogram: kept}
	t, ok := d.told[key]
	if ok {
		t.round = d.round
		d.told[key] = t
	}
	if !ok || next.start > t.start { // a start moves back only with the clock
		commit[key] = commitment{series: next}
		return p
	}
	was := t.histogram
	if p.Count <= was.Count || next.end <= t.end {
		return nil
	}
	sum := p.GetSum() - was.GetSum()
	counts := slices.Clone(p.Positive.BucketCounts)
	for k, n := range was.Positive.BucketCounts {
		counts[int(was.Positive.Offset)+k-int(p.Positive.Offset)] -= n
	}
	first := slices.IndexFunc(counts, func(n uint64) bool { return n > 0 })
	last := len(counts)
	for counts[last-1] == 0 {
		last--
	}
	commit[key] = commitment{series: next}
	examples := slices.DeleteFunc(p.Exemplars, func(e *metrics.Exemplar) bool {
		v := flows.Exemplar{Value: time.Duration(math.Round(e.GetAsDouble() * 1e9))}
		k := v.Bucket() - int(p.Positive.Offset)
		return e.TimeUnixNano <= t.end || k < 0 || k >= len(counts) || counts[k] == 0
	})
	return &metrics.ExponentialHistogramDataPoint{
		Exemplars: examples, StartTimeUnixNano: t.end, TimeUnixNano: p.TimeUnixNano, Attributes: p.Attributes,
		Count: p.Count - was.Count, Sum: &sum, Scale: p.Scale,
		Positive: &metrics.ExponentialHistogramDataPoint_Buckets{Offset: p.Positive.Offset + int32(first), BucketCounts: counts[first:last]},
	}
}

// seriesKey tells series apart; with heir it is that of the detached points, which has
// of what says where a point is only the interface.
func seriesKey(name string, attrs []*common.KeyValue, heir bool) string {
	key := []byte(name)
	for _, a := range attrs {
		text := a.GetValue().GetStringValue()
		switch {
		case heir && a.Key == nameInterface:
			text = goneInterface
		case heir && (a.Key == nameDirection || a.Key == nameHook || a.Key == nameNetns):
			continue
		case text == "": // ours are texts and whole numbers
			text = strconv.FormatInt(a.GetValue().GetIntValue(), 10)
		}
		key = fmt.Appendf(key, "\x00%s\x01%s", a.Key, text)
	}
	return string(key)
}

func attribute(attrs []*common.KeyValue, name string) string {
	for _, a := range attrs {
		if a.Key == name {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}
