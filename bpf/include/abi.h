/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * abi.h - everything that crosses between the programs and Go, and nothing else.
 * Host byte order unless a field says otherwise; natural alignment, never
 * packed; sizes asserted here, offsets pinned by abi_test.go.
 */
#ifndef WEFT_ABI_H
#define WEFT_ABI_H

#include <linux/types.h>

enum weft_hook {
	WEFT_HOOK_INGRESS = 1,
	WEFT_HOOK_EGRESS = 2,
	WEFT_HOOK_XDP = 3,
	WEFT_HOOKS = 4,
};

/* Why a packet is in no flow. Order: flows.SkipReason. */
enum weft_skip {
	WEFT_SKIP_ARP = 0,
	WEFT_SKIP_LLC = 1,
	WEFT_SKIP_LLDP = 2,
	WEFT_SKIP_MPLS = 3,
	WEFT_SKIP_PPPOE = 4,
	WEFT_SKIP_ETHERTYPE = 5,
	WEFT_SKIP_VLAN_DEPTH = 6,
	WEFT_SKIP_TRUNCATED = 7,
	WEFT_SKIP_MALFORMED = 8,
	WEFT_SKIP_IPV6_EXT = 9,
	WEFT_SKIP_TABLE_FULL = 10,
	WEFT_SKIP_UNPLACED = 11,
	WEFT_SKIP_MAX = 16,
	WEFT_PARSED = 255, /* not a reason: the packet has a key */
};

/* flow_key.kind */
enum weft_kind {
	WEFT_KIND_IPV4 = 1,	/* src and dst are ::ffff:a.b.c.d */
	WEFT_KIND_FRAGMENT = 2, /* a later fragment whose ports are not known */
};

enum weft_limits {
	WEFT_WAYS = 8,	      /* slots in a bucket */
	WEFT_LINK_PROBES = 8, /* places that an interface may have */
};

struct flow_key {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport; /* network order; ICMP: the type */
	__u16 dport; /* network order; ICMP: the code */
	__u16 point; /* place * WEFT_HOOKS + hook */
	__u8 proto;  /* IP protocol of the transport header */
	__u8 kind;   /* enum weft_kind */
};
_Static_assert(sizeof(struct flow_key) == 40, "flow_key layout");

/*
 * One cache line a flow. Written by one CPU only, read by user space at any time.
 * tag 0 means empty or being replaced: it is cleared first and published last.
 */
struct flow_slot {
	__u64 tag; /* vlan outer (12 bits) | inner (12) | hash (40, never all zero) */
	struct flow_key key;
	__u64 bytes;   /* L2 frame bytes on the wire, cumulative */
	__u32 packets; /* wire packets, cumulative, wraps */
	__u16 last;    /* low bits of jiffies at the last packet */
	__u8 flags;    /* OR of all TCP flags */
	__u8 gen;      /* counts the flows that lived in this slot, wraps */
};
_Static_assert(sizeof(struct flow_slot) == 64, "flow_slot layout");

/* What is written once, when a flow takes its slot. */
struct flow_cold {
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u32 seq;	/* of the first packet if it carried SYN, else 0 */
	__u32 ack;	/* of the first packet if it carried SYN and ACK, else 0 */
	__u8 smac[6];	/* zero on a layer 3 device */
	__u8 dmac[6];
	__u8 flags; /* TCP flags of the first packet */
	__u8 dscp;
	__u8 ttl; /* or hop limit */
	__u8 pad;
};
_Static_assert(sizeof(struct flow_cold) == 32, "flow_cold layout");

struct cold_bucket {
	struct flow_cold way[WEFT_WAYS];
};

/*
 * What is known of one direction of a TCP connection, beside its slot and with the same
 * writer. Counts are cumulative and wrap. Times that have 32 bits are in units of
 * 32 ns (to 137 s); 0 is not measured.
 */
struct tcp_line {
	__u64 rtt_sum; /* ns: from the point to the sender and back */
	__u32 rtt_count;
	__u32 rtt_least; /* of the connection */
	__u32 rtt_most;	 /* since the scan before the last sample's */
	__u32 rtt_tick;	 /* low bits of jiffies at the last sample */
	__u32 handshake;
	__u32 retransmits; /* packets on the wire, as the next three */
	__u32 out_of_order;
	__u32 lost;
	__u32 dup_acks;
	__u32 zero_windows;
	__u32 zero_ms;
	__u16 mss; /* of the SYN's options, as the next two */
	__u8 wscale;
	__u8 options;	 /* enum weft_tcp_options */
	__u32 rtt_begun; /* as rtt_count, but counted before the sample is added */
	__u32 untracked; /* packets of which nothing was measured: no line was free */
};
_Static_assert(sizeof(struct tcp_line) == 64, "tcp_line layout");

enum weft_tcp_options {
	WEFT_TCP_SYN_SEEN = 1,
	WEFT_TCP_TIMESTAMPS = 2,
	WEFT_TCP_SACK = 4,
	WEFT_TCP_WSCALE = 8,
	WEFT_TCP_QUEUE_FULL = 16, /* it met a socket here whose accept queue was full */
};

struct tcp_bucket {
	struct tcp_line way[WEFT_WAYS];
};

enum weft_tcp_state {
	WEFT_TCP_KNOWN = 1,   /* next is */
	WEFT_TCP_SYN = 2,     /* isn is, and the probe is of the SYN while there is one */
	WEFT_TCP_ZERO = 4,    /* the window is closed */
	WEFT_TCP_GAP = 8,     /* next jumped: what is between gap and gap_end is missing */
	WEFT_TCP_EGRESS = 16, /* its packets are read at egress; else at ingress */
	WEFT_TCP_LATER = 32,  /* it sent more in a later tick than its probe's, from limit on */
	WEFT_TCP_DONE = 64,   /* it sent FIN or RST */
};

/* What one end of a connection sent. */
struct tcp_side {
	__u32 next;	/* one past the highest sequence number */
	__u32 ack;	/* the last acknowledgement */
	__u32 probe;	/* the peer's acknowledgement of this ends the probe */
	__u16 window;	/* as in the header */
	__u8 state;	/* enum weft_tcp_state */
	__u8 tick;	/* low bits of jiffies when the probe was armed */
	__u64 probe_ns; /* when it passed; 0: no probe. Published last */
};
_Static_assert(sizeof(struct tcp_side) == 24, "tcp_side layout");

/* A prime, and in no usual segment size: nought is hardly ever by chance. */
#define WEFT_MISSING 251

/*
 * A TCP connection at a device: both directions, so all CPUs write it, without atomics
 * but for probe_ns. What a lost race costs is one wrong count, never a wrong time.
 */
struct tcp_conv {
	__u32 tag;  /* of the symmetric hash; 0: empty */
	__u32 last; /* low bits of jiffies, to some 64 */
	struct tcp_side side[2];
	__u32 least[2]; /* RTT to each side, 32 ns; 0: not known */
	/* the second line is for what is rare */
	__u32 isn[2];
	__u32 gap[2];
	__u32 gap_end[2];
	__u32 gap_at[2];  /* when, in 1024 ns */
	__u32 zero_at[2]; /* since when the window is closed, in 2^20 ns */
	__u32 limit[2];	  /* an acknowledgement past this ends the probe without a time */
	__u32 held;	  /* initial number of a SYN that came while the connection stood */
	__u32 held_at;	  /* when, in 32 ns; 0: sent again since */
	__u16 gap_id[2];  /* IPv4 id of what came after the gap */
	__u8 opener;	  /* 1 + the side that sent the SYN; 0: not known */
	__u8 holder;	  /* 1 + the side that sent the held SYN, WEFT_TCP_EGRESS; 0: none */
	__u8 missing[2]; /* bytes between gap and gap_end that have not come, modulo WEFT_MISSING */
};
_Static_assert(sizeof(struct tcp_conv) == 128, "tcp_conv layout");

struct tcp_pair {
	struct tcp_conv way[2];
};

/* Packets, per CPU, cumulative. */
struct tcp_seen {
	__u64 untracked; /* TCP packets of which nothing was measured: no line was free */
	__u64 overflow;	 /* times put under the overflow key: no room for the server */
	__u64 lost;	 /* times in no histogram */
	__u64 pad;
};
_Static_assert(sizeof(struct tcp_seen) == 32, "tcp_seen layout");

/* Ring buffer record: a flow had to leave its slot before user space read it out. */
struct flow_evicted {
	__u32 slot; /* bucket * WEFT_WAYS + way */
	__u32 pad;
	struct flow_slot hot;
	struct flow_cold cold;
	struct tcp_line tcp; /* of TCP, with WEFT_OPTION_TCP; else the record ends before it */
};
_Static_assert(sizeof(struct flow_evicted) == 168, "flow_evicted layout");

struct wire_count {
	__u64 packets;
	__u64 bytes;
};

/*
 * An interface of a namespace, and what one CPU saw there, counted before any
 * table: one line, found without a hash map. User space writes the identity of
 * every CPU's copy; the counts have one writer, the CPU.
 * The number of a point is place * WEFT_HOOKS + hook. Place 0 is for frames of
 * interfaces that were let go.
 */
struct link_place {
	__u32 ifindex; /* 0: free */
	__u32 netns;   /* flow_config.netns of that namespace's programs */
	__u8 l2_len;   /* 14 for Ethernet framing, 0 for layer 3 devices */
	__u8 class;    /* enum weft_class */
	__u8 pad[6];
	struct wire_count seen[WEFT_HOOKS - 1]; /* by hook - 1 */
};
_Static_assert(sizeof(struct link_place) == 64, "link_place layout");

/* What is rare, by point; several CPUs share one, so it is added to atomically. */
struct point_rare {
	struct wire_count skipped[WEFT_SKIP_MAX - 1];
	struct wire_count gso; /* how much of seen the interface's own counters do not have */
};
_Static_assert(sizeof(struct point_rare) == 256, "point_rare layout");

/* One writer a field. */
struct flow_control {
	__u64 ktime_ns;	    /* written by read_clock: CLOCK_MONOTONIC ... */
	__u64 jiffies;	    /* ... and jiffies at the same moment */
	__u64 read_jiffies; /* written by user space: all that changed before has been read out */
	__u64 scan_jiffies; /* written by user space: when its last scan began */
};
_Static_assert(sizeof(struct flow_control) == 32, "flow_control layout");

/* Set once before load; the sizes agree with the maps' max_entries. */
struct flow_config {
	__u64 hash_key[5]; /* random: the hash is not guessable from outside */
	__u32 slots;	   /* of one CPU: 2^(64 - slot_shift) */
	__u32 slot_shift;  /* the hash's bits above say where a flow's first slot is */
	__u32 place_mask;  /* places of one CPU - 1 */
	__u32 rare_mask;   /* shards of rare - 1 */
	__u32 ring_wake;   /* wake the reader when the ring holds so many bytes */
	__u32 netns;	   /* this namespace's number, from 1 */
	__u32 first_place; /* where to look for ifindex 0; differs by namespace */
	__u32 options;	   /* enum weft_option, or-ed */
	__u32 conv_mask;   /* buckets of tcp_convs - 1 */
	__u16 ack_backlog; /* offsets in the kernel's struct sock; 0: accept queues are not read */
	__u16 max_ack_backlog;
};
_Static_assert(sizeof(struct flow_config) == 80, "flow_config layout");

/* flow_config.options: what is measured beside packets and bytes */
enum weft_option {
	WEFT_OPTION_TCP = 1,
	WEFT_OPTION_DNS = 2,
};

/* latency_key.measure. Order: flows.Measure. */
enum weft_measure {
	WEFT_RTT_SERVER = 0,
	WEFT_RTT_CLIENT = 1,
	WEFT_HANDSHAKE_SERVER = 2,
	WEFT_HANDSHAKE_CLIENT = 3,
};

/* link_place.class and latency_key.class. Order: flows.PointClass. */
enum weft_class {
	WEFT_CLASS_OTHER = 0,
	WEFT_CLASS_NIC = 1,
	WEFT_CLASS_VETH = 2,
	WEFT_CLASS_BRIDGE = 3,
	WEFT_CLASS_VLAN = 4,
	WEFT_CLASS_BOND = 5,
	WEFT_CLASS_TUNNEL = 6,
	WEFT_CLASS_TAP = 7,
	WEFT_CLASS_LOOPBACK = 8,
};

enum weft_latency {
	WEFT_LATENCY_LOWEST =
		-184, /* index of the first bucket: from 2^-23 s, 119 ns; what is less is in it */
	WEFT_LATENCY_BUCKETS = 240, /* to 2^7 s; what is more is in the last */
};

struct latency_key {
	__u8 server[16]; /* all zero: servers that had no room */
	__u16 port;	 /* network order */
	__u8 proto;
	__u8 measure; /* enum weft_measure */
	__u8 class;   /* enum weft_class */
	__u8 pad[3];
};
_Static_assert(sizeof(struct latency_key) == 24, "latency_key layout");

/* Exponential histogram of seconds, scale 3, cumulative; CPUs share it and add atomically. */
struct latency {
	__u64 sum; /* ns */
	__u32 bucket[WEFT_LATENCY_BUCKETS];
};
_Static_assert(sizeof(struct latency) == 968, "latency layout");

/* Ring buffer record: a packet from or to port 53, with some of its payload. */
struct dns_packet {
	__u64 ktime_ns; /* CLOCK_MONOTONIC */
	struct flow_key key;
	__u32 vlan;   /* outer | inner << 12 */
	__u32 seq;    /* TCP */
	__u32 len;    /* of the payload, as the headers say */
	__u16 copied; /* of that, in payload */
	__u8 flags;   /* TCP */
	__u8 pad;
	__u8 payload[512]; /* the record may end before its end, but not before copied */
};
_Static_assert(sizeof(struct dns_packet) == 576, "dns_packet layout");

/* Packets, per CPU, cumulative. */
struct dns_seen {
	__u64 seen;
	__u64 lost; /* of those: the ring buffer was full */
};
_Static_assert(sizeof(struct dns_seen) == 16, "dns_seen layout");

/* Fallback table. */
struct hash_key {
	struct flow_key key;
	__u32 vlan;   /* outer | inner << 12 */
	__u32 before; /* a flow that ended before another began with its ports: not 0 */
};
_Static_assert(sizeof(struct hash_key) == 48, "hash_key layout");

struct hash_flow {
	__u64 bytes;
	__u64 packets;
	__u64 last; /* jiffies */
	__u64 flags;
	struct flow_cold cold;
};
_Static_assert(sizeof(struct hash_flow) == 64, "hash_flow layout");

/* A datagram whose first fragment passed a point. */
struct frag_key {
	__u8 src[16];
	__u8 dst[16];
	__u32 id; /* network order; IPv4: 16 bits */
	__u16 point;
	__u8 proto; /* the next header that the fragments name */
	__u8 pad;
};
_Static_assert(sizeof(struct frag_key) == 40, "frag_key layout");

struct frag_ports {
	__u32 ports; /* sport, dport as in the packet */
	__u8 proto;  /* the transport that the first fragment named */
	__u8 pad[3];
};

/* Which of the two current sets of drops. */
enum weft_drop {
	WEFT_DROP_FLOWS = 0,
	WEFT_DROP_OVERFLOW = 1,
	WEFT_DROP_SETS = 2,
};

/* drop_key.key.kind, beside those of enum weft_kind */
enum weft_drop_kind {
	WEFT_KIND_OVERFLOW = 4, /* drops of any flows: the set had no room */
};

struct drop_key {
	struct flow_key key; /* point: the CPU; addresses only of IP packets */
	__u64 netns;	     /* cookie; 0: not known */
	__u64 location;	     /* return address in the function that dropped it */
	__u32 ifindex;	     /* where it was; if no longer known, where it came in; 0: neither */
	__u32 reason;	     /* enum skb_drop_reason of the running kernel */
};
_Static_assert(sizeof(struct drop_key) == 64, "drop_key layout");

/* One writer, the CPU in the key. The map's key is a digest of key: the kernel hashes
 * and compares 64 bytes slowly.
 */
struct drop_count {
	struct drop_key key;
	__u64 packets;	/* on the wire: a GSO frame counts its segments */
	__u64 bytes;	/* of IP packets from the IP header on, of others what was there */
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last;	/* jiffies */
};
_Static_assert(sizeof(struct drop_count) == 96, "drop_count layout");

/* Packets, per CPU, cumulative. seen = in a set of flows + overflowed; lost is a part
 * of overflowed.
 */
struct drop_seen {
	__u64 seen;
	__u64 overflowed;
	__u64 lost;
	__u64 pad;
};
_Static_assert(sizeof(struct drop_seen) == 32, "drop_seen layout");

/* Set once before load. */
struct drop_config {
	__u64 hash_key[8];  /* random: digests are not guessable from outside */
	__u32 tells_socket; /* the tracepoint's fourth argument is the socket (6.11) */
	__u32 pad;
};
_Static_assert(sizeof(struct drop_config) == 72, "drop_config layout");

struct symbol {
	__u64 address; /* written by user space */
	char name[120];
};
_Static_assert(sizeof(struct symbol) == 128, "symbol layout");

/* Which of the two current sets of what sockets told. */
enum weft_socket {
	WEFT_SOCKET_FLOWS = 0,
	WEFT_SOCKET_OVERFLOW = 1,
	WEFT_SOCKET_SETS = 2,
};

struct socket_key {
	struct flow_key key; /* src is the socket's own end; point is 0 */
	__u64 netns;	     /* cookie of the socket's namespace; 0: not known */
};
_Static_assert(sizeof(struct socket_key) == 48, "socket_key layout");

/* The process that connected or accepted, or that closed what it had accepted. */
struct socket_owner {
	__u64 cgroup;  /* id of its cgroup v2 */
	__u32 pid;     /* thread group id in the initial pid namespace; 0: not known */
	char comm[16]; /* of the group's leader */
	__u32 pad;
};
_Static_assert(sizeof(struct socket_owner) == 32, "socket_owner layout");

/* A TCP socket, from SYN-SENT or the end of the handshake to CLOSE. */
struct socket_state {
	struct socket_owner owner;
	__u32 retransmitted; /* how much of tcp_sock.total_retrans was told */
	__u32 pad;
};
_Static_assert(sizeof(struct socket_state) == 40, "socket_state layout");

/* CPUs share an entry and add atomically. */
struct socket_count {
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last_ns;
	__u32 events; /* told in this entry: at most 10 s of them */
	__u32 retransmits;
	__u32 resets_sent;
	__u32 resets_received;
	__u32 queue_full;
	__u16 error; /* errno when it closed; 0: none */
	__u8 failed; /* it closed before it was connected */
	__u8 pad;
	struct socket_owner owner;
};
_Static_assert(sizeof(struct socket_count) == 72, "socket_count layout");

/* Events, per CPU, cumulative. seen = in a set of flows + overflowed; lost is a part
 * of overflowed.
 */
struct socket_seen {
	__u64 seen;
	__u64 overflowed;
	__u64 lost;
	__u64 unowned; /* sockets that had no room among those whose owner is known; not events */
};
_Static_assert(sizeof(struct socket_seen) == 32, "socket_seen layout");

/* Set once before load, from the tracepoints' arguments in the kernel's BTF. */
struct socket_config {
	__u32 retransmit_tells_error; /* third argument of tcp_retransmit_skb (6.17) */
	__u32 udp_tells_packet;	      /* third argument of udp_fail_queue_rcv_skb (6.10) */
	__u32 accept_arguments;	      /* of inet_csk_accept: its result follows them */
	__u32 pad;
};
_Static_assert(sizeof(struct socket_config) == 16, "socket_config layout");

#endif
