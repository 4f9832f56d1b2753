// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"time"

	"golang.org/x/sys/unix"
)

// budget lets snapshots take a fifth of a CPU. What was not used is saved, so that a
// few changes after a calm are shown at once; what one took too much delays the next.
type budget struct {
	left time.Duration // CPU time; the zero budget has none
	at   time.Time     // of left
}

const (
	budgetPart  = 5
	budgetMost  = 40 * time.Millisecond // saved, of CPU time
	budgetLeast = -8 * time.Millisecond // owed: no change waits longer than 40 ms
)

// wait is how long until there is some left; 0: there is.
func (b *budget) wait(now time.Time) time.Duration {
	if left := b.leftAt(now); left < 0 {
		return -left * budgetPart
	}
	return 0
}

// spend takes CPU time that was used.
func (b *budget) spend(now time.Time, took time.Duration) {
	b.left, b.at = max(b.leftAt(now)-took, budgetLeast), now
}

func (b *budget) leftAt(now time.Time) time.Duration {
	if b.at.IsZero() {
		return budgetMost
	}
	return min(b.left+now.Sub(b.at)/budgetPart, budgetMost)
}

// threadTime is the CPU time that this thread has used. The time of day would count
// what others on a busy machine took.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
