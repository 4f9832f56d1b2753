// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDirs is where tools bind network namespaces.
var netnsDirs = []string{"/run/netns", "/run/docker/netns"}

// inNetns runs f on a thread that is in the namespace of fd, and brings the
// thread back. A thread that cannot be brought back ends with its goroutine.
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

// netnsCookie is the kernel's 64-bit identity of a namespace, never reused.
func netnsCookie(own, fd int) (cookie uint64, err error) {
	err = inNetns(own, fd, func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a socket for the namespace cookie: %w", err)
		}
		defer unix.Close(s)
		if cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			return fmt.Errorf("read the namespace cookie (Linux 5.14): %w", err)
		}
		return nil
	})
	return cookie, err
}

// inode identifies a namespace as long as something holds it open.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, err
	}
	return inode{st.Dev, st.Ino}, nil
}

// namespacePath is where the namespace that a user named is: a path as it is, a
// bare name under /run/netns.
func namespacePath(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return filepath.Join(netnsDirs[0], name)
}

// openNetns opens what a user named, and says what is wrong with it.
func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, wrong("open %s: %w: name one that `ip netns list` shows, a path such as /proc/PID/ns/net, or all", path, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return -1, wrong("%s is no network namespace: name one that `ip netns list` shows, a path such as /proc/PID/ns/net, or all", path)
	}
	return fd, nil
}

// namedNetns finds every network namespace that has a name.
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

// addProcessNetns adds those that only processes are in. Threads do not count.
func addProcessNetns(found map[inode]string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, p := range procs {
		if i, err := inodeOf(p); err == nil { // else it ended meanwhile
			if _, known := found[i]; !known {
				found[i] = p
			}
		}
	}
}

// isNetns is false for a file that ip netns has made and not yet bound.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
