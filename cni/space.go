// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is one network namespace that is followed. It belongs to the goroutine
// that follows.
type space struct {
	ino    inode
	path   string // where it was found
	fd     int
	cookie uint64
	opened int // how many were opened before
	events int // fd of the subscription

	links   map[uint32]*Link
	plugs   map[uint32]*Plug          // of real devices
	addrs   map[uint32][]netip.Prefix // of links
	tunnels map[uint32][]netip.Addr   // peers of VXLAN devices
	over    int                       // links that there was no room for, when they were listed
	stale   bool                      // to be listed again
	peers   map[int]peer              // by the number that this namespace has for others
}

// netlinkDeadline is how long the kernel may take for one message of an answer.
const netlinkDeadline = 2 * time.Second

func (m *Mirror) openSpace(ino inode, path string) (*space, error) {
	fd, err := m.fdOf(ino, path)
	if err != nil {
		return nil, err
	}
	s := &space{
		ino: ino, path: path, fd: fd, events: -1,
		links: map[uint32]*Link{}, plugs: map[uint32]*Plug{}, addrs: map[uint32][]netip.Prefix{}, peers: map[int]peer{}, tunnels: map[uint32][]netip.Addr{},
	}
	err = inNetns(m.own, fd, func() (err error) {
		if s.cookie, err = cookieHere(); err == nil {
			s.events, err = eventsHere()
		}
		return err
	})
	if err == nil {
		err = m.poll.add(s.events, unix.EPOLLIN)
	}
	if err != nil {
		return nil, errors.Join(err, s.close(m.own))
	}
	m.byEvents[s.events] = s
	m.opened++
	s.opened = m.opened
	return s, nil
}

// fdOf is m.own for the agent's own namespace: entering that takes no privilege.
func (m *Mirror) fdOf(ino inode, path string) (int, error) {
	if own, err := inodeOf(ownPath); err == nil && own == ino {
		return m.own, nil
	}
	return openNetns(path, ino)
}

// close leaves the agent's own namespace to the mirror.
func (s *space) close(own int) error {
	var errs []error
	if s.events >= 0 {
		errs = append(errs, unix.Close(s.events))
	}
	if s.fd != own {
		errs = append(errs, unix.Close(s.fd))
	}
	return errors.Join(errs...)
}

// ask opens a netlink socket in the namespace for f.
func (m *Mirror) ask(s *space, f func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := inNetns(m.own, s.fd, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", s.path, err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(netlinkDeadline); err != nil {
		return fmt.Errorf("set a deadline for netlink: %w", err)
	}
	return f(h)
}

// dump makes the links and addresses those that the kernel lists now. Events that
// came before are read after: they change nothing, or what is newer.
func (m *Mirror) dump(s *space) error {
	var links []netlink.Link
	var addrs []netlink.Addr
	err := m.ask(s, func(h *netlink.Handle) (err error) {
		if links, err = whole(h.LinkList); err != nil {
			return fmt.Errorf("list links in %s: %w", s.path, err)
		}
		if addrs, err = whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, unix.AF_UNSPEC) }); err != nil {
			return fmt.Errorf("list addresses in %s: %w", s.path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	there := map[uint32]bool{}
	for _, l := range links {
		there[uint32(l.Attrs().Index)] = true
	}
	for index := range s.links {
		if !there[index] {
			m.remove(s, index)
		}
	}
	s.stale, s.over, s.addrs = false, 0, map[uint32][]netip.Prefix{}
	for _, l := range links {
		if !m.keep(s, newLink(l)) {
			s.over++
		}
	}
	for _, a := range addrs {
		if p, ok := prefix(a); ok {
			m.address(s, uint32(a.LinkIndex), p, true)
		}
	}
	m.readPeers(s)
	m.dirty = true
	return nil
}

// whole repeats a dump that changes interrupted. If they go on, what it brought is
// what there is, and their events follow.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 3 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil
}

func prefix(a netlink.Addr) (netip.Prefix, bool) {
	if a.IPNet == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

// read takes the events of a namespace that are there. An overrun is answered by a
// dump.
func (m *Mirror) read(s *space) {
	for range 256 { // others wait too
		n, _, err := unix.Recvfrom(s.events, m.poll.buffer[:], 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			m.opts.Log.Debug("link events were lost, reading all links again", "netns", s.path)
			m.resyncs++
			s.stale = true
			if err := m.dump(s); err != nil && !gone(err) {
				m.opts.Log.Debug("cannot list links, trying again", "netns", s.path, "err", err)
			}
			continue
		case err != nil:
			s.stale = true
			m.opts.Log.Debug("cannot read link events", "netns", s.path, "err", err)
			return
		}
		messages, err := syscall.ParseNetlinkMessage(m.poll.buffer[:n])
		if err != nil {
			s.stale = true
			continue
		}
		for i := range messages {
			m.apply(s, &messages[i])
		}
	}
}

// apply is one event.
func (m *Mirror) apply(s *space, msg *syscall.NetlinkMessage) {
	switch msg.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if index, p, ok := parseAddress(msg.Data); ok {
			m.address(s, index, p, msg.Header.Type == unix.RTM_NEWADDR)
		}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(msg.Data) < unix.SizeofIfInfomsg || msg.Data[0] != unix.AF_UNSPEC {
			return // a bridge telling of its port
		}
		if msg.Header.Type == unix.RTM_DELLINK {
			m.remove(s, native.Uint32(msg.Data[4:8]))
			return
		}
		header := unix.NlMsghdr{Type: msg.Header.Type}
		l, err := netlink.LinkDeserialize(&header, append([]byte(nil), msg.Data...)) // it keeps slices of it
		if err != nil {
			s.stale = true
			return
		}
		if !m.keep(s, newLink(l)) {
			s.stale = true
		}
	}
}

// keep takes over a link; false: there is no room.
func (m *Mirror) keep(s *space, l *Link) bool {
	was := s.links[l.Index]
	if was == nil {
		if m.links >= m.opts.MaxLinks {
			return false
		}
		m.links++
		if l.Tap != nil || strings.HasSuffix(l.Kind, "tap") {
			m.looker.taps.Add(1)
			s.stale = true // whoever made it tells it owner and persistence next, without an event
		}
		m.looker.soon() // whoever made it may have made a namespace or a process too
	}
	if was != nil {
		l.VFs = max(l.VFs, was.VFs) // events do not tell
		if reflect.DeepEqual(l, was) {
			return true
		}
	}
	s.links[l.Index] = l
	if l.Bus != "" && l.Kind == "" {
		s.plugs[l.Index] = m.plug(s, l)
	}
	m.dirty = true
	return true
}

func (m *Mirror) remove(s *space, index uint32) {
	if s.links[index] == nil {
		return
	}
	delete(s.links, index)
	delete(s.addrs, index)
	delete(s.tunnels, index)
	delete(s.plugs, index)
	m.links--
	m.dirty = true
	for _, t := range m.spaces {
		t.stale = t.stale || t.over > 0 // there is room
	}
}

func (m *Mirror) address(s *space, index uint32, p netip.Prefix, there bool) {
	if s.links[index] == nil {
		return
	}
	s.addrs[index] = withAddress(s.addrs[index], p, there)
	m.dirty = true
}

// peer is what a namespace is known as by another.
type peer struct {
	cookie uint64 // 0: not followed,
	asked  int    // as far as was asked: of the namespaces up to this one
}

// peer is the cookie of the followed namespace that s knows by a number; 0: none.
// Each namespace is asked for once.
func (m *Mirror) peer(s *space, id int) uint64 {
	if p := s.peers[id]; p.cookie != 0 || p.asked == m.opened {
		return p.cookie
	}
	err := m.ask(s, func(h *netlink.Handle) error {
		for _, t := range m.nearest(s) {
			if t.opened <= s.peers[id].asked {
				continue
			}
			if got, err := h.GetNetNsIdByFd(t.fd); err == nil && got >= 0 {
				if s.peers[got] = (peer{cookie: t.cookie}); got == id {
					return nil
				}
			}
		}
		s.peers[id] = peer{asked: m.opened}
		return nil
	})
	if err != nil && !gone(err) {
		m.opts.Log.Debug("cannot tell namespaces apart", "netns", s.path, "err", err)
	}
	return s.peers[id].cookie
}

// nearest is the other namespaces, those first that are most likely at a far end:
// the agent's own, then those with the most devices.
func (m *Mirror) nearest(s *space) []*space {
	all := m.byAge(s)
	rest := all
	if len(all) > 0 && all[0].fd == m.own {
		rest = all[1:]
	}
	slices.SortStableFunc(rest, func(a, b *space) int { return cmp.Compare(len(b.links), len(a.links)) })
	return all
}
