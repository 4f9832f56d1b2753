// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/exporter"
	"weft/exporter/api"
)

func newStatus(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What is attached where, what it costs, what is off and why",
		Long: `Show the agent and its data plane: what is attached where, how full the tables
are and how much memory they may take, what a packet costs, what does not work on
this kernel and why, the exporters, and with -o wide every setting in force.`,
		Example: `  flowctl status
  flowctl status -o wide
  flowctl status -o json | jq '.off[]'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.ask(cmd, func(c *exporter.Client) error {
				m, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				d := statusOf(m)
				if g.tabular() {
					return g.statusTables(&d)
				}
				return g.document(d)
			})
		},
	}
}

// statusDocument is `flowctl status -o json`. Times are RFC 3339, durations and
// costs nanoseconds, memory bytes.
type statusDocument struct {
	Version       string            `json:"version"`
	Flowctl       string            `json:"flowctl_version"`
	Started       time.Time         `json:"started"`
	PID           int32             `json:"pid"`
	Kernel        string            `json:"kernel"`
	Backend       string            `json:"backend"`
	Hooks         string            `json:"hooks"`
	CPUs          uint32            `json:"cpus"`
	Slots         uint32            `json:"slots_per_cpu"`
	Used          uint64            `json:"slots_used"`
	Live          uint64            `json:"slots_live"`
	Evictions     uint64            `json:"evictions"`
	Drains        uint64            `json:"drains"`
	DrainNanos    int64             `json:"last_drain_ns"`
	Conversations uint64            `json:"conversations"`
	Resident      uint64            `json:"resident_bytes"`
	KernelBytes   uint64            `json:"kernel_bytes"`
	Memory        []memoryDocument  `json:"memory"`
	Points        []attachment      `json:"points"`
	Programs      []programDocument `json:"programs"`
	Off           []offDocument     `json:"off"`
	Sinks         []sinkDocument    `json:"sinks"`
	Settings      map[string]string `json:"settings"`

	order []string // of the settings
}

type memoryDocument struct {
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`
}

type attachment struct {
	Interface string `json:"interface"`
	Netns     string `json:"netns,omitempty"`
	Hook      string `json:"hook"`
	Ifindex   uint32 `json:"ifindex"`
	Attached  bool   `json:"attached"`
	Err       string `json:"err,omitempty"`

	name string
}

type programDocument struct {
	Name   string  `json:"name"`
	Netns  string  `json:"netns,omitempty"`
	Runs   uint64  `json:"runs"`
	Nanos  float64 `json:"ns_per_packet,omitempty"` // absent: not measured
	Instrs uint32  `json:"instructions,omitempty"`
}

type offDocument struct {
	Name  string `json:"name"`
	Needs string `json:"needs"`
	Err   string `json:"err"`
}

type sinkDocument struct {
	Name          string            `json:"name"`
	Target        string            `json:"target,omitempty"`
	State         string            `json:"state"`
	Offered       uint64            `json:"offered"`
	Acknowledged  uint64            `json:"acknowledged"`
	Waiting       uint64            `json:"waiting"`
	Lost          map[string]uint64 `json:"lost"`
	LeftOut       map[string]uint64 `json:"left_out,omitempty"`
	MetricsSent   uint64            `json:"metrics_sent"`
	MetricsFailed uint64            `json:"metrics_failed"`
	PointsLost    uint64            `json:"points_lost"`
}

func statusOf(m *api.StatusResponse) statusDocument {
	d := statusDocument{
		Version: m.GetVersion(), Flowctl: ownVersion(), Started: time.Unix(0, m.GetStarted()).UTC(), PID: m.GetPid(),
		Kernel: m.GetKernel(), Backend: m.GetBackend(), Hooks: m.GetHooks(), CPUs: m.GetCpus(), Slots: m.GetSlots(),
		Used: m.GetDrain().GetUsed(), Live: m.GetDrain().GetLive(), Evictions: m.GetDrain().GetEvictions(),
		Drains: m.GetDrain().GetDrains(), DrainNanos: m.GetDrain().GetLastNs(),
		Conversations: m.GetConversations(), Resident: m.GetResidentBytes(),
		Memory: []memoryDocument{}, Points: []attachment{}, Programs: []programDocument{}, Off: []offDocument{},
		Sinks: []sinkDocument{}, Settings: map[string]string{},
	}
	for _, u := range m.GetMemory() {
		d.KernelBytes += u.GetBytes()
		d.Memory = append(d.Memory, memoryDocument{u.GetName(), u.GetBytes()})
	}
	for _, p := range m.GetPoints() {
		at, hop := exporter.PointFromWire(p.GetAt())
		d.Points = append(d.Points, attachment{hop.Interface, hop.Netns, at.Hook.String(), at.Ifindex,
			p.GetAttached(), p.GetErr(), pointName(at, hop)})
	}
	for _, p := range m.GetPrograms() {
		doc := programDocument{Name: p.GetName(), Netns: p.GetNetns(), Runs: p.GetRuns(), Instrs: p.GetInstrs()}
		if doc.Runs > 0 {
			doc.Nanos = float64(p.GetNanos()) / float64(doc.Runs)
		}
		d.Programs = append(d.Programs, doc)
	}
	for _, c := range m.GetOff() {
		d.Off = append(d.Off, offDocument{c.GetName(), c.GetNeeds(), c.GetErr()})
	}
	for _, s := range m.GetSinks() {
		a := exporter.AccountFromWire(s.GetAccount())
		if a.Lost == nil {
			a.Lost = map[string]uint64{}
		}
		d.Sinks = append(d.Sinks, sinkDocument{a.Name, s.GetTarget(), s.GetState(), a.Offered, a.Acknowledged, a.Waiting,
			a.Lost, a.LeftOut, s.GetMetricsSent(), s.GetMetricsFailed(), s.GetPointsLost()})
	}
	for _, s := range m.GetSettings() {
		d.Settings[s.GetKey()] = s.GetValue()
		d.order = append(d.order, s.GetKey())
	}
	return d
}

func (g *global) statusTables(d *statusDocument) error {
	facts := table{head: []string{"", ""}, text: []int{0, 1}}
	facts.add("weftd", fmt.Sprintf("%s, pid %d, up %s", d.Version, d.PID, since(d.Started)))
	facts.add("flowctl", d.Flowctl)
	facts.add("kernel", d.Kernel)
	facts.add("data plane", fmt.Sprintf("%s table, %s hooks, %d CPUs", d.Backend, d.Hooks, d.CPUs))
	facts.add("flow table", fmt.Sprintf("%d of %d slots used, %d changed in the last drain, %d evicted", d.Used, uint64(d.Slots)*uint64(d.CPUs), d.Live, d.Evictions))
	facts.add("drain", fmt.Sprintf("%d drains, the last took %s", d.Drains, time.Duration(d.DrainNanos).Round(time.Microsecond)))
	facts.add("conversations", fmt.Sprintf("%d open", d.Conversations))
	facts.add("memory", fmt.Sprintf("agent %s resident, kernel %s at most (%s)", mebibytes(d.Resident), mebibytes(d.KernelBytes), d.memoryText()))
	if err := facts.write(g.stdout); err != nil {
		return err
	}

	points := table{head: []string{"POINT", "IFINDEX", "STATE"}, text: []int{0, 2}}
	for _, p := range d.Points {
		state := "attached"
		if !p.Attached {
			state = "not attached: " + p.Err
		}
		points.add(p.name, count(uint64(p.Ifindex)), state)
	}
	programs := table{head: []string{"PROGRAM", "NETNS", "RUNS", "NS/PACKET", "INSTRUCTIONS"}, text: []int{0, 1}}
	for _, p := range d.Programs {
		runs, cost := "-", "-"
		if p.Runs > 0 {
			runs, cost = count(p.Runs), fmt.Sprintf("%.0f", p.Nanos)
		}
		programs.add(p.Name, orDash(p.Netns), runs, cost, count(uint64(p.Instrs)))
	}
	off := table{head: []string{"OFF", "NEEDS", "BECAUSE"}, text: []int{0, 1, 2}}
	for _, c := range d.Off {
		off.add(c.Name, c.Needs, c.Err)
	}
	sinks := table{head: []string{"SINK", "TARGET", "STATE", "ACKNOWLEDGED", "WAITING", "LOST", ""}, text: []int{0, 1, 2, 6}}
	for _, s := range d.Sinks {
		lost, why := reasons(s.Lost)
		if s.PointsLost > 0 {
			why = strings.TrimSpace(fmt.Sprintf("%s (and %d data points of metrics)", why, s.PointsLost))
		}
		sinks.add(s.Name, orDash(s.Target), s.State, count(s.Acknowledged), count(s.Waiting), count(lost), why)
	}
	settings := table{head: []string{"SETTING", "VALUE"}, text: []int{0, 1}}
	if g.format == exporter.Wide {
		for _, k := range d.order {
			settings.add(k, d.Settings[k])
		}
	}
	for _, t := range []table{points, programs, off, sinks, settings} {
		if len(t.rows) == 0 {
			continue
		}
		fmt.Fprintln(g.stdout)
		if err := t.write(g.stdout); err != nil {
			return err
		}
	}
	return nil
}

func (d *statusDocument) memoryText() string {
	var parts []string
	for _, u := range d.Memory {
		parts = append(parts, u.Name+" "+mebibytes(u.Bytes))
	}
	return strings.Join(parts, ", ")
}

func mebibytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
