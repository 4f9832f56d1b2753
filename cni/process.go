// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is read of a process. What is longer is cut.
const (
	maxProcFile  = 64 << 10               // bytes of a file in /proc
	procDeadline = 200 * time.Millisecond // of reading a file that the process may make us wait for
	maxStuck     = 8                      // such reads under way at once; at the bound no further one is begun
)

// errGone says that a process ended, or its PID became another's, while it was read.
var errGone = errors.New("the process is gone")

// process is one process as it was when it was read. PID and Start together are
// its identity: a PID alone may be another's by now.
type process struct {
	PID, Parent uint32
	Start       uint64 // clock ticks since boot: /proc/PID/stat, field 22
	Comm        string // of the main thread; the process chose it
}

// readProcess reads /proc/PID/stat.
func readProcess(pid uint32) (process, error) {
	text, err := readProc(pid, "stat")
	if err != nil {
		return process{}, err
	}
	p, err := parseStat(text)
	if err != nil {
		return process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p.PID = pid
	return p, nil
}

// parseStat reads what a process's stat says. The name may hold anything, closing
// parentheses too: the last one ends it.
func parseStat(text []byte) (process, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return process{}, errors.New("stat has no name in parentheses")
	}
	fields := strings.Fields(string(text[end+1:])) // from field 3 on
	if len(fields) < 20 {
		return process{}, fmt.Errorf("stat has %d fields after the name, want 20", len(fields))
	}
	parent, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return process{}, fmt.Errorf("parent in stat: %w", err)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("start time in stat: %w", err)
	}
	return process{Parent: uint32(parent), Start: start, Comm: string(text[open+1 : end])}, nil
}

// alive reports whether the PID is still this process's.
func (p process) alive() bool {
	now, err := readProcess(p.PID)
	return err == nil && now.Start == p.Start
}

// netns is the network namespace that the process is in now.
func (p process) netns() (inode, error) { return inodeOf(procPath(p.PID, "ns/net")) }

// pidns is the PID namespace that the process is in.
func (p process) pidns() (inode, error) { return inodeOf(procPath(p.PID, "ns/pid")) }

// args is the process's command line; the process may have written it over. A
// kernel thread has none, nor has a program for a moment while it begins: an error.
func (p process) args() ([]string, error) {
	text, err := readPatiently(procPath(p.PID, "cmdline"))
	if err != nil {
		return nil, err
	}
	if !p.alive() {
		return nil, errGone
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("read arguments of process %d: there are none", p.PID)
	}
	return strings.Split(strings.TrimRight(string(text), "\x00"), "\x00"), nil
}

// exe is the base name of the program, as the kernel knows it; empty: a kernel
// thread, or we may not know.
func (p process) exe() string {
	path, err := os.Readlink(procPath(p.PID, "exe"))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(path, " (deleted)"))
}

func procPath(pid uint32, file string) string {
	return "/proc/" + strconv.FormatUint(uint64(pid), 10) + "/" + file
}

// readProc reads one of a process's files; errGone when there is no such process.
func readProc(pid uint32, file string) ([]byte, error) {
	text, err := readBounded(procPath(pid, file))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, errGone
	}
	return text, err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

// stuck counts the reads that have not come back.
var stuck atomic.Int32

// readPatiently reads a file whose read waits for the process's memory map, which
// a process in trouble may hold for ever.
func readPatiently(path string) ([]byte, error) {
	if stuck.Load() >= maxStuck {
		return nil, fmt.Errorf("read %s: %d earlier reads are stuck", path, maxStuck)
	}
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	stuck.Add(1)
	go func() {
		defer stuck.Add(-1)
		text, err := readBounded(path)
		got <- answer{text, err}
	}()
	late := time.NewTimer(procDeadline)
	defer late.Stop()
	select {
	case a := <-got:
		if errors.Is(a.err, os.ErrNotExist) || errors.Is(a.err, unix.ESRCH) {
			return nil, errGone
		}
		return a.text, a.err
	case <-late.C:
		return nil, fmt.Errorf("read %s: no answer in %s", path, procDeadline)
	}
}

// inode identifies a network namespace as long as something holds it open.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, err
	}
	return inode{st.Dev, st.Ino}, nil
}
