// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math/big"
	"math/rand/v2"
	"testing"
)

// TestBucketsAreExact compares eighth powers: 2^(i/8) < v is 2^i < v^8.
func TestBucketsAreExact(t *testing.T) {
	check := func(v uint64) {
		t.Helper()
		i := bucketOf(v)
		v8 := new(big.Int).Exp(new(big.Int).SetUint64(v), big.NewInt(8), nil)
		low := i < 0 || new(big.Int).Lsh(big.NewInt(1), uint(i)).Cmp(v8) < 0
		if high := new(big.Int).Lsh(big.NewInt(1), uint(i+1)).Cmp(v8) >= 0; !low || !high {
			t.Fatalf("%d: got bucket %d", v, i)
		}
	}
	for v := uint64(1); v < 5000; v++ {
		check(v)
	}
	for e := range 64 {
		for _, d := range []uint64{0, 1} {
			check(uint64(1)<<e + d)
			check(uint64(1)<<e - d | 1)
		}
		for _, edge := range eighths {
			for d := range uint64(3) {
				check(max(edge>>(63-e)+d-1, 1))
			}
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		check(max(random.Uint64()>>random.IntN(64), 1))
	}
}

func TestHistogramKeepsWhatIsOutsideItsBuckets(t *testing.T) {
	h := &latencyCounts{}
	for _, ns := range []uint64{1, 2, 128, 1 << 36, 1 << 40, 1 << 60} {
		h.add(ns)
	}
	l := h.latency(LatencyKey{}, 1)
	if l.Count != 6 || l.Offset != lowestBucket || l.Counts[0] != 3 || len(l.Counts) != buckets || l.Counts[buckets-1] != 2 {
		t.Errorf("got %+v, want 3 in the first bucket and 2 in the last", l)
	}
}
