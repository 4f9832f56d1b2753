// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/bpf"
)

// clock turns the kernel's clocks into wall-clock time. The offset between
// CLOCK_MONOTONIC and CLOCK_REALTIME is read anew for each drain, so that slews,
// steps and suspends of the wall clock never accumulate as drift; jiffies are
// related to CLOCK_MONOTONIC by reading both in one program run.
type clock struct {
	prog *ebpf.Program // of the objects
	ctl  mapping[bpf.FlowFlowControl]
	tick int64 // nanoseconds of a jiffy
}

// instant is one moment on all clocks.
type instant struct {
	wall    time.Time
	mono    int64  // CLOCK_MONOTONIC, ns
	jiffies uint64 // at mono
	tick    int64  // ns of a jiffy
	offset  int64  // CLOCK_REALTIME - CLOCK_MONOTONIC, ns
}

func newClock(o *objects) (*clock, error) {
	c := &clock{prog: o.first.clock}
	var err error
	if c.ctl, err = mapArray[bpf.FlowFlowControl](o.maps[bpf.FlowMapControl], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return c, err
	}
	if err := c.measureTick(); err != nil {
		return c, err
	}
	_, jiffies, err := c.run()
	if err != nil {
		return c, err
	}
	// jiffies are compared modulo 2^32 and begin just below it: 0 may be ahead
	atomic.StoreUint64(&c.ctl.v[0].ScanJiffies, jiffies)
	return c, nil
}

// run reads CLOCK_MONOTONIC and jiffies in the kernel, at the same moment.
func (c *clock) run() (mono int64, jiffies uint64, err error) {
	ret, err := c.prog.Run(&ebpf.RunOptions{})
	if err != nil || ret != 0 {
		return 0, 0, fmt.Errorf("read the kernel's clock: program run returned %d: %w", ret, err)
	}
	return int64(atomic.LoadUint64(&c.ctl.v[0].KtimeNs)), atomic.LoadUint64(&c.ctl.v[0].Jiffies), nil
}

// frequencies of the tick that kernels are built with, Hz.
var frequencies = []int64{1000, 300, 250, 100}

// measureTick finds the tick from what jiffies are now, or by timing some.
func (c *clock) measureTick() error {
	mono, jiffies, err := c.run()
	if err != nil {
		return err
	}
	if c.tick = tickSinceBoot(mono, jiffies); c.tick != 0 {
		return nil
	}
	const ticks = 16 // each seen late by up to a few milliseconds on a busy machine
	deadline := time.Now().Add(time.Second)
	for {
		now, j, err := c.run()
		if err != nil {
			return err
		}
		if j >= jiffies+ticks {
			c.tick = nearestTick((now - mono) / int64(j-jiffies))
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("measure the kernel's tick: %d in a second", j-jiffies)
		}
	}
}

// tickSinceBoot is the tick in nanoseconds: jiffies began at boot, when
// CLOCK_MONOTONIC did, 300 s of ticks below 2^32. Every frequency comes there
// after 300 s, so about then it is 0: not known.
func tickSinceBoot(mono int64, jiffies uint64) int64 {
	const slack = 5 // seconds that the two may be apart
	var tick int64
	for _, hz := range frequencies {
		began := 1<<32 - 300*hz
		expected := began + mono/int64(time.Second)*hz
		if d := int64(jiffies) - expected; max(d, -d) > slack*hz {
			continue
		}
		if tick != 0 {
			return 0
		}
		tick = int64(time.Second) / hz
	}
	return tick
}

func nearestTick(ns int64) int64 {
	best := int64(time.Second)
	for _, hz := range frequencies {
		if t := int64(time.Second) / hz; max(t-ns, ns-t) < max(best-ns, ns-best) {
			best = t
		}
	}
	return best
}

// read is now. The offset is that of the tightest of a few tries.
func (c *clock) read() (instant, error) {
	mono, jiffies, err := c.run()
	if err != nil {
		return instant{}, err
	}
	offset, err := wallOffset()
	if err != nil {
		return instant{}, err
	}
	return instant{wall: time.Unix(0, mono+offset), mono: mono, jiffies: jiffies, tick: c.tick, offset: offset}, nil
}

func wallOffset() (int64, error) {
	var best, offset int64 = 1 << 62, 0
	for range 3 {
		var a, w, b unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &a); err != nil {
			return 0, fmt.Errorf("read CLOCK_MONOTONIC: %w", err)
		}
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &w); err != nil {
			return 0, fmt.Errorf("read CLOCK_REALTIME: %w", err)
		}
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &b); err != nil {
			return 0, fmt.Errorf("read CLOCK_MONOTONIC: %w", err)
		}
		if d := b.Nano() - a.Nano(); d < best {
			best, offset = d, w.Nano()-(a.Nano()+d/2)
		}
	}
	return offset, nil
}

// at is the wall-clock time of a CLOCK_MONOTONIC time, in Unix nanoseconds.
func (i instant) at(mono uint64) int64 { return int64(mono) + i.offset }

// atTick is the wall-clock time of the low 16 bits of jiffies that were written
// not long ago, to the tick; one written after the instant was taken is the
// instant.
func (i instant) atTick(low uint16) int64 {
	age := int64(int16(uint16(i.jiffies) - low))
	return i.mono + i.offset - max(age, 0)*i.tick
}

// publishRead tells the programs that every slot that rests since the jiffies
// given was read out, and when the last scan began.
func (c *clock) publishRead(jiffies, scan uint64) {
	atomic.StoreUint64(&c.ctl.v[0].ReadJiffies, jiffies)
	atomic.StoreUint64(&c.ctl.v[0].ScanJiffies, scan)
}

func (c *clock) close() error { return c.ctl.close() }
