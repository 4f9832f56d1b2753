//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flow.bpf.c - count packets and bytes per flow and observation point.
 *   tc_ingress, tc_egress -> parse -> seen -> slot table | skipped
 * Never drops, rewrites or redirects. Every packet lands in exactly one flow or
 * one reason. Linux 5.15 and later: no loops by helper, dynptr or kfunc.
 */
#include "include/slots.h"
#include "include/observe.h"

/* Only so that the generator finds them in the object's BTF. */
const struct flow_evicted *btf_evicted __attribute__((unused));
const struct dns_packet *btf_dns __attribute__((unused));
const enum weft_hook *btf_hook __attribute__((unused));
const enum weft_skip *btf_skip __attribute__((unused));
const enum weft_kind *btf_kind __attribute__((unused));
const enum weft_limits *btf_limits __attribute__((unused));
const enum weft_option *btf_option __attribute__((unused));
const enum weft_measure *btf_measure __attribute__((unused));
const enum weft_class *btf_class __attribute__((unused));
const enum weft_latency *btf_latency __attribute__((unused));
const enum weft_tcp_options *btf_tcp_options __attribute__((unused));
const struct latency_key *btf_latency_key __attribute__((unused));
const struct latency *btf_latencies __attribute__((unused));
const struct tcp_seen *btf_tcp_seen __attribute__((unused));
const struct tcp_conv *btf_tcp_conv __attribute__((unused));

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	observe(skb, WEFT_HOOK_INGRESS);
	return TC_ACT_UNSPEC; /* -1: the next program or filter decides */
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	observe(skb, WEFT_HOOK_EGRESS);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
