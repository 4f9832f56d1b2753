// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDatagramsToAServiceAreOneRecordWhenTheAgentStoodStill: connections that began before, while and
// after it did not run for three seconds, whose translations
// it reads late.
func TestDatagramsToAServiceAreOneRecordWhenTheAgentStoodStill(t *testing.T) {
	h := newHouse(t)
	client := h.router(t)
	h.echo(t)
	w := h.start(t, "dataplane: {interval: 200ms}\nflows: {active_timeout: 60s, idle_timeout: 1s}\nlog: {level: debug}\n") // whose log says why views are apart
	const first, each = 45000, 3
	n := 0
	talkFor := func(d time.Duration) {
		h.in(t, client, func() error {
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for end := time.Now().Add(d); time.Now().Before(end); n++ {
				if err := exchange("udp", first+n, "10.96.0.2:80", each); err != nil {
					return err
				}
				<-pace.C
			}
			return nil
		})
	}
	talkFor(time.Second)
	w.signal(t, syscall.SIGSTOP)
	talkFor(3 * time.Second)
	w.signal(t, syscall.SIGCONT)
	talkFor(time.Second)
	h.eventually(t, "every packet is in a record", func() error {
		all, _ := h.natRecords(t, "--protocol", "udp", "--last", "100000")
		seen, apart, lines := uint64(0), 0, []string(nil)
		for _, r := range all {
			if seen += r.Packets; r.Basis != "conntrack" {
				apart++
				lines = append(lines, fmt.Sprintf("%+v", r))
			}
		}
		if apart > 0 {
			t.Fatalf("of %d connections %d have views apart:\n%s", n, apart, strings.Join(lines[:min(8, len(lines))], "\n"))
		}
		if want := uint64(n * each); seen != want || len(all) != n {
			return fmt.Errorf("got %d packets in %d records, want %d in %d", seen, len(all), want, n)
		}
		return nil
	})
}
