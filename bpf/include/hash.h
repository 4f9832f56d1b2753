/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * hash.h - NH (the universal hash of UMAC, RFC 4418) over the 32-bit words of a key
 * that can differ: four for IPv4, ten for IPv6. Then one multiply and fold to
 * spread it. Two keys of a family meet with probability 2^-32 whatever an outsider
 * chooses, since hash_key is random at each start.
 */
#ifndef WEFT_HASH_H
#define WEFT_HASH_H

#include "account.h"

/* (a + k's low half) * (b + k's high half): one pair of words */
static __always_inline __u64 nh(__u32 a, __u32 b, __u64 k)
{
	return (__u64)(__u32)(a + (__u32)k) * (__u32)(b + (__u32)(k >> 32));
}

/* The upper bits say where, the lower ones are the tag's. */
static __always_inline __u64 flow_hash(const struct packet *p, int ipv4)
{
	__u64 tail = p->words[4];
	__u64 h = nh(tail, tail >> 32, config.hash_key[4]);

	if (ipv4) {
		h += nh(p->words[1] >> 32, p->words[3] >> 32, config.hash_key[1]);
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++)
			h += nh(p->words[i], p->words[i] >> 32, config.hash_key[i]);
	}
	h += (__u64)p->vlan * 0xff51afd7ed558ccdULL;
	h ^= h >> 32;
	return h * 0x9e3779b97f4a7c15ULL;
}

#endif
