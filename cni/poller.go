// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// poller waits for many descriptors at once in one thread, however many namespaces
// there are.
type poller struct {
	epoll  int
	bell   int // eventfd: somebody called wake
	mounts int // mountinfo, which tells that something was mounted; -1: not here

	buffer *[64 << 10]byte // for what a descriptor brings
}

func newPoller() (poller, error) {
	p := poller{epoll: -1, bell: -1, mounts: -1, buffer: new([64 << 10]byte)}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return p, fmt.Errorf("make an epoll: %w", err)
	}
	if p.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return p, errors.Join(fmt.Errorf("make an eventfd: %w", err), p.close())
	}
	if err := p.add(p.bell, unix.EPOLLIN); err != nil {
		return p, errors.Join(err, p.close())
	}
	// A namespace gets its name by a bind mount. Without this it is found later.
	p.mounts, err = unix.Open("/proc/thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil && p.add(p.mounts, unix.EPOLLPRI) != nil {
		unix.Close(p.mounts)
		p.mounts = -1
	}
	return p, nil
}

func (p *poller) add(fd int, events uint32) error {
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("wait for a descriptor: %w", err)
	}
	return nil
}

// forget is for a descriptor that is about to be closed, which would do it too
// unless a child of ours holds it.
func (p *poller) forget(fd int) {
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// wake ends a wait. Any goroutine may call it.
func (p *poller) wake() {
	one := [8]byte{1}
	_, _ = unix.Write(p.bell, one[:]) // full: it rings already
}

// wait returns the descriptors that are ready, none after timeout or a wake.
func (p *poller) wait(timeout time.Duration) ([]int, error) {
	var events [64]unix.EpollEvent
	n, err := unix.EpollWait(p.epoll, events[:], int((timeout+time.Millisecond-1)/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("wait for descriptors: %w", err)
	}
	var ready []int
	for i := range max(n, 0) {
		if fd := int(events[i].Fd); fd != p.bell {
			ready = append(ready, fd)
			continue
		}
		var rung [8]byte
		_, _ = unix.Read(p.bell, rung[:])
	}
	return ready, nil
}

func (p *poller) close() error {
	var errs []error
	for _, fd := range []int{p.mounts, p.bell, p.epoll} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
