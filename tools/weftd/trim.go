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

// trimEvery is how often [dropProgramPages] is called, which takes 0.6 ms; the first
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
// page cache by a minor fault. What has a page of its own stays: a program that moves
// itself (PIE) has written to its constants before they were made read-only.
func dropProgramPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("list what is mapped: %w", err)
	}
	var errs []error
	var at []byte // the mapping that the lines are about; nil: none of the program's
	for line := range strings.Lines(string(smaps)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 6 && strings.Contains(f[0], "-"):
			at = nil
			if strings.Join(f[5:], " ") == exe && !strings.Contains(f[1], "w") {
				at = mapped(f[0])
			}
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && at != nil:
			if err := unix.Madvise(at, unix.MADV_DONTNEED); err != nil {
				errs = append(errs, fmt.Errorf("give back %d KiB of the program: %w", len(at)>>10, err))
			}
		}
	}
	return errors.Join(errs...)
}

// mapped is the memory that a line of smaps begins with; nil: it does not say.
func mapped(span string) []byte {
	from, to, _ := strings.Cut(span, "-")
	lo, err1 := strconv.ParseUint(from, 16, 64)
	hi, err2 := strconv.ParseUint(to, 16, 64)
	if errors.Join(err1, err2) != nil || hi <= lo {
		return nil
	}
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&lo))), hi-lo) // outside of the heap
}
