#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# matrix.sh - the data plane's tests in guests of other kernels, those of topology and names,
#   and those of the agent that need devices which this kernel may not have.
#   Debian's newest 6.1 and 6.12 cloud kernels are fetched once into .cache/kernels
#   and unpacked, not installed. Each guest boots from an initramfs that holds
#   busybox, static test binaries and the agent, and exits with their status.
# Needs no root. Usage: [PACKAGES="./cni ..."] matrix.sh [6.1|6.12 ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$PWD/.cache/kernels
packages=${PACKAGES:-./bpf ./dataplane ./cni ./tools/weftd}
# What the namespace tests plug together; a name that a kernel has built in is passed over.
modules="veth bridge 8021q dummy vxlan tun cls_bpf act_bpf sch_ingress sch_tbf nft_numgen"
# What the tests of topology and names need beside that; loaded after the data plane's.
further="vrf macvlan macvtap ipvlan bonding geneve ip_gre ipip nft_chain_nat nft_nat nft_ct nft_masq nft_redir nf_conntrack_netlink tcp_diag udp_diag"
programs="ip nsenter nft dnsmasq"
# What an emulated kernel need not do: wait out a grace period at each attach, fill pages
# with zeros, guard memory by rewriting its own code, walk five levels of page tables, and go around the faults of
# CPUs that it does not run on.
fast="fb_tunnels=none kfence.sample_interval=0 apparmor=0 rcupdate.rcu_expedited=1 init_on_alloc=0 mitigations=off"
# Hardware's help where there is any; kvm_pvm runs no kernel but its own.
accel=(-accel "tcg,thread=multi,tb-size=512" -cpu "max,-la57,-smap,-smep,-erms,-fsrm")
if [ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; }; then accel=(-accel kvm -cpu host); fi

need() {
	local missing=""
	for tool in "$@"; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
	[ -z "$missing" ] || { echo "missing:$missing; apt-get install qemu-system-x86 kmod cpio busybox-static xz-utils iproute2 nftables dnsmasq-base" >&2; exit 2; }
}

# newest VERSION - the name of Debian's newest cloud kernel package of that series.
newest() {
	apt-cache pkgnames "linux-image-$1." | grep -e '-cloud-amd64$' | sort -V | tail -n 1
}

# fetch PACKAGE - unpacks it into the cache, once.
fetch() {
	local dir=$cache/$1 new
	if [ ! -e "$dir/ready" ]; then
		new=$(mktemp -d "$cache/new.XXXXXX")
		(
			cd "$new"
			apt-get -o APT::Sandbox::User=root download "$1" >/dev/null
			dpkg -x ./*.deb .
			rm -f ./*.deb
			depmod -b "$new" "$(basename lib/modules/*)"
			touch ready
		)
		rm -rf "$dir"
		mv "$new" "$dir"
	fi
	echo "$dir"
}

# with_libraries ROOT PROGRAM FOLDER - copies a program of this machine, and what it is linked with.
with_libraries() {
	local file
	cp -L "$(command -v "$2")" "$1/$3/"
	ldd "$(command -v "$2")" | grep -o '/[^ ]*' | while read -r file; do
		mkdir -p "$1$(dirname "$file")"
		cp -Lu "$file" "$1$file"
	done
}

# add_modules KERNEL_DIR ROOT NAME... - copies modules and what they need, and says in which order they are loaded.
add_modules() {
	local kernel=$1 root=$2 version m file
	version=$(basename "$kernel"/lib/modules/*)
	shift 2
	for m in "$@"; do
		modprobe -d "$kernel" -S "$version" --show-depends "$m" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
		case $file in
		*.xz) xz -dc "$file" >"$root/lib/modules/$(basename "$file" .xz)" ;;
		*) cp "$file" "$root/lib/modules/" ;;
		esac
		basename "$file" .xz
	done
}

# guest KERNEL_DIR WORK_DIR - makes the initramfs from WORK_DIR/bin and boots it;
# WORK_DIR/log holds the console. The status is the guest's.
guest() {
	local kernel=$1 work=$2 root=$2/root
	mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,etc,lib/modules}
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in sh mount mkdir cat cut echo grep insmod poweroff; do ln -s busybox "$root/bin/$applet"; done
	for p in $programs; do with_libraries "$root" "$p" bin; done
	cp -r "$work/bin/." "$root/"
	# shellcheck disable=SC2086 # lists
	{ add_modules "$kernel" "$root" $modules >"$root/etc/modules" && add_modules "$kernel" "$root" $further >"$root/etc/further"; }
	echo 'root:x:0:0::/:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	cp tools/kernels/init.sh "$root/init"
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initramfs" # plain: an emulated CPU unpacks slowly
	timeout 600 qemu-system-x86_64 "${accel[@]}" -m 2048 -smp 2 -nographic -no-reboot -net none \
		-kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initramfs" -append "console=ttyS0 panic=-1 quiet $fast" \
		</dev/null >"$work/console" 2>&1 || true
	# Without carriage returns and the firmware's escape sequences.
	sed 's/\r//g; s/\x1b[^m]*[mhlJc]//g' "$work/console" >"$work/log"
	return "$(sed -n 's/^### EXIT=\([0-9]*\).*/\1/p' "$work/log" | tail -n 1 | grep . || echo 125)"
}

# report NAME LOG STATUS SECONDS - one line when all is well, what failed otherwise.
report() {
	local passed failed skipped
	passed=$(grep -c '^ *--- PASS' "$2" || true)
	failed=$(grep -c '^ *--- FAIL' "$2" || true)
	skipped=$(grep -c '^ *--- SKIP' "$2" || true)
	sed -n 's/^### /  /p' "$2"
	# A skipped test's reason is the line before.
	if [ "$skipped" -gt 0 ]; then echo "  left out:" && grep -B1 '^ *--- SKIP' "$2" | grep -v '^--$' | sed -n '/SKIP/!{h;d};s/ *--- SKIP: \([^ ]*\).*/\1/;G;s/\n *[^ ]*:[0-9]*:/:/p'; fi
	if [ "$3" -ne 0 ]; then
		grep -B15 -A2 '^ *--- FAIL\|^panic:\|Kernel panic\|Out of memory' "$2" | tail -n 200 || true
		tail -n 40 "$2"
	fi
	echo "$1: $passed passed, $failed failed, $skipped skipped, exit $3, $4 s"
}

main() {
	# shellcheck disable=SC2086 # a list
	need qemu-system-x86_64 modprobe depmod cpio busybox xz apt-cache dpkg awk timeout $programs
	local series package kernel status=0 began this
	mkdir -p "$cache"
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	mkdir "$work/bin"
	# All with the same flags, so that what they share is compiled once; symbols are half of the
	# size, and linking them most of the time.
	CGO_ENABLED=0 go build -ldflags '-s -w' -o "$work/bin/" ./tools/weftd ./tools/flowctl
	for p in $packages; do
		CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$work/bin/$(basename "$p").test" "$p"
		if [ -d "$p/testdata" ]; then cp -r "$p/testdata" "$work/bin/"; fi
	done
	[ $# -gt 0 ] || set -- 6.1 6.12
	# One after the other: side by side they starve each other's timers on two cores.
	for series in "$@"; do
		package=$(newest "$series")
		[ -n "$package" ] || { echo "no cloud kernel $series in the package lists; run apt-get update" >&2; exit 1; }
		kernel=$(fetch "$package")
		mkdir "$work/$series"
		cp -r "$work/bin" "$work/$series/bin"
		began=$SECONDS this=0
		guest "$kernel" "$work/$series" || this=$?
		# An emulated CPU may meet code that another is patching while the kernel boots: no test ran then.
		if ! grep -q '^### booted' "$work/$series/log"; then
			echo "$package did not boot; once more:" && tail -n 3 "$work/$series/log"
			rm -rf "$work/$series/root"
			this=0
			guest "$kernel" "$work/$series" || this=$?
		fi
		cp "$work/$series/log" "$cache/$series.log"
		report "$package" "$cache/$series.log" "$this" $((SECONDS - began))
		[ "$this" -eq 0 ] || status=1
		rm -rf "${work:?}/$series"
	done
	exit "$status"
}
main "$@"
