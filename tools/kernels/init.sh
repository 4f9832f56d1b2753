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
	only=.
	case $t in
	cni | weftd) load /etc/further && PATH=$PATH:/later ;;
	esac
	if [ "$t" = weftd ]; then
		only='TenantsWithEqualFlows/(VRF|VLAN)' # what a host without such devices leaves out
		case $(cat /proc/sys/kernel/osrelease) in
		6.1.*) ;; # no kernel's matter, so one of them is enough
		*) only="$only|ClockSteps" ;; # the clock is ours to set
		esac
	fi
	cd / && WEFT_EMULATED=1 TESTBED_BUILT=/ "/$t.test" -test.v -test.short -test.run "$only" -test.timeout 500s || worst=1
	echo "### $t done after $(cut -d' ' -f1 /proc/uptime) s"
done
ip link add wire0 type veth peer name wire1
ip link set wire0 up
/weftd -check || worst=1
echo "### EXIT=$worst"
poweroff -f
