// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trimEvery is how often [dropProgramPages] is called, which takes 0.1 ms; the first
// time is when the agent has delivered its first window and does not need most of the
// program any more.
const trimEvery = 5 * time.Second

// trim gives back, every trimEvery, the pages that starting and rare work left mapped,
// and once what starting left on the heap.
func (a *agent) trim(now time.Time) {
	if now.Sub(a.trimmed) < trimEvery {
		return
	}
	if a.trimmed.IsZero() {
		debug.FreeOSMemory()
	}
	a.trimmed = now
	if err := dropProgramPages(); err != nil {
		a.log.Debug("cannot give back pages of the program", "err", err)
	}
}

// dropProgramPages unmaps what is in memory of the program file's code and constants.
// The kernel maps 64 KiB around each page that was ever used, so that after a start
// nearly all of the file counts as the agent's; what is used again comes back from the
// page cache by a minor fault.
func dropProgramPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("list what is mapped: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || strings.Join(f[5:], " ") != exe || strings.Contains(f[1], "w") {
			continue // what can be written to is not the file's any more
		}
		from, to, _ := strings.Cut(f[0], "-")
		lo, err1 := strconv.ParseUint(from, 16, 64)
		hi, err2 := strconv.ParseUint(to, 16, 64)
		if errors.Join(err1, err2) != nil || hi <= lo {
			continue
		}
		start := *(*unsafe.Pointer)(unsafe.Pointer(&lo)) // an address outside of the heap
		if err := unix.Madvise(unsafe.Slice((*byte)(start), hi-lo), unix.MADV_DONTNEED); err != nil {
			errs = append(errs, fmt.Errorf("give back %s: %w", f[0], err))
		}
	}
	return errors.Join(errs...)
}
