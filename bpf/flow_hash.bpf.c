//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flow_hash.bpf.c - flow.bpf.c on a plain BPF hash, for kernels that refuse
 * mappable slots or the ring buffer, or whose softirqs can be preempted.
 *   tc_ingress, tc_egress -> parse -> seen -> hash of the current set | skipped
 * User space swaps the set and drains the one it took out.
 */
#include "include/cold.h"
#include "include/account.h"
#include "include/control.h"

struct flow_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct hash_key));
	__uint(value_size, sizeof(struct hash_flow));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flow_set);
} current_set SEC(".maps");

static __always_inline void add_to(struct hash_flow *f, __u32 packets, __u32 bytes, __u8 flags)
{
	__sync_fetch_and_add(&f->bytes, bytes);
	__sync_fetch_and_add(&f->packets, packets);
	if ((f->flags & flags) != flags)
		__sync_fetch_and_or(&f->flags, flags);
	f->last = bpf_jiffies64();
}

/* Has p's connection begun where another one was? A SYN that is sent again is the same. */
static __always_inline int begins_anew(frame_t *ctx, const struct packet *p,
				       const struct hash_flow *f)
{
	struct tcphdr buf, *tcp;

	if (likely(!(p->flags & TCP_SYN)))
		return 0;
	if (f->flags & (TCP_FIN | TCP_RST))
		return 1;
	tcp = header(ctx, p->l4, &buf, sizeof(buf), EITHER);
	return tcp && f->cold.flags & TCP_SYN && f->cold.seq != bpf_ntohl(tcp->seq);
}

/* Moves what f has to an entry of its own, so that the next connection begins in it. The counts are taken out
 * by exchange: what another CPU adds meanwhile is in one of the two. Without room they stay together.
 */
static __always_inline void put_aside(frame_t *ctx, struct packet *p, void *set, struct hash_key *k,
				      struct hash_flow *f)
{
	struct hash_flow *o;

	k->before = f->cold.seq ?: 1;
	if (bpf_map_update_elem(set, k, f, BPF_NOEXIST))
		return;
	o = bpf_map_lookup_elem(set, k);
	if (!o)
		return; /* never: nobody removes it */
	o->packets = __sync_lock_test_and_set(&f->packets, 0);
	o->bytes = __sync_lock_test_and_set(&f->bytes, 0);
	__sync_lock_test_and_set(&f->flags, 0);
	fill_cold(ctx, p, &f->cold);
}

static __always_inline int add_flow(frame_t *ctx, struct packet *p, __u32 cpu, __u32 packets,
				    __u32 bytes)
{
	struct hash_key k = { .key = p->key, .vlan = p->vlan };
	struct hash_flow fresh = {}, *f;
	__u32 zero = 0;
	void *set = bpf_map_lookup_elem(&current_set, &zero);

	if (!set)
		return -1;
	f = bpf_map_lookup_elem(set, &k);
	if (f) {
		if (unlikely(begins_anew(ctx, p, f)))
			put_aside(ctx, p, set, &k, f);
		add_to(f, packets, bytes, p->flags);
		return 0;
	}
	fresh.bytes = bytes;
	fresh.packets = packets;
	fresh.last = bpf_jiffies64();
	fresh.flags = p->flags;
	fill_cold(ctx, p, &fresh.cold);
	if (!bpf_map_update_elem(set, &k, &fresh, BPF_NOEXIST))
		return 0;
	f = bpf_map_lookup_elem(set, &k); /* another CPU was first, or the set is full */
	if (!f)
		return -1;
	add_to(f, packets, bytes, p->flags);
	return 0;
}

#include "include/observe.h"

/* Only so that the generator finds them in the object's BTF. */
const struct hash_key *btf_key __attribute__((unused));
const struct hash_flow *btf_flow __attribute__((unused));

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	observe(skb, WEFT_HOOK_INGRESS);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	observe(skb, WEFT_HOOK_EGRESS);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
