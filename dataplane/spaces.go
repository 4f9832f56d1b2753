// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	d      *Dataplane
	own    int // fd of the agent's namespace
	hooks  Hooks
	owner  string        // this process, in the names of clsact filters
	notes  *ebpf.Map     // see handover.go; nil: nothing is handed over
	silent *ebpf.Program // counts nothing; nil without tcx

	mu                  sync.Mutex
	interfaces, exclude []string
	byCookie            map[uint64]*space
	domains             atomic.Pointer[map[uint64]uint64] // by cookie; read by the drain without the lock
	detached            bool
	attachErr           error      // of the last device that could not be watched
	soon                bool       // devices that come now are attached by a filter first
	fresh               []*watched // those, the oldest first
	handOverAge         time.Duration
	unseenRead          time.Time
	unseenReads         int

	// The goroutine's that opens namespaces.
	refused    map[string]string // namespaces that could not be opened, by path: said once
	lastNumber uint32
	spare      *programs // of the namespace with the next number; nil: none

	rescan chan struct{}
	ripen  chan struct{} // looks at fresh now
	stop   chan struct{}
	wg     sync.WaitGroup
}

func openSpaces(d *Dataplane) (*spaces, error) {
	a := &spaces{
		d: d, interfaces: d.opts.Interfaces, exclude: d.opts.Exclude, byCookie: map[uint64]*space{},
		refused: map[string]string{}, rescan: make(chan struct{}, 1), stop: make(chan struct{}), handOverAge: handOverAge,
		ripen: make(chan struct{}),
	}
	var err error
	if a.own, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the agent's network namespace: %w", err)
	}
	a.owner = rand.Text()
	if a.hooks, err = chooseHooks(d); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if a.hooks == HooksTCX {
		if a.silent, err = loadSilent(); err != nil {
			return nil, errors.Join(err, a.close())
		}
	}
	if err := a.openAll(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if d.opts.Hooks == HooksAuto && a.hooks == HooksTCX && !preemptibleSoftirqs() {
		if a.notes, err = newNotes(); err != nil {
			return nil, errors.Join(err, a.close())
		}
		a.mu.Lock()
		a.soon = true
		a.mu.Unlock()
		a.wg.Go(a.handOverAll)
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
	if err := a.openSpace("", a.own); err != nil {
		return err
	}
	var errs []error
	for _, name := range a.d.opts.Netns {
		if name == "all" {
			continue
		}
		if err := a.openNamed(namespacePath(name)); err != nil {
			errs = append(errs, fmt.Errorf("dataplane.netns: cannot watch network namespace %q: %w", name, err))
		}
	}
	a.findNew(true)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := errors.Join(append(errs, a.checkLiterals(a.interfaces))...); err != nil {
		return err
	}
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
	fd, err := openNetns(path)
	if err != nil {
		return err
	}
	if err := a.openSpace(path, fd); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return nil
}

// openSpace is called by one goroutine at a time, without the lock: programs take
// the kernel 30 ms, and new devices elsewhere are not to wait for them.
func (a *spaces) openSpace(name string, fd int) error {
	cookie, err := netnsCookie(a.own, fd)
	if err != nil {
		return err
	}
	a.mu.Lock()
	watched := a.byCookie[cookie] != nil
	a.mu.Unlock()
	if watched {
		if name != "" {
			return unix.Close(fd)
		}
		return nil
	}
	s, err := newSpace(a, name, fd, cookie)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	err = s.resync()
	if err == nil && a.detached {
		err = errDetached
	}
	if err != nil {
		return errors.Join(err, s.detachAll(), s.closeKernel())
	}
	a.byCookie[cookie] = s
	a.joinDomains()
	a.wg.Go(s.watch)
	return nil
}

var errDetached = errors.New("the data plane is stopping")

// all reports whether every namespace is to be found and watched.
func (a *spaces) all() bool { return slices.Contains(a.d.opts.Netns, "all") }

func (a *spaces) reload(interfaces, exclude []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.checkLiterals(interfaces); err != nil {
		return err
	}
	a.interfaces, a.exclude = interfaces, exclude
	var errs []error
	for _, s := range a.byCookie {
		errs = append(errs, s.reconcile())
	}
	return errors.Join(errs...)
}

// detachAll stops every program; their packets can be read when it returns. tcx
// links are close's to close, because each takes a grace period.
func (a *spaces) detachAll() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.d.opts.Drops {
		a.readDeviceDrops() // the last word of devices that are still watched
	}
	a.detached = true
	var errs []error
	for _, s := range a.byCookie {
		for _, dev := range s.devices {
			if dev.on != nil {
				errs = append(errs, dev.on.silence(a.silent))
			}
		}
	}
	errs = append(errs, waitForPrograms())
	a.readUnseen() // nothing that devices count from now on is seen
	for _, s := range a.byCookie {
		for _, dev := range s.devices {
			s.release(dev)
		}
	}
	return errors.Join(errs...)
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
	a.mu.Unlock() // and none is opened from here on
	a.wg.Wait()
	if a.spare != nil {
		errs = append(errs, a.spare.close())
	}
	return errors.Join(append(errs, a.silent.Close(), a.notes.Close(), unix.Close(a.own))...)
}

// checkLiterals reports the interfaces that were named without a wildcard and do
// not exist in any watched namespace.
func (a *spaces) checkLiterals(interfaces []string) error {
	have := map[string]bool{}
	for _, s := range a.byCookie {
		for _, dev := range s.devices {
			have[dev.name] = true
		}
	}
	var errs []error
	for _, name := range interfaces {
		if isLiteral(name) && !have[name] {
			errs = append(errs, wrong("dataplane.interfaces: no interface named %q in the watched network namespaces: there are %s; "+
				"correct the name, or write a pattern such as %q for one that comes later", name, listed(have), name+"*"))
		}
	}
	return errors.Join(errs...)
}

// listed is the names in order, the first of them if they are many.
func listed(names map[string]bool) string {
	const most = 20
	all := slices.Sorted(maps.Keys(names))
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

func isLiteral(glob string) bool { return !strings.ContainsAny(glob, `*?[\`) }

// hooksOf lists the hooks to use on a device.
func (a *spaces) hooksOf() []flows.Hook {
	if a.d.objs.xdp != nil {
		return []flows.Hook{flows.HookIngress, flows.HookEgress, flows.HookXDP}
	}
	return []flows.Hook{flows.HookIngress, flows.HookEgress}
}
