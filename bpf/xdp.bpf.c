//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * xdp.bpf.c - the same as flow.bpf.c before the stack, on request.
 *   xdp_observe -> parse -> seen -> slot table | skipped
 * Always XDP_PASS. Shares the maps of flow.bpf.c.
 */
#define WEFT_XDP
#include "include/slots.h"
#include "include/observe.h"

SEC("xdp")
int xdp_observe(struct xdp_md *ctx)
{
	observe(ctx, WEFT_HOOK_XDP);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
