// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// bucketAt is the i of (2^(i/2^scale), 2^((i+1)/2^scale)] seconds that holds v > 0
// nanoseconds, by whole numbers: the least with (v/10^9)^(2^scale) <= 2^(i+1).
func bucketAt(scale int, v uint64) int {
	if scale < 0 {
		return bucketAt(0, v) >> -scale
	}
	power := new(big.Int).Exp(new(big.Int).SetUint64(v), big.NewInt(1<<scale), nil)
	second := new(big.Int).Exp(big.NewInt(1e9), big.NewInt(1<<scale), nil)
	const far = 1 << 9 // 10^72 is less than 2^512: whole, and the bits behind the point told by the rest
	quotient, rest := power.Lsh(power, far).QuoRem(power, second, new(big.Int))
	i := quotient.BitLen() - 1
	if rest.Sign() == 0 && quotient.TrailingZeroBits() == uint(i) {
		i-- // on the edge, which belongs to the bucket below
	}
	return i - far
}

// histogram counts values into buckets as the kernel does.
func histogram(values []uint64) Latency {
	l := Latency{Start: 5}
	for _, v := range values {
		l.Merge(&Latency{Count: 1, Sum: v, Offset: bucketAt(HistogramScale, v), Counts: []uint64{1}})
	}
	return l
}

// spread is n values between a microsecond and ten minutes, many of them on edges.
func spread(n int) []uint64 {
	r := rand.New(rand.NewPCG(3, 1))
	values := make([]uint64, n)
	for i := range values {
		values[i] = uint64(1000 * math.Exp2(r.Float64()*29))
		if i%4 == 0 {
			values[i] = 5 * 5 * 5 * 5 * 5 * 5 * 5 * 5 * 5 << r.IntN(19) // a power of two seconds
		}
	}
	return values
}

func TestDownscaledBucketsAreThoseOfTheValues(t *testing.T) {
	values := spread(2000)
	l := histogram(values)
	for scale := -4; scale <= 5; scale++ {
		want := map[int]uint64{}
		for _, v := range values {
			want[bucketAt(min(scale, HistogramScale), v)]++
		}
		offset, counts := l.Downscale(scale)
		got := map[int]uint64{}
		for k, n := range counts {
			if n > 0 {
				got[offset+k] = n
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("scale %d: got %v, want %v", scale, got, want)
		}
	}
}

func TestDownscaleRoundsDownBelowZero(t *testing.T) {
	l := Latency{Offset: -5, Counts: []uint64{1, 2, 4, 8, 16, 32, 64}} // -5 to 1
	for scale, want := range map[int]struct {
		offset int
		counts []uint64
	}{
		3: {-5, []uint64{1, 2, 4, 8, 16, 32, 64}}, 2: {-3, []uint64{1, 6, 24, 96}}, 1: {-2, []uint64{1, 30, 96}}, 0: {-1, []uint64{31, 96}},
	} {
		if offset, counts := l.Downscale(scale); offset != want.offset || !slices.Equal(counts, want.counts) {
			t.Errorf("scale %d: got %d %v, want %d %v", scale, offset, counts, want.offset, want.counts)
		}
	}
	if _, counts := (&Latency{}).Downscale(0); len(counts) != 0 {
		t.Errorf("empty: got %v, want no buckets", counts)
	}
}

func TestMergingIsCountingTogether(t *testing.T) {
	values := spread(500)
	a, b, want := histogram(values[:200]), histogram(values[200:]), histogram(values)
	before := slices.Clone(a.Counts)
	mine := a
	mine.Merge(&b)
	if !reflect.DeepEqual(mine, want) {
		t.Errorf("got %+v, want %+v", mine, want)
	}
	if !slices.Equal(a.Counts, before) {
		t.Error("the buckets that were merged into have changed")
	}
	mine.Merge(&Latency{})
	if !reflect.DeepEqual(mine, want) {
		t.Errorf("with nothing: got %+v, want %+v", mine, want)
	}
}

func TestQuantilesAreWithinTheirStatedError(t *testing.T) {
	values := spread(5000)
	l := histogram(values)
	slices.Sort(values)
	for _, q := range []float64{0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1} {
		want := values[max(int(math.Ceil(q*float64(len(values)))), 1)-1]
		got := l.Quantile(q)
		if off := math.Abs(float64(got)/float64(want) - 1); off > 0.045 {
			t.Errorf("quantile %v: got %s, want %s within 4.5 %%, is off by %.1f %%", q, got, time.Duration(want), 100*off)
		}
	}
	var sum uint64
	for _, v := range values {
		sum += v
	}
	if got, want := l.Mean(), time.Duration(sum/uint64(len(values))); got != want {
		t.Errorf("mean: got %s, want %s", got, want)
	}
	if none := (&Latency{}); none.Quantile(0.5) != 0 || none.Mean() != 0 {
		t.Errorf("of none: got %s and %s, want 0", none.Quantile(0.5), none.Mean())
	}
}

func TestDNSNamesAreThoseOfTheRegistry(t *testing.T) {
	for code, want := range map[uint16]string{0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED", 12: "RCODE12", 16: "BADVERS", 4095: "RCODE4095"} {
		if got := DNSRcodeName(code); got != want {
			t.Errorf("answer code %d: got %s, want %s", code, got, want)
		}
		if back, ok := parseRcode(want); !ok || back != code {
			t.Errorf("%s: got code %d, %v, want %d", want, back, ok, code)
		}
	}
	for code, want := range map[uint16]string{1: "A", 28: "AAAA", 33: "SRV", 65: "HTTPS", 255: "ANY", 1234: "TYPE1234"} {
		if got := DNSTypeName(code); got != want {
			t.Errorf("type %d: got %s, want %s", code, got, want)
		}
	}
}
