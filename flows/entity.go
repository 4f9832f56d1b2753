// SPDX-License-Identifier: Apache-2.0

package flows

import "net/netip"

// Layer is an isolation layer: what a packet runs in at a device, or an endpoint is in.
type Layer uint8

// The layers.
const (
	LayerUnknown Layer = iota
	LayerHardware
	LayerHost
	LayerVM
	LayerParavirtual
	LayerContainer
	LayerSandbox
	NumLayers
)

var layerNames = [NumLayers]string{"", "hardware", "host", "vm", "paravirtual", "container", "sandbox"}

// String is the name exported as weft.isolation.layer; empty: not known.
func (l Layer) String() string {
	if l < NumLayers {
		return layerNames[l]
	}
	return "unknown"
}

// Entity is who is behind an address or a device, as far as it is known. An Entity
// is never written to once it is shared, and an end has the same one for as long as
// nothing about it changes: what was made of it can be remembered by the pointer.
// Empty: not known.
type Entity struct {
	Layer Layer

	Pod, Namespace, PodUID  string
	Workload, WorkloadKind  string // deployment, daemonset, statefulset, job, ...
	Service                 string // Kubernetes Service, in Namespace
	Container, ContainerID  string
	Runtime                 string // containerd, cri-o, docker, podman
	VM, VMID                string // name and UUID
	Hypervisor              string // qemu, firecracker, cloud-hypervisor
	Sandbox, SandboxRuntime string // id; gvisor, kata
	Process                 string // comm
	PID                     uint32
	Unit                    string // systemd unit
	Node, Zone, Region      string
	Labels                  map[string]string // bounded: see the source

	// Confidence in percent that all of it is right, and Why: the evidence in words.
	Confidence uint8
	Why        string
}

// Resolver names who held an address at a time. Implementations answer from a
// snapshot: no lock, no allocation. nil: not known.
type Resolver interface {
	Resolve(scope Scope, addr netip.Addr, at int64) *Entity
}
