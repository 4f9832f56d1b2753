// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"maps"
	"slices"

	"weft/exporter/api"
	"weft/flows"
)

func entityToWire(e *flows.Entity) *api.Entity {
	if e == nil {
		return nil
	}
	m := &api.Entity{
		Layer: uint32(e.Layer),
		Pod:   []byte(e.Pod), Namespace: []byte(e.Namespace), PodUid: []byte(e.PodUID),
		Workload: []byte(e.Workload), WorkloadKind: []byte(e.WorkloadKind), Service: []byte(e.Service),
		Container: []byte(e.Container), ContainerId: []byte(e.ContainerID), Runtime: []byte(e.Runtime),
		Vm: []byte(e.VM), VmId: []byte(e.VMID), Hypervisor: []byte(e.Hypervisor),
		Sandbox: []byte(e.Sandbox), SandboxRuntime: []byte(e.SandboxRuntime),
		Process: []byte(e.Process), Pid: e.PID, Unit: []byte(e.Unit),
		Node: []byte(e.Node), Zone: []byte(e.Zone), Region: []byte(e.Region),
		Confidence: uint32(e.Confidence), Why: []byte(e.Why),
	}
	for _, name := range slices.Sorted(maps.Keys(e.Labels)) {
		m.Labels = append(m.Labels, &api.Label{Name: []byte(name), Value: []byte(e.Labels[name])})
	}
	return m
}

func entityFromWire(m *api.Entity) *flows.Entity {
	if m == nil {
		return nil
	}
	e := &flows.Entity{
		Layer: flows.Layer(m.Layer),
		Pod:   string(m.Pod), Namespace: string(m.Namespace), PodUID: string(m.PodUid),
		Workload: string(m.Workload), WorkloadKind: string(m.WorkloadKind), Service: string(m.Service),
		Container: string(m.Container), ContainerID: string(m.ContainerId), Runtime: string(m.Runtime),
		VM: string(m.Vm), VMID: string(m.VmId), Hypervisor: string(m.Hypervisor),
		Sandbox: string(m.Sandbox), SandboxRuntime: string(m.SandboxRuntime),
		Process: string(m.Process), PID: m.Pid, Unit: string(m.Unit),
		Node: string(m.Node), Zone: string(m.Zone), Region: string(m.Region),
		Confidence: uint8(m.Confidence), Why: string(m.Why),
	}
	for _, l := range m.Labels {
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[string(l.Name)] = string(l.Value)
	}
	return e
}
