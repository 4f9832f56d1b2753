// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

// evil is a name that would clear a screen, end a text and begin a node.
const evil = "a\x1b[2J\"];b\n\\\xff\u009b1m\u202e\U000e0001"

// host is a machine with a bridge, a container and a virtual machine behind it.
func host() *api.TopologyResponse {
	pod := &flows.Entity{Layer: flows.LayerContainer, ContainerID: strings.Repeat("0af3", 16), Runtime: "containerd", Confidence: 99, Why: "its cgroup"}
	vm := &flows.Entity{Layer: flows.LayerVM, VM: evil, Hypervisor: "qemu", Confidence: 70, Why: "its tap"}
	return &api.TopologyResponse{
		Spaces: []*api.TopologySpace{
			{
				Netns: 1, Path: []byte("/proc/thread-self/ns/net"), Own: true, Host: true,
				Entity: exporter.EntityToWire(&flows.Entity{Layer: flows.LayerHost, Confidence: 100, Why: "kernel threads"}),
				Devices: []*api.TopologyDevice{
					{Ifindex: 1, Name: []byte("lo"), Loopback: true, Up: true, Layer: uint32(flows.LayerHost)},
					{Ifindex: 2, Name: []byte("eth0"), Up: true, Driver: "ixgbe", SpeedMbps: 10000, Layer: uint32(flows.LayerHardware), Confidence: 90, Why: []byte("driver ixgbe")},
					{Ifindex: 3, Name: []byte("br0"), Kind: "bridge", Up: true, Addresses: []string{"10.0.0.1/24", "fe80::1/64"}, Layer: uint32(flows.LayerHost)},
					{Ifindex: 4, Name: []byte("veth0"), Kind: "veth", Up: true, Master: 3, Far: &api.TopologyPlace{Netns: 2, Ifindex: 2}, Layer: uint32(flows.LayerHost), Behind: exporter.EntityToWire(pod)},
					{Ifindex: 5, Name: []byte(evil), Kind: "tap", Up: true, Master: 3, Layer: uint32(flows.LayerVM), Confidence: 70, Behind: exporter.EntityToWire(vm)},
					{Ifindex: 6, Name: []byte("eth0.7"), Kind: "vlan", Vlan: 7, VlanProtocol: "802.1ad", Under: &api.TopologyPlace{Netns: 1, Ifindex: 2}, Up: true, Layer: uint32(flows.LayerHost)},
					{Ifindex: 7, Name: []byte("vx1"), Kind: "vxlan", Master: 3, Under: &api.TopologyPlace{Netns: 1, Ifindex: 6}, Up: true, Layer: uint32(flows.LayerHost),
						Tunnel: &api.TopologyTunnel{Id: 42, Local: "192.0.2.1", Remote: "192.0.2.2", Port: 4789}},
				},
			},
			{
				Netns: 2, Path: []byte("/run/netns/pod1"), Entity: exporter.EntityToWire(pod),
				Devices: []*api.TopologyDevice{
					{Ifindex: 2, Name: []byte("eth0"), Kind: "veth", Addresses: []string{"10.0.0.2/24"}, Far: &api.TopologyPlace{Netns: 1, Ifindex: 4}, Layer: uint32(flows.LayerContainer), Confidence: 99},
				},
			},
		},
		Over: 3, Off: []*api.TopologyOff{{Name: []byte("/run/netns/secret"), Why: []byte("it needs CAP_SYS_ADMIN")}},
	}
}

func TestTreeDrawsWhatHangsOnWhat(t *testing.T) {
	const want = `host, the agent's
├─ eth0  ixgbe, 10000 Mbit/s  [hardware]
│  └─ eth0.7  vlan, id 7, 802.1ad
└─ br0  bridge, 10.0.0.1/24
   ├─ veth0  veth ⇄ eth0 in container 0af30af30af3 (containerd), netns pod1
   ├─ a\x1b[2J\"];b\n\\\xff\u009b1m\u202e\U000e0001  tap → vm a\x1b[2J\"];b\n\\\xff\u009b1m\u202e\U000e0001 (qemu) (70 %)  [vm 70 %]
   └─ vx1  vxlan, VNI 42, to 192.0.2.2, from 192.0.2.1, on eth0.7

container 0af30af30af3 (containerd), netns pod1
└─ eth0  veth, 10.0.0.2/24, down ⇄ veth0 in host, the agent's

3 more devices: the agent has no room for them

not read: /run/netns/secret: it needs CAP_SYS_ADMIN
`
	if got := string(topologyOf(host()).tree(false)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// What somebody else named cannot get out of its text: every line but the braces is
// a statement with balanced quotes and nothing that a terminal obeys.
func TestDotQuotesHostileNames(t *testing.T) {
	got := string(topologyOf(host()).dot())
	for line := range strings.Lines(got) {
		line = strings.TrimSpace(line)
		open := false
		for i := 0; i < len(line); i++ {
			switch c := line[i]; {
			case c == '\\':
				i++
			case c == '"':
				open = !open
			case c < ' ' || c == 0x7f || c == 0xff:
				t.Errorf("byte %#x in %q", c, line)
			case !open && c == ']' && i != len(line)-2:
				t.Errorf("a name ended the attributes of %q", line)
			}
		}
		if end := line[len(line)-1]; open || end != ';' && end != '{' && end != '}' {
			t.Errorf("not a whole statement: %q", line)
		}
	}
	for _, want := range []string{"subgraph cluster_1 {", "n1_4 -- n1_3 [style=dashed];", "n1_6 -- n1_2;", "n1_4 -- n2_2 [style=bold];", "n1_5 -- n1_5_who;"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is there %d times, want once, in\n%s", want, strings.Count(got, want), got)
		}
	}
}

func TestTopologyAsJSONHasLayerConfidenceAndReason(t *testing.T) {
	var b bytes.Buffer
	g := &global{stdout: &b, format: exporter.JSON}
	if err := g.document(topologyOf(host())); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Over       int
		Namespaces []struct {
			Devices []struct {
				Interface, Layer, Reason string
				Confidence               int
				Behind                   map[string]any
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	d := got.Namespaces[0].Devices
	if e := d[1]; e.Interface != "eth0" || e.Layer != "hardware" || e.Confidence != 90 || e.Reason != "driver ixgbe" {
		t.Errorf("got %+v, want eth0 in hardware, 90, driver ixgbe", e)
	}
	if e := d[3].Behind; e["container.id"] != strings.Repeat("0af3", 16) || e["confidence"] != 99.0 || e["reason"] != "its cgroup" {
		t.Errorf("behind veth0 is %v, want the container", e)
	}
	if at := bytes.IndexFunc(b.Bytes(), func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) && c != utf8.RuneError }); got.Over != 3 || at >= 0 {
		t.Errorf("over %d, want 3, and nothing invisible (at %d) in\n%s", got.Over, at, b.String())
	}
	if want := "a\x1b[2J\"];b\n\\\ufffd\u009b1m\u202e\U000e0001"; d[4].Interface != want {
		t.Errorf("got %q, want %q", d[4].Interface, want)
	}
}

// Devices that hang on each other in a circle, as a picture taken while they moved
// may show them, are still all drawn.
func TestTreeEndsForDevicesInACircle(t *testing.T) {
	m := &api.TopologyResponse{Spaces: []*api.TopologySpace{{Netns: 1, Own: true, Entity: exporter.EntityToWire(&flows.Entity{Layer: flows.LayerHost})}}}
	for i := uint32(1); i <= 3; i++ {
		m.Spaces[0].Devices = append(m.Spaces[0].Devices, &api.TopologyDevice{Ifindex: i, Name: fmt.Append(nil, "d", i), Master: i%3 + 1, Up: true})
	}
	got := string(topologyOf(m).tree(false))
	for _, want := range []string{"d1", "d2", "d3"} {
		if strings.Count(got, want) == 0 {
			t.Errorf("%s is not drawn in\n%s", want, got)
		}
	}
}
