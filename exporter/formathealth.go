// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"strconv"
	"strings"

	"weft/flows"
)

// trouble is what is wrong with r, in a few words for a line; empty: nothing that
// was measured. Reordering and duplicate acknowledgements alone are no trouble.
func trouble(r *flows.Record) (text, colour string) {
	var words []string
	say := func(what string, n uint64) {
		if n > 0 {
			words = append(words, what+" "+strconv.FormatUint(n, 10))
		}
	}
	if r.TCP != nil {
		if f := r.TCP.Failure.String(); f != "" {
			words = append(words, f)
		}
	}
	say("drops", r.Dropped)
	colour = yellow
	if len(words) > 0 {
		colour = red
	}
	if r.TCP != nil {
		say("retrans", r.TCP.Source.Retransmits+r.TCP.Destination.Retransmits)
		say("zerowin", r.TCP.Source.ZeroWindows+r.TCP.Destination.ZeroWindows)
	}
	if r.DNS != nil {
		for _, c := range r.DNS.Rcodes {
			if c.Rcode != 0 {
				say(flows.DNSRcodeName(c.Rcode), c.Count)
			}
		}
		say("unanswered", r.DNS.Timeouts)
	}
	return strings.Join(words, " "), colour
}

// healthColumns are what wide adds: of both sides source/destination, "-" where
// nothing was measured.
func healthColumns(r *flows.Record) []column {
	rtt, retransmits, drops, failure := "-", "-", "-", "-"
	if t := r.TCP; t != nil {
		if a, b := meanRTT(t.Source.RTT), meanRTT(t.Destination.RTT); a != b || a != "-" {
			rtt = a + "/" + b
		}
		if a, b := resent(&t.Source), resent(&t.Destination); a != b || a != "-" {
			retransmits = a + "/" + b
		}
		if f := t.Failure.String(); f != "" {
			failure = f
		}
	}
	if r.Dropped > 0 {
		drops = strings.TrimSpace(strconv.FormatUint(r.Dropped, 10) + " " + Printable(r.DropReason))
	}
	return []column{
		{title: "RTT", least: 13, text: rtt},
		{title: "RETRANS", least: 7, text: retransmits},
		{title: "DROPS", least: 5, text: drops},
		{title: "FAIL", least: 7, text: failure},
		{title: "DNS", least: 3, text: lookup(r.DNS)},
	}
}

func resent(h *flows.TCPHealth) string {
	if !measured(h) || h.Untracked > 0 {
		return "-"
	}
	return strconv.FormatUint(h.Retransmits, 10)
}

func meanRTT(r flows.RTT) string {
	if r.Count == 0 {
		return "-"
	}
	return duration(r.Mean())
}

// lookup is the last question, what came of it, and how many more there were.
func lookup(d *flows.DNS) string {
	if d == nil {
		return "-"
	}
	if len(d.Questions) == 0 {
		return fmt.Sprintf("%d answers", d.Answers)
	}
	q := &d.Questions[0]
	text := Printable(q.Name) + " " + flows.DNSTypeName(q.Type)
	switch {
	case q.Timeout:
		text += " unanswered"
	case q.Latency > 0:
		text += " " + flows.DNSRcodeName(q.Rcode) + " " + duration(q.Latency)
	default:
		text += " " + flows.DNSRcodeName(q.Rcode)
	}
	if d.Queries > 1 {
		text += fmt.Sprintf(" +%d", d.Queries-1)
	}
	return text
}
