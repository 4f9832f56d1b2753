/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * latency.h - exact exponential histograms of scale 3, by server, measure and class of
 * device. Bounded: a server that has no room is counted under the overflow key, which
 * user space makes when it loads.
 */
#ifndef WEFT_LATENCY_H
#define WEFT_LATENCY_H

#include "bucket.h"
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
