#!/bin/bash
# parts.sh DIR: the programs that `make test-kubernetes` runs, in DIR: containerd 2 with its
# shim and ctr, and one binary that is every program of Kubernetes. They are unpacked from the folder
# TESTBED_PACK (NAME.zst) where that is set, else built from the Go module proxy:
# some 15 minutes on two cores, once. Says what else is missing on this machine.
set -euo pipefail
CONTAINERD=v2.4.0 KUBERNETES=1.37.2
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

missing=()
for p in etcd runc openssl nsenter ip iptables nft conntrack jq curl; do command -v "$p" >/dev/null || missing+=("$p"); done
[ -x /usr/lib/cni/bridge ] || missing+=(/usr/lib/cni/bridge)
[ -x /bin/busybox ] || missing+=(/bin/busybox)
if [ ${#missing[@]} -gt 0 ]; then
	echo "parts.sh: missing here: ${missing[*]}; apt-get install etcd-server runc openssl util-linux iproute2 iptables nftables conntrack jq curl containernetworking-plugins busybox-static" >&2
	exit 1
fi

unpacked() { # NAME
	[ -n "${TESTBED_PACK:-}" ] && [ -e "$TESTBED_PACK/$1.zst" ] || return 1
	zstd -qdf "$TESTBED_PACK/$1.zst" -o "$dir/$1" && chmod +x "$dir/$1"
}

for p in containerd containerd-shim-runc-v2 ctr; do
	[ -x "$dir/$p" ] || unpacked "$p" || CGO_ENABLED=0 GOBIN=$dir go install "github.com/containerd/containerd/v2/cmd/$p@$CONTAINERD"
done

kubernetes() {
	local w gomod staging=v0.${KUBERNETES#1.}
	w=$(mktemp -d)
	cp "$here/kubernetes.go.txt" "$w/main.go"
	cd "$w"
	gomod=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | jq -r .GoMod)
	{
		printf 'module kubernetes\ngo %s\nrequire k8s.io/kubernetes v%s\nreplace (\n' "$(awk '/^go /{print $2}' "$gomod")" "$KUBERNETES"
		awk -v v="$staging" '/=> \.\/staging/ {print $1, "=>", $1, v}' "$gomod"
		echo ')'
	} >go.mod
	GOFLAGS=-modcacherw go mod tidy
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$KUBERNETES" -o "$dir/hyper" .
	rm -rf "$w"
}
[ -x "$dir/hyper" ] || unpacked hyper || (kubernetes)
for p in apiserver controller-manager scheduler proxy; do ln -sf hyper "$dir/kube-$p"; done
for p in kubelet kubectl; do ln -sf hyper "$dir/$p"; done
