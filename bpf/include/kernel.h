/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kernel.h - the kernel fields that the tracing programs read, and no other. Their
 * places are found in the running kernel's BTF when a program is loaded.
 */
#ifndef WEFT_KERNEL_H
#define WEFT_KERNEL_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device;

/* include/net/net_namespace.h */
struct net {
	__u64 net_cookie;
	struct net_device *loopback_dev;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* include/linux/netdevice.h */
struct net_device {
	int ifindex;
	possible_net_t nd_net;
};

/* include/net/sock.h */
struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

/* include/net/dst.h */
struct dst_entry {
	struct net_device *dev;
};

/* include/linux/skbuff.h */
struct sk_buff {
	struct net_device *dev; /* shared with other things: see net_of_device() */
	struct sock *sk;
	unsigned long _skb_refdst; /* struct dst_entry *, bit 0: not counted; shared too */
	unsigned int len;
	int skb_iif;
	__be16 protocol;
	__u16 network_header; /* tail and end too are distances from head */
	unsigned int tail;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};

struct skb_shared_info {
	unsigned short gso_segs;
};

#pragma clang attribute pop

#endif
