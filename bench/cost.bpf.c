//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cost.bpf.c - programs whose cost is compared in one run. Each first rewrites the
 * source address to one of config_flows flows at random, so that this costs the
 * same in all of them:
 *   bench_empty                 nothing else: the floor of any program
 *   bench_parse                 + parse and hash the key: the floor of any flow table
 *   bench_slots                 + all that flow.bpf.c does
 *   bench_peer                  parse, then a shared BPF hash under a spin lock
 */
#define WEFT_HEALTH
#include "../bpf/include/slots.h"
#include "../bpf/include/observe.h"

const volatile __u32 flow_mask = 0;
__u64 sink;
__u64 state = 0x9e3779b97f4a7c15ULL;

struct peer_flow {
	struct bpf_spin_lock lock;
	__u32 packets;
	__u64 bytes;
	__u64 first, last;
	__u32 flags;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct peer_flow);
} peer SEC(".maps");

#define PAYLOAD	 1000 /* of a TCP segment */
#define MAX_SEQS (1 << 17)

__u32 seqs[MAX_SEQS];

/* xorshift64: the next flow, and of TCP its next segment */
static __always_inline int mutate(struct __sk_buff *skb)
{
	struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	__u64 x = state;
	__u32 flow;

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	state = x;
	flow = (__u32)(x >> 20) & flow_mask;
	ip->saddr = bpf_htonl(0x0a000000 + flow);
	if (ip->protocol == IPPROTO_TCP) {
		tcp->seq = bpf_htonl(seqs[flow & (MAX_SEQS - 1)]);
		seqs[flow & (MAX_SEQS - 1)] += PAYLOAD;
	}
	return 0;
}

SEC("tc")
int bench_empty(struct __sk_buff *skb)
{
	mutate(skb);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bench_parse(struct __sk_buff *skb)
{
	struct packet p = {};

	mutate(skb);
	p.l2_len = ETH_HLEN;
	if (parse_frame(skb, &p) == WEFT_PARSED)
		sink = flow_hash(&p, p.words[4] >> 56 & WEFT_KIND_IPV4);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bench_slots(struct __sk_buff *skb)
{
	mutate(skb);
	observe(skb, WEFT_HOOK_INGRESS);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bench_peer(struct __sk_buff *skb)
{
	struct peer_flow fresh = { .packets = 1 }, *f;
	struct packet p = {};
	__u64 now;

	mutate(skb);
	p.l2_len = ETH_HLEN;
	if (parse_frame(skb, &p) != WEFT_PARSED)
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	f = bpf_map_lookup_elem(&peer, &p.key);
	if (f) {
		bpf_spin_lock(&f->lock);
		f->packets++;
		f->bytes += skb->len;
		f->last = now;
		f->flags |= p.flags;
		bpf_spin_unlock(&f->lock);
		return TC_ACT_UNSPEC;
	}
	fresh.bytes = skb->len;
	fresh.first = fresh.last = now;
	fresh.flags = p.flags;
	bpf_map_update_elem(&peer, &p.key, &fresh, BPF_ANY);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
