// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"weft/exporter"
	"weft/flows"
)

func newObserve(g *global) *cobra.Command {
	var q exporter.Query
	var t terms
	var printFilter bool
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show flow records, recent or live",
		Long: `Show the records that the agent keeps, oldest first; with --follow alone, new ones
as they end, also after the agent was restarted. A record is one conversation over
one period, both directions.

Filters of one kind are alternatives, different kinds restrict each other, and
--not negates the filter that follows it. Without from- or to-, a filter holds
when it does for one end.

Round trips and TCP figures are those of the point where the side's own packets
were counted; what was not measured is "-" in columns, absent from JSON and YAML,
and fulfils no filter.`,
		Example: `  flowctl observe --last 20
  flowctl observe --follow
  flowctl observe --since 5m --from-ip 10.0.0.0/8 --port 443 --port 8443
  flowctl observe --follow --protocol tcp --not --to-port 22
  flowctl observe --tcp-flags RST -o wide
  flowctl observe --follow --failed
  flowctl observe --since 5m --retransmits=5 --to-rtt-over 50ms -o wide
  flowctl observe --dropped --drop-reason 'NETFILTER*' -o wide
  flowctl observe --dns-rcode NXDOMAIN --not --dns-name '*.local'
  flowctl observe --namespace shop --not --port 53 --print-filter
  flowctl observe --since 1h -o jsonl | jq '."source.address"'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if q.Terms, err = t.filter(); err != nil {
				return usage(err)
			}
			if printFilter {
				return g.printFilter(q.Terms)
			}
			return g.ask(cmd, func(c *exporter.Client) error {
				return g.observe(cmd.Context(), c, q, cmd.ErrOrStderr())
			})
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVarP(&q.Follow, "follow", "f", false, "go on with new records until interrupted")
	fs.VarP(whole{&q.Last}, "last", "n", "only the newest `N` that match")
	fs.Var(span{&q.Since}, "since", "only what ended within this `time`, such as 90s, 5m, 2h")
	fs.BoolVar(&printFilter, "print-filter", false, "print the filter as the configuration of a sink has it (exporter.sinks), and do nothing else")
	t.addTo(fs)
	return cmd
}

// printFilter writes terms as YAML that goes below the name of a sink.
func (g *global) printFilter(terms []flows.Term) error {
	texts := make([]string, len(terms))
	for i, t := range terms {
		texts[i] = t.Text()
	}
	text, err := yaml.Marshal(map[string][]string{"filter": texts})
	if err != nil {
		return err
	}
	_, err = g.stdout.Write(text)
	return err
}

// observe writes what q chooses until there is no more, or ctx ends.
func (g *global) observe(ctx context.Context, c *exporter.Client, q exporter.Query, stderr io.Writer) error {
	format := exporter.Formatter{Format: g.format, Color: g.colour()}
	var line []byte
	header := format.Header()
	shown, lost := 0, uint64(0)
	for o, err := range c.Observe(ctx, q) {
		if err != nil {
			return err
		}
		if o.Record == nil {
			lost += o.Lost
			continue
		}
		line = append(line[:0], header...)
		header = nil
		if _, err := g.stdout.Write(format.Append(line, o.Record)); err != nil {
			return err
		}
		shown++
	}
	if lost > 0 {
		fmt.Fprintf(stderr, "flowctl: %d records left the agent's store before they were read; raise flows.store, or filter less\n", lost)
	}
	if shown == 0 && !q.Follow {
		return errNothing
	}
	return nil
}

// since is how long ago t was, for people.
func since(t time.Time) string { return time.Since(t).Round(time.Second).String() }
