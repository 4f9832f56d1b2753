// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxLinks is how many devices are mirrored unless the options say otherwise. Those
// over it are counted, and neither found nor drawn.
const MaxLinks = 10000

// Options say what to look for.
type Options struct {
	Log      *slog.Logger // nil: nowhere
	MaxLinks int          // 0: MaxLinks

	Containers, VMs, Sandboxes bool // whom to name
}

// Mirror keeps a picture of the devices in every network namespace that the agent
// can see, and of who is behind them. One goroutine follows the kernel's events,
// another reads processes; [Mirror.Topology] waits for neither.
type Mirror struct {
	opts Options
	own  int // fd of the agent's namespace
	poll poller
	now  atomic.Pointer[Topology]

	// The goroutine's that follows.
	spaces    map[inode]*space // as many as can be seen
	byEvents  map[int]*space
	links     int // in all of them; at most opts.MaxLinks
	opened    int // spaces so far
	people    *people
	refused   map[inode]string // namespaces that could not be entered, and why; at most 1024
	peersRead time.Time        // of tunnels
	domains   naming           // of the latest snapshot
	resyncs   uint64           // because events were lost
	dirty     bool
	budget    budget // of snapshots

	looker looker
	stop   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once
}

// Open reads all devices and processes once, so that the first [Mirror.Topology] is
// whole, and then follows them until [Mirror.Close]. A namespace that cannot be
// entered is no error: [Topology.Off] names it.
func Open(opts Options) (*Mirror, error) {
	m, err := read(opts)
	if err != nil {
		return nil, err
	}
	m.wg.Go(m.follow)
	m.wg.Go(func() { m.looker.run(m.stop, m.poll.wake) })
	return m, nil
}

// read is Open without the goroutines.
func read(opts Options) (*Mirror, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.MaxLinks == 0 {
		opts.MaxLinks = MaxLinks
	}
	m := &Mirror{opts: opts, spaces: map[inode]*space{}, byEvents: map[int]*space{}, refused: map[inode]string{}, people: &people{}, stop: make(chan struct{})}
	var err error
	if m.own, err = unix.Open(ownPath, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the agent's network namespace: %w", err)
	}
	if m.poll, err = newPoller(); err != nil {
		return nil, errors.Join(err, unix.Close(m.own))
	}
	m.looker = newLooker(opts)
	m.settle(m.looker.look())
	if m.space(0) == nil {
		return nil, errors.Join(errors.New("cannot read the devices of the agent's own network namespace"), m.release())
	}
	m.publish()
	return m, nil
}

// Topology is the latest snapshot. Any goroutine may ask; it takes no lock, and
// what it gives never changes.
func (m *Mirror) Topology() *Topology { return m.now.Load() }

// Close ends both goroutines and gives everything back. Topology still answers.
func (m *Mirror) Close() error {
	var err error
	m.once.Do(func() {
		close(m.stop)
		m.poll.wake()
		m.wg.Wait()
		err = m.release()
	})
	return err
}

func (m *Mirror) release() error {
	var errs []error
	for _, s := range m.spaces {
		errs = append(errs, s.close(m.own))
	}
	return errors.Join(append(errs, m.poll.close(), unix.Close(m.own))...)
}

// How long the mirror waits for more events before it makes a snapshot, and how
// often it reads again what it could not follow.
const (
	gather  = 3 * time.Millisecond
	rereads = time.Second
)

// follow is the goroutine that owns the mirror.
func (m *Mirror) follow() {
	reread := time.Now().Add(rereads)
	for {
		ready, err := m.poll.wait(m.patience(reread))
		if err != nil {
			m.opts.Log.Error("cannot wait for link events, the topology stands still", "err", err)
			return
		}
		select {
		case <-m.stop:
			return
		default:
		}
		for _, fd := range ready {
			m.event(fd)
		}
		if p := m.looker.take(); p != nil {
			m.settle(p)
		}
		if !time.Now().Before(reread) {
			m.reread()
			reread = time.Now().Add(rereads)
		}
		if m.dirty && m.budget.wait(time.Now()) == 0 {
			m.publish()
		}
	}
}

// patience is how long to wait for events.
func (m *Mirror) patience(reread time.Time) time.Duration {
	until := time.Until(reread)
	if m.dirty {
		until = min(until, max(m.budget.wait(time.Now()), gather))
	}
	return max(until, 0)
}

// publish makes the snapshot that readers get from now on.
func (m *Mirror) publish() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	t := m.snapshot()
	m.now.Store(t)
	m.looker.wants.Store(t.unheld)
	m.dirty = false
	m.budget.spend(time.Now(), threadTime()-began)
}

// event reads what a descriptor is ready for.
func (m *Mirror) event(fd int) {
	if fd == m.poll.mounts {
		m.looker.soon() // a namespace may have got a name, or lost it
		return
	}
	if s := m.byEvents[fd]; s != nil {
		m.read(s)
	}
}

// settle takes over what the processes say: which namespaces there are, and who is
// in them.
func (m *Mirror) settle(p *people) {
	m.people, m.dirty = p, true
	for ino, s := range m.spaces {
		path, there := p.found[ino]
		if !there && s.fd != m.own {
			m.drop(s)
		} else if there && path != s.path && s.fd != m.own {
			s.path = path
		}
	}
	for ino, path := range p.found {
		if m.spaces[ino] == nil {
			m.enter(ino, path)
		}
	}
	for ino := range m.refused {
		if _, there := p.found[ino]; !there {
			delete(m.refused, ino)
		}
	}
}

// enter begins to follow a namespace.
func (m *Mirror) enter(ino inode, path string) {
	s, err := m.openSpace(ino, path)
	if err != nil {
		if why := err.Error(); !gone(err) && m.refused[ino] != why && len(m.refused) < 1024 {
			m.refused[ino] = why
			m.opts.Log.Warn("cannot read a network namespace", "netns", path, "err", err)
		}
		return
	}
	delete(m.refused, ino)
	m.spaces[ino] = s
	if err := m.dump(s); err != nil {
		s.stale = true
		m.opts.Log.Debug("cannot list links, trying again", "netns", path, "err", err)
	}
}

// gone reports whether err says that a namespace or process ended, which is normal.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, errGone)
}

func (m *Mirror) drop(s *space) {
	m.links -= len(s.links)
	delete(m.spaces, s.ino)
	delete(m.byEvents, s.events)
	m.poll.forget(s.events)
	if err := s.close(m.own); err != nil {
		m.opts.Log.Warn("cannot let go of a network namespace", "netns", s.path, "err", err)
	}
	for _, t := range m.spaces {
		for id, p := range t.peers {
			if p.cookie == s.cookie {
				delete(t.peers, id)
			}
		}
		t.stale = t.stale || t.over > 0 // there is room
	}
}

// reread lists the links of namespaces whose picture may be wrong, and what comes
// without events.
func (m *Mirror) reread() {
	peers := time.Since(m.peersRead) > peersEvery
	if peers {
		m.peersRead = time.Now()
	}
	for _, s := range m.spaces {
		if peers {
			m.readPeers(s)
		}
		if !s.stale {
			continue
		}
		if err := m.dump(s); err != nil && !gone(err) {
			m.opts.Log.Debug("cannot list links, trying again", "netns", s.path, "err", err)
		}
	}
}

// space is the namespace with a cookie; 0: the agent's own. nil: not followed.
func (m *Mirror) space(cookie uint64) *space {
	for _, s := range m.spaces {
		if s.cookie == cookie || cookie == 0 && s.fd == m.own {
			return s
		}
	}
	return nil
}
