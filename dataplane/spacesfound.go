// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"os"
	"time"
)

// findNew opens the namespaces that are there and not watched, and lets go of
// those that nobody but us holds. Without processes it looks at names only, and
// lets go of none. It returns how long it looked.
func (a *spaces) findNew(processes bool) (took time.Duration) {
	began := time.Now()
	found := map[inode]string{}
	if a.all() {
		found = namedNetns()
		if processes {
			addProcessNetns(found)
		}
	}
	for _, name := range a.d.opts.Netns { // one that was deleted and made again is another
		p := namespacePath(name)
		if i, err := inodeOf(p); err == nil && name != "all" && isNetns(p) {
			found[i] = p
		}
	}
	took = time.Since(began)
	a.mu.Lock()
	for _, s := range a.byCookie {
		if processes && s.name != "" && !s.lives(found) {
			a.drop(s)
		}
		delete(found, s.ino)
	}
	detached := a.detached
	a.mu.Unlock()
	for _, p := range found {
		if detached {
			break
		}
		err := a.openNamed(p)
		if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, errDetached) || a.refused[p] == err.Error() {
			continue
		}
		if len(a.refused) < 1024 {
			a.refused[p] = err.Error()
		}
		a.d.log.Warn("cannot watch network namespace", "netns", p, "err", err)
	}
	return took
}

// lives is false for a namespace that has neither its name nor a process any more.
func (s *space) lives(found map[inode]string) bool {
	if i, err := inodeOf(s.name); err == nil && i == s.ino {
		return true
	}
	p, ok := found[s.ino]
	if ok {
		s.name = p // the process that led to it ended, another is in it
	}
	return ok
}

// drop lets go of a namespace that is gone.
func (a *spaces) drop(s *space) {
	if err := errors.Join(s.detachAll(), s.close()); err != nil {
		a.d.log.Warn("cannot let go of network namespace", "netns", s.name, "err", err)
	}
	delete(a.byCookie, s.cookie)
	a.d.log.Info("network namespace gone", "netns", s.name)
}

// follow looks for namespaces: at every tick and link event everywhere, at every
// mount by name. It has programs ready for the next one.
func (a *spaces) follow() {
	tick := time.NewTicker(rescanEvery)
	defer tick.Stop()
	mounts, closeMounts := watchMounts(a.d.log)
	defer closeMounts()
	a.eachSecond() // before the first drain can be missed
	for {
		a.spareOne()
		processes, tock := true, false
		select {
		case <-a.stop:
			return
		case <-tick.C:
			tock = true
		case <-mounts:
			processes = false
		case <-a.rescan:
		}
		took := a.findNew(processes)
		if tock {
			a.eachSecond()
		}
		if !a.rest(took) {
			return
		}
	}
}

// rest keeps looking from taking more than a part of a CPU; false: stop.
func (a *spaces) rest(took time.Duration) bool {
	if took < time.Millisecond {
		return true
	}
	select {
	case <-a.stop:
		return false
	case <-time.After(min(4*took, rescanEvery)):
		return true
	}
}

// eachSecond reads what devices dropped, and tries again what was refused.
func (a *spaces) eachSecond() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.detached {
		return
	}
	if a.d.opts.Drops {
		a.readDeviceDrops()
	}
	if a.unseenDue() {
		a.readUnseen()
	}
	for _, s := range a.byCookie {
		s.retry()
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
