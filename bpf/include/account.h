/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * account.h - which point a frame is at, and the ledger's kernel side: every
 * frame adds to seen of its point once, and to one flow or one skipped reason.
 */
#ifndef WEFT_ACCOUNT_H
#define WEFT_ACCOUNT_H

#include "parse.h"

/* Sizes are set by the loader; see flow_config. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct link_place); /* [cpu][place] */
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct point_rare); /* [shard][point] */
} rare SEC(".maps");

/* Where an interface is when its first place was taken: in one of the next, else
 * place 0.
 */
__noinline __u32 find_further(__u32 first, __u32 base, __u32 ifindex)
{
	__u64 want = (__u64)config.netns << 32 | ifindex;

	for (__u32 i = 1; i < WEFT_LINK_PROBES; i++) {
		__u32 place = (first + i) & config.place_mask, at = base + place;
		struct link_place *l = bpf_map_lookup_elem(&places, &at);

		if (l && *(__u64 *)l == want)
			return place;
	}
	return 0;
}

/* The CPU's line of an interface; place is its index. */
static __always_inline struct link_place *find_place(__u32 ifindex, __u32 base, __u32 *place)
{
	__u64 want = (__u64)config.netns << 32 | ifindex;
	__u32 at;
	struct link_place *l;

	*place = (config.first_place + ifindex) & config.place_mask;
	at = base + *place;
	l = bpf_map_lookup_elem(&places, &at);
	if (likely(l && *(__u64 *)l == want))
		return l;
	*place = find_further(*place, base, ifindex);
	at = base + *place;
	return bpf_map_lookup_elem(&places, &at);
}

static __always_inline struct point_rare *rare_of(__u32 point, __u32 cpu)
{
	__u32 at = (cpu & config.rare_mask) * (config.place_mask + 1) * WEFT_HOOKS + point;

	return bpf_map_lookup_elem(&rare, &at);
}

static __always_inline void count_rare(struct wire_count *c, __u64 packets, __u64 bytes)
{
	__sync_fetch_and_add(&c->packets, packets);
	__sync_fetch_and_add(&c->bytes, bytes);
}

__noinline int count_gso_seen(const struct packet *p, __u32 cpu)
{
	struct point_rare *r;

	if (!p)
		return 0;
	r = rare_of(p->point, cpu);
	if (r)
		count_rare(&r->gso, p->packets - 1, p->gso_bytes);
	return 0;
}

static __always_inline void count_skip(const struct packet *p, __u32 cpu, __u32 reason,
				       __u32 packets, __u32 bytes)
{
	struct point_rare *r = rare_of(p->point, cpu);

	if (r && reason < WEFT_SKIP_MAX - 1)
		count_rare(&r->skipped[reason], packets, bytes);
}

#endif
