/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cold.h - what is noted once, at a flow's first packet. */
#ifndef WEFT_COLD_H
#define WEFT_COLD_H

#include "parse.h"

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_PSH 8
#define TCP_ACK 16

static __always_inline void fill_cold(frame_t *ctx, const struct packet *p, struct flow_cold *c)
{
	struct flow_cold cold = {};

	cold.first_ns = bpf_ktime_get_ns();
	cold.flags = p->flags;
	cold.dscp = p->dscp;
	cold.ttl = p->ttl;
	if (p->flags & TCP_SYN) {
		struct tcphdr buf, *tcp = header(ctx, p->l4, &buf, sizeof(buf), EITHER);

		if (tcp) {
			cold.seq = bpf_ntohl(tcp->seq);
			if (p->flags & TCP_ACK)
				cold.ack = bpf_ntohl(tcp->ack_seq);
		}
	}
	if (p->l2_len) {
		struct ethhdr buf, *eth = header(ctx, 0, &buf, sizeof(buf), EITHER);

		if (eth) {
			__builtin_memcpy(cold.smac, eth->h_source, 6);
			__builtin_memcpy(cold.dmac, eth->h_dest, 6);
		}
	}
	*c = cold;
}

#endif
