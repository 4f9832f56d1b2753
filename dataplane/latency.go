// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"weft/bpf"
	"weft/flows"
)

const (
	latencyInterval = 5 * time.Second  // between two reads
	latencyIdle     = 10 * time.Minute // without a new time a histogram may be removed ...
	latencyLinger   = time.Minute      // ... and is still reported for so long
	latencyLowest   = int(bpf.FlowWeftLatencyWEFT_LATENCY_LOWEST)
	latencyBuckets  = int(bpf.FlowWeftLatencyWEFT_LATENCY_BUCKETS)
)

// latencies reads the histograms that the programs keep by server, and makes
// room for new servers among them. One goroutine uses it.
//
// It knows at most twice as many as the map has entries: those that are there,
// and those that were removed within the last minute, each of which had been
// there for ten.
type latencies struct {
	m      *ebpf.Map
	keys   []bpf.FlowLatencyKey // of one read
	values []bpf.FlowLatency
	known  map[bpf.FlowLatencyKey]*histogram
	last   struct{ wall, mono int64 } // the last read: Unix and CLOCK_MONOTONIC ns
}

// histogram is one server's, over all the times that its key was in the map.
type histogram struct {
	start   int64           // Unix ns, before the first time that it counted
	grown   int64           // CLOCK_MONOTONIC ns of the read that last found it changed
	inMap   bpf.FlowLatency // as last read
	earlier flows.Latency   // counted, and no longer in the map: 2^32 for each wrap, and what was removed
	removed int64           // CLOCK_MONOTONIC ns; 0: it is in the map
}

func newLatencies(m *ebpf.Map) *latencies {
	l := &latencies{
		m: m, keys: make([]bpf.FlowLatencyKey, m.MaxEntries()), values: make([]bpf.FlowLatency, m.MaxEntries()),
		known: map[bpf.FlowLatencyKey]*histogram{},
	}
	l.last.wall = time.Now().UnixNano()
	return l
}

// due reports whether it is time for another read.
func (l *latencies) due(now instant) bool { return now.mono-l.last.mono >= int64(latencyInterval) }

// read is every histogram that has counted something, as it is now. Counts are
// exact; Sum may have a time that Counts has not yet, or the other way round.
func (l *latencies) read(now instant) ([]flows.Latency, error) {
	entries, err := l.update(now)
	if err != nil {
		return nil, err
	}
	if entries > len(l.keys)*3/4 {
		if err := l.removeIdle(now); err != nil {
			return nil, err
		}
	}
	l.mindClock(now)
	all := make([]flows.Latency, 0, len(l.known))
	for k, h := range l.known {
		if h.removed != 0 && now.mono-h.removed > int64(latencyLinger) {
			delete(l.known, k)
			continue
		}
		if out := h.latency(&k); out.Count > 0 {
			all = append(all, out)
		}
	}
	return all, nil
}

// mindClock notes the time. When the clock was set back to before a histogram's start, that goes with it.
func (l *latencies) mindClock(now instant) {
	wall := now.wall.UnixNano()
	step := wall - (l.last.wall + now.mono - l.last.mono)
	for _, h := range l.known {
		if h.start >= wall && l.last.mono != 0 {
			h.start += step
		}
	}
	l.last.wall, l.last.mono = wall, now.mono
}

// update reads the map into what is known, and returns the number of entries.
func (l *latencies) update(now instant) (entries int, err error) {
	var cursor ebpf.MapBatchCursor
	for end := false; !end; {
		n, err := l.m.BatchLookup(&cursor, l.keys, l.values, nil)
		if end = errors.Is(err, ebpf.ErrKeyNotExist); err != nil && !end {
			return entries, fmt.Errorf("read histograms: %w", err)
		}
		for i := range n {
			l.of(l.keys[i], now).update(&l.values[i], now)
		}
		entries += n
	}
	return entries, nil
}

// of is the histogram of a key that is in the map.
func (l *latencies) of(k bpf.FlowLatencyKey, now instant) *histogram {
	h := l.known[k]
	if h == nil {
		h = &histogram{start: l.last.wall, grown: now.mono}
		l.known[k] = h
	}
	h.removed = 0
	return h
}

func (h *histogram) update(v *bpf.FlowLatency, now instant) {
	if *v == h.inMap {
		return
	}
	for i, n := range v.Bucket {
		if n < h.inMap.Bucket[i] { // it wrapped: 2^32 times take minutes, and reads are seconds apart
			h.earlier.Merge(&flows.Latency{Count: 1 << 32, Offset: latencyLowest + i, Counts: []uint64{1 << 32}})
		}
	}
	h.inMap, h.grown = *v, now.mono
}

// removeIdle makes room. What a program adds in the instant in which the kernel
// removes a key, after ten minutes without any, may be lost or counted under the
// next key: at most one time for each CPU.
func (l *latencies) removeIdle(now instant) error {
	for k, h := range l.known {
		if h.removed != 0 || now.mono-h.grown < int64(latencyIdle) || isOverflow(&k) {
			continue
		}
		var last bpf.FlowLatency
		if err := l.m.LookupAndDelete(k, &last); err != nil {
			return fmt.Errorf("remove the histogram of a silent server: %w", err)
		}
		h.update(&last, now)
		kept := counted(&h.inMap)
		h.earlier.Merge(&kept)
		h.inMap, h.removed = bpf.FlowLatency{}, now.mono
	}
	return nil
}

// isOverflow reports whether k is of servers for which there was no room. Their
// keys are there from the start and stay.
func isOverflow(k *bpf.FlowLatencyKey) bool { return k.Server == [16]byte{} && k.Port == 0 }

// latency is all that h counted.
func (h *histogram) latency(k *bpf.FlowLatencyKey) flows.Latency {
	out := counted(&h.inMap)
	if h.earlier.Count > 0 {
		out.Merge(&h.earlier)
	}
	out.Start = h.start
	out.Key = flows.LatencyKey{Protocol: k.Proto, Measure: flows.Measure(k.Measure), Class: flows.PointClass(k.Class)}
	if !isOverflow(k) {
		out.Key.Server = netip.AddrPortFrom(netip.AddrFrom16(k.Server).Unmap(), swap16(k.Port))
	}
	return out
}

// counted is v from its first to its last bucket that counted something.
func counted(v *bpf.FlowLatency) flows.Latency {
	first, end := 0, latencyBuckets
	for first < end && v.Bucket[first] == 0 {
		first++
	}
	for end > first && v.Bucket[end-1] == 0 {
		end--
	}
	l := flows.Latency{Sum: v.Sum, Offset: latencyLowest + first, Counts: make([]uint64, end-first)}
	for k, n := range v.Bucket[first:end] {
		l.Counts[k] = uint64(n)
		l.Count += uint64(n)
	}
	return l
}
