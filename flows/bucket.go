// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math/bits"
	"slices"
)

// The buckets of a histogram: those of enum weft_latency in abi.h.
const (
	lowestBucket = 56  // (2^7, 2^7.125] ns, and everything less
	buckets      = 240 // the last one begins at 2^36.875 ns and has everything more
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

// eighths are 2^(63+k/8), rounded down.
var eighths = [8]uint64{
	0x8000000000000000, 0x8b95c1e3ea8bd6e6, 0x9837f0518db8a96f, 0xa5fed6a9b15138ea,
	0xb504f333f9de6484, 0xc5672a115506dadd, 0xd744fccad69d6af4, 0xeac0c6e7dd24392e,
}

// bucketOf is the i with 2^(i/8) < ns <= 2^((i+1)/8), exactly; ns is not 0.
func bucketOf(ns uint64) int {
	zeros := bits.LeadingZeros64(ns)
	mantissa, above := ns<<zeros, 0
	for above < len(eighths) && mantissa > eighths[above] {
		above++
	}
	return 8*(63-zeros) + above - 1
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
