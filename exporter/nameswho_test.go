// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"strings"
	"testing"

	"weft/flows"
)

func TestBothEndsSayWhoTheyAre(t *testing.T) {
	r := tcpRecord(1)
	r.Source = &flows.Entity{
		Layer: flows.LayerContainer, Pod: "web-1", Namespace: "shop", PodUID: "u1", Workload: "web", WorkloadKind: "deployment",
		Service: "web", Container: "nginx", ContainerID: "c1", Runtime: "containerd", Process: "nginx", PID: 7, Unit: "kubelet.service",
		Node: "n1", Zone: "z1", Region: "r1", Labels: map[string]string{"app": "web"}, Confidence: 99, Why: "seen",
	}
	r.Destination = &flows.Entity{
		Layer: flows.LayerVM, VM: "db", VMID: "uuid", Hypervisor: "qemu", Workload: "x", WorkloadKind: "rollout", Confidence: 50, Why: "a guess",
	}
	got := attributes(r)
	for name, want := range map[string]any{
		"weft.source.isolation.layer": "container", "source.k8s.pod.name": "web-1", "source.k8s.namespace.name": "shop", "source.k8s.pod.uid": "u1",
		"source.k8s.deployment.name": "web", "source.k8s.service.name": "web", "source.container.name": "nginx", "source.container.id": "c1",
		"source.container.runtime.name": "containerd", "source.process.executable.name": "nginx", "source.process.pid": int64(7),
		"weft.source.unit": "kubelet.service", "source.k8s.node.name": "n1", "source.cloud.availability_zone": "z1", "source.cloud.region": "r1",
		"source.k8s.pod.label.app": "web", "weft.source.confidence": int64(99),
		"weft.destination.isolation.layer": "vm", "weft.destination.vm.name": "db", "weft.destination.vm.id": "uuid",
		"weft.destination.vm.hypervisor": "qemu", "weft.destination.workload.name": "x", "weft.destination.workload.kind": "rollout",
		"weft.destination.confidence": int64(50), "weft.destination.evidence": "a guess",
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.HasPrefix(name, "TWICE") || name == "weft.source.evidence" || name == "weft.source.workload.name" {
			t.Errorf("%s is there, want it not to be", name)
		}
	}
	r.SourceProcess = &flows.Process{PID: 7, Comm: "nginx"}
	for name := range attributes(r) {
		if strings.HasPrefix(name, "TWICE") {
			t.Errorf("with the socket's owner: %s", name)
		}
	}
}

func TestHostileNamesStayText(t *testing.T) {
	r := tcpRecord(1)
	r.Source = &flows.Entity{Pod: "a\x1b[31m\"\\", Namespace: "\xff\n", Labels: map[string]string{"k\"": "v\x00"}}
	line := string(AppendJSON(nil, &r))
	if !json.Valid([]byte(line)) || strings.Contains(line, "label") {
		t.Errorf("got %s, want JSON without the label", line)
	}
	for _, c := range line {
		if c < ' ' {
			t.Fatalf("control character %q in %q", c, line)
		}
	}
}
