#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# init.sh - process 1 of a test guest: runs what matrix.sh put into / and powers off.
export PATH=/bin HOME=/tmp WEFT_REQUIRE_BPF=1
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev 2>/dev/null
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mount -t tracefs none /sys/kernel/tracing 2>/dev/null
mount -t debugfs none /sys/kernel/debug 2>/dev/null
mount -t bpf b /sys/fs/bpf
mount -t cgroup2 c /sys/fs/cgroup
load() { # LIST
	while read -r m; do
		grep -q "^${m%.ko} " /proc/modules || insmod "/lib/modules/$m"
	done <"$1"
}
load /etc/modules
ip link set lo up
echo "### booted after $(cut -d' ' -f1 /proc/uptime) s"
worst=0
for t in bpf dataplane cni weftd; do
	[ -e "/$t.test" ] || continue
	only=. without=^$
	case $t in
	cni) # no kernel changes what files and programs say
		load /etc/further
		without='Fuzz|Runtime|Cluster|Podman|Docker|Containerd|Shim|Gvisor|Container|PID|Tap|Disk' ;;
	weftd) # what a host without such devices, or whose clock is not ours, leaves out: one guest is enough
		case $(cat /proc/sys/kernel/osrelease) in 6.1.*) echo "### the agent's tests are left to 6.12" && continue ;; esac
		load /etc/further
		only='TenantsWithEqualFlows/(VRF|VLAN)|ClockSteps' ;;
	esac
	cd / && WEFT_EMULATED=1 TESTBED_BUILT=/ "/$t.test" -test.v -test.short -test.run "$only" -test.skip "$without" -test.timeout 500s || worst=1
	echo "### $t done after $(cut -d' ' -f1 /proc/uptime) s"
done
ip link add wire0 type veth peer name wire1
ip link set wire0 up
/weftd -check || worst=1
echo "### EXIT=$worst"
poweroff -f
