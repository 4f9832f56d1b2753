/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* control.h - how the programs and user space tell each other the time. */
#ifndef WEFT_CONTROL_H
#define WEFT_CONTROL_H

#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_control);
} control SEC(".maps");

#ifndef WEFT_XDP
/* Run by user space: what jiffies is at which time. Not a tc program: the kernel would
 * make a packet for it and drop it, for all to see.
 */
SEC("raw_tp")
int read_clock(void *ctx)
{
	__u32 zero = 0;
	struct flow_control *c = bpf_map_lookup_elem(&control, &zero);

	if (!c)
		return 1;
	c->ktime_ns = bpf_ktime_get_ns();
	c->jiffies = bpf_jiffies64();
	return 0;
}
#endif

#endif
