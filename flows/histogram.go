// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math"
	"time"
)

// Downscale is l's buckets at a lower scale: counts[k] is how many fell into
// (2^((offset+k)/2^scale), 2^((offset+k+1)/2^scale)] seconds. Exact: bucket i
// of a scale is the buckets 2i and 2i+1 of the next. From HistogramScale up it
// is l's own Offset and Counts, not to be written.
func (l *Latency) Downscale(scale int) (offset int, counts []uint64) {
	shift := HistogramScale - scale
	if shift <= 0 || len(l.Counts) == 0 {
		return l.Offset, l.Counts
	}
	offset = l.Offset >> shift // rounds down, also below zero
	counts = make([]uint64, (l.Offset+len(l.Counts)-1)>>shift-offset+1)
	for k, n := range l.Counts {
		counts[(l.Offset+k)>>shift-offset] += n
	}
	return offset, counts
}

// Merge adds what o counted, exactly; l keeps its Key and Start. The result shares
// no memory with o, nor with what l was.
func (l *Latency) Merge(o *Latency) {
	if len(o.Counts) == 0 {
		return
	}
	first, end := o.Offset, o.Offset+len(o.Counts)
	if len(l.Counts) > 0 {
		first, end = min(first, l.Offset), max(end, l.Offset+len(l.Counts))
	}
	counts := make([]uint64, end-first)
	for k, n := range l.Counts {
		counts[l.Offset-first+k] = n
	}
	for k, n := range o.Counts {
		counts[o.Offset-first+k] += n
	}
	l.Offset, l.Counts = first, counts
	l.Count += o.Count
	l.Sum += o.Sum
}

// Mean is the average, exact; 0 without any.
func (l *Latency) Mean() time.Duration {
	if l.Count == 0 {
		return 0
	}
	return time.Duration(l.Sum / l.Count)
}

// Quantile estimates the value that a share q of all do not exceed (0.5: the
// median); 0 without any. It is the geometric middle of the bucket that holds
// it: at most 4.5 % from the truth, unless that is beyond what the histogram's
// outermost buckets can hold.
func (l *Latency) Quantile(q float64) time.Duration {
	if l.Count == 0 {
		return 0
	}
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(l.Count)))
	rank = min(max(rank, 1), l.Count)
	seen, k := uint64(0), 0
	for ; k < len(l.Counts)-1; k++ {
		if seen += l.Counts[k]; seen >= rank {
			break
		}
	}
	return time.Duration(math.Exp2((float64(l.Offset+k)+0.5)/(1<<HistogramScale)) * float64(time.Second))
}
