// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"

	"github.com/prometheus/client_golang/prometheus"

	"weft/exporter/api"
)

// Status is the sink for `flowctl status`.
func (o *OTLP) Status() *api.SinkStatus {
	s := &api.SinkStatus{Account: AccountToWire(o.Account())}
	well := true
	if o.logs != nil {
		s.Target = o.logs.target.endpoint
		s.State, well = o.logs.describe()
	}
	if o.metrics != nil {
		s.Target = cmp.Or(s.Target, o.metrics.target.endpoint)
		if text, fine := o.metrics.describe(); s.State == "" || well && !fine {
			s.State = "metrics " + text
		}
		for state, n := range o.metrics.counts() {
			if state == stateOK {
				s.MetricsSent += n
			} else {
				s.MetricsFailed += n
			}
		}
		s.PointsLost = o.lostPoints()
	}
	return s
}

// Spooled is how many of the account's waiting records are on disk. It may lag
// behind [OTLP.Account] by the request at hand.
func (o *OTLP) Spooled() uint64 {
	o.queue.mu.Lock()
	defer o.queue.mu.Unlock()
	return uint64(max(int64(o.queue.parked), 0)) // less than none: sent before it was noted
}

// otlpDescs are the figures of one sink, whose name is a label of all.
type otlpDescs struct{ spoolWaiting, spoolRecovered, spoolMissing, spoolUnwatched, requests, points *prometheus.Desc }

func newOTLPDescs(sink string) otlpDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, prometheus.Labels{"sink": sink})
	}
	return otlpDescs{
		desc("weft_spool_waiting_records", "Flow records of this run that wait on disk for the OTLP receiver."),
		desc("weft_spool_recovered_records_total",
			"Flow records that an earlier run left in the spool, by what became of them: acknowledged, lost.", "outcome"),
		desc("weft_spool_missing_packets_total",
			"Packets at points that runs which were killed had in flows and in no spooled request, since the spool was made; of a sink that gets a part of the records, in those that it took."),
		desc("weft_spool_unwatched_frames_total",
			"Frames that devices counted after the last drain of a run and before the next run watched them, since the spool was made."),
		desc("weft_otlp_requests_total",
			"OTLP requests by signal and by what the answer meant: ok, retrying, refused, rejected (in part), too_large.", "signal", "outcome"),
		desc("weft_otlp_points_total",
			"Data points of OTLP metrics by what became of them: ok, rejected, refused and too_large (the receiver will not have those), retrying (the next round tells what they did).", "outcome"),
	}
}

// Describe sends the descriptions of what Collect sends.
func (o *OTLP) Describe(ch chan<- *prometheus.Desc) {
	ch <- o.descs.requests
	ch <- o.descs.points
	ch <- o.descs.spoolRecovered
	ch <- o.descs.spoolMissing
	ch <- o.descs.spoolUnwatched
	ch <- o.descs.spoolWaiting
}

// Collect sends weft_otlp_requests_total and weft_spool_*.
func (o *OTLP) Collect(ch chan<- prometheus.Metric) {
	if o.spool != nil {
		ch <- prometheus.MustNewConstMetric(o.descs.spoolWaiting, prometheus.GaugeValue, float64(o.Spooled()))
		ch <- prometheus.MustNewConstMetric(o.descs.spoolMissing, prometheus.CounterValue, float64(o.spool.missing()))
		ch <- prometheus.MustNewConstMetric(o.descs.spoolUnwatched, prometheus.CounterValue, float64(o.spool.unseen.Load()))
		for i, outcome := range []string{"acknowledged", "lost"} {
			ch <- prometheus.MustNewConstMetric(o.descs.spoolRecovered, prometheus.CounterValue, float64(o.recovered[i].Load()), outcome)
		}
	}
	if o.metrics != nil {
		for state, n := range o.points {
			ch <- prometheus.MustNewConstMetric(o.descs.points, prometheus.CounterValue, float64(n.Load()), state)
		}
	}
	for _, l := range []*link{o.logs, o.metrics} {
		if l == nil {
			continue
		}
		for state, n := range l.counts() {
			ch <- prometheus.MustNewConstMetric(o.descs.requests, prometheus.CounterValue, float64(n), l.signal, state)
		}
	}
}
