// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

// slotTable reads the per-CPU slot table through a mapping, and the flows that
// left it through the ring buffer. It never writes to the table: it remembers
// what it read of each slot and emits the difference.
//
// A flow that left (an event with its final figures) is matched with what was
// read of it before by slot, tag and generation. Each drain reads ring, table,
// ring: an event that the second pass finds may be about a flow whose slot the
// scan has already found with a new tenant, so the scan keeps what it knew of
// the old one until that pass is over.
type slotTable struct {
	d     *Dataplane
	slots mapping[bpf.FlowFlowSlot]
	cold  lazyMapping[bpf.FlowFlowCold]
	tcp   lazyMapping[bpf.FlowTcpLine] // empty: not measured
	ring  *ringbuf.Reader
	known []known
	left  map[leftKey]known // bounded by the slots that changed hands in one drain
	lines []tcpKnown        // what was read of tcp
	spare []int32           // the late of the drain before
	late  []int32           // slots read so soon after their last packet that it may not have been measured yet
	leftL map[leftKey]tcpKnown

	rec       ringbuf.Record
	waiting   bool             // rec is yet to be drained
	fresh     bpf.FlowFlowCold // of the slot being read
	freshLine bpf.FlowTcpLine  // the same
	evictions uint64
	scans     [2]uint64 // jiffies when the last two scans began
	lastScan  int64     // wall clock of the last scan, Unix ns
}

// noCold is for a flow whose first packet was described before.
var noCold bpf.FlowFlowCold

// known is what was read of a slot. tag 0: nothing.
type known struct {
	tag     uint64
	bytes   uint64
	packets uint32
	gen     uint8
}

type leftKey struct {
	slot uint32
	gen  uint8
}

func newSlotTable(d *Dataplane) (*slotTable, error) {
	t := &slotTable{d: d, left: map[leftKey]known{}, leftL: map[leftKey]tcpKnown{}, lastScan: time.Now().UnixNano()}
	m := d.objs.maps
	n := int(m[bpf.FlowMapSlots].MaxEntries())
	var err error
	if t.slots, err = mapArray[bpf.FlowFlowSlot](m[bpf.FlowMapSlots], unix.PROT_READ); err != nil {
		return nil, err
	}
	t.cold = mapLazily[bpf.FlowFlowCold](m[bpf.FlowMapColdLines], n)
	t.known = make([]known, n)
	if d.objs.size.tcp {
		t.tcp = mapLazily[bpf.FlowTcpLine](m[bpf.FlowMapTcpLines], n)
		t.lines = make([]tcpKnown, n)
	}
	if t.ring, err = ringbuf.NewReader(m[bpf.FlowMapEvicted]); err != nil {
		return nil, errors.Join(fmt.Errorf("read the eviction ring: %w", err), t.close())
	}
	return t, nil
}

func (t *slotTable) drain(e *emitter) (drained, error) {
	var res drained
	before := t.evictions
	if err := t.drainEvicted(e); err != nil {
		return res, err
	}
	t.scan(e, &res)
	if err := errors.Join(t.cold.err, t.tcp.err); err != nil {
		return res, err
	}
	if err := t.drainEvicted(e); err != nil {
		return res, err
	}
	clear(t.left)
	clear(t.leftL)
	// Slots at rest since the scan before this one are read out for certain: an
	// update that a stalled CPU had begun by then has long been seen.
	t.d.clock.publishRead(t.scans[0], e.now.jiffies)
	t.scans[0], t.scans[1] = t.scans[1], e.now.jiffies
	t.lastScan = e.now.wall.UnixNano()
	res.evictions = t.evictions - before
	return res, nil
}

// scan compares every slot with what is known of it.
func (t *slotTable) scan(e *emitter, res *drained) {
	late := t.late
	t.late, t.spare = t.spare[:0], late
	for i := range t.slots.v {
		s := &t.slots.v[i]
		tag := atomic.LoadUint64(&s.Tag)
		if tag == 0 {
			continue
		}
		res.used++
		k := &t.known[i]
		if k.tag == tag && meta(s).same(k) {
			continue
		}
		if t.readSlot(e, i) {
			res.live++
		}
	}
	for _, i := range late {
		t.readLate(e, int(i))
	}
}

// readLate emits what was measured of slot i after its packets were read.
func (t *slotTable) readLate(e *emitter, i int) {
	s, k := &t.slots.v[i], &t.known[i]
	m, key := meta(s), s.Key
	if k.tag == 0 || atomic.LoadUint64(&s.Tag) != k.tag || !m.same(k) {
		return
	}
	line, before := t.line(i, &key), t.lines[i]
	if line == nil || atomic.LoadUint64(&s.Tag) != k.tag || meta(s).gen() != k.gen {
		return
	}
	if h := t.lines[i].gain(line); t.lines[i] != before {
		t.emit(e, &key, k, k, m.last(), m.flags(), &noCold).TCP = h
	}
}

// slotMeta is the last word of a slot: packets, last, flags and generation, read
// in one load.
type slotMeta uint64

func meta(s *bpf.FlowFlowSlot) slotMeta {
	return slotMeta(atomic.LoadUint64((*uint64)(unsafe.Pointer(&s.Packets))))
}

func (m slotMeta) packets() uint32    { return uint32(m) }
func (m slotMeta) last() uint16       { return uint16(m >> 32) }
func (m slotMeta) flags() uint8       { return uint8(m >> 48) }
func (m slotMeta) gen() uint8         { return uint8(m >> 56) }
func (m slotMeta) same(k *known) bool { return m.packets() == k.packets && m.gen() == k.gen }

// readSlot emits what slot i gained; false when it changed hands at this very
// moment, three times: the next drain finds it.
func (t *slotTable) readSlot(e *emitter, i int) bool {
	s, k := &t.slots.v[i], &t.known[i]
	for range 3 {
		tag := atomic.LoadUint64(&s.Tag)
		m := meta(s)
		bytes := atomic.LoadUint64(&s.Bytes)
		key := s.Key
		cold := &noCold
		fresh := tag != k.tag || m.gen() != k.gen
		if fresh {
			t.fresh = *t.cold.at(i)
			cold = &t.fresh
		}
		line := t.line(i, &key)
		if tag == 0 || atomic.LoadUint64(&s.Tag) != tag || meta(s).gen() != m.gen() {
			continue
		}
		if fresh && k.tag != 0 {
			t.leave(i, k)
		}
		base := *k
		if fresh {
			base = known{}
		}
		*k = known{tag: tag, bytes: bytes, packets: m.packets(), gen: m.gen()}
		smp := t.emit(e, &key, k, &base, m.last(), m.flags(), cold)
		if line != nil {
			smp.TCP = t.lines[i].gain(line)
			if int16(uint16(e.now.jiffies)-m.last()) <= 1 {
				t.late = append(t.late, int32(i))
			}
		}
		return true
	}
	return false
}

// emit writes the sample of a flow that holds k and of which base is known. Every
// field is set: the sample is a used one.
func (t *slotTable) emit(e *emitter, key *bpf.FlowFlowKey, k, base *known, last uint16, flags uint8, cold *bpf.FlowFlowCold) *flows.Sample {
	s := e.next()
	decode(s, key, uint32(k.tag&0xffffff), &t.d.points)
	s.Packets, s.Bytes = uint64(k.packets-base.packets), k.bytes-base.bytes
	s.TCPFlags = flags
	s.New = base.tag == 0
	s.First = t.lastScan
	if s.New {
		s.First = e.now.at(cold.FirstNs)
	}
	s.Last = max(e.now.atTick(last), s.First)
	decodeCold(s, cold)
	s.TCP = flows.TCPHealth{}
	return s
}

// A record in the ring, whose end is there only when TCP is measured; and the least
// room that it takes, with the ring's own header.
const (
	evictedBase   = int(unsafe.Offsetof(bpf.FlowFlowEvicted{}.Tcp))
	evictedStride = evictedBase + 8
)

// drainEvicted reads the ring until it is empty, or until all that was in it when
// it began is read: under a flood there may never be a moment without any.
func (t *slotTable) drainEvicted(e *emitter) error {
	t.ring.SetDeadline(time.Unix(1, 0)) // never block
	for left := t.ring.BufferSize(); t.waiting || left > 0; {
		if !t.waiting {
			err := t.ring.ReadInto(&t.rec)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if errors.Is(err, ringbuf.ErrFlushed) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read the eviction ring: %w", err)
			}
			left -= evictedStride
		}
		t.waiting = false
		if len(t.rec.RawSample) < evictedBase {
			return fmt.Errorf("read the eviction ring: a record of %d bytes", len(t.rec.RawSample))
		}
		var ev bpf.FlowFlowEvicted
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&ev)), unsafe.Sizeof(ev)), t.rec.RawSample)
		t.evictions++
		t.evict(e, &ev)
	}
	return nil
}

// evict emits what a flow gained between the last read of its slot and its end.
func (t *slotTable) evict(e *emitter, ev *bpf.FlowFlowEvicted) {
	if int(ev.Slot) >= len(t.known) {
		return
	}
	var base known
	var baseLine tcpKnown
	at := leftKey{ev.Slot, ev.Hot.Gen}
	k := &t.known[ev.Slot]
	switch l, ok := t.left[at]; {
	case ok && l.tag == ev.Hot.Tag:
		base, baseLine = l, t.leftL[at]
		delete(t.left, at)
	case k.tag == ev.Hot.Tag && k.gen == ev.Hot.Gen:
		base = *k
		*k = known{}
		if t.lines != nil {
			baseLine, t.lines[ev.Slot] = t.lines[ev.Slot], tcpKnown{}
		}
	}
	cold := &ev.Cold
	if base.tag != 0 {
		cold = &noCold
	}
	end := known{tag: ev.Hot.Tag, bytes: ev.Hot.Bytes, packets: ev.Hot.Packets, gen: ev.Hot.Gen}
	if end.packets == base.packets && end.bytes == base.bytes {
		return // all of it was read before
	}
	s := t.emit(e, &ev.Hot.Key, &end, &base, ev.Hot.Last, ev.Hot.Flags, cold)
	if t.lines != nil && s.Key.Proto == flows.ProtoTCP {
		s.TCP = baseLine.gain(&ev.Tcp)
	}
}

// wait sleeps until the ring is an eighth full, the deadline, or the end of ctx.
// The record that ends the sleep is kept for the drain that follows.
func (t *slotTable) wait(ctx context.Context, deadline time.Time) error {
	stop := context.AfterFunc(ctx, func() { _ = t.ring.Flush() })
	defer stop()
	if t.waiting || ctx.Err() != nil {
		return nil
	}
	t.ring.SetDeadline(deadline)
	switch err := t.ring.ReadInto(&t.rec); {
	case err == nil:
		t.waiting = true
	case !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ringbuf.ErrFlushed):
		return fmt.Errorf("read the eviction ring: %w", err)
	}
	return nil
}

func (t *slotTable) close() error {
	var err error
	if t.ring != nil {
		err = t.ring.Close()
	}
	return errors.Join(err, t.slots.close(), t.cold.close(), t.tcp.close())
}
