/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dns.h - copies what passes from and to port 53 to user space, which parses it.
 *   watch_dns -> copy_dns -> dns_packets | lost
 * Costs every other packet the comparison of its ports, and nothing at all without
 * the option. A packet without payload is none.
 */
#ifndef WEFT_DNS_H
#define WEFT_DNS_H

#include "account.h"

#define PORT_DNS bpf_htons(53)

/* Payload is copied so far. UDP: a header and the longest question. TCP: some messages. */
#define DNS_SHORT 96
#define DNS_UDP	  272
#define DNS_TCP	  512
_Static_assert(sizeof(((struct dns_packet *)0)->payload) == DNS_TCP, "dns_packet holds it");

/* The size is set by the loader; without the option it is an array of one. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} dns_packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_seen);
} dns_counters SEC(".maps");

/* Where the IP packet ends: behind it there may be padding. 0: nowhere. */
static __always_inline __u32 ip_end(frame_t *ctx, const struct packet *p)
{
	__u32 off = p->l2_len;
	__be16 words[4];

	if (p->l3) {
		if (bpf_skb_load_bytes(ctx, p->l3, words, sizeof(words)))
			return 0;
		return words[2] ? p->l3 + sizeof(struct ipv6hdr) + bpf_ntohs(words[2]) : ctx->len;
	}
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (!p->l2_len || bpf_skb_load_bytes(ctx, off - 2, words, 2))
			break;
		if (words[0] == bpf_htons(ETH_P_8021Q) || words[0] == bpf_htons(ETH_P_8021AD))
			off += 4;
	}
	if (bpf_skb_load_bytes(ctx, off, words, sizeof(words)))
		return 0;
	return words[1] ? off + bpf_ntohs(words[1]) : ctx->len; /* 0: a GSO frame over 64 KiB */
}

/* What is at which offset of a packet. */
struct dns_place {
	__u32 off; /* of the payload */
	__u32 len;
	__u32 seq;
	__u8 flags;
};

static __always_inline int dns_payload(frame_t *ctx, const struct packet *p, struct dns_place *at)
{
	struct tcphdr tcp;
	__be16 udp[4];
	__u32 end;

	if (p->key.proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(ctx, p->l4, udp, sizeof(udp)))
			return -1;
		at->off = p->l4 + sizeof(udp);
		at->len = bpf_ntohs(udp[2]);
		at->len -= at->len < sizeof(udp) ? at->len : sizeof(udp);
		return 0;
	}
	if (p->key.proto != IPPROTO_TCP || bpf_skb_load_bytes(ctx, p->l4, &tcp, sizeof(tcp)))
		return -1;
	end = ip_end(ctx, p);
	at->off = p->l4 + tcp.doff * 4;
	if (end <= at->off)
		return -1;
	at->len = end - at->off;
	at->seq = bpf_ntohl(tcp.seq);
	at->flags = p->flags;
	return 0;
}

/* A record with room for size bytes, a constant. Waking the reader costs microseconds: it is
 * done when the ring is a quarter full, and once for every 16 KiB more.
 */
static __always_inline int send_dns(frame_t *ctx, const struct packet *p,
				    const struct dns_place *at, __u32 copied, const __u32 size)
{
	struct dns_packet *d;
	__u64 waiting;
	__s64 n = copied;

	d = bpf_ringbuf_reserve(&dns_packets, __builtin_offsetof(struct dns_packet, payload) + size,
				0);
	if (!d)
		return -1;
	d->ktime_ns = bpf_ktime_get_ns();
	d->key = p->key;
	d->vlan = p->vlan;
	d->seq = at->seq;
	d->len = at->len;
	d->copied = copied;
	d->flags = at->flags;
	d->pad = 0;
	/* before 6.8 the verifier does not take n != 0 for n > 0, which clang makes of it */
	asm volatile("" : "+r"(n));
	if (n > 0 && n <= size && bpf_skb_load_bytes(ctx, at->off, d->payload, n))
		d->copied = 0;
	waiting = bpf_ringbuf_query(&dns_packets, BPF_RB_AVAIL_DATA);
	bpf_ringbuf_submit(d, waiting >= bpf_ringbuf_query(&dns_packets, BPF_RB_RING_SIZE) / 4 &&
					      (waiting & 16383) < sizeof(*d) + 8 ?
				      BPF_RB_FORCE_WAKEUP :
				      BPF_RB_NO_WAKEUP);
	return 0;
}

static __noinline int copy_dns(frame_t *ctx, struct packet *p)
{
	struct dns_place at = {};
	struct dns_seen *seen;
	__u32 zero = 0, have;
	int err;

	if (!p || p->later || dns_payload(ctx, p, &at))
		return 0;
	seen = bpf_map_lookup_elem(&dns_counters, &zero);
	if (!seen)
		return 0;
	have = ctx->len > at.off ? ctx->len - at.off : 0;
	if (have > at.len)
		have = at.len;
	if (have <= DNS_SHORT)
		err = send_dns(ctx, p, &at, have, DNS_SHORT);
	else if (p->key.proto == IPPROTO_UDP || have <= DNS_UDP)
		err = send_dns(ctx, p, &at, have < DNS_UDP ? have : DNS_UDP, DNS_UDP);
	else
		err = send_dns(ctx, p, &at, have < DNS_TCP ? have : DNS_TCP, DNS_TCP);
	seen->seen++;
	if (err)
		seen->lost++;
	return 0;
}

static __always_inline void watch_dns(frame_t *ctx, struct packet *p)
{
	__u32 ports = p->words[4];

	if (config.options & WEFT_OPTION_DNS &&
	    unlikely((__u16)ports == PORT_DNS || ports >> 16 == PORT_DNS))
		copy_dns(ctx, p);
}

#endif
