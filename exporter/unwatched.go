// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"os"
	"strings"
	"time"

	"weft/flows"
)

// unwatched is what the folder of a spool says of frames that passed devices while no agent watched them: after
// the last drain of a run that was killed, and until the next one had attached its programs.
type unwatched struct {
	Boot    string        // of the kernel: numbers of namespaces and devices are its
	Drained time.Time     // the last drain
	Devices []deviceCount // at most maxUnwatched
	Frames  uint64        // that passed unwatched, since the folder was made
}

// deviceCount is what a device had counted when a drain was done.
type deviceCount struct {
	Netns   uint64
	Ifindex uint32
	Frames  int64
}

// maxUnwatched bounds the devices that are kept: 15 kB in a file that is written at each drain. Of those over it
// nothing is said.
const maxUnwatched = 256

func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // then no two runs are of the same boot
	}
	return strings.TrimSpace(string(text))
}

// tellUnwatched compares what the last run knew of the devices with what passed before this run watched them,
// once, and notes what is to be known of them now. s.mu is held.
func (s *spool) tellUnwatched(l *flows.Ledger) {
	if l.Unseen == nil {
		return
	}
	boot, known := bootID(), l.Unseen[:min(len(l.Unseen), maxUnwatched)]
	if !s.asked && s.tally.Boot == boot && boot != "" {
		s.compareUnwatched(known)
	}
	s.asked = true
	s.tally.Boot, s.tally.Drained = boot, l.At
	type account struct {
		segments [2]bool
		drained  int64
		there    bool
	}
	watched := make(map[flows.Point]*account, len(known))
	for _, d := range known {
		watched[d.At] = &account{segments: d.Segments}
	}
	for i := range l.Points {
		p := &l.Points[i]
		at := p.At
		at.Hook = 0
		if w := watched[at]; w != nil && p.At.Hook != flows.HookXDP {
			w.drained += int64(p.Flows.Plus(p.TotalSkipped()).Packets)
			if sent := p.At.Hook == flows.HookEgress; !sent && !w.segments[0] || sent && !w.segments[1] {
				w.drained -= int64(p.GSO.Packets)
			}
			w.there = true
		}
	}
	s.tally.Devices = make([]deviceCount, 0, len(known))
	for _, d := range known {
		n := deviceCount{d.At.Netns, d.At.Ifindex, int64(d.Counted)} // its points have gone: this is the end
		if w := watched[d.At]; w.there {
			n.Frames = d.Unseen + w.drained
		}
		s.tally.Devices = append(s.tally.Devices, n)
	}
}

// compareUnwatched tells what devices counted between the last run and this one.
func (s *spool) compareUnwatched(now []flows.DeviceFrames) {
	before := map[flows.Point]int64{}
	for _, d := range s.tally.Devices {
		before[flows.Point{Netns: d.Netns, Ifindex: d.Ifindex}] = d.Frames
	}
	var frames uint64
	devices := 0
	for _, d := range now {
		if was, ok := before[d.At]; ok && d.Unseen > was {
			frames += uint64(d.Unseen - was)
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
