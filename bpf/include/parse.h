/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * parse.h - from a frame to a key.
 *   ethernet -> up to two VLAN tags -> IPv4 | IPv6 + extension headers -> ports
 * Nothing past the end that the IP header states is ever read as a header, and
 * no later fragment's payload is read as ports. Each header is checked once, in
 * header(). Includers define WEFT_XDP for struct xdp_md, else struct __sk_buff.
 */
#ifndef WEFT_PARSE_H
#define WEFT_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#ifdef WEFT_XDP
typedef struct xdp_md frame_t;
#else
typedef struct __sk_buff frame_t;
#endif

#define IP_MF		 0x2000
#define IP_OFFSET	 0x1fff
#define IPV6_MAX_HEADERS 8
#define MAX_OFFSET	 0x3ff /* headers end below: 14 + 8 + 40 + extensions */
#define IPPROTO_DCCP_	 33
#define IPPROTO_UDPLITE_ 136
#define ETH_P_LLDP_	 0x88cc

struct packet {
	union {
		struct flow_key key;
		__u64 words[5];
	};
	__u64 hash;    /* set by the table for the path that takes a new slot */
	__u32 vlan;    /* outer | inner << 12 */
	__u32 bytes;   /* on the wire */
	__u32 packets; /* on the wire */
	__u32 gso_bytes;
	__u32 seq; /* TCP, with WEFT_OPTION_TCP; host order */
	__u32 ack;
	__u32 payload; /* bytes */
	__u32 slot;    /* of the flow in all partitions, or the first where it may be */
	__u16 window;
	__u16 ip_id; /* IPv4, with TCP measured; network order */
	__u16 point; /* in: where it was seen */
	__u16 l3;    /* offset of an IPv6 header; else 0 */
	__u16 l4;    /* offset of the transport header */
	__u8 l2_len; /* in: length of the link header */
	__u8 flags;  /* TCP */
	__u8 dscp;
	__u8 ttl;
	__u8 options; /* bytes of them in the TCP header */
	__u8 dir;     /* which side of its connection sent it */
	__u8 later;   /* a later fragment: there is no transport header at l4 */
	__u8 beside;  /* bytes of a tag that the kernel keeps beside the frame */
};

const volatile struct flow_config config = {};

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

struct frag_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in 8 bytes << 3 | more fragments */
	__be32 id;
};

/* What a first fragment teaches the later ones. At the bound the oldest goes: its
 * datagram's late fragments are counted under port 0.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct frag_key);
	__type(value, struct frag_ports);
} fragments SEC(".maps");

static __always_inline __u32 frame_len(frame_t *ctx)
{
#ifdef WEFT_XDP
	return ctx->data_end - ctx->data;
#else
	return ctx->len;
#endif
}

/* How header() reaches a header: the packet path tries DIRECT and, when the frame's
 * linear part is too short, starts again with COPY (verified apart, so that paths do
 * not multiply). Rare paths use EITHER.
 */
enum reach {
	DIRECT,
	COPY,
	EITHER
};

/* header() is the one bounds check: len bytes at off, in place or copied to buf; NULL
 * when they are not there.
 */
static __always_inline void *header(frame_t *ctx, __u32 off, void *buf, __u32 len, enum reach how)
{
	void *p = (void *)(long)ctx->data + (off & MAX_OFFSET);

	if (how != COPY && likely(off <= MAX_OFFSET && p + len <= (void *)(long)ctx->data_end))
		return p;
#ifndef WEFT_XDP
	if (how != DIRECT && !bpf_skb_load_bytes(ctx, off, buf, len))
		return buf;
#endif
	return 0;
}

/* The key's last word, in one store: sport, dport, point, proto, kind. ports holds both
 * ports as they lie in the packet.
 */
static __always_inline void set_tail(struct packet *p, __u32 ports, __u8 proto, __u8 kind)
{
	p->words[4] = (__u64)kind << 56 | (__u64)proto << 48 | (__u64)p->point << 32 | ports;
}

/* Ports, ICMP type and code, TCP flags. end is where the IP packet ends. */
static __always_inline int parse_transport(frame_t *ctx, struct packet *p, __u32 off, __u32 end,
					   __u8 proto, __u8 kind, enum reach how)
{
	union {
		struct tcphdr tcp;
		__u32 ports;
		__u8 icmp[4];
	} buf, *h;
	__u32 need;

	p->l4 = off;
	if (likely(proto == IPPROTO_TCP)) {
		if (unlikely(off + sizeof(struct tcphdr) > end))
			return WEFT_SKIP_TRUNCATED;
		h = header(ctx, off, &buf, sizeof(struct tcphdr), how);
		if (unlikely(!h))
			return WEFT_SKIP_TRUNCATED;
		if (unlikely(h->tcp.doff < 5))
			return WEFT_SKIP_MALFORMED;
		p->flags = ((__u8 *)h)[13];
#ifdef WEFT_HEALTH
		if (config.options & WEFT_OPTION_TCP) {
			p->seq = bpf_ntohl(h->tcp.seq);
			p->ack = bpf_ntohl(h->tcp.ack_seq);
			p->window = h->tcp.window;
			p->payload = end - off - h->tcp.doff * 4;
			p->options = h->tcp.doff * 4 - sizeof(struct tcphdr);
		}
#endif
		set_tail(p, h->ports, proto, kind);
		return WEFT_PARSED;
	}
	switch (proto) {
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE_:
	case IPPROTO_DCCP_:
		need = 8;
		break;
	case IPPROTO_SCTP:
		need = 12;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		need = 4;
		break;
	default:
		set_tail(p, 0, proto, kind);
		return WEFT_PARSED;
	}
	if (unlikely(off + need > end))
		return WEFT_SKIP_TRUNCATED;
	h = header(ctx, off, &buf, 4, how);
	if (unlikely(!h))
		return WEFT_SKIP_TRUNCATED;
	if (unlikely(proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6))
		set_tail(p, h->icmp[0] << 8 | h->icmp[1] << 24, proto, kind);
	else
		set_tail(p, h->ports, proto, kind);
	return WEFT_PARSED;
}

static __always_inline void frag_key_of(struct frag_key *k, const struct packet *p, __u32 id,
					__u8 proto)
{
	__builtin_memcpy(k, &p->key, 32);
	k->id = id;
	k->point = p->point;
	k->proto = proto;
	k->pad = 0;
}

/* A later fragment takes its datagram's ports, or counts under port 0. */
__noinline int join_fragment(struct packet *p, __u32 id, __u8 proto, __u8 kind)
{
	struct frag_ports *first;
	struct frag_key k;

	if (!p)
		return 0;
	p->later = 1;
	p->payload = ~0U; /* no TCP header: nothing to measure */
	frag_key_of(&k, p, id, proto);
	first = bpf_map_lookup_elem(&fragments, &k);
	if (first)
		set_tail(p, first->ports, first->proto, kind);
	else
		set_tail(p, 0, proto, kind | WEFT_KIND_FRAGMENT);
	return 0;
}

__noinline int learn_fragment(struct packet *p, __u32 id, __u8 proto)
{
	struct frag_ports first = {};
	struct frag_key k;

	if (!p)
		return 0;
	frag_key_of(&k, p, id, proto);
	first.ports = p->words[4];
	first.proto = p->key.proto;
	bpf_map_update_elem(&fragments, &k, &first, BPF_ANY);
	return 0;
}

static __always_inline int parse_ipv4(frame_t *ctx, struct packet *p, __u32 off, enum reach how)
{
	struct iphdr buf, *ip = header(ctx, off, &buf, sizeof(buf), how);
	__u32 hlen, len, end, id;
	__u16 frag;
	__u8 proto;
	int ret;

	if (unlikely(!ip))
		return WEFT_SKIP_TRUNCATED;
	hlen = ip->ihl * 4;
	len = bpf_ntohs(ip->tot_len);
	if (unlikely(ip->version != 4 || hlen < sizeof(*ip) || (len < hlen && len)))
		return WEFT_SKIP_MALFORMED;
	end = frame_len(ctx);
	if (likely(len && off + len < end))
		end = off + len;
	/* words 0 and 2 are 0 */
	p->words[1] = 0xffff0000ULL | (__u64)ip->saddr << 32;
	p->words[3] = 0xffff0000ULL | (__u64)ip->daddr << 32;
	proto = ip->protocol;
	p->dscp = ip->tos >> 2;
	p->ttl = ip->ttl;
	frag = bpf_ntohs(ip->frag_off);
	id = ip->id;
#ifdef WEFT_HEALTH
	if (config.options & WEFT_OPTION_TCP)
		p->ip_id = id;
#endif
	p->l4 = off + hlen;
	if (likely(!(frag & (IP_MF | IP_OFFSET))))
		return parse_transport(ctx, p, off + hlen, end, proto, WEFT_KIND_IPV4, how);
	if (frag & IP_OFFSET) {
		join_fragment(p, id, proto, WEFT_KIND_IPV4);
		return WEFT_PARSED;
	}
	ret = parse_transport(ctx, p, off + hlen, end, proto, WEFT_KIND_IPV4, how);
	if (ret == WEFT_PARSED)
		learn_fragment(p, id, proto);
	return ret;
}

static __always_inline int parse_ipv6(frame_t *ctx, struct packet *p, __u32 off, enum reach how)
{
	struct ipv6hdr buf, *ip = header(ctx, off, &buf, sizeof(buf), how);
	struct frag_header fbuf, *fh;
	__u32 end, len, id = 0, i;
	__u8 next, first = 0, named = 0;
	int ret;

	if (unlikely(!ip))
		return WEFT_SKIP_TRUNCATED;
	if (unlikely(ip->version != 6))
		return WEFT_SKIP_MALFORMED;
	p->l3 = off;
	__builtin_memcpy(&p->key, &ip->saddr, 32);
	p->dscp = (bpf_ntohs(*(__be16 *)ip) >> 6) & 0x3f;
	p->ttl = ip->hop_limit;
	next = ip->nexthdr;
	len = bpf_ntohs(ip->payload_len);
	off += sizeof(*ip);
	end = frame_len(ctx);
	if (likely(len && off + len < end))
		end = off + len;
	/* unrolled: before 6.3 the verifier refuses a loop whose end falls through to its start */
#pragma unroll
	for (i = 0; i <= IPV6_MAX_HEADERS; i++) {
		__u32 hlen;

		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_MH:
		case 139: /* HIP */
		case 140: /* shim6 */
			break;
		default:
			goto transport;
		}
		if (unlikely(i == IPV6_MAX_HEADERS))
			return WEFT_SKIP_IPV6_EXT;
		if (unlikely(off + sizeof(*fh) > end))
			return WEFT_SKIP_TRUNCATED;
		fh = header(ctx, off, &fbuf, sizeof(fbuf), how);
		if (unlikely(!fh))
			return WEFT_SKIP_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 frag = bpf_ntohs(fh->offset);

			next = fh->next;
			if (frag & 0xfff8) {
				p->l4 = off + sizeof(*fh);
				join_fragment(p, fh->id, next, 0);
				return WEFT_PARSED;
			}
			if (frag & 1) {
				first = 1;
				id = fh->id;
				named = next;
			}
			off += sizeof(*fh);
			continue;
		}
		hlen = next == IPPROTO_AH ? (fh->reserved + 2) * 4 : (fh->reserved + 1) * 8;
		next = fh->next;
		off += hlen;
		if (unlikely(off > end))
			return WEFT_SKIP_TRUNCATED;
	}
	return WEFT_SKIP_IPV6_EXT;

transport:
	ret = parse_transport(ctx, p, off, end, next, 0, how);
	if (unlikely(first) && ret == WEFT_PARSED)
		learn_fragment(p, id, named);
	return ret;
}

static __always_inline int skip_ethertype(__be16 proto)
{
	__u16 p = bpf_ntohs(proto);

	if (p < ETH_P_802_3_MIN)
		return WEFT_SKIP_LLC;
	switch (p) {
	case ETH_P_ARP:
	case ETH_P_RARP:
		return WEFT_SKIP_ARP;
	case ETH_P_LLDP_:
	case ETH_P_SLOW:
		return WEFT_SKIP_LLDP;
	case ETH_P_MPLS_UC:
	case ETH_P_MPLS_MC:
		return WEFT_SKIP_MPLS;
	case ETH_P_PPP_DISC:
	case ETH_P_PPP_SES:
		return WEFT_SKIP_PPPOE;
	}
	return WEFT_SKIP_ETHERTYPE;
}

/* IPv6 is verified apart too: its chain of headers has many paths. */
__noinline int parse_ipv6_direct(frame_t *ctx, struct packet *p, __u32 off)
{
	return p ? parse_ipv6(ctx, p, off, DIRECT) : WEFT_SKIP_TRUNCATED;
}

/* Is there a tag beside the frame? */
static __always_inline int note_tag(frame_t *ctx, struct packet *p)
{
#ifndef WEFT_XDP
	if (unlikely(ctx->vlan_present)) {
		p->vlan = ctx->vlan_tci & 0xfff;
		p->beside = sizeof(struct vlan_tag);
		return 1;
	}
#endif
	return 0;
}

static __always_inline int parse_link(frame_t *ctx, struct packet *p, enum reach how)
{
	__u32 off = 0, tags, vid;
	__be16 proto;

	p->vlan = 0;
	tags = note_tag(ctx, p);
	if (likely(p->l2_len)) {
		struct ethhdr buf, *eth = header(ctx, 0, &buf, sizeof(buf), how);

		if (unlikely(!eth))
			return WEFT_SKIP_TRUNCATED;
		proto = eth->h_proto;
		off = sizeof(buf);
	} else {
#ifdef WEFT_XDP
		return WEFT_SKIP_ETHERTYPE;
#else
		proto = ctx->protocol;
#endif
	}
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan_tag buf, *tag;

		if (likely(proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD)))
			break;
		if (unlikely(tags == 2))
			return WEFT_SKIP_VLAN_DEPTH;
		tag = header(ctx, off, &buf, sizeof(buf), how);
		if (unlikely(!tag))
			return WEFT_SKIP_TRUNCATED;
		vid = bpf_ntohs(tag->tci) & 0xfff;
		p->vlan |= tags ? vid << 12 : vid;
		proto = tag->proto;
		off += sizeof(buf);
		tags++;
	}
	if (likely(proto == bpf_htons(ETH_P_IP)))
		return parse_ipv4(ctx, p, off, how);
	if (proto == bpf_htons(ETH_P_IPV6))
		return how == DIRECT ? parse_ipv6_direct(ctx, p, off) :
				       parse_ipv6(ctx, p, off, how);
	if (unlikely(proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD)))
		return WEFT_SKIP_VLAN_DEPTH;
	return skip_ethertype(proto);
}

/* For frames whose headers are not all in the linear part. */
__noinline int parse_copied(frame_t *ctx, struct packet *p)
{
	return p ? parse_link(ctx, p, COPY) : WEFT_SKIP_TRUNCATED;
}

/* Fills p, whose point and l2_len are set and the rest zero. WEFT_PARSED or the reason. */
static __always_inline int parse_frame(frame_t *ctx, struct packet *p)
{
	int verdict = parse_link(ctx, p, DIRECT);

#ifndef WEFT_XDP
	if (unlikely(verdict == WEFT_SKIP_TRUNCATED && ctx->data_end - ctx->data < ctx->len))
		return parse_copied(ctx, p);
#endif
	return verdict;
}

#endif
