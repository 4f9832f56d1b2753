/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bucket.h - the bucket of a time in a histogram of seconds, exponential of scale 3. */
#ifndef WEFT_BUCKET_H
#define WEFT_BUCKET_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Of a 64-bit word whose bits below the highest are all set: the highest. */
static const volatile __u8 log2_of[64] = {
	0,  58, 1,  59, 47, 53, 2,  60, 39, 48, 27, 54, 33, 42, 3,  61, 51, 37, 40, 49, 18, 28,
	20, 55, 30, 34, 11, 43, 14, 22, 4,  62, 57, 46, 52, 38, 26, 32, 41, 50, 36, 17, 19, 29,
	10, 13, 21, 56, 45, 25, 31, 35, 16, 9,	12, 44, 24, 15, 8,  23, 7,  6,	5,  63,
};

/* The eight edges between two powers of two nanoseconds: 10^9 * 2^(j/8), brought to [1, 2),
 * of 63 bits and rounded down. A sixteenth of that has one of them or none, which is out of
 * reach; below_edge counts those below it. Index: the four bits after the highest.
 */
#define NO_EDGE (~0ULL >> 1)
static const volatile __u64 edge[16] = {
	0x40ffd3d4aa4e5371ULL,
	0x46e1dc4b00b253ecULL,
	NO_EDGE,
	0x4d4c3382a6a891c8ULL,
	NO_EDGE,
	0x544b2fba5f832838ULL,
	0x5bec4509686ecf50ULL,
	NO_EDGE,
	NO_EDGE,
	0x643e1f3e81e6df61ULL,
	NO_EDGE,
	0x6d50be1668caaaedULL,
	NO_EDGE,
	0x7735940000000000ULL,
	NO_EDGE,
	NO_EDGE,
};
static const volatile __u8 below_edge[16] = {
	0, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8,
};

/* The i of (2^(i/8), 2^((i+1)/8)] seconds that holds ns, which is neither 0 nor above 2^63;
 * exact. No comparisons: each would be a branch that is not predicted.
 */
static __always_inline __s32 bucket_of(__u64 ns)
{
	__u64 s = ns, m;
	__u32 e, part;

	s |= s >> 1;
	s |= s >> 2;
	s |= s >> 4;
	s |= s >> 8;
	s |= s >> 16;
	s |= s >> 32;
	e = log2_of[(s * 0x03f6eaf2cd271461ULL) >> 58 & 63];
	m = ns << ((63 - e) & 63) >> 1;
	part = m >> 58 & 15;
	/* 2^29 ns are in bucket -8: between 2^-1 and 2^(-7/8) s */
	return (__s32)((e << 3) + below_edge[part] + ((edge[part] - m) >> 63)) - 240;
}

#endif
