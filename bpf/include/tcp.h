/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tcp.h - what a device can tell of a TCP connection from its headers alone.
 *
 *   every packet   one line that both directions share: in order? a probe answered?
 *   what is rare   SYN, FIN, a jump or a repetition, a probe to arm: tcp_rare(), and the
 *                  figures go to the line beside the flow's slot (tcp_lines)
 *
 * One probe a side: the end of a segment is remembered with its time and the peer's
 * acknowledgement of it ends the probe. A segment sent twice ends it without a time
 * (Karn), and a side arms at most one probe a tick, so that chatter does not read
 * the clock all the time. The SYN and SYN-ACK are probes as well: the handshake.
 * An acknowledgement of what was sent in a later tick too says nothing: the one of the
 * probe alone may have taken another way.
 */
#ifndef WEFT_TCP_H
#define WEFT_TCP_H

#include "latency.h"
#include "slots.h"

#define REORDER_NS  3000000ULL /* what comes later was sent again, if the round trip is not known */
#define PLAIN	    (WEFT_TCP_SYN | WEFT_TCP_LATER | WEFT_TCP_DONE) /* states of plain segments */
#define MAX_PAYLOAD (1U << 24)	 /* more: the header says that it is longer than the packet */
#define LEAST_NS    1000000ULL	 /* sooner may be a CPU that was late */
#define ID_NEAR	    1024	 /* ids further apart do not count up */
#define STALE_NS    (1ULL << 37) /* a probe this old says nothing */
#define MAX_JUMP    (1 << 30)	 /* the largest window there is */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_pair);
} tcp_convs SEC(".maps");

/* a - b of sequence numbers */
static __always_inline __s32 ahead(__u32 a, __u32 b)
{
	return (__s32)(a - b);
}

static __always_inline __u32 in_32ns(__u64 ns)
{
	return ns >> 37 ? ~0U : ns < 32 ? 1 : ns >> 5;
}

/* One end of the connection: address and port. */
static __always_inline __u64 hash_end(const struct packet *p, __u32 at, __u32 port)
{
	__u64 h = nh(p->words[at + 1] >> 32, port, config.hash_key[0]);

	if (unlikely(!(p->words[4] >> 56 & WEFT_KIND_IPV4)))
		h += nh(p->words[at], p->words[at] >> 32, config.hash_key[1]) +
		     nh(p->words[at + 1], p->words[at + 1] >> 32, config.hash_key[2]);
	return h;
}

/* p's sender is the server: it did not send the SYN, or has the lower port. */
static __always_inline int from_server(const struct packet *p, const struct tcp_conv *c)
{
	if (c->opener)
		return (c->opener & 1) == (p->dir & 1);
	return bpf_ntohs(p->key.sport) < bpf_ntohs(p->key.dport);
}

/* p ended the other side's probe after ns: that is how far its sender is. */
__noinline int tcp_time(const struct packet *p, struct tcp_conv *c, __u64 ns, __u32 class,
			__u32 handshake)
{
	struct latency_key k = {};
	struct flow_control *ctl;
	struct tcp_seen *acct;
	struct tcp_line *l;
	__u32 zero = 0, t, tick = bpf_jiffies64(), server;

	if (!p || !c)
		return 0;
	l = tcp_line_of(p->slot);
	ctl = bpf_map_lookup_elem(&control, &zero);
	acct = bpf_map_lookup_elem(&tcp_account, &zero);
	if (!l || !ctl || !acct)
		return 0;
	t = in_32ns(ns);
	if (!c->least[p->dir & 1] || t < c->least[p->dir & 1])
		c->least[p->dir & 1] = t;
	if (handshake) {
		l->handshake = t;
	} else {
		__sync_fetch_and_add(&l->rtt_begun, 1);
		l->rtt_sum += ns;
		if (!l->rtt_least || t < l->rtt_least)
			l->rtt_least = t;
		/* what the last scan has read is over */
		if (t > l->rtt_most || (__s32)(l->rtt_tick - (__u32)ctl->scan_jiffies) < 0)
			l->rtt_most = t;
		l->rtt_tick = tick;
		__sync_fetch_and_add(&l->rtt_count, 1);
	}
	server = from_server(p, c);
	__builtin_memcpy(k.server, server ? p->key.src : p->key.dst, 16);
	k.port = server ? p->key.sport : p->key.dport;
	k.proto = p->key.proto;
	k.measure = (handshake ? WEFT_HANDSHAKE_SERVER : WEFT_RTT_SERVER) + !server;
	k.class = class;
	add_latency(&k, ns, acct);
	return 0;
}

/* What the options of a SYN say; bytes of them are at off. */
__noinline int read_options(frame_t *ctx, __u32 off, __u32 bytes, struct tcp_line *l)
{
	__u32 most = bytes - 1, at = 0; /* an older verifier follows no more than this */
	__u8 o[72] = {};		/* 40, and what index and length reach past it */

	if (!l)
		return 0;
	l->options |= WEFT_TCP_SYN_SEEN;
	asm volatile("" : "+r"(most)); /* what is checked is what is passed */
	if (most > 39 || bpf_skb_load_bytes(ctx, off, o, most + 1))
		return 0;
	for (int i = 0; i < 12; i++) {
		__u8 kind, n;

		if (at >= 40)
			return 0;
		asm volatile("" : "+r"(at));
		at &= 63;
		kind = o[at];
		n = o[at + 1];
		if (!kind)
			return 0;
		if (kind == 1) {
			at++;
			continue;
		}
		if (n < 2)
			return 0;
		if (kind == 2) {
			l->mss = o[at + 2] << 8 | o[at + 3];
		} else if (kind == 3) {
			l->wscale = o[at + 2];
			l->options |= WEFT_TCP_WSCALE;
		} else if (kind == 4) {
			l->options |= WEFT_TCP_SACK;
		} else if (kind == 8) {
			l->options |= WEFT_TCP_TIMESTAMPS;
		}
		at += n;
	}
	return 0;
}

/* WEFT_TCP_EGRESS if p is at egress */
static __always_inline __u8 hook_of(const struct packet *p)
{
	return (p->key.point & (WEFT_HOOKS - 1)) == WEFT_HOOK_EGRESS ? WEFT_TCP_EGRESS : 0;
}

static __always_inline void arm(struct tcp_side *me, __u32 probe)
{
	me->probe = probe;
	me->state &= ~WEFT_TCP_LATER;
	me->tick = bpf_jiffies64();
	/* last: who sees the time sees the rest */
	__sync_lock_test_and_set(&me->probe_ns, bpf_ktime_get_ns());
}

/* The side goes on to send while its probe waits. */
static __always_inline void sent_on(struct tcp_conv *c, struct tcp_side *me, __u32 dir)
{
	if (!me->probe_ns || me->state & WEFT_TCP_LATER || me->tick == (__u8)bpf_jiffies64())
		return;
	c->limit[dir] = me->next;
	me->state |= WEFT_TCP_LATER;
}

/* The side sent or acknowledged more than a SYN. */
static __always_inline int begun(const struct tcp_side *s, __u32 isn)
{
	return s->state & WEFT_TCP_KNOWN && !(s->state & WEFT_TCP_SYN && s->next == isn + 1);
}

/* Does the connection stand, so that a SYN with its ports need not be of a new one? */
static __always_inline int stands(const struct tcp_conv *c)
{
	const struct tcp_side *a = &c->side[0], *b = &c->side[1];

	if ((a->state | b->state) & WEFT_TCP_DONE)
		return 0;
	return a->state & b->state & WEFT_TCP_KNOWN || begun(a, c->isn[0]) || begun(b, c->isn[1]);
}

static __always_inline void begin_anew(struct tcp_conv *c, __u32 opener)
{
	__builtin_memset(&c->side, 0, sizeof(c->side));
	c->least[0] = c->least[1] = 0;
	c->opener = 1 + opener;
	c->holder = 0;
}

/* A SYN that came while another connection stood is kept apart until an answer shows
 * that it was none of a stranger.
 */
static __always_inline int hold(const struct packet *p, struct tcp_conv *c)
{
	__u8 holder = 1 + (p->dir & 1) + hook_of(p);

	if (c->holder && c->held == p->seq) {
		if (c->holder != holder) /* the other hook of the same device */
			return 0;
		c->held_at = 0;
		return 1;
	}
	c->held = p->seq;
	c->held_at = bpf_ktime_get_ns() >> 5 | 1;
	c->holder = holder;
	return 0;
}

/* If p answers the held SYN, or is what its sender sends after such an answer, the line is
 * the new connection's from here on.
 */
__noinline int tcp_renew(const struct packet *p, struct tcp_conv *c)
{
	__u32 opener, place, held_at, now = bpf_ktime_get_ns() >> 5;
	struct tcp_line *line;
	struct tcp_side *me;
	struct link_place *l;

	if (!p || !c)
		return 0;
	line = tcp_line_of(p->slot);
	if (!line)
		return 0;
	opener = (c->holder - 1) & 1;
	held_at = c->held_at;
	if ((p->dir & 1) == opener) {
		if (p->flags & (TCP_SYN | TCP_RST) || p->seq != c->held + 1 ||
		    (c->holder & WEFT_TCP_EGRESS) != hook_of(p))
			return 0;
		held_at = 0;
	} else if ((p->flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK) ||
		   p->ack - c->held - 1 > 0xffff) { /* with data: TCP Fast Open */
		return 0;
	}
	me = &c->side[opener];
	place = c->holder & WEFT_TCP_EGRESS;
	begin_anew(c, opener);
	line->handshake = 0;
	me->state = WEFT_TCP_KNOWN | WEFT_TCP_SYN | place;
	c->isn[opener] = c->held;
	me->next = (p->dir & 1) == opener ? p->seq : p->ack;
	place = p->point / WEFT_HOOKS;
	l = bpf_map_lookup_elem(&places, &place);
	if (l && held_at)
		tcp_time(p, c, (__u64)(now - held_at) << 5, l->class, 1);
	return 0;
}

/* A SYN or SYN-ACK; the number of times that it was sent before. */
static __always_inline int tcp_opening(const struct packet *p, struct tcp_conv *c,
				       struct tcp_side *me, struct tcp_side *peer)
{
	__u32 dir = p->dir & 1;

	if (me->state & WEFT_TCP_SYN && c->isn[dir] == p->seq && me->state & WEFT_TCP_KNOWN) {
		me->probe_ns = 0;
		return 1;
	}
	if (!(p->flags & TCP_ACK)) {
		/* unless the other side has only sent its SYN too: both open at once */
		if (!(peer->state & WEFT_TCP_SYN && peer->next == c->isn[dir ^ 1] + 1 &&
		      !(me->state & WEFT_TCP_KNOWN))) {
			if (stands(c))
				return hold(p, c);
			begin_anew(c, dir);
		}
	} else if (!c->opener) {
		c->opener = 1 + (dir ^ 1);
	}
	c->isn[dir] = p->seq;
	me->state = WEFT_TCP_KNOWN | WEFT_TCP_SYN | hook_of(p);
	me->next = p->seq + 1 + p->payload;
	me->ack = p->ack;
	arm(me, p->seq + 1);
	return 0;
}

/* Was p, which fills a gap, sent before what came after the gap? */
static __always_inline int sent_before(const struct packet *p, const struct tcp_conv *c)
{
	__u32 dir = p->dir & 1, least = c->least[0] + c->least[1];
	__s16 later = bpf_ntohs(p->ip_id) - c->gap_id[dir];
	__u64 limit = least ? (__u64)least << 5 : REORDER_NS;

	/* a sender that numbers its packets tells */
	if (p->ip_id && c->gap_id[dir] && later && later > -ID_NEAR && later < ID_NEAR)
		return later < 0;
	/* else time: nothing is sent again sooner than news of the gap takes to the
	 * receiver, back to the sender, and here
	 */
	if (limit < LEAST_NS)
		limit = LEAST_NS;
	return (__u64)((__u32)(bpf_ktime_get_ns() >> 10) - c->gap_at[dir]) << 10 < limit;
}

/* How many of p's packets lie in its first n bytes: a frame may have been put together of
 * what was sent again and what was not.
 */
static __always_inline __u32 packets_in(const struct packet *p, __u32 n)
{
	if (p->packets < 2 || n >= p->payload)
		return p->packets;
	return ((__u64)p->packets * n + p->payload - 1) / p->payload;
}

/* A segment that is not the next one. */
static __always_inline void tcp_jump(const struct packet *p, struct tcp_conv *c,
				     struct tcp_side *me, struct tcp_line *l, __u32 end)
{
	__u32 dir = p->dir & 1, filled = 0, came;
	__s32 by = ahead(p->seq, me->next);

	/* no window is that large: numbers of another connection, or most did not pass here */
	if (by > MAX_JUMP || by < -MAX_JUMP) {
		me->state &= ~WEFT_TCP_GAP;
		me->probe_ns = 0;
		me->next = end;
		return;
	}
	if (by > 0) {
		sent_on(c, me, dir);
		if (!(me->state & WEFT_TCP_GAP)) {
			c->gap[dir] = me->next;
			c->gap_at[dir] = bpf_ktime_get_ns() >> 10;
			c->missing[dir] = 0;
			me->state |= WEFT_TCP_GAP;
		}
		c->missing[dir] = (c->missing[dir] + (__u32)by) % WEFT_MISSING;
		c->gap_end[dir] = p->seq;
		c->gap_id[dir] = bpf_ntohs(p->ip_id);
		me->next = end;
		return;
	}
	if (ahead(me->probe, p->seq) > 0)
		me->probe_ns = 0;
	if (me->state & WEFT_TCP_GAP && ahead(p->seq, c->gap[dir]) >= 0 &&
	    ahead(c->gap_end[dir], p->seq) > 0) {
		filled = packets_in(p, c->gap_end[dir] - p->seq);
		if (sent_before(p, c))
			l->out_of_order += filled;
		else
			l->lost += filled;
		if (p->seq == c->gap[dir])
			c->gap[dir] = end;
		came = ahead(end, c->gap_end[dir]) < 0 ? end : c->gap_end[dir];
		came = (came - p->seq) % WEFT_MISSING;
		c->missing[dir] = (c->missing[dir] + WEFT_MISSING - came) % WEFT_MISSING;
		/* what lay between two holes has been seen: again, it was sent again */
		if (!c->missing[dir] || ahead(c->gap[dir], c->gap_end[dir]) >= 0)
			me->state &= ~WEFT_TCP_GAP;
	}
	l->retransmits += packets_in(p, me->next - p->seq) - filled;
	if (ahead(end, me->next) > 0)
		me->next = end;
}

static __always_inline void tcp_window(const struct packet *p, struct tcp_conv *c,
				       struct tcp_side *me, struct tcp_line *l)
{
	__u32 dir = p->dir & 1, now;

	if (!p->window && !(me->state & WEFT_TCP_ZERO)) {
		me->state |= WEFT_TCP_ZERO;
		c->zero_at[dir] = bpf_ktime_get_ns() >> 20;
		l->zero_windows++;
	} else if (p->window && me->state & WEFT_TCP_ZERO) {
		me->state &= ~WEFT_TCP_ZERO;
		now = (__u32)(bpf_ktime_get_ns() >> 20) - c->zero_at[dir];
		l->zero_ms += ((__u64)now << 20) / 1000000;
	}
}

/* A keep-alive or window probe: one number back, with no data, or with one byte that the
 * peer has, which is not pushed. Else it is that byte, sent again.
 */
static __always_inline int is_probe(const struct packet *p, const struct tcp_side *me,
				    const struct tcp_side *peer)
{
	if (p->seq + 1 != me->next || p->payload > 1 || p->flags & TCP_FIN)
		return 0;
	return !p->payload || (!(p->flags & TCP_PSH) && (!(peer->state & WEFT_TCP_KNOWN) ||
							 ahead(peer->ack, me->next) >= 0));
}

/* Is the SYN for a socket here whose accept queue is full? The kernel drops it then, and
 * tells nobody. Static: verified only where it is called.
 */
static __noinline int meets_full_queue(frame_t *ctx, const struct packet *p)
{
	__u32 waiting = 0, room = 0, len = sizeof(((struct bpf_sock_tuple *)0)->ipv6);
	struct bpf_sock_tuple t = {};
	struct tcp_sock *listener;
	struct bpf_sock *sk;

	if (p->words[4] >> 56 & WEFT_KIND_IPV4) {
		len = sizeof(t.ipv4);
		t.ipv4.saddr = p->words[1] >> 32;
		t.ipv4.daddr = p->words[3] >> 32;
		t.ipv4.sport = p->key.sport;
		t.ipv4.dport = p->key.dport;
	} else {
		__builtin_memcpy(&t.ipv6, &p->key, 36); /* addresses and ports, in the same order */
	}
	sk = bpf_sk_lookup_tcp(ctx, &t, len, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	listener = sk->state == BPF_TCP_LISTEN ? bpf_skc_to_tcp_sock(sk) : 0;
	if (listener) {
		bpf_probe_read_kernel(&waiting, sizeof(waiting),
				      (void *)listener + config.ack_backlog);
		bpf_probe_read_kernel(&room, sizeof(room),
				      (void *)listener + config.max_ack_backlog);
	}
	bpf_sk_release(sk);
	return waiting > room;
}

/* All that is not the plain next segment or acknowledgement. */
__noinline int tcp_rare(frame_t *ctx, const struct packet *p, struct tcp_conv *c)
{
	struct tcp_side *me, *peer;
	struct tcp_line *l;
	__u32 end;

	if (!p || !c)
		return 0;
	me = &c->side[p->dir & 1];
	peer = &c->side[~p->dir & 1];
	l = tcp_line_of(p->slot);
	if (!l)
		return 0;
	if (config.ack_backlog && (p->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && !hook_of(p) &&
	    meets_full_queue(ctx, p))
		l->options |= WEFT_TCP_QUEUE_FULL;
	if (unlikely(c->holder))
		tcp_renew(p, c);
	/* A packet may pass both hooks of a device: loopback, a router on one leg. A side
	 * is read at the one where it was first seen, else it would repeat itself.
	 */
	if (me->state & WEFT_TCP_KNOWN && (me->state & WEFT_TCP_EGRESS) != hook_of(p) &&
	    !(p->flags & TCP_SYN && c->isn[p->dir & 1] != p->seq))
		return 0;
	if (p->flags & TCP_RST) {
		me->state |= WEFT_TCP_DONE;
		me->probe_ns = peer->probe_ns = 0;
		return 0;
	}
	if (p->flags & TCP_SYN) {
		if (tcp_opening(p, c, me, peer))
			l->retransmits += p->packets;
		else if (!c->holder || !(l->options & WEFT_TCP_SYN_SEEN))
			read_options(ctx, p->l4 + sizeof(struct tcphdr), p->options, l);
		if (!c->holder)
			me->window = p->window;
		return 0;
	}
	end = p->seq + p->payload + (p->flags & TCP_FIN);
	if (p->flags & TCP_FIN)
		me->state |= WEFT_TCP_DONE;
	/* what the receiver has is not missing: it did not pass here, or not as a segment */
	if (me->state & WEFT_TCP_GAP && peer->state & WEFT_TCP_KNOWN &&
	    ahead(peer->ack, c->gap_end[p->dir & 1]) >= 0)
		me->state &= ~WEFT_TCP_GAP;
	if (!(me->state & WEFT_TCP_KNOWN)) { /* seen from the middle on */
		me->next = end;
		me->state |= WEFT_TCP_KNOWN | hook_of(p);
	} else if (end == p->seq) {
		/* the same acknowledgement again, and the peer is waiting for one */
		if (p->ack == me->ack && p->window == me->window && p->seq == me->next &&
		    peer->state & WEFT_TCP_KNOWN && ahead(peer->next, p->ack) > 0)
			l->dup_acks += p->packets;
	} else if (p->seq == me->next) {
		sent_on(c, me, p->dir & 1);
		me->next = end;
		if (!me->probe_ns && !(me->state & WEFT_TCP_GAP))
			arm(me, end);
	} else if (!is_probe(p, me, peer)) {
		tcp_jump(p, c, me, l, end);
	}
	tcp_window(p, c, me, l);
	me->ack = p->ack;
	me->window = p->window;
	return 0;
}

/* Both ends sent FIN, and nothing of theirs waits for an answer: a stranger would have to
 * forge both.
 */
static __always_inline int ended(const struct tcp_conv *c)
{
	return c->side[0].state & c->side[1].state & WEFT_TCP_DONE &&
	       !(c->side[0].probe_ns | c->side[1].probe_ns);
}

/* Takes a line for a connection that has none; its index in the pair, or -1. */
__noinline int tcp_adopt(const struct packet *p, struct tcp_pair *b, __u32 tag)
{
	__u32 now = bpf_jiffies64(), zero = 0;
	struct tcp_seen *acct;
	struct tcp_conv *c;
	struct tcp_line *l;

	if (!p || !b)
		return -1;
	for (__u32 i = 0; i < 2; i++) {
		c = &b->way[i & 1];
		/* a new connection takes the place of one that ended or rests; others only of
		 * an old one
		 */
		if (!c->tag || now - c->last > (p->flags & TCP_SYN ? 1024 : 8192) ||
		    (p->flags & TCP_SYN && ended(c))) {
			c->tag = 0;
			__builtin_memset((__u8 *)c + 4, 0, sizeof(*c) - 4);
			c->last = now;
			__sync_lock_test_and_set(&c->tag, tag);
			return i;
		}
	}
	acct = bpf_map_lookup_elem(&tcp_account, &zero);
	if (acct)
		acct->untracked += p->packets;
	l = tcp_line_of(p->slot);
	if (l)
		l->untracked += p->packets;
	return -1;
}

static __always_inline void watch_tcp(frame_t *ctx, struct packet *p, const struct link_place *l,
				      __u32 place, int hook)
{
	__u64 a = hash_end(p, 0, p->words[4] & 0xffff),
	      b = hash_end(p, 2, p->words[4] >> 16 & 0xffff);
	__u64 h = a + b + ((__u64)p->vlan << 32 | place) * 0xff51afd7ed558ccdULL;
	__u32 now = bpf_jiffies64(), tag, bucket, end;
	struct tcp_pair *convs;
	struct tcp_side *me, *peer;
	struct tcp_conv *c;
	__u8 own = hook == WEFT_HOOK_EGRESS ? WEFT_TCP_EGRESS : 0;
	__u64 since;
	int way;

	h ^= h >> 32; /* ports that count up are apart by one number: else all may fall together */
	h *= 0x9e3779b97f4a7c15ULL;
	tag = (__u32)h | 1;
	bucket = (h >> 32) & config.conv_mask;
	convs = bpf_map_lookup_elem(&tcp_convs, &bucket);
	if (!convs)
		return;
	p->dir = ((a >> 1) - (b >> 1)) >> 63; /* 1: the source's hash is the smaller */
	c = &convs->way[0];
	if (unlikely(c->tag != tag)) {
		c = &convs->way[1];
		if (unlikely(c->tag != tag)) {
			way = tcp_adopt(p, convs, tag);
			if (way < 0)
				return;
			c = &convs->way[way & 1];
		}
	}
	if (unlikely(now - c->last > 64))
		c->last = now;
	me = &c->side[p->dir & 1];
	peer = &c->side[~p->dir & 1];
	since = peer->probe_ns;
	if (unlikely(since) && p->flags & TCP_ACK && ahead(p->ack, peer->probe) >= 0) {
		__u64 ns = __sync_lock_test_and_set(&peer->probe_ns, 0);

		/* claimed by this CPU, and still of this connection; behind a gap, what is missing
		 * may have said so before, and so may another if this one says more
		 */
		if (ns == since && c->tag == tag && !(p->flags & TCP_RST) &&
		    !(peer->state & WEFT_TCP_LATER && ahead(p->ack, c->limit[~p->dir & 1]) > 0) &&
		    !(me->state & WEFT_TCP_KNOWN && ahead(p->seq, me->next) > 0)) {
			ns = bpf_ktime_get_ns() - ns;
			if (ns < STALE_NS)
				tcp_time(p, c, ns, l->class,
					 peer->state & WEFT_TCP_SYN &&
						 peer->probe == c->isn[~p->dir & 1] + 1);
		}
	}
	end = p->seq + p->payload;
	if (likely(!(p->flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
		   (me->state & ~PLAIN) == (WEFT_TCP_KNOWN | own) && p->window &&
		   p->seq == me->next)) {
		if (p->payload) {
			if (likely(me->tick == (__u8)now ||
				   (me->probe_ns && me->state & WEFT_TCP_LATER))) {
				me->next = end;
				me->ack = p->ack;
				me->window = p->window;
				return;
			}
		} else if (p->ack != me->ack) {
			me->ack = p->ack;
			me->window = p->window;
			return;
		}
	}
	tcp_rare(ctx, p, c);
}

#endif
