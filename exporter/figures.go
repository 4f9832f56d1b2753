// SPDX-License-Identifier: Apache-2.0

package exporter

import "weft/flows"

// figure is one line of the ledger as Prometheus and OTLP both export it:
// weft_ledger_NAME_packets and _bytes, weft.ledger.NAME.packets and .bytes.
type figure struct {
	name, help string
	total      bool // only grows
	of         func(*flows.PointLedger) flows.Count
}

// pointFigures are the figures of one point; Seen = Flows + Skipped + InTable +
// Unaccounted. Skipped has a reason and Unaccounted a sign, so they are apart.
var pointFigures = []figure{
	{"seen", "counted before any table", true, func(p *flows.PointLedger) flows.Count { return p.Seen }},
	{"gso", "of those seen, what interface counters do not show because they count a GSO frame as one", true,
		func(p *flows.PointLedger) flows.Count { return p.GSO }},
	{"flows", "read from the kernel into conversations", true, func(p *flows.PointLedger) flows.Count { return p.Flows }},
	{"recorded", "of those in flows, in records already made", true,
		func(p *flows.PointLedger) flows.Count { return p.Recorded }},
	{"open", "of those in flows, in conversations still open", false,
		func(p *flows.PointLedger) flows.Count { return p.Open }},
	{"in_table", "counted, to be read by the next drain", false,
		func(p *flows.PointLedger) flows.Count { return p.InTable }},
}

// sourceFigures are those of what is read beside the flow table: weft_ledger_source_NAME_events
// and weft.ledger.source.NAME.events. Seen = Drained + Lost + Pending + Unaccounted.
var sourceFigures = []struct {
	name, help string
	total      bool
	of         func(*flows.SourceAccount) int64
}{
	{"seen", "Traced drops, DNS packets and events of sockets, counted in the kernel before any table.", true, func(s *flows.SourceAccount) int64 { return signed(s.Seen) }},
	{"drained", "Of those seen, read from the kernel.", true, func(s *flows.SourceAccount) int64 { return signed(s.Drained) }},
	{"lost", "Of those seen, counted and nothing more: the kernel had no room.", true, func(s *flows.SourceAccount) int64 { return signed(s.Lost) }},
	{"missed", "Not seen: the kernel did not run the program, which was running on that CPU already.", true, func(s *flows.SourceAccount) int64 { return signed(s.Missed) }},
	{"pending", "Of those seen, to be read by the next drain.", false, func(s *flows.SourceAccount) int64 { return signed(s.Pending) }},
	{"unaccounted", "Of those seen, what no other line explains: zero, or a bug.", false, func(s *flows.SourceAccount) int64 { return s.Unaccounted }},
}

const (
	helpSkipped     = "in no flow, by reason"
	helpUnaccounted = "what no other line explains: zero, or a bug"

	helpGoneUnbalanced = "Detached points whose account did not balance: zero, or a bug."
)

// labels tell the points of a ledger apart for a receiver. Points that it could
// not tell apart are summed: an interface that was replaced by one of its name.
type labels struct{ iface, direction, hook, netns string }

// goneInterface stands for every point that was detached, so that sums over all
// interfaces never shrink.
const goneInterface = "(gone)"

// ledgerPoints is l's points by label, in order of first appearance.
func ledgerPoints(l *flows.Ledger) ([]labels, map[labels]*flows.PointLedger) {
	var order []labels
	sums := map[labels]*flows.PointLedger{}
	add := func(at labels, p *flows.PointLedger) {
		sum := sums[at]
		if sum == nil {
			sum = &flows.PointLedger{}
			sums[at] = sum
			order = append(order, at)
		}
		sum.Seen.Add(p.Seen)
		sum.GSO.Add(p.GSO)
		sum.Flows.Add(p.Flows)
		sum.Recorded.Add(p.Recorded)
		sum.Open.Add(p.Open)
		sum.InTable.Add(p.InTable)
		for i, c := range p.Skipped {
			sum.Skipped[i].Add(c)
		}
		sum.Unaccounted.Packets += p.Unaccounted.Packets
		sum.Unaccounted.Bytes += p.Unaccounted.Bytes
	}
	for i := range l.Points {
		p := &l.Points[i]
		add(labels{Printable(p.Hop.Interface), direction(p.At.Hook), p.At.Hook.String(), Printable(p.Hop.Netns)}, p)
	}
	add(labels{iface: goneInterface}, &l.Gone)
	return order, sums
}
