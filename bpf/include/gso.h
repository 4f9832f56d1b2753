/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * gso.h - what a frame is on the wire. A GSO frame becomes gso_segs packets, each
 * with its own copy of all headers: link, network, tunnel and transport.
 */
#ifndef WEFT_GSO_H
#define WEFT_GSO_H

#include "parse.h"

#define PORT_VXLAN	 4789
#define PORT_VXLAN_LINUX 8472
#define PORT_GENEVE	 6081
#define GRE_CSUM	 0x8000
#define GRE_KEY		 0x2000
#define GRE_SEQ		 0x1000
#define GSO_BY_FRAGS	 0xffff

#ifndef WEFT_XDP
static __always_inline __u32 tcp_end(frame_t *ctx, __u32 off)
{
	struct tcphdr buf, *tcp = header(ctx, off, &buf, sizeof(buf), EITHER);

	return tcp ? off + tcp->doff * 4 : off;
}

/* The end of the headers inside a tunnel, from a frame or packet of type proto at off. */
__noinline __u32 inner_end(frame_t *ctx, __u32 off, __be16 proto)
{
	union {
		struct ethhdr eth;
		struct iphdr ip;
		struct ipv6hdr ip6;
	} buf, *h;
	__u8 next;

	if (proto == bpf_htons(ETH_P_TEB)) {
		h = header(ctx, off, &buf, sizeof(h->eth), EITHER);
		if (!h)
			return off;
		proto = h->eth.h_proto;
		off += sizeof(h->eth);
	}
	if (proto == bpf_htons(ETH_P_IP)) {
		h = header(ctx, off, &buf, sizeof(h->ip), EITHER);
		if (!h)
			return off;
		next = h->ip.protocol;
		off += h->ip.ihl * 4;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		h = header(ctx, off, &buf, sizeof(h->ip6), EITHER);
		if (!h)
			return off;
		next = h->ip6.nexthdr;
		off += sizeof(h->ip6);
	} else {
		return off;
	}
	if (next == IPPROTO_TCP)
		return tcp_end(ctx, off);
	return next == IPPROTO_UDP ? off + 8 : off;
}

struct gre_header {
	__be16 flags;
	__be16 proto;
};

static __always_inline __u32 repeated_headers(frame_t *ctx, const struct packet *p)
{
	__u32 off = p->l4;

	switch (p->key.proto) {
	case IPPROTO_TCP:
		return tcp_end(ctx, off);
	case IPPROTO_SCTP:
		return off + 12;
	case IPPROTO_UDP:
		off += 8;
		if (p->key.dport == bpf_htons(PORT_VXLAN) ||
		    p->key.dport == bpf_htons(PORT_VXLAN_LINUX))
			return inner_end(ctx, off + 8, bpf_htons(ETH_P_TEB));
		if (p->key.dport == bpf_htons(PORT_GENEVE)) {
			struct vlan_tag buf, *h = header(ctx, off, &buf, sizeof(buf), EITHER);

			if (!h)
				return off;
			/* first byte: version (2 bits), option words (6 bits) */
			return inner_end(ctx, off + 8 + (*(__u8 *)h & 0x3f) * 4, h->proto);
		}
		return off;
	case IPPROTO_IPIP:
		return inner_end(ctx, off, bpf_htons(ETH_P_IP));
	case IPPROTO_IPV6:
		return inner_end(ctx, off, bpf_htons(ETH_P_IPV6));
	case IPPROTO_GRE: {
		struct gre_header buf, *h = header(ctx, off, &buf, sizeof(buf), EITHER);

		if (!h)
			return off;
		off += 4;
		off += h->flags & bpf_htons(GRE_CSUM) ? 4 : 0;
		off += h->flags & bpf_htons(GRE_KEY) ? 4 : 0;
		off += h->flags & bpf_htons(GRE_SEQ) ? 4 : 0;
		return inner_end(ctx, off, h->proto);
	}
	}
	return off;
}

#define JUMBO_OPTION 0xc2
#define JUMBO_LEN    8

/* A GSO frame over 64 KiB carries its length in a hop-by-hop header that the kernel
 * takes out when it cuts the frame: it is never on the wire.
 */
static __always_inline __u32 jumbo_header(frame_t *ctx, __u32 off)
{
	struct ipv6hdr buf, *ip = header(ctx, off, &buf, sizeof(buf), EITHER);
	__u8 obuf[4], *opt;

	if (!ip || ip->payload_len || ip->nexthdr != IPPROTO_HOPOPTS)
		return 0;
	opt = header(ctx, off + sizeof(buf), obuf, sizeof(obuf), EITHER);
	return opt && !opt[1] && opt[2] == JUMBO_OPTION ? JUMBO_LEN : 0;
}

/* The wire packets of a GSO frame, and its bytes in p. Never 0. */
__noinline __u32 count_gso(frame_t *ctx, struct packet *p)
{
	__u32 size = ctx->gso_size, segs = ctx->gso_segs, len = ctx->len, head;

	if (!p)
		return 1;
	head = p->l4 ? repeated_headers(ctx, p) : 0;
	if (p->l3 && jumbo_header(ctx, p->l3)) {
		head -= JUMBO_LEN;
		len -= JUMBO_LEN;
		p->bytes -= JUMBO_LEN;
	}
	if (unlikely(!segs)) { /* from outside the kernel: count the segments ourselves */
		if (!size || head >= len || size == GSO_BY_FRAGS)
			return 1;
		segs = (len - head + size - 1) / size;
	}
	if (unlikely(ctx->vlan_present))
		head += 4;
	p->gso_bytes = (segs - 1) * head;
	p->bytes += p->gso_bytes;
	return segs;
}
#endif

/* Bytes of the frame on the wire, if it is one packet: a tag beside it is there too. */
static __always_inline __u32 wire_len(frame_t *ctx, const struct packet *p)
{
	return frame_len(ctx) + p->beside;
}

#endif
