/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * observe.h - the path of every frame:
 *   place -> parse -> wire figures -> seen -> flow | skipped
 *   and, with WEFT_HEALTH and the option: TCP -> tcp.h
 * The includer defines add_flow().
 */
#ifndef WEFT_OBSERVE_H
#define WEFT_OBSERVE_H

#include "account.h"
#include "gso.h"
#ifdef WEFT_HEALTH
#include "tcp.h"
#endif
#ifndef WEFT_XDP
#include "dns.h"
#endif

static __always_inline __u32 frame_ifindex(frame_t *ctx)
{
#ifdef WEFT_XDP
	return ctx->ingress_ifindex;
#else
	return ctx->ifindex;
#endif
}

static __always_inline void observe(frame_t *ctx, int hook)
{
	__u32 cpu = bpf_get_smp_processor_id(), place, packets, bytes;
	struct link_place *l =
		find_place(frame_ifindex(ctx), cpu * (config.place_mask + 1), &place);
	int verdict = WEFT_SKIP_UNPLACED, slot;
	struct packet p = {};

	if (!l)
		return; /* never: the array has every place of every CPU */
	p.point = place * WEFT_HOOKS + hook;
	if (likely(place)) {
		p.l2_len = l->l2_len;
		verdict = parse_frame(ctx, &p);
	} else {
		note_tag(ctx, &p);
	}
	packets = 1;
	bytes = wire_len(ctx, &p);
#ifndef WEFT_XDP
	if (unlikely(ctx->gso_size)) {
		p.bytes = bytes;
		packets = count_gso(ctx, &p);
		bytes = p.bytes;
		p.packets = packets;
		count_gso_seen(&p, cpu);
	}
#endif
	l->seen[hook - 1].packets += packets;
	l->seen[hook - 1].bytes += bytes;
	if (likely(verdict == WEFT_PARSED)) {
#ifndef WEFT_XDP
		watch_dns(ctx, &p);
#endif
		slot = add_flow(ctx, &p, cpu, packets, bytes);
		if (likely(slot >= 0)) {
#ifdef WEFT_HEALTH
			if (config.options & WEFT_OPTION_TCP && p.key.proto == IPPROTO_TCP &&
			    p.payload < MAX_PAYLOAD) {
				p.slot = slot;
				p.packets = packets;
				watch_tcp(ctx, &p, l, place, hook);
			}
#endif
			return;
		}
		verdict = WEFT_SKIP_TABLE_FULL;
	}
	count_skip(&p, cpu, verdict, packets, bytes);
}

#endif
