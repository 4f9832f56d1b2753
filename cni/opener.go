// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// opener is who has a socket open, by its descriptors. Never written to once shared.
type opener struct {
	process
	holders int  // processes that have it open
	mixed   bool // and that are called differently
}

// Bounds of looking for sockets among descriptors.
const (
	maxSocketFds = 65536 // of one process that are looked at
	maxHolders   = 4096  // processes that have one socket open and are counted
)

// findOpeners looks through the descriptors of all processes for sockets, by inode.
// refused is how many processes we may not look into.
func findOpeners(wanted map[uint32]bool) (found map[uint32]opener, refused int, err error) {
	all, err := pids()
	if err != nil {
		return nil, 0, err
	}
	found = map[uint32]opener{}
	for _, pid := range all {
		here, err := socketsOf(pid, wanted)
		if os.IsPermission(err) {
			refused++
		}
		if err != nil || len(here) == 0 {
			continue
		}
		p, err := readProcess(pid)
		if err != nil || !holdsOne(pid, here) { // what was read may be another's
			continue
		}
		for inode := range here {
			found[inode] = found[inode].with(p)
		}
	}
	return found, refused, nil
}

// with adds a holder. The oldest stands for all: it opened the socket and the others
// have it from it. But what systemd opened for a service is the service's.
func (o opener) with(p process) opener {
	switch {
	case o.holders == 0 || o.PID == 1:
		return opener{process: p, holders: 1}
	case p.PID == 1:
		return o
	}
	o.holders = min(o.holders+1, maxHolders)
	o.mixed = o.mixed || p.Comm != o.Comm
	if p.Start < o.Start {
		o.process = p
	}
	return o
}

// socketsOf is which of the wanted sockets a process has open, and by which descriptor.
func socketsOf(pid uint32, wanted map[uint32]bool) (map[uint32]string, error) {
	dir, err := os.Open(procPath(pid, "fd"))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxSocketFds)
	if err != nil {
		return nil, nil // it has none, or ended
	}
	var here map[uint32]string
	for _, name := range names {
		if inode, ok := socketAt(int(dir.Fd()), name); ok && wanted[inode] {
			if here == nil {
				here = map[uint32]string{}
			}
			here[inode] = name
		}
	}
	return here, nil
}

// socketAt is the inode of the socket that a descriptor leads to.
func socketAt(dir int, fd string) (uint32, bool) {
	var target [64]byte
	n, err := unix.Readlinkat(dir, fd, target[:])
	if err != nil {
		return 0, false
	}
	text, ok := strings.CutPrefix(string(target[:n]), "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
	return uint32(inode), err == nil
}

// holdsOne reports whether the PID's process still has one of the sockets: a process
// that has the PID of another by now has not.
func holdsOne(pid uint32, here map[uint32]string) bool {
	for inode, fd := range here {
		if now, ok := socketAt(unix.AT_FDCWD, procPath(pid, "fd/"+fd)); ok && now == inode {
			return true
		}
	}
	return false
}
