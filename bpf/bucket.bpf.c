//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * bucket.bpf.c - the bucket of a time, for the test of bucket_of alone: a packet of the
 * time behind an Ethernet header, and returned is how far its bucket is from the lowest
 * there is, -240. Not linked into the agent.
 */
#include "include/bucket.h"

SEC("tc")
int bucket(struct __sk_buff *skb)
{
	__u64 ns = 0;

	if (bpf_skb_load_bytes(skb, 14, &ns, sizeof(ns)) || !ns)
		return -1;
	return bucket_of(ns) + 240;
}

char _license[] SEC("license") = "Dual BSD/GPL";
