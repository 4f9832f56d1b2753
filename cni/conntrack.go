// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// Bounds of what is followed of the connection tracking.
const (
	maxTrackedSpaces = 256     // network namespaces; the agent's own is the first
	conntrackBuffer  = 4 << 20 // bytes of events that the kernel keeps for one of them
	trackedAtOnce    = 256     // datagrams that are read of one before the next
)

// How often is looked for other namespaces, and for those that failed.
const (
	spacesEvery   = time.Second
	trackedPoll   = 250 * time.Millisecond // how long Close may wait
	trackAgain    = 10 * time.Second
	listAgain     = time.Minute                                // while there is something whose end the kernel may not tell
	conntrackOnly = "/proc/sys/net/netfilter/nf_conntrack_max" // is there once the kernel tracks anything
)

// conntrack follows which connections the kernel sends elsewhere than where they were
// opened to, or in another's name, as kube-proxy has it do for Services, in every network
// namespace that is followed. One goroutine runs it, any may ask.
type conntrack struct {
	log    *slog.Logger
	spaces func() []*Space
	health

	trackers []*tracker // of run's goroutine
	known    atomic.Pointer[[]*tracker]
	over     atomic.Int64 // namespaces for which there was no room
	places   places
}

// tracker is one network namespace's.
type tracker struct {
	space uint64
	path  string
	fd    int       // -1: not open
	again time.Time // when it may be opened
	err   error     // why it is not open, or may miss something
	*translations

	asks    []dump // lists that are still to be asked for
	dumping bool
	list    uint32 // number of the latest list
}

// dump is a part of a list: connections of a family with a status under a mask.
type dump struct {
	family       uint8
	status, mask uint32
}

// wholeList is all connections that are translated, each once, where the kernel can choose
// (from 5.10 on).
var wholeList = []dump{
	{unix.AF_INET, statusDstNAT, statusDstNAT}, {unix.AF_INET, statusSrcNAT, statusSrcNAT | statusDstNAT},
	{unix.AF_INET6, statusDstNAT, statusDstNAT}, {unix.AF_INET6, statusSrcNAT, statusSrcNAT | statusDstNAT},
}

func newConntrack(log *slog.Logger, spaces func() []*Space) *conntrack {
	c := &conntrack{log: log, spaces: spaces, health: health{name: "conntrack"}}
	c.known.Store(&[]*tracker{})
	return c
}

// among is the agent's own namespace and those that are named.
func among(spaces []*Space, named []string) []*Space {
	if slices.Contains(named, "all") {
		return spaces
	}
	wanted := map[inode]bool{}
	for _, path := range named {
		if !strings.Contains(path, "/") {
			path = filepath.Join(netnsDirs[0], path)
		}
		if i, err := inodeOf(path); err == nil { // not yet there, or not any more
			wanted[i] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(spaces), func(s *Space) bool { return !s.Own && !wanted[s.ino] })
}

// find is the translation of what had k's ends, in either direction, in a namespace for
// which in is true, all the time from first to last (Unix nanoseconds). What another
// namespace sends on once more is one with it. false: none, or not certain which.
func (c *conntrack) find(in func(space uint64) bool, k flows.Key, first, last int64, opens bool) (found flows.Translation, ok bool) {
	one, other, n := c.with(in, k, first, last, opens)
	if n == 1 {
		for _, end := range []flows.Key{one.Sent, one.Opened} {
			if _, cell := cellsOf(pack(end).unsided()); c.places.sieve[cell].Load() < 2 || end == k || end == k.Reverse() {
				continue // that is its own, or was asked for
			}
			if a, b, m := c.with(in, end, first, last, opens); m == 2 {
				if whole, ok := inARow(a, b); ok {
					return whole, true
				}
			}
		}
	}
	if n == 2 {
		return inARow(one, other)
	}
	return one, n == 1
}

// with is the translations that have k's ends, as find says: n is how many differ, at
// most three, of which there are two.
func (c *conntrack) with(in func(space uint64) bool, k flows.Key, first, last int64, opens bool) (one, other flows.Translation, n int) {
	ends := pack(k).unsided()
	cell, all := cellsOf(ends)
	if c.places.sieve[all].Load() == 0 {
		return one, other, 0
	}
	for _, t := range *c.known.Load() {
		if t.sieve[cell].Load() == 0 || !in(t.space) {
			continue
		}
		to, known := t.find(ends, first, last, opens)
		switch {
		case !known || n > 0 && to == one || n > 1 && to == other:
		case n == 0:
			one, n = to, 1
		case n == 1:
			other, n = to, 2
		default:
			return one, other, 3
		}
	}
	return one, other, n
}

// inARow is one translation after the other, whichever is first.
func inARow(a, b flows.Translation) (whole flows.Translation, ok bool) {
	if b.Sent == a.Opened {
		a, b = b, a
	}
	whole = flows.Translation{Opened: a.Opened, Via: a.Sent, Sent: b.Sent}
	return whole, a.Sent == b.Opened && whole.Opened != whole.Sent
}

func (c *conntrack) state() SourceStatus {
	n := 0
	for _, t := range *c.known.Load() {
		n += t.standing()
	}
	s := c.status(n)
	if over := c.over.Load(); over > 0 && s.Err == "" {
		s.Err = fmt.Sprintf("%d network namespaces more than the %d that are followed", over, maxTrackedSpaces)
	}
	if n := c.places.forgotten.Load(); n > 0 && s.Err == "" {
		s.Err = fmt.Sprintf("%d translated connections were forgotten while they stood, for want of room", n)
	}
	return s
}

// run follows until ctx ends.
func (c *conntrack) run(ctx context.Context) {
	defer func() {
		for _, t := range c.trackers {
			t.close()
		}
	}()
	buffer, looked := make([]byte, 1<<16), time.Time{}
	var polled []unix.PollFd
	for ctx.Err() == nil {
		if _, err := os.Stat(conntrackOnly); err != nil { // asking would load it
			c.say(c.log, errAbsent)
			if !pause(ctx, trackAgain) {
				return
			}
			continue
		}
		if time.Since(looked) >= spacesEvery {
			looked = time.Now()
			c.follow(looked)
		}
		polled = polled[:0]
		for _, t := range c.trackers {
			polled = append(polled, unix.PollFd{Fd: int32(t.fd), Events: unix.POLLIN}) // one that is not open is left out
		}
		if _, err := unix.Poll(polled, int(trackedPoll.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			c.say(c.log, fmt.Errorf("wait for tracked connections: %w", err))
			if !pause(ctx, trackAgain) {
				return
			}
		}
		for _, t := range c.trackers {
			if t.fd >= 0 {
				t.err = t.receive(buffer)
			}
		}
	}
}

// follow opens what is new and closes what is gone.
func (c *conntrack) follow(now time.Time) {
	spaces := c.spaces()
	c.over.Store(int64(max(0, len(spaces)-maxTrackedSpaces)))
	spaces = spaces[:min(len(spaces), maxTrackedSpaces)]
	next, changed := make([]*tracker, 0, len(spaces)), false
	for _, s := range spaces {
		i := slices.IndexFunc(c.trackers, func(t *tracker) bool { return t.space == s.Netns })
		if i >= 0 {
			next = append(next, c.trackers[i])
		} else {
			next = append(next, &tracker{space: s.Netns, path: s.Path, fd: -1, translations: newTranslations(&c.places)})
			changed = true
		}
	}
	for _, t := range c.trackers {
		if !slices.Contains(next, t) {
			t.close()
			t.leave()
			changed = true
		}
	}
	if c.trackers = next; changed {
		c.known.Store(&next)
	}
	var errs []error
	for i, t := range next {
		if t.fd < 0 && !now.Before(t.again) {
			t.err = t.open(spaces[i])
			t.again = now.Add(trackAgain)
		} else if t.fd >= 0 && t.unheard > 0 && !t.dumping && len(t.asks) == 0 && now.UnixNano()-t.checked >= int64(listAgain) {
			t.err = t.listWhole()
		}
		if t.err != nil && !gone(t.err) {
			errs = append(errs, fmt.Errorf("network namespace %s: %w", t.path, t.err))
		}
	}
	if err := errors.Join(errs...); err != nil || !slices.ContainsFunc(next, func(t *tracker) bool { return len(t.asks) > 0 || t.dumping }) {
		c.say(c.log, err)
	}
}

// open subscribes in the namespace of t, and asks for what is there.
func (t *tracker) open(s *Space) error {
	own, err := unix.Open(ownPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the agent's network namespace: %w", err)
	}
	defer unix.Close(own)
	in := own
	if !s.Own {
		if in, err = openNetns(s.Path, s.ino); err != nil {
			return err
		}
		defer unix.Close(in)
	}
	if err = inNetns(own, in, func() (err error) { t.fd, err = trackedHere(); return err }); err != nil {
		return err
	}
	t.dumping = false
	t.heard.Store(time.Now().UnixNano())
	return t.listWhole()
}

// listWhole asks for all of the list.
func (t *tracker) listWhole() error {
	t.asks = wholeList
	t.list++
	return t.ask()
}

// trackedHere subscribes to the beginnings and ends of connections in the thread's namespace.
func trackedHere() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("open a socket for connection tracking: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, conntrackBuffer) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, conntrackBuffer) // the kernel's own limit holds then
	}
	groups := uint32(1<<(unix.NFNLGRP_CONNTRACK_NEW-1) | 1<<(unix.NFNLGRP_CONNTRACK_DESTROY-1))
	if err = errors.Join(err, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("subscribe to connection tracking (CAP_NET_ADMIN): %w", err)
	}
	return fd, nil
}

// close ends the subscription: from now on events are missing.
func (t *tracker) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
	if heard := t.heard.Swap(0); heard != 0 { // nobody waits for what does not come
		t.lose(heard)
	}
}

// ask asks for the next part of the list; the kernel gives one at a time.
func (t *tracker) ask() error {
	if t.dumping || len(t.asks) == 0 {
		return nil
	}
	if err := unix.Sendto(t.fd, t.asks[0].message(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.close()
		return fmt.Errorf("list tracked connections: %w", err)
	}
	t.asks, t.dumping = t.asks[1:], true
	return nil
}

// receive reads what has come. After an error the subscription is closed, and opened
// anew: what was lost is in the next list.
func (t *tracker) receive(buffer []byte) error {
	for range trackedAtOnce {
		began := time.Now().UnixNano()
		n, _, err := unix.Recvfrom(t.fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			t.heard.Store(began)
			return t.err
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil:
			var done bool
			if done, err = t.take(buffer[:n], time.Now().UnixNano()); done && err == nil {
				if t.dumping = false; len(t.asks) == 0 {
					t.complete(t.list, time.Now().UnixNano())
					t.err = nil
				}
				err = t.ask()
			}
		}
		if err != nil {
			t.close()
			if t.again = time.Now().Add(trackAgain); errors.Is(err, unix.ENOBUFS) {
				t.again = time.Now().Add(time.Second)
			}
			return fmt.Errorf("read tracked connections: %w", err)
		}
	}
	return t.err
}

// take reads the messages of one datagram, which came now; done: it ended a part of a list.
func (t *tracker) take(m []byte, now int64) (done bool, err error) {
	for len(m) >= unix.SizeofNlMsghdr {
		n, kind := int(native.Uint32(m[0:4])), native.Uint16(m[4:6])
		if n < unix.SizeofNlMsghdr || n > len(m) {
			return done, errors.New("a message is cut off")
		}
		body := m[unix.SizeofNlMsghdr:n]
		switch {
		case kind == unix.NLMSG_DONE:
			done = true
		case kind == unix.NLMSG_ERROR && len(body) >= 4 && int32(native.Uint32(body)) != 0:
			return done, unix.Errno(-int32(native.Uint32(body)))
		case kind>>8 == unix.NFNL_SUBSYS_CTNETLINK:
			t.tell(body, kind&0xff, native.Uint16(m[6:8])&unix.NLM_F_MULTI != 0, now)
		}
		m = m[min(len(m), (n+3)&^3):]
	}
	return done, nil
}

// tell takes one tracked connection: of a list, or one that began or ended now.
func (t *tracker) tell(body []byte, kind uint16, listed bool, now int64) {
	to, zone, ok := parseTracked(body)
	switch {
	case !to.Opened.Dst.IsValid():
	case kind == ctDelete:
		if ok {
			t.end(to.Opened, zone, now)
		} else {
			t.places.stranger(pack(to.Opened), now)
		}
	case ok:
		t.add(to, zone, now, t.list, listed)
	case !listed:
		t.direct(to.Opened, zone, now)
	}
}
