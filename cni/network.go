// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"regexp"
	"slices"
)

// pluginNames is how a network plugin calls its devices: the pattern of the name, and the kinds that
// a device of that name has.
type pluginNames struct {
	plugin string
	name   *regexp.Regexp
	kinds  []string // none: any
}

// pluginNamings are in the order of asking. A name alone proves little, so it goes with its kinds, unless nobody else
// would choose it; those that several plugins use are left out.
var pluginNamings = []pluginNames{
	{"calico", regexp.MustCompile(`^cali[0-9a-f]{11}$`), []string{"veth"}},
	{"calico", regexp.MustCompile(`^vxlan(-v6)?\.calico$`), []string{"vxlan"}},
	{"calico", regexp.MustCompile(`^(wireguard\.cali|wg-v6\.cali)$`), []string{"wireguard"}},
	{"calico", regexp.MustCompile(`^bpf(in|out)\.cali$`), []string{"veth"}},
	{"cilium", regexp.MustCompile(`^(lxc[0-9a-f]{12}|lxc_health|cilium_host|cilium_net)$`), []string{"veth", "netkit"}},
	{"cilium", regexp.MustCompile(`^cilium_(vxlan|geneve)$`), []string{"vxlan", "geneve"}},
	{"cilium", regexp.MustCompile(`^cilium_(wg0|ipip4|ipip6)$`), []string{"wireguard", "ipip", "ip6tnl"}},
	{"flannel", regexp.MustCompile(`^flannel(-v6)?\.[0-9]+$`), []string{"vxlan"}},
	{"flannel", regexp.MustCompile(`^flannel-wg(-v6)?$`), []string{"wireguard"}},
	{"flannel", regexp.MustCompile(`^flannel[0-9]+$`), []string{"tun"}},
	{"antrea", regexp.MustCompile(`^antrea-(gw0|egress0|ingress0)$`), nil}, // internal ports and dummies
	{"antrea", regexp.MustCompile(`^antrea-(tun0|wg0)$`), nil},
	{"ovn-kubernetes", regexp.MustCompile(`^ovn-k8s-(mp|gw)[0-9]+$`), nil},
	{"kube-ovn", regexp.MustCompile(`^(ovn0|[0-9a-f]{12}_h)$`), nil},
	{"openvswitch", regexp.MustCompile(`^(ovs-system|br-int|br-ex|br-tun)$`), []string{"openvswitch"}},
	{"openvswitch", regexp.MustCompile(`^(genev|vxlan|gre)_sys(_[0-9]+)?$`), []string{"geneve", "vxlan", "gretap"}},
	{"weave", regexp.MustCompile(`^(weave|vethwe-(bridge|datapath)|vethwepl[0-9a-f]{7})$`), []string{"bridge", "veth"}},
	{"aws-vpc", regexp.MustCompile(`^eni[0-9a-f]{11}$`), []string{"veth"}},
	{"azure-vnet", regexp.MustCompile(`^azv[0-9a-f]{11}$`), []string{"veth"}},
	{"gke", regexp.MustCompile(`^gke[0-9a-f]{11}$`), []string{"veth"}},
	{"kube-router", regexp.MustCompile(`^kube-bridge$`), []string{"bridge"}},
	{"kube-proxy", regexp.MustCompile(`^kube-ipvs0$`), []string{"dummy"}},
	{"docker", regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`), []string{"bridge"}},
	{"podman", regexp.MustCompile(`^(podman|cni-podman)[0-9]+$`), []string{"bridge"}},
	{"libvirt", regexp.MustCompile(`^virbr[0-9]+$`), []string{"bridge"}},
	{"lxd", regexp.MustCompile(`^(lxd|incus)br[0-9]+$`), []string{"bridge"}},
}

// Plugin is the network plugin that calls its devices so, by name and kind: calico, cilium, flannel,
// antrea, ovn-kubernetes, docker, ...; empty: none that is known.
func (d *Device) Plugin() string { return pluginOf(d.Name, d.Kind) }

// Of is the network that a device of a namespace was attached to; false: CNI wrote nothing down.
func (n Networks) Of(d *Device) (Network, bool) {
	for _, c := range d.Space.Containers {
		if to, ok := n[Attached{c.ID, d.Name}]; ok {
			return to, true
		}
	}
	return Network{}, false
}

// Networks is what CNI wrote down last. Any goroutine may ask.
func (c *Census) Networks() Networks {
	if n := c.networks.Load(); n != nil {
		return *n
	}
	return nil
}

// noteNetworks makes [Census.Networks] of all that is written down.
func (c *Census) noteNetworks(all []*attachment) {
	n := Networks{}
	for _, a := range all {
		at := Attached{a.ContainerID, a.Interface}
		if a.Interface != "" && (a.Plugin != "" || n[at].Plugin == "") { // a lease of the same knows less
			n[at] = Network{a.Network, a.Plugin}
		}
	}
	c.networks.Store(&n)
}

// pluginOf is the network plugin that names a device so; empty: none that is known.
func pluginOf(name, kind string) string {
	for _, n := range pluginNamings {
		if (n.kinds == nil || slices.Contains(n.kinds, kind)) && n.name.MatchString(name) {
			return n.plugin
		}
	}
	return ""
}

// Networks are the container networks that devices were attached to, as CNI wrote it down.
type Networks map[Attached]Network

// Attached is a device in a container's namespace.
type Attached struct {
	ContainerID, Interface string
}

// Network is what a container is attached to.
type Network struct {
	Name   string // of the configuration
	Plugin string // the type of its first plugin: bridge, ptp, macvlan, ipvlan, vlan, ...; empty: not told
}

// pluginType is the type of the first plugin of a network's configuration, a list or a single one.
func pluginType(config []byte) string {
	var c struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if json.Unmarshal(config, &c) != nil {
		return ""
	}
	if len(c.Plugins) > 0 {
		return bounded(c.Plugins[0].Type)
	}
	return bounded(c.Type)
}
