// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"os"
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

// lastAt is the most nanoseconds that are not above 2^(i/8) seconds.
func lastAt(i int) uint64 {
	low, high := uint64(0), uint64(1)<<63
	for low < high {
		if middle := low + (high-low+1)/2; edgeAgainst(i, middle) >= 0 {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low
}

// TestBucketsOfTheKernelAreExact: the buckets do not fall as times grow, so the last
// time on either side of each edge proves all of them.
func TestBucketsOfTheKernelAreExact(t *testing.T) {
	var objs BucketObjects
	if err := LoadBucketObjects(&objs, nil); err != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := objs.Close(); err != nil {
			t.Error(err)
		}
	})
	frame := make([]byte, 64)
	check := func(ns uint64) {
		t.Helper()
		binary.NativeEndian.PutUint64(frame[14:], ns)
		got, _, err := objs.Bucket.Test(frame)
		if err != nil {
			t.Fatal(err)
		}
		if i := int(got) - 240; edgeAgainst(i, ns) >= 0 || edgeAgainst(i+1, ns) < 0 {
			t.Fatalf("%d ns: got bucket %d, want the one that holds it", ns, i)
		}
	}
	for i := -239; i < 264; i++ {
		last := lastAt(i)
		for _, ns := range []uint64{last - 1, last, last + 1, last + 2} {
			if int64(ns) > 0 {
				check(ns)
			}
		}
	}
	random := rand.New(rand.NewPCG(3, 8))
	for range 20_000 {
		check(max(random.Uint64()>>(1+random.IntN(62)), 1))
	}
}
