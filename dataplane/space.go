// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is one watched network namespace: its programs, its devices and the
// netlink subscription that follows them. Fields are guarded by spaces.mu.
type space struct {
	all     *spaces
	name    string // path; empty: the agent's own
	fd      int
	ino     inode
	cookie  uint64
	number  uint32         // flow_config.netns of its programs
	domain  atomic.Uint64  // see domains.go; read by the drain without the lock
	peers   map[int]uint64 // cookies by the number that this namespace has for others; as many as there are
	handle  *netlink.Handle
	progs   *programs
	relays  *relays         // nil: none needed yet
	devices map[int]*device // by ifindex; as many as the namespace has
	signed  int             // fd, see sign
	done    chan struct{}   // closed: stop watching

	refusals atomic.Int32 // of subscriptions, in a row
	closed   bool
}

// newSpace has no devices yet. On an error fd is the caller's to close.
func newSpace(a *spaces, name string, fd int, cookie uint64) (*space, error) {
	s := &space{
		all: a, name: name, fd: fd, cookie: cookie, devices: map[int]*device{}, signed: -1,
		peers: map[int]uint64{}, done: make(chan struct{}),
	}
	s.domain.Store(cookie)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	s.ino = inode{st.Dev, st.Ino}
	var err error
	if s.handle, err = a.netlinkIn(fd); err != nil {
		return nil, fmt.Errorf("open netlink in network namespace %q: %w", name, err)
	}
	if s.number, s.progs, err = a.nextPrograms(); err != nil {
		s.handle.Close()
		return nil, err
	}
	if err := s.sign(); err != nil {
		return nil, errors.Join(err, s.closeKernel())
	}
	if err := s.removeStale(); err != nil {
		a.d.log.Warn("cannot remove filters of a dead agent", "netns", name, "err", err)
	}
	return s, nil
}

// nextPrograms are those of a new namespace, and its number.
func (a *spaces) nextPrograms() (uint32, *programs, error) {
	a.lastNumber++
	objs, spare := a.d.objs, a.spare
	switch {
	case a.lastNumber == ownNetns && objs.xdp == nil:
		return a.lastNumber, objs.first, nil
	case spare != nil:
		a.spare = nil
		return a.lastNumber, spare, nil
	}
	p, err := objs.programs(a.lastNumber, objs.xdp != nil)
	return a.lastNumber, p, err
}

// spareOne loads the programs of the next namespace before it comes.
func (a *spaces) spareOne() {
	if a.spare != nil || !a.all() {
		return
	}
	p, err := a.d.objs.programs(a.lastNumber+1, a.d.objs.xdp != nil)
	if err != nil {
		a.d.log.Debug("cannot load spare programs", "err", err) // it is tried and told again when they are needed
		return
	}
	a.spare = p
}

// toEnter is the namespace that a netlink socket is to be made in; nil for the
// agent's own, since even entering that takes CAP_SYS_ADMIN.
func (a *spaces) toEnter(fd int) *netns.NsHandle {
	if fd == a.own {
		return nil
	}
	return new(netns.NsHandle(fd))
}

func (a *spaces) netlinkIn(fd int) (*netlink.Handle, error) {
	if ns := a.toEnter(fd); ns != nil {
		return netlink.NewHandleAt(*ns, unix.NETLINK_ROUTE)
	}
	return netlink.NewHandle(unix.NETLINK_ROUTE)
}

// watch follows link events until done; an overrun of the socket is answered by
// a new subscription and a full dump, a refused subscription by a dump and another
// try. The descriptor of another namespace is its own to close: while it lives, it
// may enter it.
func (s *space) watch() {
	if s.fd != s.all.own {
		defer unix.Close(s.fd)
	}
	for {
		ended, err := s.subscribe()
		if ended {
			return
		}
		if err == nil {
			s.all.d.log.Warn("link events were lost, reading all links again", "netns", s.name)
			s.refusals.Store(0)
			continue
		}
		wait := backOff(int(s.refusals.Add(1)))
		s.all.d.log.Warn("cannot follow links, reading all of them now and trying again", "netns", s.name, "err", err, "wait", wait)
		s.locked(s.resync)
		select {
		case <-s.done:
			return
		case <-time.After(wait):
		}
	}
}

// subscribe follows link events as long as it can; true: told to stop. The error
// is why there are none at all.
func (s *space) subscribe() (ended bool, err error) {
	events := make(chan netlink.LinkUpdate, 256)
	stop := make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(events, stop, netlink.LinkSubscribeOptions{
		Namespace: s.all.toEnter(s.fd), ReceiveBufferSize: 4 << 20,
		ErrorCallback: func(err error) { s.all.d.log.Debug("link events end", "netns", s.name, "err", err) },
	}); err != nil {
		return false, fmt.Errorf("subscribe to links: %w", err)
	}
	s.locked(s.resync)
	ended = s.follow(events)
	close(stop)
	for range events { // until the subscription has closed it
	}
	return ended, nil
}

// follow handles events; true when told to stop, false when the channel closed.
func (s *space) follow(events <-chan netlink.LinkUpdate) bool {
	for {
		select {
		case <-s.done:
			return true
		case ev, ok := <-events:
			if !ok {
				return false
			}
			s.locked(func() error {
				if ev.Header.Type == unix.RTM_DELLINK && ev.IfInfomsg.Family == unix.AF_UNSPEC {
					return s.gone(int(ev.Index))
				}
				if ev.Header.Type == unix.RTM_NEWLINK && ev.IfInfomsg.Family == unix.AF_UNSPEC {
					return s.seen(ev.Link)
				}
				return nil
			})
			s.all.look()
		}
	}
}

// locked runs f unless everything is being detached, and logs what it says.
func (s *space) locked(f func() error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.all.detached || s.closed {
		return
	}
	if err := f(); err != nil {
		s.all.d.log.Warn("cannot follow a link", "netns", s.name, "err", err)
	}
}

// resync makes the devices those that the kernel lists now.
func (s *space) resync() error {
	links, err := s.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	if err == nil { // an interrupted dump may miss one: the events bring what changed
		there := map[int]bool{}
		for _, l := range links {
			there[l.Attrs().Index] = true
		}
		for index := range s.devices {
			if !there[index] {
				errs = append(errs, s.gone(index))
			}
		}
	}
	for _, l := range links {
		errs = append(errs, s.seen(l))
	}
	return errors.Join(errs...)
}

// seen is called for a link that is there: new, renamed or unchanged.
func (s *space) seen(l netlink.Link) error {
	attrs := l.Attrs()
	dev := s.devices[attrs.Index]
	if dev == nil {
		dev = &device{index: attrs.Index}
		s.devices[attrs.Index] = dev
	}
	if dev.name != attrs.Name {
		dev.name = attrs.Name
		for _, p := range dev.points {
			s.all.d.points.rename(p, dev.name)
		}
	}
	dev.l2Len = 0
	if attrs.EncapType == "ether" || attrs.EncapType == "loopback" {
		dev.l2Len = 14
	}
	dev.class = classOf(l)
	dev.alone = attrs.EncapType == "loopback"
	err := s.settle(dev) // before anything else is asked: packets may be under way
	if s.devices[dev.index] == dev {
		s.link(dev, l)
	}
	return err
}

// close ends the watching.
func (s *space) close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.done)
	return s.closeKernel()
}

func (s *space) closeKernel() error {
	s.handle.Close()
	var errs []error
	if s.signed >= 0 {
		errs = append(errs, unix.Close(s.signed))
	}
	if s.relays != nil {
		errs = append(errs, s.relays.close())
	}
	if s.progs != s.all.d.objs.first { // which is the objects' to close
		errs = append(errs, s.progs.close())
	}
	return errors.Join(errs...)
}
