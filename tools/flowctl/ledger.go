// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/exporter"
	"weft/flows"
)

func newLedger(g *global) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "ledger",
		Short: "Does the account balance, per point and per sink",
		Long: `Show where every packet and every record went since the agent started:

  packets seen  = in flows + skipped[reason] + still in the table   at every point
  records made  = acknowledged + waiting + lost[reason]             at every sink that takes all
                + left out[reason]                                  where one is told to take less
  drops, DNS    = drained + lost + pending                          where they are read

What devices and their queues say they dropped is shown beside it, and is in no sum.

Exits 1 when they do not add up.`,
		Example: `  flowctl ledger
  flowctl ledger --follow
  flowctl ledger -o json | jq .balanced`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.ask(cmd, func(c *exporter.Client) error { return g.ledger(cmd.Context(), c, follow) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show every new ledger until interrupted")
	return cmd
}

// ledger writes the latest ledger, and with follow every one after it. The
// error says what did not balance in the last one shown.
func (g *global) ledger(ctx context.Context, c *exporter.Client, follow bool) error {
	var unbalanced error
	first := true
	for l, err := range c.Ledger(ctx, follow) {
		if err != nil {
			return err
		}
		if unbalanced = l.Check(); unbalanced != nil {
			unbalanced = fmt.Errorf("the ledger does not balance: %w", unbalanced)
		}
		if g.tabular() {
			if !first {
				fmt.Fprintln(g.stdout)
			}
			err = g.ledgerTable(&l)
		} else {
			err = g.document(ledgerDocument(&l))
		}
		if err != nil {
			return err
		}
		first = false
	}
	if first && ctx.Err() == nil {
		return errors.New("the agent has no ledger yet")
	}
	return unbalanced
}

func (g *global) ledgerTable(l *flows.Ledger) error {
	t := table{head: []string{"POINT", "SEEN", "BYTES", "FLOWS", "SKIPPED", "IN-TABLE", "UNACCOUNTED", ""}, text: []int{0, 7}}
	if g.format == exporter.Wide {
		t.head = []string{"POINT", "SEEN", "BYTES", "FLOWS", "FLOW-BYTES", "RECORDED", "OPEN", "SKIPPED", "SKIPPED-BYTES",
			"IN-TABLE", "IN-TABLE-BYTES", "UNACCOUNTED", "UNACCOUNTED-BYTES", "GSO", "GSO-BYTES", ""}
		t.text = []int{0, 15}
	}
	points := l.Points
	if l.Gone.Seen != (flows.Count{}) {
		points = append(slices.Clone(points), l.Gone)
	}
	for i := range points {
		t.add(g.ledgerRow(&points[i], i == len(l.Points))...)
	}
	if err := t.write(g.stdout); err != nil {
		return err
	}
	if err := g.sourceTables(l); err != nil {
		return err
	}
	fmt.Fprintln(g.stdout)
	s := table{head: []string{"SINK", "OFFERED", "ACKNOWLEDGED", "WAITING", "LOST", ""}, text: []int{0, 5}}
	leaves := slices.ContainsFunc(l.Sinks, func(a flows.SinkAccount) bool { return a.TotalLeftOut() > 0 })
	if leaves {
		s.head, s.text = []string{"SINK", "OFFERED", "ACKNOWLEDGED", "WAITING", "LEFT-OUT", "LOST", ""}, []int{0, 6}
	}
	for _, a := range l.Sinks {
		lost, why := reasons(a.Lost)
		row := []string{a.Name, count(a.Offered), count(a.Acknowledged), count(a.Waiting)}
		if left, text := reasons(a.LeftOut); leaves {
			row = append(row, count(left))
			why = strings.Trim(text+", "+why, ", ")
		}
		s.add(append(row, count(lost), why)...)
	}
	if err := s.write(g.stdout); err != nil {
		return err
	}
	_, err := fmt.Fprintln(g.stdout, g.verdict(l))
	return err
}

func (g *global) ledgerRow(p *flows.PointLedger, gone bool) []string {
	name := pointName(p.At, p.Hop)
	if gone {
		name = "(gone)"
	}
	skipped, by := skips(p)
	_, why := reasons(by)
	if g.format == exporter.Wide {
		return []string{name, count(p.Seen.Packets), count(p.Seen.Bytes), count(p.Flows.Packets), count(p.Flows.Bytes),
			count(p.Recorded.Packets), count(p.Open.Packets), count(skipped.Packets), count(skipped.Bytes),
			count(p.InTable.Packets), count(p.InTable.Bytes), signed(p.Unaccounted.Packets), signed(p.Unaccounted.Bytes),
			count(p.GSO.Packets), count(p.GSO.Bytes), why}
	}
	return []string{name, count(p.Seen.Packets), count(p.Seen.Bytes), count(p.Flows.Packets), count(skipped.Packets),
		count(p.InTable.Packets), signed(p.Unaccounted.Packets), why}
}

// verdict is the last line: the whole account in one sentence.
func (g *global) verdict(l *flows.Ledger) string {
	total, skipped := l.Gone, l.Gone.TotalSkipped()
	for i := range l.Points {
		p := &l.Points[i]
		total.Seen.Add(p.Seen)
		total.Flows.Add(p.Flows)
		total.InTable.Add(p.InTable)
		skipped.Add(p.TotalSkipped())
	}
	text := fmt.Sprintf("%d packets seen = %d in flows + %d skipped + %d still in the table; %d records made (%s)",
		total.Seen.Packets, total.Flows.Packets, skipped.Packets, total.InTable.Packets, l.Made, l.At.Local().Format(time.TimeOnly))
	if l.Check() != nil {
		return g.paint("31", "NOT BALANCED: ") + text
	}
	return g.paint("32", "balanced: ") + text
}

// ledgerDocument is the ledger as `-o json` promises it: packet counts under
// the plain names, bytes beside them.
func ledgerDocument(l *flows.Ledger) any {
	type sink struct {
		Name         string            `json:"name"`
		Offered      uint64            `json:"offered"`
		Acknowledged uint64            `json:"acknowledged"`
		Waiting      uint64            `json:"waiting"`
		Lost         map[string]uint64 `json:"lost"`
		LeftOut      map[string]uint64 `json:"left_out,omitempty"`
	}
	type records struct {
		Made         uint64            `json:"made"`
		Acknowledged uint64            `json:"acknowledged"`
		Waiting      uint64            `json:"waiting"`
		Lost         map[string]uint64 `json:"lost"`
	}
	doc := struct {
		At       time.Time        `json:"at"`
		Balanced bool             `json:"balanced"`
		Why      string           `json:"why,omitempty"`
		Points   []pointDocument  `json:"points"`
		Gone     *pointDocument   `json:"gone,omitempty"`
		Records  records          `json:"records"`
		Sinks    []sink           `json:"sinks"`
		Sources  []sourceDocument `json:"sources,omitempty"`
		Devices  []deviceDocument `json:"devices,omitempty"`
		TCP      *tcpDocument     `json:"tcp,omitempty"`
	}{At: l.At, Balanced: true, Points: []pointDocument{}, Sinks: []sink{}}
	doc.Sources, doc.Devices, doc.TCP = sourceDocuments(l)
	if err := l.Check(); err != nil {
		doc.Balanced, doc.Why = false, err.Error()
	}
	for i := range l.Points {
		doc.Points = append(doc.Points, pointOf(&l.Points[i]))
	}
	if l.Gone.Seen != (flows.Count{}) {
		gone := pointOf(&l.Gone)
		doc.Gone = &gone
	}
	doc.Records = records{Made: l.Made, Lost: map[string]uint64{}}
	for i, a := range l.Sinks {
		lost := maps.Clone(a.Lost)
		if lost == nil {
			lost = map[string]uint64{}
		}
		doc.Sinks = append(doc.Sinks, sink{a.Name, a.Offered, a.Acknowledged, a.Waiting, lost, a.LeftOut})
		// The account of all is that of the sink furthest behind of those that take every
		// record: not OTLP for metrics alone, nor a sink that leaves records out.
		if i == 0 || a.Offered == l.Made && a.TotalLeftOut() == 0 && a.Acknowledged < doc.Records.Acknowledged {
			doc.Records = records{l.Made, a.Acknowledged, a.Waiting, lost}
		}
	}
	return doc
}

// pointDocument is one point of `flowctl ledger -o json`.
type pointDocument struct {
	Interface        string            `json:"interface"`
	Netns            string            `json:"netns,omitempty"`
	Hook             string            `json:"hook,omitempty"`
	Seen             uint64            `json:"seen"`
	SeenBytes        uint64            `json:"seen_bytes"`
	Flows            uint64            `json:"flows"`
	FlowsBytes       uint64            `json:"flows_bytes"`
	Recorded         uint64            `json:"recorded"`
	Open             uint64            `json:"open"`
	Skipped          map[string]uint64 `json:"skipped"`
	SkippedBytes     uint64            `json:"skipped_bytes"`
	InTable          uint64            `json:"in_table"`
	InTableBytes     uint64            `json:"in_table_bytes"`
	Unaccounted      int64             `json:"unaccounted"`
	UnaccountedBytes int64             `json:"unaccounted_bytes"`
	GSO              uint64            `json:"gso"`
	GSOBytes         uint64            `json:"gso_bytes"`
}

func pointOf(p *flows.PointLedger) pointDocument {
	skipped, by := skips(p)
	d := pointDocument{
		Interface: p.Hop.Interface, Netns: p.Hop.Netns,
		Seen: p.Seen.Packets, SeenBytes: p.Seen.Bytes, Flows: p.Flows.Packets, FlowsBytes: p.Flows.Bytes,
		Recorded: p.Recorded.Packets, Open: p.Open.Packets, Skipped: by, SkippedBytes: skipped.Bytes,
		InTable: p.InTable.Packets, InTableBytes: p.InTable.Bytes,
		Unaccounted: p.Unaccounted.Packets, UnaccountedBytes: p.Unaccounted.Bytes,
		GSO: p.GSO.Packets, GSOBytes: p.GSO.Bytes,
	}
	if p.At.Hook != 0 {
		d.Hook = p.At.Hook.String()
	}
	return d
}

// skips is the sum of p's skipped packets and their number by reason.
func skips(p *flows.PointLedger) (flows.Count, map[string]uint64) {
	by := map[string]uint64{}
	for r, c := range p.Skipped {
		if c.Packets > 0 {
			by[flows.SkipReason(r).String()] = c.Packets
		}
	}
	for name, c := range p.Foreign {
		by[name] = c.Packets
	}
	return p.TotalSkipped(), by
}

// reasons is the sum of by and its entries as text, largest first.
func reasons(by map[string]uint64) (sum uint64, text string) {
	names := slices.Sorted(maps.Keys(by))
	slices.SortStableFunc(names, func(a, b string) int { return int(min(by[b], 1<<62)) - int(min(by[a], 1<<62)) })
	var parts []string
	for _, name := range names {
		if by[name] > 0 {
			sum += by[name]
			parts = append(parts, fmt.Sprintf("%s %d", name, by[name]))
		}
	}
	return sum, strings.Join(parts, ", ")
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }
func signed(n int64) string { return strconv.FormatInt(n, 10) }
