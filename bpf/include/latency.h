/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * latency.h - exact exponential histograms of scale 3, by server, measure and class of
 * device. Bounded: a server that has no room is counted under the overflow key, which
 * user space makes when it loads.
 */
#ifndef WEFT_LATENCY_H
#define WEFT_LATENCY_H

#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct latency_key);
	__type(value, struct latency);
} latencies SEC(".maps");

/* What a new key begins with: too large for the stack. Never written. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct latency);
} no_latency SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_seen);
} tcp_account SEC(".maps");

/* Of a 64-bit word whose bits below the highest are all set: the highest. */
static const volatile __u8 log2_of[64] = {
	0,  58, 1,  59, 47, 53, 2,  60, 39, 48, 27, 54, 33, 42, 3,  61, 51, 37, 40, 49, 18, 28,
	20, 55, 30, 34, 11, 43, 14, 22, 4,  62, 57, 46, 52, 38, 26, 32, 41, 50, 36, 17, 19, 29,
	10, 13, 21, 56, 45, 25, 31, 35, 16, 9,	12, 44, 24, 15, 8,  23, 7,  6,	5,  63,
};

/* 2^((j+1)/8) as a fraction of 2, 63 bits; the last is out of reach. */
static const volatile __u64 eighth[8] = {
	0x45cae0f1f545eb73ULL, 0x4c1bf828c6dc54b7ULL, 0x52ff6b54d8a89c75ULL, 0x5a827999fcef3242ULL,
	0x62b39508aa836d6eULL, 0x6ba27e656b4eb57aULL, 0x75606373ee921c97ULL, 0x7fffffffffffffffULL,
};

/* The i of (2^(i/8), 2^((i+1)/8)] that holds v > 0; -1 for 1. No comparisons: each would
 * be a branch that is not predicted.
 */
static __always_inline __s32 bucket_of(__u64 v)
{
	__u64 s = v, x = v & (v - 1), m;
	__u32 e, lin;

	s |= s >> 1;
	s |= s >> 2;
	s |= s >> 4;
	s |= s >> 8;
	s |= s >> 16;
	s |= s >> 32;
	e = log2_of[(s * 0x03f6eaf2cd271461ULL) >> 58 & 63];
	m = v << ((63 - e) & 63);
	lin = m >> 60 & 7;
	return (__s32)((e << 3) + lin + ((eighth[lin] - (m >> 1)) >> 63) - 1 + ((x | -x) >> 63));
}

/* Adds a time to the histogram of k. */
static __always_inline void add_latency(const struct latency_key *k, __u64 ns,
					struct tcp_seen *acct)
{
	struct latency_key none = {};
	struct latency *h = bpf_map_lookup_elem(&latencies, k);
	__u32 zero = 0;
	__s32 i;

	if (unlikely(!h)) {
		struct latency *fresh = bpf_map_lookup_elem(&no_latency, &zero);

		if (fresh)
			bpf_map_update_elem(&latencies, k, fresh, BPF_NOEXIST);
		h = bpf_map_lookup_elem(&latencies, k);
		if (!h) {
			acct->overflow++;
			none.proto = k->proto;
			none.measure = k->measure;
			h = bpf_map_lookup_elem(&latencies, &none);
		}
		if (!h) {
			acct->lost++;
			return;
		}
	}
	i = bucket_of(ns | !ns) - WEFT_LATENCY_LOWEST;
	if (i < 0)
		i = 0;
	if (i >= WEFT_LATENCY_BUCKETS)
		i = WEFT_LATENCY_BUCKETS - 1;
	__sync_fetch_and_add(&h->bucket[i], 1);
	__sync_fetch_and_add(&h->sum, ns);
}

#endif
