// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"weft/flows"
)

// noteApart logs that a record is of one view of a connection that connection tracking knows,
// and why the others were not joined to it.
func (c *Census) noteApart(r *flows.Record) {
	if r.NAT != nil || r.EndReason == 0 || c.nat == nil || !c.log.Enabled(context.Background(), slog.LevelDebug) {
		return // joined, still going on, or nobody wants to know
	}
	domain := c.resolver.domain(r.Scope.Netns)
	why := c.nat.whyApart(func(space uint64) bool { return c.resolver.domain(space) == domain }, r.Key, r.Start.UnixNano(), r.End.UnixNano())
	if why != "" {
		c.log.Debug("record is one view of a translated connection", "flow", r.Key, "start", r.Start, "end", r.End, "reason", why)
	}
}

// late reports whether a namespace that is followed has not been read for a lag before that time.
func (c *conntrack) late(at int64) bool {
	for _, t := range *c.known.Load() {
		if heard := t.heard.Load(); heard != 0 && at > heard+lag {
			return true
		}
	}
	return false
}

// whyApart is why [conntrack.find] has no answer; empty: nothing that is known has k's ends.
func (c *conntrack) whyApart(in func(space uint64) bool, k flows.Key, first, last int64) (why string) {
	ends := pack(k).unsided()
	cell, _ := cellsOf(ends)
	known := 0
	for _, t := range *c.known.Load() {
		if t.sieve[cell].Load() == 0 || !in(t.space) {
			continue
		}
		n, said := t.why(ends, first, last)
		if known += n; said != "" {
			why = said
		}
	}
	if why == "" && known > 0 {
		why = fmt.Sprintf("told after the record was closed, or %d that are not one after the other", known)
	}
	return why
}

// why is how many translations have these ends, and what is not certain of them.
func (t *translations) why(ends packed, first, last int64) (n int, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := func(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
	t.each(ends, func(_ uint32, e *translated) bool {
		n++
		switch {
		case first < e.began.before:
			why = "it may have begun after the first packet: not before " + at(e.began.after)
		case last > e.ended.after:
			why = "it may have ended before the last packet: not before " + at(e.ended.after)
		}
		return true
	})
	switch heard := t.heard.Load(); {
	case n == 0:
	case last > t.sure:
		why = "events of connection tracking were lost from " + at(t.sure) + " on"
	case heard != 0 && last > heard+lag:
		why = "connection tracking was last read at " + at(heard)
	}
	return n, why
}
