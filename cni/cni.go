// SPDX-License-Identifier: Apache-2.0

// Package cni knows what sits behind a device or an address: network namespace,
// veth peer, bridge, tunnel, container, pod, VM, sandbox, process. It reads
// netlink and /proc, never packets, and answers from snapshots that are read
// without a lock.
package cni
