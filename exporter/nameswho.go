// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"maps"
	"slices"

	"weft/flows"
)

// entityNames are the names of what is known of who is behind one end.
type entityNames struct {
	layer, confidence, why                       string
	pod, podUID, namespace, service, node        string
	container, containerID, runtime, label       string
	workload, workloadKind                       string // of a kind without a name of its own
	kinds                                        map[string]string
	unit, pid, comm                              string
	vm, vmID, hypervisor, sandbox, sandboxEngine string
	zone, region                                 string
}

// namesOfEntity puts the names of a side together, once. What the semantic
// conventions have is theirs behind the side, the rest ours behind weft and the side.
func namesOfEntity(side string) entityNames {
	n := entityNames{
		layer: "weft." + side + ".isolation.layer", confidence: "weft." + side + ".confidence", why: "weft." + side + ".evidence",
		pod: side + ".k8s.pod.name", podUID: side + ".k8s.pod.uid", namespace: side + ".k8s.namespace.name",
		service: side + ".k8s.service.name", node: side + ".k8s.node.name", label: side + ".k8s.pod.label.",
		container: side + ".container.name", containerID: side + ".container.id", runtime: side + ".container.runtime.name",
		workload: "weft." + side + ".workload.name", workloadKind: "weft." + side + ".workload.kind", kinds: map[string]string{},
		unit: "weft." + side + ".unit", pid: side + namePID, comm: side + nameComm,
		vm: "weft." + side + ".vm.name", vmID: "weft." + side + ".vm.id", hypervisor: "weft." + side + ".vm.hypervisor",
		sandbox: "weft." + side + ".sandbox.id", sandboxEngine: "weft." + side + ".sandbox.runtime",
		zone: side + ".cloud.availability_zone", region: side + ".cloud.region",
	}
	for _, kind := range []string{"deployment", "replicaset", "daemonset", "statefulset", "job", "cronjob"} {
		n.kinds[kind] = side + ".k8s." + kind + ".name"
	}
	return n
}

var (
	sourceWho      = namesOfEntity(nameSrcProc)
	destinationWho = namesOfEntity(nameDstProc)
)

// sureEnough is the confidence, in percent, from which on the evidence is left out.
const sureEnough = 90

// appendWho appends who one end is. told: the owner of its socket is in the record
// already.
func appendWho(dst []slog.Attr, n *entityNames, e *flows.Entity, told bool) []slog.Attr {
	if e == nil {
		return dst
	}
	str := func(name, v string) {
		if v != "" {
			dst = append(dst, slog.String(name, v))
		}
	}
	str(n.layer, e.Layer.String())
	str(n.namespace, e.Namespace)
	str(n.pod, e.Pod)
	str(n.podUID, e.PodUID)
	if name, ok := n.kinds[e.WorkloadKind]; ok {
		str(name, e.Workload)
	} else {
		str(n.workload, e.Workload)
		str(n.workloadKind, e.WorkloadKind)
	}
	str(n.service, e.Service)
	str(n.container, e.Container)
	str(n.containerID, e.ContainerID)
	str(n.runtime, e.Runtime)
	str(n.vm, e.VM)
	str(n.vmID, e.VMID)
	str(n.hypervisor, e.Hypervisor)
	str(n.sandbox, e.Sandbox)
	str(n.sandboxEngine, e.SandboxRuntime)
	if !told {
		if e.PID != 0 {
			dst = append(dst, slog.Int64(n.pid, int64(e.PID)))
		}
		str(n.comm, e.Process)
	}
	str(n.unit, e.Unit)
	str(n.node, e.Node)
	str(n.zone, e.Zone)
	str(n.region, e.Region)
	for _, name := range slices.Sorted(maps.Keys(e.Labels)) {
		if plain(name) {
			dst = append(dst, slog.String(n.label+name, e.Labels[name]))
		}
	}
	if e.Confidence != 0 {
		dst = append(dst, slog.Int64(n.confidence, int64(e.Confidence)))
	}
	if e.Confidence < sureEnough { // what is sure need not be proved in each record
		str(n.why, e.Why)
	}
	return dst
}

// plain reports whether a label's name is as Kubernetes allows it: it becomes part of
// ours, which nothing escapes.
func plain(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_', c == '/':
		default:
			return false
		}
	}
	return name != ""
}
