// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"weft/flows"
)

// people is who is there, as the processes say. It is never written to once it is
// shared.
type people struct {
	found    map[inode]string // every network namespace that has a name or a process, and its path
	spaces   map[inode]*crowd // who is in each
	taps     map[string][]*holder
	macvtaps map[uint32][]*holder // by ifindex
	host     inode                // the namespace that the host's own is taken for
	hostSure uint8                // in percent
	hostWhy  string
}

// crowd is who is in one network namespace.
type crowd struct {
	containers []Container // different ones, at most maxLooked
	entity     *flows.Entity
	guestSince time.Time // when the process of the entity's sandbox began; zero: it is none
}

// Bounds of looking at processes.
const (
	maxLooked   = 16    // processes of one namespace whose cgroups are read, the oldest
	maxPeople   = 65536 // processes that are remembered; more are read anew each time
	lookEvery   = time.Second
	lookPart    = 19 // looking takes at most a twentieth of a CPU,
	lookPartNew = 4  // a fifth while devices or namespaces come
)

// looker reads processes. Its goroutine may wait for /proc; nobody waits for it.
type looker struct {
	opts   Options
	known  map[uint32]*known // by PID; at most maxPeople
	last   *people
	full   time.Time // when every process was last asked for taps
	wake   chan struct{}
	latest *atomic.Pointer[people]
	wants  *atomic.Bool   // a tap is in use and nobody that was asked has it
	taps   *atomic.Uint64 // that came so far
}

// known is what was found out of a process. It holds while the process is the same
// and has the same name and namespace: a runtime sets those up before it calls the
// program.
type known struct {
	process
	ns        inode
	seen      bool // in the round that is under way
	settled   bool // the container was read twice, with the same result
	first     time.Time
	born      time.Time
	container Container
	exe       string
	guest     *guest // nil: no virtual machine or sandbox
	holds     *held  // nil: no tap
	asked     time.Time
	taps      uint64 // that had come then
}

func newLooker(opts Options) looker {
	return looker{opts: opts, known: map[uint32]*known{}, wake: make(chan struct{}, 1), latest: new(atomic.Pointer[people]), wants: new(atomic.Bool), taps: new(atomic.Uint64)}
}

// soon makes it look again. Any goroutine may call it.
func (l *looker) soon() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take is what was found since it was last called; nil: nothing new.
func (l *looker) take() *people { return l.latest.Swap(nil) }

// run looks until stop, and calls tell when there is something to take.
func (l *looker) run(stop <-chan struct{}, tell func()) {
	tick := time.NewTimer(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-l.wake:
		case <-tick.C:
		}
		began, last := time.Now(), l.last
		if now := l.look(); last == nil || !reflect.DeepEqual(now, last) {
			l.latest.Store(now)
			tell()
		}
		took := time.Since(began)
		rest := time.NewTimer(min(lookPartNew*took, lookEvery))
		select {
		case <-stop:
			rest.Stop()
			return
		case <-rest.C:
		}
		tick.Reset(max(lookEvery, lookPart*took))
	}
}

// look reads all processes.
func (l *looker) look() *people {
	p := &people{found: namedNetns(), spaces: map[inode]*crowd{}, taps: map[string][]*holder{}, macvtaps: map[uint32][]*holder{}}
	if own, err := inodeOf(ownPath); err == nil {
		if _, named := p.found[own]; !named {
			p.found[own] = ownPath
		}
	}
	all, err := pids()
	if err != nil {
		l.opts.Log.Debug("cannot list processes", "err", err)
	}
	crowds := map[inode][]*known{}
	for _, pid := range all {
		if k := l.meet(pid); k != nil {
			crowds[k.ns] = append(crowds[k.ns], k)
		}
	}
	for pid, k := range l.known {
		if !k.seen {
			delete(l.known, pid)
		}
		k.seen = false
	}
	p.findHost(crowds)
	everybody := l.wants.Load() && time.Since(l.full) > 10*time.Second
	if everybody {
		l.full = time.Now()
	}
	for ns, crowd := range crowds {
		l.ask(p, ns, crowd, everybody)
	}
	l.last = p
	return p
}

// meet reads what may have changed of a process; nil: it ended, or we may not look.
func (l *looker) meet(pid uint32) *known {
	now, err := readProcess(pid)
	if err != nil {
		return nil
	}
	ns, err := now.netns()
	if err != nil {
		return nil
	}
	k := l.known[pid]
	if k == nil || k.Start != now.Start || k.Comm != now.Comm || k.ns != ns {
		k = &known{process: now, ns: ns, first: time.Now(), born: startOf(now), exe: now.exe()}
		if len(l.known) < maxPeople {
			l.known[pid] = k
		}
	}
	k.Parent, k.seen = now.Parent, true
	return k
}

// ask finds out who is in a namespace.
func (l *looker) ask(p *people, ns inode, all []*known, everybody bool) {
	slices.SortFunc(all, func(a, b *known) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.PID, b.PID)) })
	if _, named := p.found[ns]; !named {
		p.found[ns] = procPath(all[0].PID, "ns/net")
	}
	c := &crowd{}
	for i, k := range all {
		l.askGuest(p, k, everybody)
		if i < maxLooked && ns != p.host && l.opts.Containers {
			l.askContainer(k)
			if id := k.container.ID; id != "" && !slices.ContainsFunc(c.containers, func(o Container) bool { return o.ID == id }) {
				c.containers = append(c.containers, k.container)
			}
		}
	}
	if ns != p.host && isNode(all) {
		c.containers = nil
		p.spaces[ns] = c
		c.entity = &flows.Entity{Layer: flows.LayerHost, Confidence: 60, Why: "a container runtime runs in this network namespace, and what is oldest in it is no container"}
		return
	}
	slices.SortFunc(c.containers, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	c.entity = p.describe(ns, c, all)
	p.spaces[ns] = c
}

// isNode reports whether a namespace is that of a node within this host: shims run in
// it, and what they call on the way into a container looks like one for a moment. all
// are the oldest first: in a container that runs containers itself, it is one's own.
func isNode(all []*known) bool {
	return all[0].container.ID == "" && slices.ContainsFunc(all, func(k *known) bool {
		return strings.HasPrefix(k.Comm, "containerd-shim") || strings.HasPrefix(k.Comm, "conmon")
	})
}

// askContainer reads the process's cgroup until it has not changed for a second.
func (l *looker) askContainer(k *known) {
	if k.settled {
		return
	}
	c, err := containerOf(k.process)
	if err != nil {
		return // it ended: the next round does without it
	}
	c.Since = k.born
	k.settled = c == k.container && time.Since(k.first) > time.Second
	k.container = c
}

// findHost says which namespace is the host's own: kernel threads are in it.
func (p *people) findHost(crowds map[inode][]*known) {
	for ns, crowd := range crowds {
		for _, k := range crowd {
			switch {
			case k.PID == 2 && k.Comm == "kthreadd" && k.Parent == 0:
				p.host, p.hostSure, p.hostWhy = ns, 100, "kernel threads are in this network namespace"
				return
			case k.PID == 1:
				p.host, p.hostSure, p.hostWhy = ns, 70, "process 1 is in this network namespace"
			}
		}
	}
}
