/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kernel.h - the kernel fields that the tracing programs read, and no other. Their
 * places are found in the running kernel's BTF when a program is loaded.
 */
#ifndef WEFT_KERNEL_H
#define WEFT_KERNEL_H

#include <linux/in6.h>
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
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num; /* own port, host order; 0 once it is given back */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef struct {
	int owned; /* a task has the socket: what happens to it is in that task's time */
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	__u16 sk_protocol;
	int sk_err;
	int sk_err_soft; /* what ICMP said, and did not end the socket */
};

/* include/net/inet_sock.h */
struct inet_sock {
	__be16 inet_sport;
};

/* include/net/request_sock.h */
struct request_sock {
	struct sock_common __req_common;
};

/* include/linux/tcp.h */
struct tcp_sock {
	__u32 total_retrans; /* segments; TcpRetransSegs gains the same, at the same place */
};

/* include/net/tcp.h, in sk_buff.cb */
struct tcp_skb_cb {
	__u16 tcp_gso_segs;
};

/* include/linux/sched.h */
struct task_struct {
	unsigned int flags;
	struct task_struct *group_leader;
	char comm[16];
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
	char cb[48];
	unsigned int len;
	int skb_iif;
	__be16 protocol;
	__u16 transport_header;
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
