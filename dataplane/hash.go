// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"time"
	"unsafe"

	"weft/bpf"
)

// hashTable is the fallback: a plain hash map that is swapped and drained.
type hashTable struct {
	d   *Dataplane
	set *swapSet[bpf.FlowHashHashKey, bpf.FlowHashHashFlow]
}

const hashChunk = 4096

func newHashTable(d *Dataplane) (*hashTable, error) {
	set, err := openSwapSet[bpf.FlowHashHashKey, bpf.FlowHashHashFlow]("flow", d.objs.maps[bpf.FlowHashMapCurrentSet], 0,
		d.objs.spec.Maps[bpf.FlowHashMapCurrentSet].InnerMap, hashChunk)
	if err != nil {
		return nil, err
	}
	return &hashTable{d: d, set: set}, nil
}

func (t *hashTable) drain(e *emitter) (drained, error) {
	n, err := t.set.drain(func(k *bpf.FlowHashHashKey, v *bpf.FlowHashHashFlow) { t.emit(e, k, v) })
	return drained{live: n, used: n}, err
}

func (t *hashTable) emit(e *emitter, k *bpf.FlowHashHashKey, v *bpf.FlowHashHashFlow) {
	cold := (*bpf.FlowFlowCold)(unsafe.Pointer(&v.Cold))
	s := e.next()
	s.Packets, s.Bytes, s.TCPFlags, s.New = v.Packets, v.Bytes, uint8(v.Flags), true
	s.First = e.now.at(cold.FirstNs)
	decode(s, (*bpf.FlowFlowKey)(unsafe.Pointer(&k.Key)), k.Vlan, &t.d.points)
	decodeCold(s, cold)
	s.Last = max(e.now.atJiffies(v.Last), s.First)
}

// atJiffies is the wall-clock time of a count of jiffies, to the tick, in Unix
// nanoseconds; one written after the instant was taken is the instant.
func (i instant) atJiffies(jiffies uint64) int64 {
	return i.mono + i.offset - int64(i.jiffies-min(jiffies, i.jiffies))*i.tick
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

func (t *hashTable) close() error { return t.set.close() }
