// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"sync/atomic"
	"time"

	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

// rounds makes requests of metrics, every so often a round of all of them; but for points it is
// the metrics worker's.
type rounds struct {
	encoder encoder
	deltas  *deltas
	quiet   time.Time // until when the receiver asked to be left alone
	began   time.Time // what the sums count from
	last    time.Time // of the ledger in the last round

	points map[string]*atomic.Uint64 // data points by what became of their request, or of themselves
}

func newRounds(resource map[string]string, c OTLPConfig) rounds {
	now := time.Now()
	r := rounds{encoder: newEncoder(resource, c.Version, now), deltas: newDeltas(c.InForce().Temporality), began: now}
	r.encoder.partial = c.Filter != nil || c.Sample.on()
	r.points = map[string]*atomic.Uint64{}
	for _, state := range []string{stateOK, stateRetry, stateRefused, statePartial, stateTooLarge} {
		r.points[state] = &atomic.Uint64{}
	}
	return r
}

// settlePoints counts the n points of a request.
func (r *rounds) settlePoints(a answer, n int) {
	if a.state == statePartial {
		rejected := min(int(a.rejected), n)
		r.points[statePartial].Add(uint64(rejected))
		r.points[stateOK].Add(uint64(n - rejected))
		return
	}
	r.points[a.state].Add(uint64(n))
}

// lostPoints is how many data points no receiver has, nor will be asked to take again. Of
// cumulative series the next point has all that they told.
func (r *rounds) lostPoints() uint64 {
	return r.points[statePartial].Load() + r.points[stateRefused].Load() + r.points[stateTooLarge].Load()
}

// sendMetrics is the worker for the ledger and the histograms: every so often, and once at the end.
func (o *OTLP) sendMetrics(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-o.stop:
			last = true
		}
		o.mu.Lock()
		ledger, latencies := o.ledger, o.latencies
		o.mu.Unlock()
		if ledger.At.IsZero() {
			continue
		}
		o.mindClock(ledger.At)
		// One time for all requests: Prometheus makes a target_info of each one's resource, and
		// refuses a request whose is older than the last.
		latencies.At = ledger.At
		o.sendRound(append(o.encoder.metricBatches(&ledger), o.encoder.latencyBatches(latencies)...))
	}
}

// mindClock sees to it that no start is after its point's time when the clock was set back.
func (o *OTLP) mindClock(at time.Time) {
	if at.Before(o.last) {
		o.metrics.log.Warn("clock was set back: metrics go on from the new time, receivers may refuse them until it has passed the old one",
			"was", o.last.UTC().Format(time.RFC3339), "is", at.UTC().Format(time.RFC3339))
		o.deltas.setBack(uint64(at.UnixNano()))
	}
	o.last = at
	if now := uint64(at.UnixNano()); o.encoder.start > now {
		o.encoder.start = now - uint64(time.Since(o.began)) // which no clock's setting moves
	}
}

// sendRound sends one round of metrics, in parts if the receiver wants smaller requests, unless it asked to
// be left alone: the next one has what this one had.
func (o *OTLP) sendRound(round []*colmetrics.ExportMetricsServiceRequest) {
	if time.Now().Before(o.quiet) {
		return
	}
	for parts := o.deltas.of(round); len(parts) > 0; {
		r := parts[0]
		parts = parts[1:]
		body, err := proto.Marshal(r.m)
		if err != nil {
			o.metrics.note(stateRefused, err.Error())
			o.settlePoints(answer{state: stateRefused}, r.points)
			continue
		}
		splits := r.points > 1 && len(body) > minSplit
		if splits && o.metrics.tooLarge(len(body)) {
			parts = append(r.halves(), parts...)
			continue
		}
		a := o.metrics.once(o.ctx, body)
		if a.state == stateTooLarge && splits {
			o.metrics.shrink(len(body))
			parts = append([]deltaRequest{r}, parts...)
			continue
		}
		o.settlePoints(a, r.points)
		// Of a part that was rejected nobody knows which it was: it is not sent again.
		if a.state == stateOK || a.state == statePartial && a.rejected < int64(r.points) {
			o.deltas.acknowledged(r)
		}
		if a.state == stateRetry && a.wait > 0 {
			o.quiet = time.Now().Add(a.wait)
			return
		}
	}
}

// halves is r as two requests of as many points.
func (r deltaRequest) halves() []deltaRequest {
	rm := r.m.ResourceMetrics[0]
	sm := rm.ScopeMetrics[0]
	left, both := r.points/2, make([]deltaRequest, 2)
	for i := range both {
		both[i] = deltaRequest{
			commit: map[string]commitment{},
			m: &colmetrics.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{
				Resource: rm.Resource, SchemaUrl: rm.SchemaUrl,
				ScopeMetrics: []*metrics.ScopeMetrics{{Scope: sm.Scope, SchemaUrl: sm.SchemaUrl}},
			}}},
		}
	}
	for _, m := range sm.Metrics {
		n := len(m.GetSum().GetDataPoints()) + len(m.GetExponentialHistogram().GetDataPoints())
		k := min(n, left)
		left -= k
		for i, cut := range [][2]int{{0, k}, {k, n}} {
			if cut[0] < cut[1] {
				both[i].take(pointsOf(m, cut[0], cut[1]), cut[1]-cut[0], r.commit)
			}
		}
	}
	return both
}

// take adds m, which has n points, with what is to be remembered of them.
func (r *deltaRequest) take(m *metrics.Metric, n int, commit map[string]commitment) {
	r.points += n
	scope := r.m.ResourceMetrics[0].ScopeMetrics[0]
	scope.Metrics = append(scope.Metrics, m)
	keep := func(key string) {
		if c, ok := commit[key]; ok {
			r.commit[key] = c
		}
	}
	for _, p := range m.GetSum().GetDataPoints() {
		keep(seriesKey(m.Name, p.Attributes, false))
	}
	for _, p := range m.GetExponentialHistogram().GetDataPoints() {
		keep(seriesKey(m.Name, p.Attributes, false))
	}
}

// pointsOf is m with its points from first to before end only.
func pointsOf(m *metrics.Metric, first, end int) *metrics.Metric {
	part := &metrics.Metric{Name: m.Name, Unit: m.Unit, Description: m.Description}
	if s := m.GetSum(); s != nil {
		part.Data = &metrics.Metric_Sum{Sum: &metrics.Sum{
			AggregationTemporality: s.AggregationTemporality, IsMonotonic: s.IsMonotonic, DataPoints: s.DataPoints[first:end],
		}}
		return part
	}
	h := m.GetExponentialHistogram()
	part.Data = &metrics.Metric_ExponentialHistogram{ExponentialHistogram: &metrics.ExponentialHistogram{
		AggregationTemporality: h.AggregationTemporality, DataPoints: h.DataPoints[first:end],
	}}
	return part
}
