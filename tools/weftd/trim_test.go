// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programRSS is how much of the program's code and constants is mapped, in KiB.
func programRSS(t testing.TB) (kib int) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	own := false
	for line := range strings.Lines(string(smaps)) {
		if f := strings.Fields(line); len(f) >= 6 && strings.Contains(f[0], "-") {
			own = f[5] == exe && !strings.Contains(f[1], "w")
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && own {
			kib += n
		}
	}
	return kib
}

func TestStartLeavesLittleOfTheProgramInMemory(t *testing.T) {
	before := programRSS(t)
	if err := dropProgramPages(); err != nil {
		t.Fatal(err)
	}
	if after := programRSS(t); before == 0 || after > before*3/4 {
		t.Errorf("%d KiB of the program are mapped, want at most three quarters of the %d before", after, before)
	}
}

// A program that moves itself has written to its constants: those pages are no file's.
func TestPagesThatTheProgramWroteToStay(t *testing.T) {
	text := "a constant of this test, which it changes"
	first := unsafe.StringData(text)
	in := uintptr(unsafe.Pointer(first)) % uintptr(os.Getpagesize())
	page := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(first), -int(in))), os.Getpagesize())
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	page[in] = 'A'
	if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if err := dropProgramPages(); err != nil {
		t.Fatal(err)
	}
	if page[in] != 'A' {
		t.Errorf("got %q, want what was written there", page[in])
	}
}

func BenchmarkDropProgramPages(b *testing.B) {
	for b.Loop() {
		if err := dropProgramPages(); err != nil {
			b.Fatal(err)
		}
	}
}
