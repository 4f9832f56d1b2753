// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"
)

// watchMounts tells of every change of what is mounted where, because a network
// namespace gets its name by a bind mount. Nil: the kernel does not tell here. end
// stops it.
func watchMounts(log *slog.Logger) (changed <-chan struct{}, end func()) {
	table, err := unix.Open("/proc/thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		log.Debug("cannot follow mounts", "err", err)
		return nil, func() {}
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		log.Debug("cannot follow mounts", "err", err)
		unix.Close(table)
		return nil, func() {}
	}
	c := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR || fds[1].Revents != 0 {
				return
			}
			if fds[0].Revents == 0 {
				continue
			}
			select {
			case c <- struct{}{}:
			default: // it is known
			}
		}
	})
	return c, func() {
		one := [8]byte{1}
		if _, err := unix.Write(stop, one[:]); err == nil {
			wg.Wait()
		}
		unix.Close(table)
		unix.Close(stop)
	}
}
