// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

func TestWhyViewsAreApartIsLogged(t *testing.T) {
	one := tracked(aClient, aService, oneBackend, 0)
	for _, c := range []struct {
		what        string
		tell        func(*tracker)
		k           flows.Key
		first, last float64
		want        string // empty: nothing is logged
	}{
		{"it ended meanwhile", func(x *tracker) { x.hears(10, one, 0, 0); x.hears(20, one, ctDelete, 0) }, tracking(aClient, aService), 11, 25, "ended before the last packet"},
		{"it began later", func(x *tracker) { x.hears(10, one, 0, 0) }, tracking(aClient, oneBackend), 2, 25, "begun after the first packet"},
		{"events were lost", func(x *tracker) { x.hears(10, one, 0, 0); x.lose(nanos(15)) }, tracking(aClient, aService), 11, 25, "were lost from 1970-01-01T00:00:15Z"},
		{"it was not read", func(x *tracker) { x.hears(10, one, 0, 0); x.heard.Store(nanos(12)) }, tracking(aClient, aService), 11, 14, "last read at 1970-01-01T00:00:12Z"},
		{"told when the record was made", func(x *tracker) { x.hears(10, one, 0, 0) }, tracking(aClient, aService), 11, 14, "told after"},
		{"another connection", func(x *tracker) { x.hears(10, one, 0, 0) }, tracking("10.0.0.1:4001", aService), 11, 14, ""},
	} {
		var log bytes.Buffer
		x := followed()
		c.tell(x)
		census := &Census{log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), resolver: NewResolver(), nat: newConntrack(quiet(), nil)}
		census.nat.known.Store(&[]*tracker{x})
		r := flows.Record{Key: c.k, Start: time.Unix(0, nanos(c.first)), End: time.Unix(0, nanos(c.last))}
		census.noteApart(&r) // goes on
		if log.Len() > 0 {
			t.Errorf("%s: logged of what goes on: %s", c.what, &log)
		}
		r.EndReason = flows.EndIdleTimeout
		census.noteApart(&r)
		if got := log.String(); strings.Count(got, "\n") != min(len(c.want), 1) || !strings.Contains(got, c.want) {
			t.Errorf("%s: logged %q, want a line with %q", c.what, got, c.want)
		}
		log.Reset()
		r.NAT = &flows.NAT{}
		if census.noteApart(&r); log.Len() > 0 {
			t.Errorf("%s: logged of what is joined: %s", c.what, &log)
		}
	}
}
