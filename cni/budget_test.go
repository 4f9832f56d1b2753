// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"testing"
	"time"
)

// Snapshots that want to be made all the time get a fifth of it; the first ones after
// a calm come at once, and none waits longer than 40 ms.
func TestBudgetIsAFifthAndSavesWhatWasNotUsed(t *testing.T) {
	const took = 2 * time.Millisecond
	var b budget
	began := time.Now()
	now, used, atOnce, longest := began, time.Duration(0), 0, time.Duration(0)
	for now.Sub(began) < 10*time.Second {
		wait := b.wait(now)
		if wait == 0 && now.Equal(began.Add(used)) {
			atOnce++
		}
		longest = max(longest, wait)
		now = now.Add(wait + took)
		b.spend(now, took)
		used += took
	}
	if share := used.Seconds() / now.Sub(began).Seconds(); share > 0.21 || share < 0.19 {
		t.Errorf("snapshots took %.3f of the time, want 0.2", share)
	}
	if atOnce < 20 {
		t.Errorf("%d snapshots of %s at once after a calm, want 20 or more", atOnce, took)
	}
	b.spend(now, time.Minute)
	if longest = max(longest, b.wait(now)); longest != 40*time.Millisecond {
		t.Errorf("the longest wait is %s, want 40 ms", longest)
	}
	if wait := b.wait(now.Add(time.Second)); wait != 0 {
		t.Errorf("after a calm: wait %s, want none", wait)
	}
}
