// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"
)

func TestTickFollowsFromTheTimeSinceBoot(t *testing.T) {
	for _, hz := range frequencies {
		want := int64(time.Second) / hz
		for _, up := range []time.Duration{0, time.Second, 4 * time.Minute, 6 * time.Minute, time.Hour, 1000 * 24 * time.Hour} {
			for _, late := range []time.Duration{0, time.Second, 3 * time.Second} { // jiffies began after the clock
				jiffies := uint64(1<<32 - 300*hz + int64(up/time.Millisecond)*hz/1000)
				if got := tickSinceBoot(int64(up+late), jiffies); got != want {
					t.Errorf("%d Hz, up for %s, jiffies %s late: got %d ns, want %d", hz, up, late, got, want)
				}
			}
		}
		at := int64(300 * time.Second)
		if got := tickSinceBoot(at, 1<<32); got != 0 {
			t.Errorf("%d Hz, up for 300 s: got %d ns, want 0, as every frequency is there", hz, got)
		}
	}
}

func TestTickIsThatOfTheRunningKernel(t *testing.T) {
	c := newHarness(t, Options{}, 14).d.clock
	mono, jiffies, err := c.run()
	if err != nil {
		t.Fatal(err)
	}
	now, j := mono, jiffies
	for j < jiffies+50 {
		if now, j, err = c.run(); err != nil {
			t.Fatal(err)
		}
	}
	if got := (now - mono) / int64(j-jiffies); got < c.tick*9/10 || got > c.tick*11/10 {
		t.Errorf("50 ticks took %d ns each, taken for %d", got, c.tick)
	}
}
