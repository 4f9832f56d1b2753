// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"maps"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"weft/flows"
)

// ledgerCollector is the latest ledger as weft_ledger_*. Its cardinality is that
// of the points, which the data plane bounds, times the skip reasons that
// counted something.
type ledgerCollector struct {
	ledger              func() flows.Ledger
	figures             [][2]*prometheus.Desc // packets, bytes; as pointFigures
	skipped             [2]*prometheus.Desc
	unaccounted         [2]*prometheus.Desc
	made, offered, acks *prometheus.Desc
	waiting, lost, left *prometheus.Desc
	at, goneUnbalanced  *prometheus.Desc
	sources             []*prometheus.Desc // as sourceFigures
}

// NewLedgerCollector collects what ledger returns: zero At means none yet, and
// then there is nothing to collect.
func NewLedgerCollector(ledger func() flows.Ledger) prometheus.Collector {
	point := []string{"interface", "direction", "hook", "netns"}
	pair := func(name, help, suffix string, labels []string) [2]*prometheus.Desc {
		desc := func(unit, what string) *prometheus.Desc {
			return prometheus.NewDesc("weft_ledger_"+name+"_"+unit+suffix, what+" "+help+".", labels, nil)
		}
		return [2]*prometheus.Desc{desc("packets", "Wire packets"), desc("bytes", "L2 bytes")}
	}
	records := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("weft_ledger_records_"+name, help, labels, nil)
	}
	c := &ledgerCollector{
		ledger:         ledger,
		skipped:        pair("skipped", helpSkipped, "_total", append(slices.Clone(point), "reason")),
		unaccounted:    pair("unaccounted", helpUnaccounted, "", point),
		made:           records("made_total", "Flow records made."),
		offered:        records("offered_total", "Flow records given to a sink.", "sink"),
		acks:           records("acknowledged_total", "Flow records that a sink's receiver said it has.", "sink"),
		waiting:        records("waiting", "Flow records queued or in flight in a sink.", "sink"),
		lost:           records("lost_total", "Flow records that a sink lost, by reason.", "sink", "reason"),
		left:           records("left_out_total", "Flow records that were not for a sink as it is configured, by reason.", "sink", "reason"),
		goneUnbalanced: prometheus.NewDesc("weft_ledger_gone_unbalanced_total", helpGoneUnbalanced, nil, nil),
		at: prometheus.NewDesc("weft_ledger_timestamp_seconds",
			"When the ledger was drawn up, Unix time.", nil, nil),
	}
	for _, f := range pointFigures {
		suffix := ""
		if f.total {
			suffix = "_total"
		}
		c.figures = append(c.figures, pair(f.name, f.help, suffix, point))
	}
	for _, f := range sourceFigures {
		name := "weft_ledger_source_" + f.name + "_events"
		if f.total {
			name += "_total"
		}
		c.sources = append(c.sources, prometheus.NewDesc(name, f.help, []string{"source"}, nil))
	}
	return c
}

// Describe sends every description.
func (c *ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(c.figures, [][2]*prometheus.Desc{c.skipped, c.unaccounted}) {
		ch <- d[0]
		ch <- d[1]
	}
	for _, d := range append(slices.Clone(c.sources), c.made, c.offered, c.acks, c.waiting, c.lost, c.left, c.at, c.goneUnbalanced) {
		ch <- d
	}
}

// Collect sends the latest ledger.
func (c *ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	l := c.ledger()
	if l.At.IsZero() {
		return
	}
	order, points := ledgerPoints(&l)
	for _, at := range order {
		p, values := points[at], []string{at.iface, at.direction, at.hook, at.netns}
		for i, f := range pointFigures {
			kind := prometheus.GaugeValue
			if f.total {
				kind = prometheus.CounterValue
			}
			sendCount(ch, c.figures[i], kind, f.of(p), values...)
		}
		for reason, n := range p.Skipped {
			if n != (flows.Count{}) {
				sendCount(ch, c.skipped, prometheus.CounterValue, n, append(values, flows.SkipReason(reason).String())...)
			}
		}
		ch <- prometheus.MustNewConstMetric(c.unaccounted[0], prometheus.GaugeValue, float64(p.Unaccounted.Packets), values...)
		ch <- prometheus.MustNewConstMetric(c.unaccounted[1], prometheus.GaugeValue, float64(p.Unaccounted.Bytes), values...)
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v uint64, values ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, float64(v), values...)
	}
	send(c.goneUnbalanced, prometheus.CounterValue, l.GoneUnbalanced)
	send(c.made, prometheus.CounterValue, l.Made)
	ch <- prometheus.MustNewConstMetric(c.at, prometheus.GaugeValue, float64(l.At.UnixNano())/1e9)
	for i := range l.Sources {
		for k, f := range sourceFigures {
			kind := prometheus.GaugeValue
			if f.total {
				kind = prometheus.CounterValue
			}
			ch <- prometheus.MustNewConstMetric(c.sources[k], kind, float64(f.of(&l.Sources[i])), l.Sources[i].Name)
		}
	}
	for _, s := range l.Sinks {
		send(c.offered, prometheus.CounterValue, s.Offered, s.Name)
		send(c.acks, prometheus.CounterValue, s.Acknowledged, s.Name)
		send(c.waiting, prometheus.GaugeValue, s.Waiting, s.Name)
		for _, reason := range slices.Sorted(maps.Keys(s.Lost)) {
			send(c.lost, prometheus.CounterValue, s.Lost[reason], s.Name, reason)
		}
		for _, reason := range slices.Sorted(maps.Keys(s.LeftOut)) {
			send(c.left, prometheus.CounterValue, s.LeftOut[reason], s.Name, reason)
		}
	}
}

func sendCount(ch chan<- prometheus.Metric, d [2]*prometheus.Desc, kind prometheus.ValueType, n flows.Count, values ...string) {
	ch <- prometheus.MustNewConstMetric(d[0], kind, float64(n.Packets), values...)
	ch <- prometheus.MustNewConstMetric(d[1], kind, float64(n.Bytes), values...)
}

// buildInfo is weft_build_info.
func buildInfo(version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "weft_build_info",
		Help:        "Always 1; the labels are the agent's version and the Go version it was built with.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}
