// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// ownPath is where the agent's own namespace is found.
const ownPath = "/proc/thread-self/ns/net"

// netnsDirs is where tools bind network namespaces.
var netnsDirs = []string{"/run/netns", "/run/docker/netns"}

// inNetns runs f on a thread that is in the namespace of fd. A thread that cannot
// be brought back ends with its goroutine.
func inNetns(own, fd int, f func() error) error {
	if own == fd {
		return f()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: it needs CAP_SYS_ADMIN", err)
			}
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err := f()
		if back := unix.Setns(own, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		} else {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
		}
		result <- err
	}()
	return <-result
}

// cookieHere is the kernel's 64-bit identity of the thread's namespace, never reused.
func cookieHere() (uint64, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket for the namespace cookie: %w", err)
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the namespace cookie (Linux 5.14): %w", err)
	}
	return cookie, nil
}

// eventsHere opens a subscription to links and addresses of the thread's namespace.
func eventsHere() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open netlink: %w", err)
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("subscribe to links: %w", err)
	}
	// Without CAP_NET_ADMIN the kernel's own limit holds: an overrun comes sooner,
	// and is answered like any other.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("size the buffer for link events: %w", err)
		}
	}
	return fd, nil
}

// eventBuffer is how many bytes of events the kernel keeps for one namespace.
const eventBuffer = 1 << 20

// namedNetns finds every network namespace that has a name, and which.
func namedNetns() map[inode]string {
	found := map[inode]string{}
	for _, dir := range netnsDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no such tool here
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			if i, err := inodeOf(p); err == nil && isNetns(p) {
				found[i] = p
			}
		}
	}
	return found
}

// isNetns is false for a file that ip netns has made and not yet bound.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// openNetns opens a namespace, if it still is the one that was found there.
func openNetns(path string, want inode) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || (inode{st.Dev, st.Ino}) != want {
		unix.Close(fd)
		return -1, fmt.Errorf("open network namespace %s: %w", path, os.ErrNotExist)
	}
	return fd, nil
}

// pids lists the processes that are there, in the order of /proc.
func pids() ([]uint32, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []uint32
	for _, name := range names {
		if pid, err := strconv.ParseUint(name, 10, 32); err == nil {
			all = append(all, uint32(pid))
		}
	}
	return all, nil
}
