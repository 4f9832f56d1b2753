// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math/big"
	"math/rand/v2"
	"testing"
)

// edgeAgainst is -1, 0 or 1 when 2^(i/8) seconds are less than v nanoseconds, as
// many or more, by whole numbers: 2^(i/8) < v/10^9 is 2^i * 10^72 < v^8.
func edgeAgainst(i int, v uint64) int {
	edge := new(big.Int).Exp(big.NewInt(1e9), big.NewInt(8), nil)
	value := new(big.Int).Exp(new(big.Int).SetUint64(v), big.NewInt(8), nil)
	if i < 0 {
		value.Lsh(value, uint(-i))
	} else {
		edge.Lsh(edge, uint(i))
	}
	return edge.Cmp(value)
}

func TestBucketsAreExact(t *testing.T) {
	check := func(v uint64) {
		t.Helper()
		i := bucketOf(v)
		if edgeAgainst(i, v) >= 0 || edgeAgainst(i+1, v) < 0 {
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
		for _, edge := range edges {
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

// A power of two seconds belongs to the bucket below, and a nanosecond more does not.
func TestPowersOfTwoSecondsAreEdges(t *testing.T) {
	for e := -9; e < 34; e++ {
		ns := uint64(5*5*5*5*5*5*5*5*5) << (9 + e) // 10^9 * 2^e
		if at, above := bucketOf(ns), bucketOf(ns+1); at != 8*e-1 || above != 8*e {
			t.Errorf("2^%d s and 1 ns more: got buckets %d and %d, want %d and %d", e, at, above, 8*e-1, 8*e)
		}
	}
}

func TestHistogramKeepsWhatIsOutsideItsBuckets(t *testing.T) {
	h := &latencyCounts{}
	for _, ns := range []uint64{1, 2, 119, 100e9, 1 << 40, 1 << 60} {
		h.add(ns)
	}
	l := h.latency(LatencyKey{}, 1)
	if l.Count != 6 || l.Offset != lowestBucket || l.Counts[0] != 3 || len(l.Counts) != buckets || l.Counts[buckets-1] != 2 {
		t.Errorf("got %+v, want 3 in the first bucket and 2 in the last", l)
	}
}
