// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// rescanEvery is how often "all" looks for namespaces that came or went, and how
// long a watched one may outlive its name. A new link looks at once.
const rescanEvery = time.Second

// spaces is every watched network namespace. One lock: attaching is rare, and
// the kernel serialises it anyway (RTNL).
type spaces struct {
	d     *Dataplane
	own   int // fd of the agent's namespace
	hooks Hooks
	owner string // this process, in the names of clsact filters

	mu                  sync.Mutex
	interfaces, exclude []string
	byCookie            map[uint64]*space
	refused             map[string]string // namespaces that could not be opened, by path: said once
	nextNumber          uint32
	detached            bool
	attachErr           error // of the last device that could not be watched

	rescan chan struct{}
	stop   chan struct{}
	wg     sync.WaitGroup
}

func openSpaces(d *Dataplane) (*spaces, error) {
	a := &spaces{
		d: d, interfaces: d.opts.Interfaces, exclude: d.opts.Exclude, byCookie: map[uint64]*space{},
		refused: map[string]string{}, rescan: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	var err error
	if a.own, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the agent's network namespace: %w", err)
	}
	if a.owner, err = processOwner(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if a.hooks, err = chooseHooks(d); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if err := a.openAll(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	a.wg.Go(a.follow)
	return a, nil
}

// chooseHooks takes tcx where the kernel has it.
func chooseHooks(d *Dataplane) (Hooks, error) {
	if d.opts.Hooks == HooksClsact {
		return HooksClsact, nil
	}
	err := haveTCX(d)
	switch {
	case err == nil:
		return HooksTCX, nil
	case d.opts.Hooks == HooksTCX:
		return "", fmt.Errorf("attach tcx: %w: it needs Linux 6.6; use clsact", err)
	}
	d.turnOff(Capability{Name: "tcx", Needs: "Linux 6.6", Err: err.Error()})
	return HooksClsact, nil
}

// haveTCX asks for an attachment to a device that cannot exist: a kernel with tcx
// answers ENODEV.
func haveTCX(d *Dataplane) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: d.objs.first.ingress, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// openAll opens the agent's own namespace and those that were asked for. Every
// mistake in the options is reported at once.
func (a *spaces) openAll() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	own, err := a.openSpace("", a.own)
	if err != nil {
		return err
	}
	errs := []error{own.checkLiterals(a.interfaces)}
	for _, name := range a.d.opts.Netns {
		if name == "all" {
			continue
		}
		if err := a.openNamed(namespacePath(name)); err != nil {
			errs = append(errs, fmt.Errorf("watch network namespace %q: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.findNew()
	if a.attachErr != nil && !a.anyAttached() {
		return fmt.Errorf("%w: no interface can be watched; attaching needs root or CAP_NET_ADMIN", a.attachErr)
	}
	return nil
}

func (a *spaces) anyAttached() bool {
	return slices.ContainsFunc(a.d.points.status(), func(p PointStatus) bool { return p.Attached })
}

// openNamed opens the namespace at path unless it is watched already.
func (a *spaces) openNamed(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if _, err := a.openSpace(path, fd); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return nil
}

func (a *spaces) openSpace(name string, fd int) (*space, error) {
	cookie, err := netnsCookie(a.own, fd)
	if err != nil {
		return nil, err
	}
	if s := a.byCookie[cookie]; s != nil {
		if name != "" {
			return s, unix.Close(fd)
		}
		return s, nil
	}
	a.nextNumber++
	s, err := newSpace(a, name, fd, cookie, a.nextNumber)
	if err != nil {
		return nil, err
	}
	a.byCookie[cookie] = s
	a.joinDomains()
	a.wg.Go(s.watch)
	return s, nil
}

// all reports whether every namespace is to be found and watched.
func (a *spaces) all() bool { return slices.Contains(a.d.opts.Netns, "all") }

// findNew opens the namespaces that are there and not watched, and lets go of
// those that nobody but us holds.
func (a *spaces) findNew() {
	watched := map[inode]*space{}
	for _, s := range a.byCookie {
		watched[s.ino] = s
	}
	found := map[inode]string{}
	if a.all() {
		found = discoverNetns()
	}
	for _, name := range a.d.opts.Netns { // one that was deleted and made again is another
		p := namespacePath(name)
		if i, err := inodeOf(p); err == nil && name != "all" && isNetns(p) {
			found[i] = p
		}
	}
	for _, s := range watched {
		if s.name == "" {
			continue
		}
		if i, err := inodeOf(s.name); err == nil && i == s.ino {
			continue
		}
		if p, ok := found[s.ino]; ok {
			s.name = p // the process that led to it ended, another is in it
			continue
		}
		a.drop(s)
	}
	for i, p := range found {
		if watched[i] != nil {
			continue
		}
		if err := a.openNamed(p); err != nil && !errors.Is(err, os.ErrNotExist) && a.refused[p] != err.Error() {
			if len(a.refused) < 1024 {
				a.refused[p] = err.Error()
			}
			a.d.log.Warn("cannot watch network namespace", "netns", p, "err", err)
		}
	}
}

// drop lets go of a namespace that is gone.
func (a *spaces) drop(s *space) {
	if err := errors.Join(s.detachAll(), s.close()); err != nil {
		a.d.log.Warn("cannot let go of network namespace", "netns", s.name, "err", err)
	}
	delete(a.byCookie, s.cookie)
	a.d.log.Info("network namespace gone", "netns", s.name)
}

func (a *spaces) follow() {
	tick := time.NewTicker(rescanEvery)
	defer tick.Stop()
	var measure bool
	for {
		select {
		case <-a.stop:
			return
		case <-tick.C:
			measure = a.d.opts.Drops
		case <-a.rescan:
			measure = false
		}
		a.mu.Lock()
		if !a.detached {
			a.findNew()
			if measure {
				a.readDeviceDrops()
			}
		}
		a.mu.Unlock()
	}
}

// look asks for a rescan soon.
func (a *spaces) look() {
	if !a.all() {
		return
	}
	select {
	case a.rescan <- struct{}{}:
	default:
	}
}

func (a *spaces) reload(interfaces, exclude []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.interfaces, a.exclude = interfaces, exclude
	var errs []error
	for _, s := range a.byCookie {
		errs = append(errs, s.reconcile())
	}
	return errors.Join(errs...)
}

// detachAll stops every program; their packets can be read when it returns.
func (a *spaces) detachAll() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.d.opts.Drops {
		a.readDeviceDrops() // the last word of devices that are still watched
	}
	a.detached = true
	var errs []error
	for _, s := range a.byCookie {
		errs = append(errs, s.detachAll())
	}
	return errors.Join(append(errs, waitForPrograms())...)
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL

// waitForPrograms returns when every program run that had begun has ended: the
// kernel's membarrier waits for an RCU grace period.
func waitForPrograms() error {
	if _, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); e != 0 {
		return fmt.Errorf("wait for running programs: %w", e)
	}
	return nil
}

func (a *spaces) close() error {
	var errs []error
	select {
	case <-a.stop:
		return nil
	default:
		close(a.stop)
	}
	a.mu.Lock()
	a.detached = true
	for _, s := range a.byCookie {
		errs = append(errs, s.detachAll(), s.close())
	}
	a.mu.Unlock()
	a.wg.Wait()
	return errors.Join(append(errs, unix.Close(a.own))...)
}

// checkLiterals reports the interfaces that were named without a wildcard and do
// not exist.
func (s *space) checkLiterals(interfaces []string) error {
	var errs []error
	var have []string
	for _, dev := range s.devices {
		have = append(have, dev.name)
	}
	slices.Sort(have)
	for _, name := range interfaces {
		if isLiteral(name) && !slices.Contains(have, name) {
			errs = append(errs, fmt.Errorf("no interface named %q: there are %s", name, strings.Join(have, ", ")))
		}
	}
	return errors.Join(errs...)
}

func isLiteral(glob string) bool { return !strings.ContainsAny(glob, `*?[\`) }

// hooksOf lists the hooks to use on a device.
func (a *spaces) hooksOf() []flows.Hook {
	if a.d.objs.xdp != nil {
		return []flows.Hook{flows.HookIngress, flows.HookEgress, flows.HookXDP}
	}
	return []flows.Hook{flows.HookIngress, flows.HookEgress}
}
