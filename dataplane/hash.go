// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"weft/bpf"
)

// hashTable is the fallback: two plain hash maps, one of which the programs
// fill while the other is drained. The swap waits until no program uses the set
// that was taken out (the kernel does, for maps in maps), so nothing is lost.
type hashTable struct {
	d       *Dataplane
	current *ebpf.Map    // array of one set
	sets    [2]*ebpf.Map // sets[filling] is in current
	filling int
	keys    []bpf.FlowHashHashKey
	values  []bpf.FlowHashHashFlow
}

const hashChunk = 4096

func newHashTable(d *Dataplane) (*hashTable, error) {
	t := &hashTable{
		d: d, current: d.objs.maps[bpf.FlowHashMapCurrentSet],
		keys: make([]bpf.FlowHashHashKey, hashChunk), values: make([]bpf.FlowHashHashFlow, hashChunk),
	}
	spec := d.objs.spec.Maps[bpf.FlowHashMapCurrentSet].InnerMap
	for i := range t.sets {
		var err error
		if t.sets[i], err = ebpf.NewMap(spec); err != nil {
			return nil, errors.Join(fmt.Errorf("create flow set (%d entries): %w", spec.MaxEntries, err), t.close())
		}
	}
	if err := t.current.Put(uint32(0), t.sets[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("put the flow set in place: %w", err), t.close())
	}
	return t, nil
}

func (t *hashTable) drain(e *emitter) (drained, error) {
	full := t.sets[t.filling]
	t.filling ^= 1
	if err := t.current.Put(uint32(0), t.sets[t.filling]); err != nil {
		t.filling ^= 1
		return drained{}, fmt.Errorf("swap the flow set: %w", err)
	}
	var res drained
	var cursor ebpf.MapBatchCursor
	for {
		n, err := full.BatchLookup(&cursor, t.keys, t.values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return res, fmt.Errorf("read the flow set: %w", err)
		}
		for i := range n {
			t.emit(e, &t.keys[i], &t.values[i])
		}
		res.live += n
		if err != nil {
			break
		}
	}
	res.used = res.live
	return res, t.clear(full)
}

// clear empties a set that no program uses.
func (t *hashTable) clear(set *ebpf.Map) error {
	for {
		var cursor ebpf.MapBatchCursor
		n, err := set.BatchLookup(&cursor, t.keys, t.values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty the flow set: %w", err)
		}
		if n == 0 {
			return nil
		}
		if _, err := set.BatchDelete(t.keys[:n], nil); err != nil {
			return fmt.Errorf("empty the flow set: %w", err)
		}
	}
}

func (t *hashTable) emit(e *emitter, k *bpf.FlowHashHashKey, v *bpf.FlowHashHashFlow) {
	cold := (*bpf.FlowFlowCold)(unsafe.Pointer(&v.Cold))
	s := e.next()
	s.Packets, s.Bytes, s.TCPFlags, s.New = v.Packets, v.Bytes, uint8(v.Flags), true
	s.First = e.now.at(cold.FirstNs)
	s.Last = e.now.at(uint64(e.now.mono)) - int64(e.now.jiffies-min(v.Last, e.now.jiffies))*e.now.tick
	decode(s, (*bpf.FlowFlowKey)(unsafe.Pointer(&k.Key)), k.Vlan, &t.d.points)
	decodeCold(s, cold)
	s.Last = max(s.Last, s.First)
}

// drainEvicted has nothing to do: a full set refuses, it does not evict.
func (t *hashTable) drainEvicted(*emitter) error { return nil }

func (t *hashTable) wait(ctx context.Context, deadline time.Time) error {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return nil
}

func (t *hashTable) close() error {
	var errs []error
	for _, m := range t.sets {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
