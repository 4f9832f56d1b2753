//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * health.bpf.c - flow.bpf.c that can also measure TCP (flow_config.options). An object
 * of its own: older kernels verify every global function, called or not, and one that
 * refuses these still takes flow.bpf.c.
 */
#define WEFT_HEALTH
#include "flow.bpf.c"
