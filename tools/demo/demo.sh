#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh [SECONDS] - a small network to look at, in namespaces of its own:
#
#   client1 --+
#             +-- bridge (namespace weft-demo-switch, watched by weftd) -- server
#   client2 --+
#
# Every frame crosses the bridge, so weftd sees each conversation at two ports
# and counts it once. Touches nothing outside its namespaces and removes them.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-20}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "demo.sh: SECONDS must be a number, not $seconds" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "demo.sh: making network namespaces needs root; use make demo" >&2; exit 1; }
command -v ip >/dev/null || { echo "demo.sh: needs ip (Debian package iproute2)" >&2; exit 1; }

switch=weft-demo-switch
dir=$(mktemp -d)
started=()

clean() {
	trap - EXIT
	for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
	for ns in $switch weft-demo-server weft-demo-client1 weft-demo-client2; do
		ip netns del "$ns" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap clean EXIT
trap 'exit 130' INT TERM

inside() { nsenter --net="/run/netns/$1" "${@:2}"; }

# start NAMESPACE COMMAND... - in the background; its pid is in $last.
start() {
	nsenter --net="/run/netns/$1" "${@:2}" &
	last=$!
	started+=("$last")
}

# host NAME ADDRESS - a namespace on a port of the bridge that is named after it.
host() {
	ip netns add "weft-demo-$1"
	ip link add "$1" netns $switch type veth peer name eth0 netns "weft-demo-$1"
	ip -n $switch link set "$1" master bridge up
	ip -n "weft-demo-$1" link set lo up
	ip -n "weft-demo-$1" link set eth0 up
	ip -n "weft-demo-$1" addr add "$2/24" dev eth0
}

ip netns add $switch
ip -n $switch link set lo up
ip -n $switch link add bridge type bridge
ip -n $switch link set bridge up
host server 10.77.0.1
host client1 10.77.0.11
host client2 10.77.0.12

cat >"$dir/weft.yaml" <<YAML
listen: {socket: $dir/weft.sock, http: "127.0.0.1:9470"}
dataplane: {exclude: [lo, bridge]}
log: {level: warn}
YAML
echo "# bin/weftd -print in $switch; for $seconds s, or until Ctrl-C. In another terminal:"
echo "#   sudo bin/flowctl --server unix://$dir/weft.sock observe --follow"
start $switch bin/weftd -print -config "$dir/weft.yaml"
agent=$last
start weft-demo-server bin/demo serve
until inside weft-demo-client1 bash -c ": </dev/tcp/10.77.0.1/80" 2>/dev/null; do sleep 0.1; done
for n in 1 2; do
	start "weft-demo-client$n" bin/demo talk 10.77.0.1 "$seconds"
done
wait "$last"

echo
echo "# flowctl ledger: where every packet and every record went"
bin/flowctl --server "unix://$dir/weft.sock" ledger
kill "$agent"
wait "$agent"
