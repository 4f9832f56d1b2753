// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/exporter"
	"weft/flows"
)

func newTop(g *global) *cobra.Command {
	q := exporter.TopQuery{Rows: 20, Every: 2 * time.Second}
	var once bool
	var t terms
	cmd := &cobra.Command{
		Use:   "top",
		Short: "A live ranking of who sends, loses and waits most",
		Long: `Rank what happens now: conversations, endpoints, servers, ports, pods, workloads,
Services, nodes, devices, or what the kernel drops packets for. On a terminal it is a screen (Tab: next ranking, s:
next order, p: hold, q: quit), else a table for each interval.

Figures are rates over the interval. OUT is from the source, sent by the endpoint,
received by the device; IN is the other direction. FLOWS are conversations begun.
Drops need dataplane.drops: on. A column shows when it has something to say.`,
		Example: `  flowctl top
  flowctl top --by server --sort flows
  flowctl top --by workload --namespace shop
  flowctl top --by drop-reason
  flowctl top --once --rows 5 --port 443
  flowctl top --by interface -o jsonl | jq '.rows[0]'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if q.Terms, err = t.filter(); err != nil {
				return usage(err)
			}
			screen := !once && g.tabular() && terminal(g.stdout) && terminal(os.Stdin)
			if screen {
				return g.topScreen(cmd, q)
			}
			return g.ask(cmd, func(c *exporter.Client) error { return g.top(cmd.Context(), c, q, once) })
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.Var(topBy{&q}, "by", "`ranking`: "+words(flows.TopBys))
	fs.Var(topOrder{&q}, "sort", "`figure` to rank by: "+words(flows.TopOrders)+" (default bytes)")
	fs.Var(whole{&q.Rows}, "rows", "at most `N` rows")
	fs.Var(span{&q.Every}, "interval", "`time` of one ranking; at least one drain of the agent")
	fs.BoolVar(&once, "once", false, "one ranking, then end")
	t.addTo(fs)
	return cmd
}

func words[T ~string](all []T) string {
	s := make([]string, len(all))
	for i := range all {
		s[i] = string(all[i])
	}
	return strings.Join(s, ", ")
}

// topBy and topOrder are flags that flows checks.
type topBy struct{ q *exporter.TopQuery }

func (b topBy) Set(s string) error {
	by, _, err := flows.ParseTop(s, "")
	if err != nil || s == "" {
		return errors.New("want " + words(flows.TopBys))
	}
	b.q.By = string(by)
	return nil
}

func (topBy) Type() string     { return "ranking" }
func (b topBy) String() string { return b.q.By }

type topOrder struct{ q *exporter.TopQuery }

func (o topOrder) Set(s string) error {
	_, order, err := flows.ParseTop("", s)
	if err != nil || s == "" {
		return errors.New("want " + words(flows.TopOrders))
	}
	o.q.Order = string(order)
	return nil
}

func (topOrder) Type() string     { return "figure" }
func (o topOrder) String() string { return o.q.Order }

// top writes a table or document for each interval.
func (g *global) top(ctx context.Context, c *exporter.Client, q exporter.TopQuery, once bool) error {
	by, order, err := flows.ParseTop(q.By, q.Order)
	if err != nil {
		return usage(err)
	}
	first := true
	for r, err := range c.Top(ctx, q) {
		if err != nil {
			return err
		}
		if g.tabular() {
			if !first {
				fmt.Fprintln(g.stdout)
			}
			err = writeRanking(g.stdout, &r, by, order)
		} else {
			err = g.document(rankingDocument(&r, by, order))
		}
		if err != nil {
			return err
		}
		if first = false; once {
			break
		}
	}
	return nil
}

// writeRanking is a line about the whole and the table.
func writeRanking(w io.Writer, r *flows.Ranking, by flows.TopBy, order flows.TopOrder) error {
	if _, err := fmt.Fprintln(w, rankingTitle(r, by, order)); err != nil {
		return err
	}
	return writeRows(w, r, by)
}

// writeRows is the table, or why there is none.
func writeRows(w io.Writer, r *flows.Ranking, by flows.TopBy) error {
	if len(r.Rows) > 0 {
		t := rankingTable(r, by)
		return t.write(w)
	}
	text := "nothing"
	if by == flows.ByReason {
		text = "no drops (they are traced with dataplane.drops: on)"
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func rankingTitle(r *flows.Ranking, by flows.TopBy, order flows.TopOrder) string {
	s := r.End.Sub(r.Start).Seconds()
	text := fmt.Sprintf("%s  top %s by %s, %.1f s: %sB/s  %s packets/s  %s flows/s", r.End.Local().Format(time.TimeOnly), by, order, s,
		rate(r.Total.Bytes+r.Total.ReverseBytes, s), rate(r.Total.Packets+r.Total.ReversePackets, s), rate(r.Total.Flows, s))
	if r.Total.Drops > 0 {
		text += "  " + rate(r.Total.Drops, s) + " drops/s"
	}
	if more := r.Of - len(r.Rows); more > 0 {
		text += fmt.Sprintf("  (%d more)", more)
	}
	if r.Over > 0 {
		text += fmt.Sprintf("  %d without room", r.Over)
	}
	return text
}

// topColumn is a figure of a ranking: a new one is a line in topColumns.
type topColumn struct {
	head string
	json string // with _per_second behind it unless it is a time
	of   func(*flows.Traffic) uint64
	time bool // of is nanoseconds and no rate
	// always: the column is there also when nothing has it. Without it a ranking that
	// cannot have it does not show it.
	always func(by flows.TopBy) bool
}

var topColumns = []topColumn{
	{head: "OUT-B/S", json: "bytes", of: func(t *flows.Traffic) uint64 { return t.Bytes }, always: notReason},
	{head: "OUT-P/S", json: "packets", of: func(t *flows.Traffic) uint64 { return t.Packets }, always: notReason},
	{head: "IN-B/S", json: "reverse.bytes", of: func(t *flows.Traffic) uint64 { return t.ReverseBytes }, always: notReason},
	{head: "IN-P/S", json: "reverse.packets", of: func(t *flows.Traffic) uint64 { return t.ReversePackets }, always: notReason},
	{head: "FLOWS/S", json: "flows", of: func(t *flows.Traffic) uint64 { return t.Flows }, always: never},
	{head: "DROPS/S", json: "drops", of: func(t *flows.Traffic) uint64 { return t.Drops }, always: func(by flows.TopBy) bool { return by == flows.ByReason }},
	{head: "RETRANS/S", json: "retransmits", of: func(t *flows.Traffic) uint64 { return t.Retransmits }, always: never},
	{head: "RTT", json: "rtt_ns", of: func(t *flows.Traffic) uint64 { return uint64(t.RTT.Mean()) }, always: never, time: true},
}

func notReason(by flows.TopBy) bool { return by != flows.ByReason }
func never(flows.TopBy) bool        { return false }

// rankingTable has the columns that have something to say.
func rankingTable(r *flows.Ranking, by flows.TopBy) table {
	t := table{head: topHead(by)}
	for i := range t.head {
		t.text = append(t.text, i)
	}
	var shown []topColumn
	for _, c := range topColumns {
		if c.always(by) || c.of(&r.Total) > 0 && (by != flows.ByReason || c.head == "DROPS/S") {
			shown = append(shown, c)
			t.head = append(t.head, c.head)
		}
	}
	s := r.End.Sub(r.Start).Seconds()
	for i := range r.Rows {
		cells := topName(&r.Rows[i].TopKey, by)
		for _, c := range shown {
			n := c.of(&r.Rows[i].Traffic)
			switch {
			case c.time && n == 0:
				cells = append(cells, "-")
			case c.time:
				cells = append(cells, shortTime(time.Duration(n)))
			default:
				cells = append(cells, rate(n, s))
			}
		}
		t.add(cells...)
	}
	return t
}

// topHead is the headings of what tells rows apart, topName the cells below.
func topHead(by flows.TopBy) []string {
	switch by {
	case flows.ByEndpoint:
		return []string{"ENDPOINT"}
	case flows.ByServer:
		return []string{"PROTO", "SERVER"}
	case flows.ByPort:
		return []string{"PROTO", "PORT"}
	case flows.ByPod:
		return []string{"NAMESPACE", "POD"}
	case flows.ByWorkload:
		return []string{"NAMESPACE", "KIND", "WORKLOAD"}
	case flows.ByService:
		return []string{"NAMESPACE", "SERVICE"}
	case flows.ByNode:
		return []string{"NODE"}
	case flows.ByInterface:
		return []string{"INTERFACE"}
	case flows.ByReason:
		return []string{"REASON", "CLASS"}
	}
	return []string{"PROTO", "SOURCE", "DESTINATION"}
}

func topName(k *flows.TopKey, by flows.TopBy) []string {
	proto := flows.ProtoName(k.Key.Proto)
	switch by {
	case flows.ByEndpoint:
		return []string{k.Key.Src.Addr().String()}
	case flows.ByServer:
		return []string{proto, topEnd(k.Key, k.Key.Dst)}
	case flows.ByPort:
		return []string{proto, topPort(k.Key)}
	case flows.ByPod, flows.ByService:
		return []string{k.Namespace, k.Name}
	case flows.ByWorkload:
		return []string{k.Namespace, k.Kind, k.Name}
	case flows.ByNode:
		return []string{k.Name}
	case flows.ByInterface:
		return []string{deviceName(k.Device)}
	case flows.ByReason:
		return []string{k.Reason, string(k.Class)}
	}
	return []string{proto, topEnd(k.Key, k.Key.Src), topEnd(k.Key, k.Key.Dst)}
}

// topEnd is an end of k: without a port where k has none.
func topEnd(k flows.Key, end netip.AddrPort) string {
	if k.ICMP() || end.Port() == 0 {
		return end.Addr().String()
	}
	return end.String()
}

func topPort(k flows.Key) string {
	if k.ICMP() || k.Dst.Port() == 0 {
		return "-"
	}
	return strconv.Itoa(int(k.Dst.Port()))
}

func deviceName(h flows.Hop) string {
	name := h.Interface
	if name == "" {
		name = "(gone)"
	}
	if h.Netns != "" {
		name += "@" + h.Netns
	}
	return name
}

// rate is n over s seconds: three digits and a decimal unit.
func rate(n uint64, s float64) string {
	if s <= 0 {
		return "-"
	}
	v := float64(n) / s
	for _, unit := range []string{"", "k", "M", "G", "T"} {
		switch {
		case n == 0:
			return "0"
		case v < 9.95:
			return fmt.Sprintf("%.1f%s", v, unit)
		case v < 999.5:
			return fmt.Sprintf("%.0f%s", v, unit)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.0fP", v)
}

// shortTime is d to three digits.
func shortTime(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// rankingDocument is `flowctl top -o json`: what tells a row apart by the names
// of OTLP, figures a second.
func rankingDocument(r *flows.Ranking, by flows.TopBy, order flows.TopOrder) any {
	s := r.End.Sub(r.Start).Seconds()
	doc := struct {
		Start time.Time        `json:"start"`
		End   time.Time        `json:"end"`
		By    flows.TopBy      `json:"by"`
		Order flows.TopOrder   `json:"sort"`
		Rows  []map[string]any `json:"rows"`
		Of    int              `json:"of"`
		Total map[string]any   `json:"total"`
		Over  uint64           `json:"without_room"`
	}{r.Start, r.End, by, order, []map[string]any{}, r.Of, trafficDocument(&r.Total, s), r.Over}
	for i := range r.Rows {
		row := trafficDocument(&r.Rows[i].Traffic, s)
		for name, value := range topAttributes(&r.Rows[i].TopKey, by) {
			row[name] = value
		}
		doc.Rows = append(doc.Rows, row)
	}
	return doc
}

func trafficDocument(t *flows.Traffic, seconds float64) map[string]any {
	m := map[string]any{}
	for _, c := range topColumns {
		switch n := c.of(t); {
		case c.time && n > 0:
			m[c.json] = n
		case !c.time && seconds > 0:
			m[c.json+"_per_second"] = float64(n) / seconds
		}
	}
	return m
}

func topAttributes(k *flows.TopKey, by flows.TopBy) map[string]any {
	m := map[string]any{}
	end := func(name string, a netip.AddrPort) {
		if a.Addr().IsValid() {
			m[name+".address"] = a.Addr().String()
		}
		if a.Port() != 0 && !k.Key.ICMP() {
			m[name+".port"] = a.Port()
		}
	}
	switch by {
	case flows.ByEndpoint:
		end("source", k.Key.Src)
	case flows.ByPod, flows.ByService:
		m["k8s.namespace.name"], m["k8s."+string(by)+".name"] = k.Namespace, k.Name
	case flows.ByWorkload:
		m["k8s.namespace.name"], m["weft.workload.kind"], m["weft.workload.name"] = k.Namespace, k.Kind, k.Name
	case flows.ByNode:
		m["k8s.node.name"] = k.Name
	case flows.ByInterface:
		m["network.interface.name"] = k.Device.Interface
		if k.Device.Netns != "" {
			m["netns"] = k.Device.Netns
		}
	case flows.ByReason:
		m["reason"], m["class"] = k.Reason, k.Class
	default:
		m["network.transport"] = flows.ProtoName(k.Key.Proto)
		end("source", k.Key.Src)
		end("destination", k.Key.Dst)
	}
	return m
}
