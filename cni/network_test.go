// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
)

// The names are those that the plugins' own documentation and code give.
func TestPluginsAreKnownByTheNamesOfTheirDevices(t *testing.T) {
	for _, c := range []struct{ name, kind, want string }{
		{"cali751425ce827", "veth", "calico"}, {"vxlan.calico", "vxlan", "calico"}, {"wireguard.cali", "wireguard", "calico"},
		{"lxc0123456789ab", "veth", "cilium"}, {"lxc0123456789ab", "netkit", "cilium"}, {"cilium_host", "veth", "cilium"}, {"cilium_vxlan", "vxlan", "cilium"},
		{"flannel.1", "vxlan", "flannel"}, {"flannel-v6.4096", "vxlan", "flannel"}, {"flannel-wg", "wireguard", "flannel"}, {"flannel0", "tun", "flannel"},
		{"antrea-gw0", "openvswitch", "antrea"}, {"antrea-tun0", "geneve", "antrea"},
		{"ovn-k8s-mp0", "openvswitch", "ovn-kubernetes"}, {"genev_sys_6081", "geneve", "openvswitch"}, {"br-int", "openvswitch", "openvswitch"},
		{"docker0", "bridge", "docker"}, {"br-0123456789ab", "bridge", "docker"}, {"podman1", "bridge", "podman"}, {"virbr0", "bridge", "libvirt"},
		{"eni0123456789a", "veth", "aws-vpc"},
		// a name alone proves nothing
		{"cali751425ce827", "bridge", ""}, {"calibration", "veth", ""}, {"flannel.1", "veth", ""}, {"lxcbr0", "bridge", ""}, {"br-lan", "bridge", ""},
		{"eth0", "", ""}, {"veth7f6d", "veth", ""}, {"cni0", "bridge", ""}, {"cilium_hosts", "veth", ""},
	} {
		if got := pluginOf(c.name, c.kind); got != c.want {
			t.Errorf("%s of kind %q: got %q, want %q", c.name, c.kind, got, c.want)
		}
	}
}

func TestNetworksSayWhichPluginMadeThem(t *testing.T) {
	result := func(config string) string {
		return strings.Replace(cachedResult, "e30=", base64.StdEncoding.EncodeToString([]byte(config)), 1)
	}
	for config, want := range map[string]string{
		`{"cniVersion":"1.0.0","name":"podnet","plugins":[{"type":"bridge","bridge":"cni0"},{"type":"portmap"}]}`: "bridge",
		`{"cniVersion":"0.3.1","name":"podnet","type":"macvlan","master":"eth0"}`:                                 "macvlan",
		`{}`: "", `[`: "",
	} {
		a, err := readCache([]byte(result(config)))
		if err != nil || a.Plugin != want || a.Network != "podnet" {
			t.Errorf("%s: got %q of %q, %v, want %q of podnet", config, a.Plugin, a.Network, err, want)
		}
	}
	all := []*attachment{
		{ContainerID: "c1", Network: "podnet", Interface: "eth0", Plugin: "ptp"}, {ContainerID: "c1", Network: "podnet", Interface: "eth0"}, // its lease
		{ContainerID: "c1", Network: "leased"}, {ContainerID: "c1", Network: "other", Interface: "eth2"},
	}
	for range 2 { // files are read in any order
		c := &Census{}
		c.noteNetworks(all)
		space := &Space{Containers: []Container{{ID: "c0"}, {ID: "c1"}}}
		for name, want := range map[string]Network{"eth0": {"podnet", "ptp"}, "eth1": {}, "eth2": {"other", ""}} {
			if got, ok := c.Networks().Of(&Device{Link: &Link{Name: name}, Space: space}); got != want || ok != (want != Network{}) {
				t.Errorf("%s: got %v, %v, want %v", name, got, ok, want)
			}
		}
		slices.Reverse(all)
	}
}
