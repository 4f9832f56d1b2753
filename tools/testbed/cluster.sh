#!/bin/bash
# cluster.sh up|down|kill-api|start-api|kubectl ARGS...: a real Kubernetes of two nodes in some
# ten seconds. Each node is a network namespace with a kubelet, a kube-proxy, a containerd and
# a CNI bridge; pods of two nodes reach each other over VXLAN.
#   BIN    the folder that parts.sh filled
#   STATE  a folder for the cluster, short: sockets are in it
#   NAME   what its network namespaces and cgroups begin with
#   PROXY  iptables or nftables
#   IMAGE  a docker-archive whose only image is IMAGE_NAME, which waits: pause and pods are made of it
set -euo pipefail
: "${BIN:?}" "${STATE:?}" "${NAME:?}" "${PROXY:=iptables}"
export PATH=$BIN:$PATH
nodes=(1 2)
services=10.96.0.0/16 pods=10.244.0.0/16

inside() { nsenter "--net=/run/netns/$NAME-$1" "${@:2}"; }
kubectl() { inside cp "$BIN/kubectl" --kubeconfig "$STATE/admin" "$@"; }
begin() { # LOG NODE PROGRAM ARGS...: nsenter becomes the program, so that $! is its
	nsenter "--net=/run/netns/$NAME-$2" "${@:3}" >>"$STATE/$1.log" 2>&1 &
	echo $! >"$STATE/$1.pid"
}
until_true() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || {
			echo "cluster.sh: not in time: $what" >&2
			tail -n 5 "$STATE"/*.log "$STATE"/n*/*.log >&2
			return 1
		}
		sleep .1
	done
}
end() { # LOG: kills what begin began, and waits until it is gone
	local pid
	[ -e "$STATE/$1.pid" ] || return 0
	pid=$(cat "$STATE/$1.pid")
	rm "$STATE/$1.pid"
	kill -9 "$pid" 2>/dev/null || return 0
	until_true 10 "$1 ends" gone "$pid"
}
gone() { [ ! -e "/proc/$1/exe" ]; }

network() {
	ip netns add "$NAME-sw"
	ip -n "$NAME-sw" link add br0 type bridge
	ip -n "$NAME-sw" link set br0 up
	local x n m
	for x in cp "${nodes[@]/#/n}"; do
		ip netns add "$NAME-$x"
		ip -n "$NAME-$x" link set lo up
		ip -n "$NAME-sw" link add "to-$x" type veth peer name eth0 netns "$NAME-$x"
		ip -n "$NAME-sw" link set "to-$x" master br0 up
		ip -n "$NAME-$x" link set eth0 up
	done
	ip -n "$NAME-cp" addr add 10.240.0.1/24 dev eth0
	for n in "${nodes[@]}"; do
		local ip=(ip -n "$NAME-n$n")
		"${ip[@]}" addr add "10.240.0.1$n/24" dev eth0
		"${ip[@]}" route add default via 10.240.0.1
		inside "n$n" sysctl -qw net.ipv4.ip_forward=1
		"${ip[@]}" link add vx1 address "02:00:00:00:01:0$n" type vxlan id 1 dev eth0 local "10.240.0.1$n" dstport 8472 nolearning
		"${ip[@]}" addr add "10.244.$n.0/32" dev vx1
		"${ip[@]}" link set vx1 up
		for m in "${nodes[@]}"; do
			[ "$m" != "$n" ] || continue
			"${ip[@]}" route add "10.244.$m.0/24" via "10.244.$m.0" dev vx1 onlink
			"${ip[@]}" neigh add "10.244.$m.0" lladdr "02:00:00:00:01:0$m" dev vx1
			inside "n$n" bridge fdb append "02:00:00:00:01:0$m" dev vx1 dst "10.240.0.1$m"
		done
	done
}

kubeconfig() { # TOKEN
	cat <<-EOF
		{"apiVersion": "v1", "kind": "Config", "current-context": "x",
		 "clusters": [{"name": "c", "cluster": {"server": "https://10.240.0.1:6443", "insecure-skip-tls-verify": true}}],
		 "users": [{"name": "u", "user": {"token": "$1"}}],
		 "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
	EOF
}

start_api() {
	begin api cp kube-apiserver --etcd-servers=http://127.0.0.1:2379 "--cert-dir=$STATE/pki" --service-account-issuer=https://weft.test \
		"--service-account-signing-key-file=$STATE/sa.key" "--service-account-key-file=$STATE/sa.key" "--token-auth-file=$STATE/tokens.csv" \
		--authorization-mode=RBAC --service-cluster-ip-range=$services --advertise-address=10.240.0.1 --secure-port=6443 \
		--kubelet-preferred-address-types=InternalIP --allow-privileged=true
	until_true 60 "the API server is ready" inside cp curl -sfk https://127.0.0.1:6443/readyz
}

node_files() { # NODE
	local d=$STATE/n$1
	mkdir -p "$d/net.d" "$d/logs" "$d/static"
	cat >"$d/net.d/10.conflist" <<-EOF
		{"cniVersion": "1.0.0", "name": "podnet-$NAME", "plugins": [{"type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "$d/ipam", "ranges": [[{"subnet": "10.244.$1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
	EOF
	cat >"$d/containerd.toml" <<-EOF
		version = 3
		root = "$d/ctd"
		state = "$d/run"
		[grpc]
		  address = "$d/c.sock"
		[plugins."io.containerd.nri.v1.nri"]
		  disable = true # both nodes would have one socket
		[plugins."io.containerd.cri.v1.images".pinned_images]
		  sandbox = "$IMAGE_NAME"
		[plugins."io.containerd.cri.v1.runtime"]
		  disable_apparmor = true
		  restrict_oom_score_adj = true
		  [plugins."io.containerd.cri.v1.runtime".cni]
		    bin_dirs = ["/usr/lib/cni"]
		    conf_dir = "$d/net.d"
	EOF
	cat >"$d/kubelet.yaml" <<-EOF
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		cgroupDriver: cgroupfs
		cgroupRoot: /$NAME-n$1
		containerRuntimeEndpoint: unix://$d/c.sock
		enforceNodeAllocatable: []
		evictionHard: {memory.available: "0%"}
		failCgroupV1: false
		failSwapOn: false
		imageGCHighThresholdPercent: 100
		localStorageCapacityIsolation: false
		podLogsDir: $d/logs
		resolvConf: /dev/null
		staticPodPath: $d/static
		volumePluginDir: $d/plugins
	EOF
	cat >"$d/proxy.yaml" <<-EOF
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		clientConnection: {kubeconfig: $STATE/admin}
		clusterCIDR: $pods
		conntrack: {maxPerCore: 0, min: 0}
		hostnameOverride: n$1
		mode: $PROXY
	EOF
}

cgroup() { # NODE: its cgroup in every hierarchy
	local s
	for s in /sys/fs/cgroup/*/; do
		mkdir -p "$s$NAME-n$1" 2>/dev/null || continue
		if [ -e "$s$NAME-n$1/cpuset.cpus" ] && [ -z "$(cat "$s$NAME-n$1/cpuset.cpus")" ]; then
			cat "${s}cpuset.cpus" >"$s$NAME-n$1/cpuset.cpus"
			cat "${s}cpuset.mems" >"$s$NAME-n$1/cpuset.mems"
		fi
	done
}

up() {
	: "${IMAGE:?}" "${IMAGE_NAME:?}"
	local n
	mkdir -p "$STATE"
	network
	openssl genrsa -out "$STATE/sa.key" 2048 2>/dev/null
	echo 'admin,admin,1,system:masters' >"$STATE/tokens.csv"
	kubeconfig admin >"$STATE/admin"
	begin etcd cp etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
	for n in "${nodes[@]}"; do
		node_files "$n"
		cgroup "$n"
		begin "n$n/containerd" "n$n" containerd -c "$STATE/n$n/containerd.toml"
	done
	start_api
	local loop=(--kubeconfig "$STATE/admin" --authentication-kubeconfig "$STATE/admin" --authorization-kubeconfig "$STATE/admin"
		--authentication-skip-lookup --leader-elect=false --bind-address 127.0.0.1)
	begin manager cp kube-controller-manager "${loop[@]}" --service-account-private-key-file "$STATE/sa.key" --root-ca-file "$STATE/pki/apiserver.crt" --cluster-cidr $pods --allocate-node-cidrs=false
	begin scheduler cp kube-scheduler "${loop[@]}"
	for n in "${nodes[@]}"; do
		until_true 20 "containerd of node $n answers" ctr -a "$STATE/n$n/c.sock" version
		ctr -a "$STATE/n$n/c.sock" -n k8s.io image import "$IMAGE" >/dev/null
		begin "n$n/kubelet" "n$n" kubelet --config "$STATE/n$n/kubelet.yaml" --kubeconfig "$STATE/admin" --root-dir "$STATE/n$n/root" \
			--cert-dir "$STATE/n$n/pki" --hostname-override "n$n" --node-ip "10.240.0.1$n" \
			--node-labels="topology.kubernetes.io/zone=zone-$n,topology.kubernetes.io/region=here"
		begin "n$n/proxy" "n$n" kube-proxy --config "$STATE/n$n/proxy.yaml"
	done
	for n in "${nodes[@]}"; do
		until_true 60 "node $n is ready" node_ready "$n"
	done
}
node_ready() { kubectl get node "n$1" --no-headers | grep -qw Ready; }

down() {
	local n x t s
	kubectl delete deploy,daemonset,cronjob,job,pod --all --grace-period=1 --timeout=20s >/dev/null 2>&1 || true
	for n in "${nodes[@]}"; do
		end "n$n/kubelet"
		end "n$n/proxy"
		for t in $(ctr -a "$STATE/n$n/c.sock" -n k8s.io task ls -q 2>/dev/null); do
			ctr -a "$STATE/n$n/c.sock" -n k8s.io task rm -f "$t" >/dev/null 2>&1 || true
		done
	done
	for n in "${nodes[@]}"; do end "n$n/containerd"; done
	for x in scheduler manager api etcd; do end "$x"; done
	awk -v r="$STATE/" 'index($5, r) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r x; do umount -l "$x" || true; done
	for x in /var/lib/cni/results/"podnet-$NAME"-*; do # of pods that did not end by themselves
		[ -e "$x" ] || continue
		ip netns del "$(basename "$(jq -r '.result.interfaces[] | select(.sandbox) | .sandbox' "$x" | head -1)")" || true
		rm "$x"
	done
	for x in sw cp "${nodes[@]/#/n}"; do ip netns del "$NAME-$x" || true; done
	for n in "${nodes[@]}"; do
		for s in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
			[ ! -d "$s$NAME-n$n" ] || find "$s$NAME-n$n" -depth -type d -exec rmdir {} + 2>/dev/null || true
		done
	done
}

case ${1-} in
up) up ;;
down) down ;;
kill-api) end api ;;
start-api) start_api ;;
kubectl) shift && kubectl "$@" ;;
kubeconfig) shift && kubeconfig "$@" ;;
*) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
