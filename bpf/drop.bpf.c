//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * drop.bpf.c - count dropped packets per flow, interface, reason and place.
 *   kfree_skb -> seen -> key -> drops of the current set | overflow set | lost
 * Every traced drop lands in exactly one of the three. Runs on drops only, in all
 * namespaces. User space swaps the sets and drains what it took out.
 * Linux 5.17 and later: the tracepoint tells the reason.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "include/abi.h"
#include "include/kernel.h"

#define likely(x)	 __builtin_expect(!!(x), 1)
#define IP_OFFSET	 0x1fff
#define IPV6_MAX_HEADERS 4 /* more: no ports */

const volatile struct drop_config config = {};

struct drop_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(__u64));
	__uint(value_size, sizeof(struct drop_count));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, WEFT_DROP_SETS);
	__type(key, __u32);
	__array(values, struct drop_set);
} drop_sets SEC(".maps");

/* The kernel runs a tracing program once at a time on a CPU, so that this and every
 * entry of a set has one writer. What it left out for that, it counts as recursion
 * misses.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct drop_seen);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct symbol);
} symbols SEC(".maps");

/* Only so that the generator finds them in the object's BTF. */
const struct drop_key *btf_key __attribute__((unused));
const struct drop_count *btf_count __attribute__((unused));
const enum weft_drop *btf_drop __attribute__((unused));
const enum weft_drop_kind *btf_kind __attribute__((unused));

/* Linux 6.2 and later: memory is read as a struct of the kernel's by plain loads, which
 * give 0 where there is nothing. Before, by a helper, which costs 13 ns each time.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
#define SEEN_AS(type, p) ((const type *)bpf_rdonly_cast(p, bpf_core_type_id_kernel(type)))

/* The kernel keeps other things where skb->dev is, depending on who holds the packet.
 * What is no device has no namespace whose loopback device is in that namespace.
 */
static __always_inline struct net *net_of_device(struct net_device *dev)
{
	struct net *net = dev ? dev->nd_net.net : 0;

	return net && net->loopback_dev && net->loopback_dev->nd_net.net == net ? net : 0;
}

/* The cookie of a packet without a device: of the socket that it came to, of the one
 * that sent it, or of its route. 0: not known.
 */
static __always_inline __u64 cookie_elsewhere(struct sk_buff *skb, struct sock *to)
{
	struct net_device *dev = 0;
	struct net *net = 0, *again = 0;

	if (to)
		net = BPF_CORE_READ(to, __sk_common.skc_net.net);
	if (!net && skb->sk)
		net = BPF_CORE_READ(skb, sk, __sk_common.skc_net.net);
	if (!net)
		net = BPF_CORE_READ((struct dst_entry *)(skb->_skb_refdst & ~1UL), dev, nd_net.net);
	if (!net)
		return 0;
	dev = BPF_CORE_READ(net, loopback_dev);
	again = BPF_CORE_READ(dev, nd_net.net);
	return again == net ? BPF_CORE_READ(net, net_cookie) : 0;
}

static __always_inline void set_ports(struct flow_key *k, const __u8 *l4)
{
	switch (k->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_UDPLITE:
		k->sport = *(__u16 *)l4;
		k->dport = *(__u16 *)(l4 + 2);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		k->sport = (__u16)l4[0] << 8;
		k->dport = (__u16)l4[1] << 8;
	}
}

/* Ports at off of the packet, whose linear part has avail bytes. */
static __always_inline void read_ports(struct flow_key *k, const __u8 *ip, __u32 off, __u32 avail)
{
	__u32 l4 = 0;

	if (off + 4 <= avail && !bpf_probe_read_kernel(&l4, 4, ip + off))
		set_ports(k, (__u8 *)&l4);
}

/* The transport header behind extension headers, or none. */
static __noinline int read_extensions(struct drop_key *out, const __u8 *ip, __u32 avail)
{
	__u32 off = sizeof(struct ipv6hdr);
	__u8 head[4];

	if (!out)
		return 0;
#pragma unroll
	for (int i = 0; i < IPV6_MAX_HEADERS; i++) {
		__u8 next = out->key.proto;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		if (off + 8 > avail || bpf_probe_read_kernel(head, 4, ip + off))
			return 0;
		out->key.proto = head[0];
		if (next == IPPROTO_FRAGMENT && (head[2] || head[3] & 0xf8))
			return 0; /* a later fragment */
		off += next == IPPROTO_FRAGMENT ? 8 : (head[1] + 1) * 8;
	}
	read_ports(&out->key, ip, off, avail);
	return 0;
}

/* Of the header what a key needs, and the four bytes behind one without options. */
static __always_inline int read_ipv4(struct iphdr *h, __u8 *l4, const __u8 *ip, __u32 avail)
{
	if (bpf_rdonly_cast) {
		const struct iphdr *from = SEEN_AS(struct iphdr, ip);
		const struct udphdr *behind = SEEN_AS(struct udphdr, ip + sizeof(*h));

		*(__u8 *)h = *(const volatile __u8 *)from;
		h->frag_off = from->frag_off;
		h->protocol = from->protocol;
		h->saddr = from->saddr;
		h->daddr = from->daddr;
		*(__u16 *)l4 = behind->source;
		*(__u16 *)(l4 + 2) = behind->dest;
		return 0;
	}
	/* h and l4 lie one behind the other */
	return bpf_probe_read_kernel(h, avail < sizeof(*h) + 4 ? 20 : 24, ip);
}

static __always_inline __u16 segments_of(const struct sk_buff *skb)
{
	const void *shared = skb->head + skb->end;
	__u16 segs = 0;

	if (bpf_rdonly_cast)
		return SEEN_AS(struct skb_shared_info, shared)->gso_segs;
	bpf_probe_read_kernel(&segs, sizeof(segs),
			      shared + bpf_core_field_offset(struct skb_shared_info, gso_segs));
	return segs;
}

/* Fills addresses, protocol and ports; -1 when the packet shows no IP header there. */
static __always_inline int read_key(struct drop_key *out, __be16 proto, const __u8 *ip, __u32 avail)
{
	struct flow_key *k = &out->key;
	union {
		struct {
			struct iphdr ip;
			__u8 l4[4];
		} v4;
		struct {
			struct ipv6hdr ip;
			__u8 l4[4];
		} v6;
	} h;

	if (likely(proto == bpf_htons(ETH_P_IP))) {
		if (avail < sizeof(h.v4.ip) || read_ipv4(&h.v4.ip, h.v4.l4, ip, avail) ||
		    h.v4.ip.version != 4 || h.v4.ip.ihl < 5)
			return -1;
		*(__u64 *)k->src = 0;
		*(__u64 *)(k->src + 8) = 0xffff0000ULL | (__u64)h.v4.ip.saddr << 32;
		*(__u64 *)k->dst = 0;
		*(__u64 *)(k->dst + 8) = 0xffff0000ULL | (__u64)h.v4.ip.daddr << 32;
		k->kind = WEFT_KIND_IPV4;
		k->proto = h.v4.ip.protocol;
		if (h.v4.ip.frag_off & bpf_htons(IP_OFFSET))
			return 0;
		if (likely(h.v4.ip.ihl == 5 && avail >= sizeof(h.v4)))
			set_ports(k, h.v4.l4);
		else
			read_ports(k, ip, h.v4.ip.ihl * 4, avail);
		return 0;
	}
	if (proto != bpf_htons(ETH_P_IPV6) || avail < sizeof(h.v6.ip) ||
	    bpf_probe_read_kernel(&h.v6.ip, sizeof(h.v6.ip), ip) || h.v6.ip.version != 6)
		return -1;
	__builtin_memcpy(k->src, &h.v6.ip.saddr, 32);
	k->proto = h.v6.ip.nexthdr;
	read_extensions(out, ip, avail);
	return 0;
}

/* NH over the key's words (see hash.h). Two keys that meet all the same are told apart
 * by same_key().
 */
static __always_inline __u64 digest_of(const struct drop_key *k)
{
	const __u64 *w = (const __u64 *)k;
	__u64 h = 0;

#pragma unroll
	for (int i = 0; i < 8; i++)
		h += (__u64)(__u32)(w[i] + (__u32)config.hash_key[i]) *
		     (__u32)((w[i] >> 32) + (__u32)(config.hash_key[i] >> 32));
	return h;
}

static __always_inline int same_key(const struct drop_key *a, const struct drop_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 differ = 0;

#pragma unroll
	for (int i = 0; i < 8; i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

static __always_inline int add_to(struct drop_count *c, const struct drop_key *k, __u32 packets,
				  __u32 bytes)
{
	if (!same_key(&c->key, k))
		return -1;
	c->packets += packets;
	c->bytes += bytes;
	c->last = bpf_jiffies64();
	return 0;
}

/* 0, or -1 when the set has no room, or another key has its place (2^-32). */
static __always_inline int count_in(__u32 which, const struct drop_key *k, __u32 packets,
				    __u32 bytes)
{
	void *set = bpf_map_lookup_elem(&drop_sets, &which);
	__u64 digest = digest_of(k);
	struct drop_count fresh, *c;

	if (!set)
		return -1;
	c = bpf_map_lookup_elem(set, &digest);
	if (likely(c))
		return add_to(c, k, packets, bytes);
	fresh.key = *k;
	fresh.packets = packets;
	fresh.bytes = bytes;
	fresh.first_ns = bpf_ktime_get_ns();
	fresh.last = bpf_jiffies64();
	return bpf_map_update_elem(set, &digest, &fresh, BPF_NOEXIST) ? -1 : 0;
}

/* Reason and interface without addresses, for what has no room. */
static __always_inline int count_overflow(const struct drop_key *of, __u32 packets, __u32 bytes)
{
	struct drop_key k = {};

	k.key.point = of->key.point;
	k.netns = of->netns;
	k.ifindex = of->ifindex;
	k.reason = of->reason;
	k.key.kind = WEFT_KIND_OVERFLOW;
	return count_in(WEFT_DROP_OVERFLOW, &k, packets, bytes);
}

SEC("tp_btf/kfree_skb")
int trace_drop(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct net_device *dev = skb->dev;
	struct net *net = net_of_device(dev);
	__u32 zero = 0, packets = 1, bytes = skb->len, at = skb->network_header, tail = skb->tail;
	unsigned char *head = skb->head;
	struct drop_seen *count = bpf_map_lookup_elem(&seen, &zero);
	struct drop_key k = {};
	__u16 segs = 0;

	if (!count)
		return 0; /* never: it has one entry */
	k.key.point = bpf_get_smp_processor_id();
	k.location = ctx[1];
	k.reason = ctx[2];
	if (likely(net)) {
		k.netns = net->net_cookie;
		k.ifindex = dev->ifindex;
	} else {
		struct sock *to = 0;

		if (config.tells_socket)
			to = (struct sock *)ctx[3];
		k.netns = cookie_elsewhere(skb, to);
		k.ifindex = skb->skb_iif;
	}
	if (likely(at < tail) && !read_key(&k, skb->protocol, head + at, tail - at)) {
		bytes += (__u32)(skb->data - head) - at;
		segs = segments_of(skb);
		if (segs)
			packets = segs;
	}
	count->seen += packets;
	if (likely(!count_in(WEFT_DROP_FLOWS, &k, packets, bytes)))
		return 0;
	count->overflowed += packets;
	if (count_overflow(&k, packets, bytes))
		count->lost += packets;
	return 0;
}

/* Run by user space: the name of the function that an address is in. */
SEC("raw_tp")
int name_symbol(void *ctx)
{
	static const char format[] = "%ps";
	__u32 zero = 0;
	struct symbol *s = bpf_map_lookup_elem(&symbols, &zero);
	__u64 address;

	if (!s)
		return 1;
	address = s->address;
	return bpf_snprintf(s->name, sizeof(s->name), format, &address, sizeof(address)) < 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
