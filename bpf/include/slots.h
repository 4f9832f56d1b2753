/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slots.h - the flow table: a partition per CPU of buckets of WEFT_WAYS lines.
 *
 *   hit   add to the line. No atomics: TC and XDP run with softirqs off, so the
 *         CPU is the partition's only writer.
 *   miss  take, in probe order, a line that is empty, else one that user space has
 *         read out and that rested since, else send the oldest to the ring buffer
 *         and take its line; a full ring buffer refuses the packet, which is then
 *         counted under table_full.
 *
 * User space reads lines through a mapping and never writes one. A line that
 * changes hands has tag 0 meanwhile.
 */
#ifndef WEFT_SLOTS_H
#define WEFT_SLOTS_H

#include "cold.h"
#include "control.h"
#include "hash.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cold_bucket);
} cold_lines SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} evicted SEC(".maps");

/* With WEFT_OPTION_TCP one beside each slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_bucket);
} tcp_lines SEC(".maps");

#define EVICTED_BASE   __builtin_offsetof(struct flow_evicted, tcp)
#define EVICTED_STRIDE (sizeof(struct flow_evicted) + 8) /* with the ring's own header */

static __always_inline struct tcp_line *tcp_line_of(__u32 slot)
{
	__u32 bucket = slot / WEFT_WAYS;
	struct tcp_bucket *b = bpf_map_lookup_elem(&tcp_lines, &bucket);

	return b ? &b->way[slot & (WEFT_WAYS - 1)] : 0;
}

/* bit 24 makes it differ from an empty line's 0 */
static __always_inline __u64 tag_of(__u64 hash, __u32 vlan)
{
	return hash << 24 | 1 << 24 | vlan;
}

/* Was everything that happened to this line before now read out by user space? */
static __always_inline int read_out(const struct flow_slot *s, __u64 now)
{
	__u32 zero = 0, age = (__u16)(now - s->last);
	struct flow_control *c = bpf_map_lookup_elem(&control, &zero);
	__u64 since;

	if (!c)
		return 0;
	since = now - c->read_jiffies;
	/* ages are known modulo 2^16: an older line can only look younger */
	return since < 0x8000 && age > since;
}

static __always_inline int evict(struct flow_slot *s, const struct flow_cold *c, __u32 slot)
{
	struct flow_evicted *e;
	struct tcp_line *l;
	__u64 waiting;

	/* two calls: the verifier wants to know the size of each record */
	if (config.options & WEFT_OPTION_TCP && s->key.proto == IPPROTO_TCP) {
		e = bpf_ringbuf_reserve(&evicted, sizeof(*e), 0);
		if (!e)
			return -1;
		l = tcp_line_of(slot);
		if (l)
			e->tcp = *l;
	} else {
		e = bpf_ringbuf_reserve(&evicted, EVICTED_BASE, 0);
		if (!e)
			return -1;
	}
	e->slot = slot;
	e->pad = 0;
	e->hot = *s;
	e->cold = *c;
	/* the line goes before its record is out: user space must not find both */
	__sync_lock_test_and_set(&s->tag, 0);
	/* a wake-up costs microseconds: one in about 70 once the ring is an eighth full */
	waiting = bpf_ringbuf_query(&evicted, BPF_RB_AVAIL_DATA);
	bpf_ringbuf_submit(e, waiting >= config.ring_wake && (waiting & 8191) < EVICTED_STRIDE ?
				      BPF_RB_FORCE_WAKEUP :
				      BPF_RB_NO_WAKEUP);
	return 0;
}

/* Puts the packet's flow into a slot, whose flow is sent out if it is to leave: the slot's
 * number, or -1 when it cannot be. Verified apart, and small on the callers' stack.
 */
__noinline int take_slot(frame_t *ctx, struct packet *p, __u32 slot, __u32 leave)
{
	__u32 bucket = slot / WEFT_WAYS, at = slot; /* keys: before 6.4 they must be on the stack */
	struct cold_bucket *cb = bpf_map_lookup_elem(&cold_lines, &bucket);
	struct flow_slot *s = bpf_map_lookup_elem(&slots, &at);
	struct flow_cold *c;
	struct tcp_line *l;

	if (!p || !cb || !s)
		return -1;
	c = &cb->way[slot & (WEFT_WAYS - 1)];
	if (leave && evict(s, c, slot))
		return -1;
	__sync_lock_test_and_set(&s->tag, 0);
	s->key = p->key;
	s->bytes = p->bytes;
	s->packets = p->packets;
	s->last = bpf_jiffies64();
	s->flags = p->flags;
	s->gen++;
	fill_cold(ctx, p, c);
	if (config.options & WEFT_OPTION_TCP) {
		l = tcp_line_of(slot);
		if (l)
			__builtin_memset(l, 0, sizeof(*l));
	}
	__sync_lock_test_and_set(&s->tag, tag_of(p->hash, p->vlan));
	return slot;
}

/* The i-th slot in which a flow may be whose first is home. */
static __always_inline __u32 nth_slot(__u32 home, __u32 i)
{
	return (home & ~(WEFT_WAYS - 1)) | ((home + i) & (WEFT_WAYS - 1));
}

static __always_inline int add_new(frame_t *ctx, struct packet *p)
{
	__u32 oldest = p->slot, age = 0;
	__u64 now = bpf_jiffies64();

	for (__u32 i = 0; i < WEFT_WAYS; i++) {
		__u32 at = nth_slot(p->slot, i), a;
		struct flow_slot *s = bpf_map_lookup_elem(&slots, &at);

		if (!s)
			return -1;
		if (!s->tag || read_out(s, now))
			return take_slot(ctx, p, at, 0);
		a = (__u16)(now - s->last);
		if (a > age) {
			age = a;
			oldest = at;
		}
	}
	return take_slot(ctx, p, oldest, 1);
}

/* 0 if the slot is the flow's: one branch for all of it. */
static __always_inline __u64 differs(const struct flow_slot *s, const struct packet *p, __u64 tag,
				     int ipv4)
{
	const __u64 *k = (const __u64 *)&s->key;
	__u64 d = (s->tag ^ tag) | (k[1] ^ p->words[1]) | (k[3] ^ p->words[3]) |
		  (k[4] ^ p->words[4]);

	/* words 0 and 2 of IPv4 are 0 in both */
	return ipv4 ? d : d | (k[0] ^ p->words[0]) | (k[2] ^ p->words[2]);
}

static __always_inline void add_to_slot(struct flow_slot *s, __u32 packets, __u32 bytes, __u8 flags)
{
	s->bytes += bytes;
	s->packets += packets;
	s->last = bpf_jiffies64();
	s->flags |= flags;
}

/* Did another SYN than p begin the slot's flow? One that is sent again is the same. */
__noinline int begun_by_other(frame_t *ctx, const struct packet *p, __u32 slot)
{
	__u32 bucket = slot / WEFT_WAYS;
	struct cold_bucket *cb = bpf_map_lookup_elem(&cold_lines, &bucket);
	struct tcphdr buf, *tcp;
	const struct flow_cold *c;

	if (!p || !cb)
		return 0;
	c = &cb->way[slot & (WEFT_WAYS - 1)];
	tcp = header(ctx, p->l4, &buf, sizeof(buf), EITHER);
	return tcp && c->flags & TCP_SYN && c->seq != bpf_ntohl(tcp->seq);
}

/* For a flow that is not in its first slot, or in none, or that begins. */
__noinline int add_further(frame_t *ctx, struct packet *p)
{
	struct flow_slot *s;
	__u64 tag;
	__u32 at;
	int rests;

	if (!p)
		return -1;
	tag = tag_of(p->hash, p->vlan);
#pragma unroll
	for (__u32 i = 0; i < WEFT_WAYS; i++) {
		at = nth_slot(p->slot, i);
		s = bpf_map_lookup_elem(&slots, &at);
		if (!s)
			return -1;
		if (s->tag == tag && !differs(s, p, tag, 0))
			goto found;
		if (!s->tag)
			break;
	}
	return add_new(ctx, p);

found:
	/* A SYN where the connection has ended begins a new flow in the same slot. Its FIN may
	 * have passed another CPU: then what has been read out and rests since has ended, and
	 * so has what another SYN began.
	 */
	if (p->flags & TCP_SYN) {
		rests = read_out(s, bpf_jiffies64());
		if (rests || s->flags & (TCP_FIN | TCP_RST) || begun_by_other(ctx, p, at))
			return take_slot(ctx, p, at, !rests);
	}
	add_to_slot(s, p->packets, p->bytes, p->flags);
	return at;
}

/* The flow is in its first slot, most of the time. ipv4 is a constant. */
static __always_inline int add_in(frame_t *ctx, struct packet *p, __u32 cpu, __u32 packets,
				  __u32 bytes, int ipv4)
{
	__u64 hash = flow_hash(p, ipv4);
	__u32 slot = cpu * config.slots + (hash >> config.slot_shift);
	struct flow_slot *s = bpf_map_lookup_elem(&slots, &slot);
	__u8 flags = p->flags;

	if (!s)
		return -1;
	if (likely(!differs(s, p, tag_of(hash, p->vlan), ipv4) && !(flags & TCP_SYN))) {
		add_to_slot(s, packets, bytes, flags);
		return slot;
	}
	p->hash = hash;
	p->slot = slot;
	p->packets = packets;
	p->bytes = bytes;
	return add_further(ctx, p);
}

__noinline int add_ipv6(frame_t *ctx, struct packet *p, __u32 cpu, __u32 packets, __u32 bytes)
{
	return p ? add_in(ctx, p, cpu, packets, bytes, 0) : -1;
}

/* Adds a parsed packet to its flow: the slot's number, or -1 when the table has no room. */
static __always_inline int add_flow(frame_t *ctx, struct packet *p, __u32 cpu, __u32 packets,
				    __u32 bytes)
{
	if (likely(p->words[4] >> 56 & WEFT_KIND_IPV4))
		return add_in(ctx, p, cpu, packets, bytes, 1);
	return add_ipv6(ctx, p, cpu, packets, bytes);
}

#endif
