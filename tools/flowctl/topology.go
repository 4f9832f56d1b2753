// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

func newTopology(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topology",
		Short: "Devices, network namespaces, and who is behind them",
		Long: `Draw the devices of every network namespace that the agent can see: what each
hangs on, what is at the far end of a veth pair or behind a tap, and the isolation
layer that a packet is in there. A layer that is not sure comes with its confidence
in percent; json has the evidence for each.

Formats: tree (compact), wide (a tree with loopbacks, addresses and evidence), dot
(Graphviz), json, jsonl, yaml.`,
		Example: `  flowctl topology
  flowctl topology -o dot | dot -Tsvg > host.svg
  flowctl topology -o json | jq '.namespaces[].devices[] | {interface, layer, confidence, reason}'`,
		Args: noArguments,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			switch g.output {
			case "tree":
				g.format = exporter.Compact
			case "dot":
			default:
				if g.format, err = exporter.ParseFormat(g.output); err != nil {
					return usage(fmt.Errorf("--output %q: want tree, wide, dot, json, jsonl or yaml", g.output))
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.ask(cmd, func(c *exporter.Client) error {
				m, err := c.Topology(cmd.Context())
				if err != nil {
					return err
				}
				d := topologyOf(m)
				if len(d.Namespaces) == 0 {
					return errNothing
				}
				switch {
				case g.output == "dot":
					_, err = g.stdout.Write(d.dot())
				case g.tabular():
					_, err = g.stdout.Write(d.tree(g.format == exporter.Wide))
				default:
					err = g.document(d)
				}
				return err
			})
		},
	}
	return cmd
}

// topologyDocument is `flowctl topology -o json`.
type topologyDocument struct {
	At         time.Time           `json:"at"`
	Namespaces []namespaceDocument `json:"namespaces"`
	Over       uint32              `json:"over"` // devices that the agent had no room for
	Off        []unreadDocument    `json:"off"`

	devices map[placeDocument]*linkDocument
	spaces  map[uint64]*namespaceDocument
}

type unreadDocument struct {
	Name string `json:"name"`
	Err  string `json:"err"`
}

type namespaceDocument struct {
	Netns   uint64          `json:"netns"` // cookie
	Path    string          `json:"path"`
	Own     bool            `json:"own"`  // the agent's
	Host    bool            `json:"host"` // the host's own
	Entity  *entityDocument `json:"entity"`
	Devices []linkDocument  `json:"devices"`
}

type placeDocument struct {
	Netns   uint64 `json:"netns"`
	Ifindex uint32 `json:"ifindex"`
}

type linkDocument struct {
	Interface    string          `json:"interface"`
	Alias        string          `json:"alias,omitempty"`
	Ifindex      uint32          `json:"ifindex"`
	Kind         string          `json:"kind,omitempty"`
	Mode         string          `json:"mode,omitempty"`
	MAC          string          `json:"mac,omitempty"`
	MTU          uint32          `json:"mtu"` // bytes
	Up           bool            `json:"up"`
	Carrier      bool            `json:"carrier"`
	Loopback     bool            `json:"loopback,omitempty"`
	Master       uint32          `json:"master,omitempty"` // ifindex
	Port         string          `json:"port_state,omitempty"`
	Under        *placeDocument  `json:"under,omitempty"`
	Far          *placeDocument  `json:"far,omitempty"`
	Unseen       string          `json:"unseen,omitempty"`
	VLAN         uint32          `json:"vlan,omitempty"`
	VLANProtocol string          `json:"vlan_protocol,omitempty"`
	Table        uint32          `json:"table,omitempty"`
	Tunnel       *tunnelDocument `json:"tunnel,omitempty"`
	Tap          *tapDocument    `json:"tap,omitempty"`
	Addresses    []string        `json:"addresses"`
	Bus          string          `json:"bus,omitempty"`
	BusAddress   string          `json:"bus_address,omitempty"`
	Driver       string          `json:"driver,omitempty"`
	Speed        uint32          `json:"speed_mbps,omitempty"`
	PF           string          `json:"physical_function,omitempty"`
	VFs          uint32          `json:"virtual_functions,omitempty"`
	Layer        string          `json:"layer"`
	Confidence   uint32          `json:"confidence"` // percent
	Reason       string          `json:"reason"`
	Behind       *entityDocument `json:"behind,omitempty"`
	Plugin       string          `json:"plugin,omitempty"`         // the network plugin that calls its devices so
	Network      string          `json:"network,omitempty"`        // that CNI attached it to
	NetPlugin    string          `json:"network_plugin,omitempty"` // of that

	netns uint64
}

type tunnelDocument struct {
	ID       uint32 `json:"id,omitempty"`
	Local    string `json:"local,omitempty"`
	Remote   string `json:"remote,omitempty"`
	Port     uint32 `json:"port,omitempty"`
	External bool   `json:"external,omitempty"`

	Peers []string `json:"peers,omitempty"`
}

type tapDocument struct {
	Persistent bool   `json:"persistent,omitempty"`
	Owner      uint32 `json:"owner,omitempty"`
	Group      uint32 `json:"group,omitempty"`
	Queues     uint32 `json:"queues,omitempty"`
}

// entityDocument has the attribute names of the export, where it has them.
type entityDocument struct {
	Layer      string `json:"layer"`
	Confidence uint8  `json:"confidence"`
	Reason     string `json:"reason"`

	Pod            string            `json:"k8s.pod.name,omitempty"`
	Namespace      string            `json:"k8s.namespace.name,omitempty"`
	PodUID         string            `json:"k8s.pod.uid,omitempty"`
	Workload       string            `json:"workload,omitempty"`
	WorkloadKind   string            `json:"workload_kind,omitempty"`
	Service        string            `json:"k8s.service.name,omitempty"`
	Container      string            `json:"container.name,omitempty"`
	ContainerID    string            `json:"container.id,omitempty"`
	Runtime        string            `json:"container.runtime,omitempty"`
	VM             string            `json:"vm,omitempty"`
	VMID           string            `json:"vm_uuid,omitempty"`
	Hypervisor     string            `json:"hypervisor,omitempty"`
	Sandbox        string            `json:"sandbox,omitempty"`
	SandboxRuntime string            `json:"sandbox_runtime,omitempty"`
	Process        string            `json:"process,omitempty"`
	PID            uint32            `json:"pid,omitempty"`
	Unit           string            `json:"unit,omitempty"`
	Node           string            `json:"k8s.node.name,omitempty"`
	Zone           string            `json:"zone,omitempty"`
	Region         string            `json:"region,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
}

func topologyOf(m *api.TopologyResponse) *topologyDocument {
	d := &topologyDocument{
		At: time.Unix(0, m.GetAt()).UTC(), Namespaces: make([]namespaceDocument, len(m.GetSpaces())), Over: m.GetOver(), Off: []unreadDocument{},
		devices: map[placeDocument]*linkDocument{}, spaces: map[uint64]*namespaceDocument{},
	}
	for _, o := range m.GetOff() {
		d.Off = append(d.Off, unreadDocument{string(o.GetName()), string(o.GetWhy())})
	}
	for i, s := range m.GetSpaces() {
		n := &d.Namespaces[i]
		*n = namespaceDocument{s.GetNetns(), string(s.GetPath()), s.GetOwn(), s.GetHost(), entityDoc(s.GetEntity()), make([]linkDocument, len(s.GetDevices()))}
		d.spaces[n.Netns] = n
		for j, dev := range s.GetDevices() {
			n.Devices[j] = deviceOf(dev)
			n.Devices[j].netns = n.Netns
			d.devices[placeDocument{n.Netns, dev.GetIfindex()}] = &n.Devices[j]
		}
	}
	return d
}

func deviceOf(m *api.TopologyDevice) linkDocument {
	d := linkDocument{
		Interface: string(m.GetName()), Alias: string(m.GetAlias()), Ifindex: m.GetIfindex(), Kind: m.GetKind(), Mode: m.GetMode(),
		MAC: m.GetMac(), MTU: m.GetMtu(), Up: m.GetUp(), Carrier: m.GetCarrier(), Loopback: m.GetLoopback(),
		Master: m.GetMaster(), Port: m.GetPort(), Under: placeOf(m.GetUnder()), Far: placeOf(m.GetFar()), Unseen: m.GetUnseen(),
		VLAN: m.GetVlan(), VLANProtocol: m.GetVlanProtocol(), Table: m.GetTable(), Addresses: append([]string{}, m.GetAddresses()...),
		Bus: m.GetBus(), BusAddress: m.GetBusAddress(), Driver: m.GetDriver(), Speed: m.GetSpeedMbps(), PF: m.GetPhysicalFunction(),
		VFs: m.GetVirtualFunctions(), Layer: flows.Layer(m.GetLayer()).String(), Confidence: m.GetConfidence(), Reason: string(m.GetWhy()),
		Behind: entityDoc(m.GetBehind()), Plugin: m.GetPlugin(), Network: string(m.GetNetwork()), NetPlugin: string(m.GetNetworkPlugin()),
	}
	if t := m.GetTunnel(); t != nil {
		d.Tunnel = &tunnelDocument{t.GetId(), t.GetLocal(), t.GetRemote(), t.GetPort(), t.GetExternal(), t.GetPeers()}
	}
	if t := m.GetTap(); t != nil {
		d.Tap = &tapDocument{t.GetPersistent(), t.GetOwner(), t.GetGroup(), t.GetQueues()}
	}
	return d
}

func placeOf(m *api.TopologyPlace) *placeDocument {
	if m == nil {
		return nil
	}
	return &placeDocument{m.GetNetns(), m.GetIfindex()}
}

func entityDoc(m *api.Entity) *entityDocument {
	e := exporter.EntityFromWire(m)
	if e == nil {
		return nil
	}
	return &entityDocument{
		e.Layer.String(), e.Confidence, e.Why,
		e.Pod, e.Namespace, e.PodUID, e.Workload, e.WorkloadKind, e.Service, e.Container, e.ContainerID, e.Runtime,
		e.VM, e.VMID, e.Hypervisor, e.Sandbox, e.SandboxRuntime, e.Process, e.PID, e.Unit, e.Node, e.Zone, e.Region, e.Labels,
	}
}

// who is an entity in a few words: the closest name that is known.
func (e *entityDocument) who() string {
	if e == nil {
		return "nobody known"
	}
	by := func(kind, name, runtime string) string {
		if runtime != "" {
			runtime = " (" + runtime + ")"
		}
		return strings.TrimSpace(kind+" "+name) + runtime
	}
	switch {
	case e.Pod != "":
		return by("pod", e.Namespace+"/"+e.Pod, e.SandboxRuntime)
	case e.SandboxRuntime != "":
		return by("sandbox", shortID(e.Sandbox), e.SandboxRuntime)
	case e.Hypervisor != "":
		return by("vm", cmp.Or(e.VM, e.VMID), e.Hypervisor)
	case e.Container != "" || e.ContainerID != "":
		return by("container", cmp.Or(e.Container, shortID(e.ContainerID)), e.Runtime)
	case e.PodUID != "":
		return by("pod", e.PodUID, e.Runtime)
	case e.Runtime != "":
		return by("containers", "", e.Runtime)
	case e.Unit != "":
		return by("unit", e.Unit, "")
	case e.Process != "":
		return by("process", e.Process, strconv.Itoa(int(e.PID)))
	case e.Layer == flows.LayerHost.String():
		return "host"
	}
	return "network namespace"
}

// shortID is the first 12 of the 64 digits that runtimes give.
func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// title is a namespace in a few words.
func (n *namespaceDocument) title() string {
	text := n.Entity.who()
	if name := path.Base(n.Path); strings.HasPrefix(n.Path, "/run/") {
		text += ", netns " + name
	}
	if n.Own {
		text += ", the agent's"
	}
	return text
}
