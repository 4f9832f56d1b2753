// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// filterName starts the name of every clsact filter of ours; the agent that
// owns it follows, so that the filters of a dead one can be told and removed.
// qdiscMade ends it when an agent made the qdisc.
const (
	filterName = "weft_"
	qdiscMade  = "/qdisc"
)

// lastPriority is the last that is tried for clsact filters; the first that is free
// runs first.
const lastPriority = 16

func madeQdisc(f *netlink.BpfFilter) bool { return strings.HasSuffix(f.Name, qdiscMade) }

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// watched is what is attached to one device, from attaching to detaching it.
type watched struct {
	in    *space
	index int
	since time.Time

	mu     sync.Mutex // a hand-over or the end, one at a time
	closed atomic.Bool
	hooks  []attachment
}

// attachment is a program at a hook: by a clsact filter, by a link (tcx, XDP),
// or, while it is handed over, by both.
type attachment struct {
	hook   flows.Hook
	filter io.Closer
	link   link.Link
	noted  bool // in spaces.notes
}

func (h *attachment) closeFilter() error {
	if h.filter == nil {
		return nil
	}
	err := h.filter.Close()
	if err == nil {
		h.filter = nil
	}
	return err
}

func (w *watched) has(hook flows.Hook) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.hooks, func(h attachment) bool { return h.hook == hook })
}

// silence ends the counting. What takes a grace period to close is left to close,
// and passes everything on until then.
func (w *watched) silence(silent *ebpf.Program) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed.Store(true)
	var errs []error
	for i := len(w.hooks) - 1; i >= 0; i-- {
		h := &w.hooks[i]
		errs = append(errs, h.closeFilter())
		switch {
		case h.link == nil:
		case h.hook == flows.HookXDP:
			errs = append(errs, h.link.Close())
			h.link = nil
		default:
			if err := h.link.Update(silent); err != nil { // the device went, if nothing else
				errs = append(errs, h.link.Close())
				h.link = nil
			}
		}
	}
	return errors.Join(errs...)
}

func loadSilent() (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "weft_silent", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TC_ACT_UNSPEC
	})
	if err != nil {
		return nil, fmt.Errorf("load program weft_silent: %w", err)
	}
	return p, nil
}

// close ends every attachment, the last first.
func (w *watched) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed.Store(true)
	var errs []error
	for i := len(w.hooks) - 1; i >= 0; i-- {
		h := &w.hooks[i]
		errs = append(errs, h.closeFilter())
		if h.link != nil {
			errs = append(errs, h.link.Close())
		}
		errs = append(errs, w.forgetNote(h))
	}
	w.hooks = nil
	return errors.Join(errs...)
}

// attachHook puts a program on a device's hook. The caller is in its namespace.
// Programs run first, so that what another program on the hook consumes is seen.
func (s *space) attachHook(ifindex int, hook flows.Hook) (attachment, error) {
	prog := s.progs.of(hook)
	switch {
	case hook == flows.HookXDP:
		mode := link.XDPDriverMode
		if s.all.d.opts.XDP == XDPGeneric {
			mode = link.XDPGenericMode
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: mode})
		if err != nil {
			return attachment{}, fmt.Errorf("attach xdp: %w", err)
		}
		return attachment{hook: hook, link: l}, nil
	case s.all.hooks == HooksClsact:
		filter, err := s.attachFilter(ifindex, hook, prog)
		return attachment{hook: hook, filter: filter}, err
	case s.all.soon:
		at, err := s.attachSoon(ifindex, hook)
		if err == nil || errors.Is(err, unix.ENODEV) {
			return at, err
		}
		s.all.d.turnOff(Capability{Name: "new devices at once", Needs: "clsact (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)", Err: err.Error()})
	}
	l, err := attachTCX(ifindex, hook, prog)
	return attachment{hook: hook, link: l}, err
}

func attachTCX(ifindex int, hook flows.Hook, prog *ebpf.Program) (link.Link, error) {
	at := ebpf.AttachTCXIngress
	if hook == flows.HookEgress {
		at = ebpf.AttachTCXEgress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: at, Anchor: link.Head()})
	if err != nil {
		return nil, fmt.Errorf("attach tcx %s: %w", hook, err)
	}
	return l, nil
}

func hookParent(hook flows.Hook) uint32 {
	if hook == flows.HookEgress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// attachFilter adds a clsact filter in direct-action mode, and the qdisc when it
// is not there. The name tells whether the qdisc is the last agent's to remove.
func (s *space) attachFilter(ifindex int, hook flows.Hook, prog *ebpf.Program) (io.Closer, error) {
	made, err := s.addClsact(ifindex)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%s/%s", filterName, hook, s.all.owner)
	if made {
		name += qdiscMade
	}
	f := &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifindex, Parent: hookParent(hook), Protocol: unix.ETH_P_ALL},
		Fd:           prog.FD(),
		Name:         name,
		DirectAction: true,
	}
	for err = unix.EINVAL; errors.Is(err, unix.EINVAL) && f.Priority < lastPriority; {
		f.Priority++ // one that a filter of another kind or protocol has takes no other
		err = s.handle.FilterAdd(f)
	}
	if err != nil {
		err = fmt.Errorf("add clsact %s filter (CONFIG_NET_CLS_BPF): %w", hook, err)
		if made {
			err = errors.Join(err, s.removeUnused(ifindex))
		}
		return nil, err
	}
	return closerFunc(func() error {
		err := s.removeFilters(ifindex, func(n string) bool { return n == name })
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
			return nil // the device went, and the filter with it
		}
		return err
	}), nil
}

// addClsact reports whether an agent made the qdisc: this one now, or one whose
// filters are there.
func (s *space) addClsact(ifindex int) (made bool, err error) {
	switch err := s.handle.QdiscAdd(clsact(ifindex)); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST):
		ours, _, err := s.filters(ifindex)
		return slices.ContainsFunc(ours, madeQdisc), err
	default:
		return false, fmt.Errorf("add clsact qdisc (CONFIG_NET_SCH_INGRESS): %w", err)
	}
}

// filters lists the agents' filters on a device and counts the others.
func (s *space) filters(ifindex int) (ours []*netlink.BpfFilter, others int, err error) {
	dev := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	for _, hook := range []flows.Hook{flows.HookIngress, flows.HookEgress} {
		filters, err := s.handle.FilterList(dev, hookParent(hook))
		if err != nil {
			return nil, 0, fmt.Errorf("list clsact %s filters: %w", hook, err)
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterName) {
				ours = append(ours, b)
			} else {
				others++
			}
		}
	}
	return ours, others, nil
}

// removeFilters removes the agents' filters whose name matches, and the clsact
// qdisc when an agent made it and nobody uses it any more.
func (s *space) removeFilters(ifindex int, match func(name string) bool) error {
	ours, others, err := s.filters(ifindex)
	if err != nil {
		return err
	}
	var errs []error
	made := false
	for _, f := range ours {
		if !match(f.Name) {
			others++
			continue
		}
		made = made || madeQdisc(f)
		if err := s.handle.FilterDel(f); err != nil {
			errs = append(errs, fmt.Errorf("remove clsact filter %s: %w", f.Name, err))
		}
	}
	if made && others == 0 {
		errs = append(errs, s.removeClsact(ifindex))
	}
	return errors.Join(errs...)
}

// removeUnused removes the qdisc unless it has a filter.
func (s *space) removeUnused(ifindex int) error {
	ours, others, err := s.filters(ifindex)
	if err != nil || len(ours)+others > 0 {
		return err
	}
	return s.removeClsact(ifindex)
}

func (s *space) removeClsact(ifindex int) error {
	if err := s.handle.QdiscDel(clsact(ifindex)); err != nil {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

func clsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
}

// removeStale removes the clsact filters of agents that died without removing them.
func (s *space) removeStale() error {
	qdiscs, err := s.handle.QdiscList(nil)
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	var errs []error
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		errs = append(errs, s.removeFilters(q.Attrs().LinkIndex, func(name string) bool {
			_, owner, ok := strings.Cut(name, "/")
			return ok && !s.ownerLives(strings.TrimSuffix(owner, qdiscMade))
		}))
	}
	return errors.Join(errs...)
}

// sign binds an abstract socket with the agent's name in the namespace. It is
// there as long as the agent is, whatever ends it, and whoever shares the
// namespace can tell: process numbers mean nothing in another pid namespace.
func (s *space) sign() error {
	fd, err := s.bind(s.all.owner)
	if err != nil {
		return fmt.Errorf("sign network namespace %q: %w", s.name, err)
	}
	s.signed = fd
	return nil
}

func (s *space) ownerLives(owner string) bool {
	fd, err := s.bind(owner)
	if err == nil {
		unix.Close(fd)
	}
	return err != nil // bound by its owner, or not to be known
}

func (s *space) bind(owner string) (fd int, err error) {
	err = inNetns(s.all.own, s.fd, func() error {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + filterName + owner}); err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}
