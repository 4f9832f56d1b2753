// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// device is a link of the namespace, watched or not.
type device struct {
	index  int
	name   string
	l2Len  uint8
	class  flows.PointClass
	alone  bool     // what it carries stays in the namespace
	far    uint64   // cookie of the watched namespace at a veth pair's far end; 0: none
	points []*point // to be watched on these, else empty
	on     *watched // nil: nothing is attached
	tries  int      // in vain, since it was last attached
	next   time.Time
	full   bool // there was no place for it
	counts [2]counts
}

// settle watches the device, or stops watching it, as the globs say.
func (s *space) settle(dev *device) error {
	want := wants(s.all.interfaces, s.all.exclude, dev.name)
	switch {
	case want && len(dev.points) == 0:
		return s.attach(dev)
	case !want && len(dev.points) > 0:
		return s.detach(dev)
	}
	return nil
}

func (s *space) reconcile() error {
	var errs []error
	for _, dev := range s.devices {
		errs = append(errs, s.settle(dev))
	}
	return errors.Join(errs...)
}

// attach is all or nothing for the two TC hooks; XDP is an extra that may fail
// alone, since a driver or another program may refuse it.
func (s *space) attach(dev *device) error {
	at := flows.Point{Netns: s.cookie, Ifindex: uint32(dev.index)}
	hop := flows.Hop{Interface: dev.name, Netns: s.name}
	domain := &s.domain
	if dev.alone {
		domain = nil
	}
	points, err := s.all.d.points.add(s.number, dev.l2Len, at, hop, domain, s.all.hooksOf())
	if errors.Is(err, errNoPlace) {
		s.all.d.turnOff(Capability{Name: "further interfaces", Needs: "a larger dataplane.max_interfaces", Err: err.Error()})
		dev.full = true
		return nil
	}
	dev.full = false
	if err != nil {
		return fmt.Errorf("watch %s: %w", dev.name, err)
	}
	dev.points, dev.tries = points, 0
	s.all.d.points.classify(points, dev.class)
	return s.try(dev)
}

// try attaches what is not attached, and says when it is tried again.
func (s *space) try(dev *device) error {
	err := inNetns(s.all.own, s.fd, func() error { return s.attachHooks(dev) })
	if errors.Is(err, unix.ENODEV) {
		return s.gone(dev.index) // it went away meanwhile
	}
	if err == nil {
		if dev.tries > 0 {
			s.all.d.log.Info("watched after all", "iface", dev.name, "ifindex", dev.index, "netns", s.name)
		}
		dev.tries = 0
		s.all.d.log.Debug("watching", "iface", dev.name, "ifindex", dev.index, "netns", s.name)
		return nil
	}
	dev.tries++
	dev.next = time.Now().Add(backOff(dev.tries))
	if dev.on == nil {
		s.all.attachErr = fmt.Errorf("watch %s: %w", dev.name, err)
	}
	for _, p := range dev.points {
		s.all.d.points.tried(p, dev.tries, dev.next)
	}
	if dev.tries == 1 { // Status says how it goes on
		s.all.d.log.Warn("cannot watch", "iface", dev.name, "ifindex", dev.index, "netns", s.name, "err", err)
	}
	return nil
}

// How long to wait before what the kernel refused is tried again: twice as long
// each time, and never longer than a minute.
const (
	firstWait   = time.Second
	longestWait = time.Minute
	retries     = 32 // of a namespace, each second
)

// backOff is how long to wait after so many refusals in a row.
func backOff(refusals int) time.Duration {
	return min(firstWait<<min(refusals-1, 10), longestWait)
}

// retry tries the devices again that were refused, and whose time has come.
func (s *space) retry() {
	now, left := time.Now(), retries
	for _, dev := range s.devices {
		again := s.try
		if dev.full {
			again = s.settle
		} else if dev.tries == 0 || len(dev.points) == 0 || now.Before(dev.next) {
			continue
		}
		if left--; left < 0 {
			return
		}
		if err := again(dev); err != nil {
			s.all.d.log.Warn("cannot follow a link", "netns", s.name, "err", err)
		}
	}
}

// attachHooks attaches the points that are not attached. The error is of those
// that were refused.
func (s *space) attachHooks(dev *device) error {
	w := dev.on
	if w == nil {
		w = &watched{in: s, index: dev.index, since: time.Now()}
	}
	var errs []error
	for _, p := range dev.points {
		if w.has(p.at.Hook) {
			continue
		}
		at, err := s.attachHook(dev.index, p.at.Hook)
		s.all.d.points.set(p, err == nil, err)
		if err == nil {
			w.hooks = append(w.hooks, at)
			continue
		}
		if p.at.Hook != flows.HookXDP {
			for _, p := range dev.points { // none is attached
				s.all.d.points.set(p, false, err)
			}
			return errors.Join(err, w.close())
		}
		errs = append(errs, err)
	}
	if dev.on == nil && s.all.soon {
		s.all.later(w)
	}
	dev.on = w
	return errors.Join(errs...)
}

// detach stops watching the device; its last packets are still read.
func (s *space) detach(dev *device) error {
	var err error
	if dev.on != nil {
		err = dev.on.close()
		dev.on = nil
	}
	s.release(dev)
	if err != nil {
		return fmt.Errorf("stop watching %s: %w", dev.name, err)
	}
	return nil
}

func (s *space) release(dev *device) {
	s.all.d.points.retire(dev.points)
	dev.points = nil
}

// gone is called for a device that was deleted or moved away.
func (s *space) gone(index int) error {
	dev := s.devices[index]
	if dev == nil {
		return nil
	}
	delete(s.devices, index)
	return s.detach(dev)
}

func (s *space) detachAll() error {
	var errs []error
	for _, dev := range s.devices {
		errs = append(errs, s.detach(dev))
	}
	return errors.Join(errs...)
}
