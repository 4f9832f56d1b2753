// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strings"
	"testing"

	"weft/flows"
)

// watching is the ledger of a run that watches one device: unseen frames came before it, and it has drained some,
// one of them a frame of ten segments. Ended: its points have gone.
func watching(netns uint64, unseen int64, drained uint64, ended bool) *flows.Ledger {
	at := flows.Point{Netns: netns, Ifindex: 2}
	l := &flows.Ledger{Unseen: []flows.DeviceFrames{{At: at, Unseen: unseen, Counted: uint64(unseen) + drained}}}
	if ended {
		return l
	}
	in, out := at, at
	in.Hook, out.Hook = flows.HookIngress, flows.HookEgress
	l.Points = []flows.PointLedger{
		{At: in, Flows: flows.Count{Packets: drained - 1 + 9}, GSO: flows.Count{Packets: 9}},
		{At: out, Skipped: [flows.NumSkip]flows.Count{flows.SkipARP: {Packets: 1}}},
	}
	return l
}

func TestWhatPassedBetweenTwoRunsIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		ended  bool
		second *flows.Ledger
		boot   string
		want   uint64
	}{
		"killed":          {second: watching(7, 150, 5, false), want: 40},
		"stopped":         {ended: true, second: watching(7, 150, 5, false), want: 40},
		"nothing passed":  {second: watching(7, 110, 5, false)},
		"another device":  {second: watching(8, 150, 5, false)},
		"booted since":    {second: watching(7, 150, 5, false), boot: "another"},
		"counter is less": {second: watching(7, 3, 1, false)},
	} {
		dir := t.TempDir()
		first, _ := testSpool(t, SpoolConfig{Dir: dir})
		first.told(flows.Count{}, watching(7, 100, 2, false))
		first.told(flows.Count{}, watching(7, 100, 10, c.ended))
		if c.boot != "" {
			first.tally.Boot = c.boot
			first.keepTally()
		}
		if err := first.lock.Close(); err != nil {
			t.Fatal(err)
		}
		second, log := testSpool(t, SpoolConfig{Dir: dir})
		second.told(flows.Count{}, &flows.Ledger{}) // before devices were read
		second.told(flows.Count{}, c.second)
		second.told(flows.Count{}, watching(7, 1000, 9, false)) // seldom, and no news
		if got := second.unseen.Load(); got != c.want || strings.Contains(log.String(), "packets passed while no agent watched") != (c.want > 0) {
			t.Errorf("%s: got %d frames and the log %q, want %d", name, got, log, c.want)
		}
		if err := second.lock.Close(); err != nil {
			t.Fatal(err)
		}
		third, _ := testSpool(t, SpoolConfig{Dir: dir})
		if third.tally.Frames != c.want {
			t.Errorf("%s: got %d frames since the spool was made, want %d", name, third.tally.Frames, c.want)
		}
	}
}
