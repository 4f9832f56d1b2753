/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * hash.h - NH (the universal hash of UMAC, RFC 4418) over the ten 32-bit words of
 * a key, then one multiply and fold to spread it. Two keys meet with probability
 * 2^-32 whatever an outsider chooses, since hash_key is random at each start.
 */
#ifndef WEFT_HASH_H
#define WEFT_HASH_H

#include "account.h"

static __always_inline __u64 flow_hash(const struct packet *p)
{
	__u64 h = (__u64)p->vlan * 0xff51afd7ed558ccdULL;

#pragma unroll
	for (int i = 0; i < 5; i++) {
		__u64 k = config.hash_key[i], w = p->words[i];

		h += (__u64)(__u32)(w + k) * (__u32)((w >> 32) + (k >> 32));
	}
	h ^= h >> 32;
	h *= 0x9e3779b97f4a7c15ULL;
	return h ^ (h >> 29);
}

#endif
