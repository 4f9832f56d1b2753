// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math/bits"
	"slices"
)

// The buckets of a histogram: those of enum weft_latency in abi.h.
const (
	lowestBucket = -184 // begins at 2^-23 s, 119 ns, and has everything less
	buckets      = 240  // the last one ends at 2^7 s and has everything more
)

// latencyCounts is a histogram made here with the kernel's buckets.
type latencyCounts struct {
	sum    uint64 // ns
	counts [buckets]uint64
}

func (h *latencyCounts) add(ns uint64) {
	h.sum += ns
	h.counts[min(max(bucketOf(ns)-lowestBucket, 0), buckets-1)]++
}

// edges are 2^(k/8) seconds in nanoseconds, brought to [2^63, 2^64) and rounded
// down, which changes no comparison; the last one, a power of two seconds, is whole.
var edges = [8]uint64{
	0x81ffa7a9549ca6e3, 0x8dc3b8960164a7d9, 0x9a9867054d512391, 0xa8965f74bf065071,
	0xb7d88a12d0dd9ea0, 0xc87c3e7d03cdbec3, 0xdaa17c2cd19555db, 0xee6b280000000000,
}

// bucketOf is the i with 2^(i/8) < ns/10^9 <= 2^((i+1)/8), exactly; ns is not 0.
func bucketOf(ns uint64) int {
	zeros := bits.LeadingZeros64(ns)
	mantissa, above := ns<<zeros, 0
	for above < len(edges) && mantissa > edges[above] {
		above++
	}
	return 8*(63-zeros) + above - 240 // 2^29 ns are more than 2^-1 s
}

// latency is a copy with that key.
func (h *latencyCounts) latency(k LatencyKey, start int64) Latency {
	l := Latency{Key: k, Start: start, Sum: h.sum}
	first, end := 0, 0
	for i, n := range h.counts {
		if n == 0 {
			continue
		}
		if end == 0 {
			first = i
		}
		end = i + 1
		l.Count += n
	}
	l.Offset, l.Counts = lowestBucket+first, slices.Clone(h.counts[first:end])
	return l
}
