//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * socket.bpf.c - what the sockets of this host know of their flows: who owns them,
 * what was sent again, resets, failed connects, full receive queues.
 *   connect, accept, close -> sockets (owner) | unowned
 *   event -> seen -> key -> sockets' flows of the current set | overflow set | lost
 * Every event lands in exactly one of the three. Runs on rare events only, never on
 * a packet in order; in all namespaces. Each program works without the others: what
 * is missing then is its own figure. User space swaps the sets and drains what it
 * took out. Linux 5.15 and later.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "include/abi.h"
#include "include/kernel.h"

#define AF_INET	   2
#define AF_INET6   10
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/* include/net/tcp_states.h */
enum {
	SYN_SENT = 2,
	SYN_RECV = 3,
	FIN_WAIT1 = 4,
	CLOSE = 7,
	LAST_ACK = 9
};

const volatile struct socket_config config = {};

struct socket_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct socket_key));
	__uint(value_size, sizeof(struct socket_count));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, WEFT_SOCKET_SETS);
	__type(key, __u32);
	__array(values, struct socket_set);
} socket_sets SEC(".maps");

/* Sockets by address. One that finds no room has no owner: counted as unowned; what
 * it sends again is then told when it leaves, by its segments. A socket gives its place back when it closes, and takes the place of one whose
 * closing was missed and whose memory it has now.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct socket_state);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct socket_seen);
} seen SEC(".maps");

/* Only so that the generator finds them in the object's BTF. */
const enum weft_socket *btf_socket __attribute__((unused));

/* Argument n as a number: the verifier of some kernels believes that no argument of a
 * tracepoint can be NULL.
 */
static __always_inline void *argument(__u64 *ctx, __u32 n)
{
	void *value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), ctx + n);
	return value;
}

static __always_inline void set_ipv4(__u8 *to, __be32 addr)
{
	*(__u64 *)to = 0;
	*(__u64 *)(to + 8) = 0xffff0000ULL | (__u64)addr << 32;
}

/* The flow that a socket sends; -1: it has no such addresses. */
static __noinline int key_of(struct socket_key *k, struct sock_common *c)
{
	__u16 family = BPF_CORE_READ(c, skc_family);

	k->netns = BPF_CORE_READ(c, skc_net.net, net_cookie);
	k->key.dport = BPF_CORE_READ(c, skc_dport);
	if (family == AF_INET) {
		set_ipv4(k->key.src, BPF_CORE_READ(c, skc_rcv_saddr));
		set_ipv4(k->key.dst, BPF_CORE_READ(c, skc_daddr));
		k->key.kind = WEFT_KIND_IPV4;
		return 0;
	}
	if (family != AF_INET6 || !bpf_core_field_exists(c->skc_v6_daddr))
		return -1;
	BPF_CORE_READ_INTO((struct in6_addr *)k->key.src, c, skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO((struct in6_addr *)k->key.dst, c, skc_v6_daddr);
	if (!*(__u64 *)k->key.dst && *(__u32 *)(k->key.dst + 8) == bpf_htonl(0xffff))
		k->key.kind = WEFT_KIND_IPV4;
	return 0;
}

/* The own port of a socket is also in the part that outlives its closing. */
static __always_inline int key_of_socket(struct socket_key *k, struct sock *sk)
{
	k->key.proto = BPF_CORE_READ(sk, sk_protocol);
	k->key.sport = BPF_CORE_READ((struct inet_sock *)sk, inet_sport);
	return key_of(k, &sk->__sk_common);
}

/* The flow that would answer a received packet, whose headers the stack has found; of
 * others than TCP and UDP without ports.
 */
static __noinline int key_of_answer(struct socket_key *k, struct sk_buff *skb, __u8 proto)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *ip = head + BPF_CORE_READ(skb, network_header);
	unsigned char *l4 = head + BPF_CORE_READ(skb, transport_header);
	__be16 ether = BPF_CORE_READ(skb, protocol);
	struct ipv6hdr h6;
	struct iphdr h4;
	__u16 ports[2];

	if (bpf_probe_read_kernel(ports, sizeof(ports), l4))
		return -1;
	if (ether == bpf_htons(ETH_P_IP) && !bpf_probe_read_kernel(&h4, sizeof(h4), ip)) {
		set_ipv4(k->key.src, h4.daddr);
		set_ipv4(k->key.dst, h4.saddr);
		k->key.kind = WEFT_KIND_IPV4;
	} else if (ether == bpf_htons(ETH_P_IPV6) && !bpf_probe_read_kernel(&h6, sizeof(h6), ip)) {
		__builtin_memcpy(k->key.src, &h6.daddr, 16);
		__builtin_memcpy(k->key.dst, &h6.saddr, 16);
	} else {
		return -1;
	}
	k->key.proto = proto;
	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE) {
		k->key.sport = ports[1];
		k->key.dport = ports[0];
	} else if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6) {
		k->key.sport = ports[0] << 8; /* type and code, of the packet that came */
		k->key.dport = ports[0] & 0xff00;
	}
	return 0;
}

static __always_inline void gain(struct socket_count *c, const struct socket_count *e)
{
	__sync_fetch_and_add(&c->events, 1);
	if (e->retransmits)
		__sync_fetch_and_add(&c->retransmits, e->retransmits);
	if (e->resets_sent)
		__sync_fetch_and_add(&c->resets_sent, e->resets_sent);
	if (e->resets_received)
		__sync_fetch_and_add(&c->resets_received, e->resets_received);
	if (e->queue_full)
		__sync_fetch_and_add(&c->queue_full, e->queue_full);
	if (e->error || e->failed) {
		c->error = e->error;
		c->failed = e->failed;
	}
	if (e->owner.pid)
		c->owner = e->owner;
	c->last_ns = e->last_ns;
}

/* Adds e to an entry of the current set; -1 when there is none and no room. */
static __always_inline int count_in(__u32 which, const struct socket_key *k,
				    const struct socket_count *e)
{
	void *set = bpf_map_lookup_elem(&socket_sets, &which);
	struct socket_count *c;

	if (!set)
		return -1;
	c = bpf_map_lookup_elem(set, k);
	if (!c) {
		if (!bpf_map_update_elem(set, k, e, BPF_NOEXIST))
			return 0;
		c = bpf_map_lookup_elem(set, k); /* another CPU was faster */
	}
	if (!c)
		return -1;
	gain(c, e);
	return 0;
}

/* Counts event e of the flow k; owner 0: not known. Without its addresses if there is
 * no room.
 */
static __noinline int tell(struct socket_key *k, struct socket_count *e, struct socket_owner *owner)
{
	struct socket_key rest = {};
	struct socket_seen *count;
	__u32 zero = 0;

	count = bpf_map_lookup_elem(&seen, &zero);
	if (!count || !k || !e)
		return 0; /* never */
	__sync_fetch_and_add(&count->seen, 1);
	if (owner && owner->pid)
		e->owner = *owner;
	e->events = 1;
	e->first_ns = e->last_ns = bpf_ktime_get_ns();
	if (!count_in(WEFT_SOCKET_FLOWS, k, e))
		return 0;
	__sync_fetch_and_add(&count->overflowed, 1);
	rest.netns = k->netns;
	rest.key.kind = WEFT_KIND_OVERFLOW;
	e->error = e->failed = e->owner.pid = 0;
	if (count_in(WEFT_SOCKET_OVERFLOW, &rest, e))
		__sync_fetch_and_add(&count->lost, 1);
	return 0;
}

static __always_inline struct socket_state *state_of(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&sockets, &key);
}

static __always_inline __u32 retransmitted(struct sock *sk)
{
	return BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
}

static __always_inline void keep(struct sock *sk, const struct socket_state *s)
{
	__u64 key = (__u64)sk;
	__u32 zero = 0;
	struct socket_seen *count;

	if (!bpf_map_update_elem(&sockets, &key, s, BPF_ANY))
		return;
	count = bpf_map_lookup_elem(&seen, &zero);
	if (count)
		__sync_fetch_and_add(&count->unowned, 1);
}

/* A connection begins: what it counted before is told, or not its own. */
static __always_inline void born(struct sock *sk)
{
	struct socket_state fresh = {};

	fresh.retransmitted = retransmitted(sk);
	keep(sk, &fresh);
}

/* The current task connects, accepts or closes. A thread of the kernel does it for
 * somebody who is not known. What has an owner is valid once it has a pid.
 */
static __always_inline struct socket_owner *own(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct socket_state *s = state_of(sk);

	if (!s) {
		born(sk);
		s = state_of(sk);
	}
	if (!s || task->flags & PF_KTHREAD)
		return 0;
	BPF_CORE_READ_INTO(&s->owner.comm, task, group_leader, comm);
	s->owner.cgroup = bpf_get_current_cgroup_id();
	barrier();
	s->owner.pid = bpf_get_current_pid_tgid() >> 32;
	return &s->owner;
}

/* The socket is about to be closed: what was not told yet. */
static __always_inline void closed(struct sock *sk, int before)
{
	struct socket_state *s = state_of(sk);
	struct socket_count e = {};
	struct socket_key k = {};
	__u64 key = (__u64)sk;

	if (s)
		e.retransmits = retransmitted(sk) - s->retransmitted;
	e.error = sk->sk_err;
	e.failed = before == SYN_SENT;
	if (e.failed && !e.error)
		e.error = sk->sk_err_soft;
	if ((e.retransmits || e.error || e.failed) && !key_of_socket(&k, sk) && k.key.sport)
		tell(&k, &e, s ? &s->owner : 0);
	if (s)
		bpf_map_delete_elem(&sockets, &key);
}

static __always_inline void tell_owner(struct sock *sk, struct socket_owner *owner)
{
	struct socket_count e = {};
	struct socket_key k = {};

	if (owner && owner->pid && !key_of_socket(&k, sk))
		tell(&k, &e, owner);
}

/* SYN-SENT is entered in connect(), or in the sendmsg() that takes its place, so by the
 * owner; its port is chosen after that. FIN-WAIT-1 and LAST-ACK are entered in close()
 * or shutdown(), and then the socket is owned: else a packet came that was waited for.
 * All other states may be entered in anybody's time.
 */
SEC("tp_btf/inet_sock_set_state")
int socket_state_set(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	int before = (int)ctx[1], after = (int)ctx[2];
	struct socket_state *s;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (after == CLOSE) {
		closed(sk, before);
		return 0;
	}
	if (after == SYN_SENT) {
		born(sk);
		own(sk);
		return 0;
	}
	s = state_of(sk);
	if (before == SYN_SENT)
		tell_owner(sk, s ? &s->owner : 0);
	else if (before == SYN_RECV && (!s || !s->owner.pid))
		born(sk); /* with TCP Fast Open it may have been accepted before */
	else if ((after == FIN_WAIT1 || after == LAST_ACK) && (!s || !s->owner.pid) &&
		 sk->sk_lock.owned)
		tell_owner(sk, own(sk));
	return 0;
}

SEC("fexit/inet_csk_accept")
int socket_accepted(__u64 *ctx)
{
	struct sock *sk = argument(ctx, config.accept_arguments);
	__u64 key = (__u64)sk;

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	tell_owner(sk, own(sk));
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == CLOSE) /* already, or meanwhile */
		bpf_map_delete_elem(&sockets, &key);
	return 0;
}

/* What the socket counted since it was last asked: also segments that did not leave,
 * of which older kernels tell nothing. Of a socket that is older than the agent, the
 * first event tells its own segments.
 */
SEC("tp_btf/tcp_retransmit_skb")
int socket_retransmit(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sk_buff *skb = (struct sk_buff *)ctx[1];
	struct socket_state fresh = {}, *s = state_of(sk);
	__u32 total = retransmitted(sk);
	struct socket_count e = {};
	struct socket_key k = {};
	__u16 segs = 0;
	int err = 0;

	if (s) {
		e.retransmits = total - s->retransmitted;
		s->retransmitted = total; /* under the socket's lock */
	} else {
		if (config.retransmit_tells_error)
			err = (int)(long)argument(ctx, 2);
		bpf_probe_read_kernel(&segs, sizeof(segs),
				      (void *)skb->cb + bpf_core_field_offset(struct tcp_skb_cb,
									      tcp_gso_segs));
		if (!err)
			e.retransmits = segs;
		fresh.retransmitted = total;
		keep(sk, &fresh);
	}
	if (e.retransmits && !key_of_socket(&k, sk))
		tell(&k, &e, s ? &s->owner : 0);
	return 0;
}

/* A SYN-ACK, of a connection that has no socket yet. */
SEC("tp_btf/tcp_retransmit_synack")
int socket_retransmit_synack(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct request_sock *req = (struct request_sock *)ctx[1];
	struct socket_state *s = state_of(sk);
	struct socket_count e = { .retransmits = 1 };
	struct socket_key k = {};

	if (s) /* it has one: TCP Fast Open, which counts there too */
		s->retransmitted = retransmitted(sk);
	k.key.proto = IPPROTO_TCP;
	k.key.sport = bpf_htons(BPF_CORE_READ(req, __req_common.skc_num));
	if (!key_of(&k, &req->__req_common))
		tell(&k, &e, 0);
	return 0;
}

/* In answer to a packet that the socket, if any, need not belong to; or, without a
 * packet, by a socket that gives up.
 */
SEC("tp_btf/tcp_send_reset")
int socket_reset_sent(__u64 *ctx)
{
	struct sock *sk = argument(ctx, 0);
	struct sk_buff *skb = argument(ctx, 1);
	struct socket_count e = { .resets_sent = 1 };
	struct socket_state *s = state_of(sk);
	struct socket_key k = {};
	struct dst_entry *route;

	if (skb) {
		if (key_of_answer(&k, skb, IPPROTO_TCP))
			return 0;
		route = (struct dst_entry *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);
		k.netns = sk ? BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie) :
			       BPF_CORE_READ(route, dev, nd_net.net, net_cookie);
	} else if (!sk || key_of_socket(&k, sk)) {
		return 0;
	}
	tell(&k, &e, s ? &s->owner : 0);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int socket_reset_received(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct socket_count e = { .resets_received = 1 };
	struct socket_state *s = state_of(sk);
	struct socket_key k = {};

	if (!key_of_socket(&k, sk))
		tell(&k, &e, s ? &s->owner : 0);
	return 0;
}

/* A packet that the socket's receive queue had no room for. */
static __always_inline int full(struct sock *sk, struct sk_buff *skb)
{
	struct socket_count e = { .queue_full = 1 };
	struct socket_key k = {};
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (!skb) {
		if (!key_of_socket(&k, sk))
			tell(&k, &e, 0);
		return 0;
	}
	if (key_of_answer(&k, skb, BPF_CORE_READ(sk, sk_protocol)))
		return 0;
	k.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	tell(&k, &e, 0);
	return 0;
}

/* Ping sockets, and whatever is no UDP or TCP; raw sockets only when two packets race
 * for the last place: the kernel asks them before it copies a packet for them.
 */
SEC("tp_btf/sock_rcvqueue_full")
int socket_queue_full(__u64 *ctx)
{
	return full((struct sock *)ctx[0], (struct sk_buff *)ctx[1]);
}

SEC("tp_btf/udp_fail_queue_rcv_skb")
int socket_udp_full(__u64 *ctx)
{
	struct sk_buff *skb = 0;

	if ((int)ctx[0] != -ENOMEM)
		return 0; /* not this socket's queue: the memory of all */
	if (config.udp_tells_packet)
		skb = argument(ctx, 2);
	return full((struct sock *)ctx[1], skb);
}

char _license[] SEC("license") = "Dual BSD/GPL";
