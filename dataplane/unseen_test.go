// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"weft/flows"
)

// A card counts what came on the wire, a pair the frames that its driver handed on; a reading comes a moment after the
// other, and may lack some.
func TestDevicesAreAskedAsTheyCount(t *testing.T) {
	for name, c := range map[string]struct {
		guess, segments bool
		steps           [][3]uint64 // counted, packets, frames
		unseen          int64
	}{
		"a card":                       {true, true, [][3]uint64{{1000, 0, 0}, {1900, 900, 100}}, 1000},
		"a card that counts frames":    {true, false, [][3]uint64{{1000, 0, 0}, {1100, 900, 100}}, 1000},
		"a pair":                       {false, false, [][3]uint64{{50, 0, 0}, {150, 900, 100}}, 50},
		"a sender that counts all":     {false, true, [][3]uint64{{50, 0, 0}, {949, 900, 100}}, 49},
		"nothing that tells":           {true, true, [][3]uint64{{70, 0, 0}, {80, 10, 10}}, 70},
		"told once, then nothing":      {false, true, [][3]uint64{{0, 0, 0}, {900, 900, 100}, {910, 910, 110}}, 0},
		"watched while frames pass by": {false, false, [][3]uint64{{7, 400, 7}}, 0},
	} {
		var d counts
		for _, s := range c.steps {
			d.read(s[0], s[1], s[2], c.guess)
		}
		if d.unseen() != c.unseen || d.segments != c.segments {
			t.Errorf("%s: got %d unseen, segments %v, want %d and %v", name, d.unseen(), d.segments, c.unseen, c.segments)
		}
	}
}

// What passed a device before it was watched stays what it was, whatever passes later: frames that the sender's device
// counts once and the wire has as many segments, and on w0 segments that are merged after the device counted them.
func TestWhatPassedUnwatchedStaysTheSame(t *testing.T) {
	for name, merged := range map[string]bool{"frames as they were sent": false, "merged behind the counter": true} {
		t.Run(name, func(t *testing.T) {
			r := nsQuietNet(t, 1500)
			if merged {
				r.client.offload("eth0", false, nsSegmentation)
				r.host.offload("w0", true, nsMerging)
			}
			read := func() map[flows.Point]flows.DeviceFrames {
				for _, end := range []nsEnd{{r.client, "eth0"}, {r.host, "w0"}, {r.host, "w1"}} {
					r.a.still(end.in, end.name)
				}
				r.a.d.spaces.mu.Lock()
				r.a.d.spaces.readUnseen()
				r.a.d.spaces.mu.Unlock()
				all := map[flows.Point]flows.DeviceFrames{}
				for _, d := range *r.a.d.unseen.Load() {
					all[d.At] = d
				}
				return all
			}
			before := read()
			r.client.tcp(r.server, nsServer4, 3<<20)
			r.client.tcp(r.server, nsServer6, 3<<20)
			after := read()
			if len(before) < 3 || len(after) != len(before) {
				t.Fatalf("got %d devices and then %d, want the same three or more", len(before), len(after))
			}
			for at, b := range before {
				a := after[at]
				if a.Unseen != b.Unseen {
					t.Errorf("%+v: got %d unseen, want the %d of before; it counted %d since", at, a.Unseen, b.Unseen, a.Counted-b.Counted)
				}
			}
			w0 := flows.Point{Netns: r.host.cookie(), Ifindex: uint32(r.host.index("w0"))}
			if a := after[w0]; a.Segments[0] != merged || a.Counted-before[w0].Counted < 100 {
				t.Errorf("w0: got %+v, want it to count segments: %v", a, merged)
			}
		})
	}
}
