// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"os"
	"strings"
	"time"

	"weft/flows"
)

// unwatched is what the folder of a spool says of frames that passed devices while no agent watched them: after
// the last drain of a run that was killed, and until the next one had attached its programs.
type unwatched struct {
	Boot    string           // of the kernel: numbers of namespaces and devices are its
	Drained time.Time        // the last drain
	Devices map[string]int64 // by namespace and ifindex: what it had counted when that drain was done
	Frames  uint64           // that passed unwatched, since the folder was made
}

// maxUnwatched bounds the devices that are kept: 10 kB in a file that is written at each drain. Of those over it
// nothing is said.
const maxUnwatched = 256

func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // then no two runs are of the same boot
	}
	return strings.TrimSpace(string(text))
}

func deviceKey(at flows.Point) string { return fmt.Sprintf("%d/%d", at.Netns, at.Ifindex) }

// tellUnwatched compares what the last run knew of the devices with what passed before this run watched them,
// each once, and notes what is to be known of them now. s.mu is held.
func (s *spool) tellUnwatched(l *flows.Ledger) {
	if l.Unseen == nil {
		return
	}
	now, counted := map[string]int64{}, map[string]int64{}
	for _, d := range l.Unseen {
		if key := deviceKey(d.At); len(now) < maxUnwatched {
			now[key], counted[key] = d.Unseen, int64(d.Counted)
		}
	}
	boot := bootID()
	if !s.asked && s.tally.Boot == boot && boot != "" {
		var frames uint64
		devices := 0
		for key, before := range s.tally.Devices {
			if at, ok := now[key]; ok && at > before {
				frames += uint64(at - before)
				devices++
			}
		}
		s.tally.Frames += frames
		s.unseen.Store(s.tally.Frames)
		if frames > 0 {
			s.log.Warn("packets passed while no agent watched", "frames", frames, "devices", devices, "since", s.tally.Drained.UTC().Format(time.RFC3339Nano),
				"since_the_spool_was_made", s.tally.Frames)
		}
	}
	s.asked = true
	for _, p := range l.Points {
		if key := deviceKey(p.At); p.At.Hook != flows.HookXDP {
			delete(counted, key)
			if _, ok := now[key]; ok {
				drained := p.Flows.Plus(p.TotalSkipped())
				now[key] += int64(drained.Packets - p.GSO.Packets)
			}
		}
	}
	for key, n := range counted { // its points have gone: this is the end
		now[key] = n
	}
	s.tally.Boot, s.tally.Drained, s.tally.Devices = boot, l.At, now
}
