// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// filterName starts the name of every clsact filter of ours; the process that
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

// attachHook puts prog on a device's hook. The caller is in its namespace.
// Programs run first, so that what another program on the hook consumes is seen.
func (s *space) attachHook(ifindex int, hook flows.Hook, prog *ebpf.Program) (io.Closer, error) {
	switch {
	case hook == flows.HookXDP:
		mode := link.XDPDriverMode
		if s.all.d.opts.XDP == XDPGeneric {
			mode = link.XDPGenericMode
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: mode})
		if err != nil {
			return nil, fmt.Errorf("attach xdp: %w", err)
		}
		return l, nil
	case s.all.hooks == HooksTCX:
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
	return s.attachFilter(ifindex, hook, prog)
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
		return nil, fmt.Errorf("add clsact %s filter: %w", hook, err)
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
	q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
	switch err := s.handle.QdiscAdd(q); {
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
		q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
		}}
		if err := s.handle.QdiscDel(q); err != nil {
			errs = append(errs, fmt.Errorf("remove clsact qdisc: %w", err))
		}
	}
	return errors.Join(errs...)
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
			return ok && !ownerLives(strings.TrimSuffix(owner, qdiscMade))
		}))
	}
	return errors.Join(errs...)
}

// processOwner names this process: pid and start time, which together are never
// reused.
func processOwner() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d/%s", os.Getpid(), start), nil
}

func ownerLives(owner string) bool {
	pid, start, ok := strings.Cut(owner, "/")
	n, err := strconv.Atoi(pid)
	if !ok || err != nil {
		return false
	}
	now, err := startTime(n)
	return err == nil && now == start
}

// startTime is field 22 of /proc/PID/stat: ticks since boot.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("read the start time of process %d: %d fields", pid, len(fields))
	}
	return fields[19], nil
}
