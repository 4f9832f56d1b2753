// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"weft/dataplane"
	"weft/exporter"
	"weft/exporter/api"
)

// status is what `flowctl status` shows. Any goroutine may ask.
func (a *agent) status() *api.StatusResponse {
	m := &api.StatusResponse{
		Version: ownVersion(), Started: a.started.UnixNano(), Pid: int32(os.Getpid()),
		ResidentBytes: residentBytes(), Conversations: uint64(a.conversations.Load()),
	}
	a.mu.Lock()
	cfg := a.cfg
	cfg.OTLP = cfg.OTLP.InForce()
	for _, k := range cfg.settings() {
		m.Settings = append(m.Settings, &api.Setting{Key: k.name, Value: k.show(&cfg)})
	}
	a.mu.Unlock()
	plane := a.plane.Load()
	if plane == nil {
		return m // still opening
	}
	m.Off = append(append(m.Off, a.topologyOff()...), a.namesOff()...)
	for _, s := range a.accounted() {
		if o := a.outlet(s); o != nil {
			m.Sinks = append(m.Sinks, o.Status())
			continue
		}
		m.Sinks = append(m.Sinks, &api.SinkStatus{Account: exporter.AccountToWire(s.Account()), State: "ok"})
	}
	s := plane.Status()
	s.Programs = plane.Costs()
	addPlane(m, s)
	return m
}

// addPlane copies what the data plane says of itself.
func addPlane(m *api.StatusResponse, s dataplane.Status) {
	m.Kernel, m.Backend, m.Hooks = s.Kernel, string(s.Backend), string(s.Hooks)
	m.Cpus, m.Slots = uint32(s.CPUs), uint32(s.Slots)
	for _, u := range s.Memory {
		m.Memory = append(m.Memory, &api.MemoryUse{Name: u.Name, Bytes: u.Bytes})
	}
	for _, p := range s.Points {
		m.Points = append(m.Points, &api.PointStatus{At: exporter.PointToWire(p.At, p.Hop), Attached: p.Attached, Err: p.Err})
	}
	for _, p := range s.Programs {
		m.Programs = append(m.Programs, &api.ProgramStatus{Name: p.Name, Netns: p.Netns, Runs: p.Runs, Nanos: p.Nanos, Instrs: uint32(p.Instrs)})
	}
	for _, c := range s.Off {
		m.Off = append(m.Off, &api.Capability{Name: c.Name, Needs: c.Needs, Err: c.Err})
	}
	m.Drain = &api.DrainStatus{
		Drains: s.Drain.Drains, Live: uint64(s.Drain.Live), Used: uint64(s.Drain.Used),
		Evictions: s.Drain.Evictions, LastNs: int64(s.Drain.Last),
	}
}

// residentBytes is this process's resident memory; 0 when /proc does not say.
func residentBytes() uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0
	}
	return resident * uint64(os.Getpagesize())
}

// agentCollector is the data plane's and the agent's own state as metrics. Its
// cardinality is fixed but for weft_dataplane_memory_bytes, a handful of names.
type agentCollector struct {
	agent                                        *agent
	drains, drainTime, slots, used, evictions    *prometheus.Desc
	points, memory, off, conversations, failures *prometheus.Desc
}

func newAgentCollector(a *agent) *agentCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("weft_"+name, help, labels, nil)
	}
	return &agentCollector{
		agent:         a,
		drains:        desc("dataplane_drains_total", "Drains of the kernel's flow table."),
		drainTime:     desc("dataplane_last_drain_seconds", "Wall time of the last drain."),
		slots:         desc("dataplane_slots", "Flow slots in the kernel, all CPUs."),
		used:          desc("dataplane_slots_used", "Flow slots that hold a flow."),
		evictions:     desc("dataplane_evictions_total", "Flows that came through the ring buffer because their slot was needed."),
		points:        desc("dataplane_points", "Observation points by state.", "attached"),
		memory:        desc("dataplane_memory_bytes", "Bound on the kernel memory of one structure.", "name"),
		off:           desc("dataplane_capabilities_off", "Capabilities that do not work here; flowctl status names them."),
		conversations: desc("conversations", "Conversations open now."),
		failures:      desc("ledger_unbalanced_total", "Ledgers that did not balance when the agent checked them."),
	}
}

// Describe sends every description.
func (c *agentCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.drains, c.drainTime, c.slots, c.used, c.evictions,
		c.points, c.memory, c.off, c.conversations, c.failures} {
		ch <- d
	}
}

// Collect sends the state of now.
func (c *agentCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(c.conversations, float64(c.agent.conversations.Load()))
	counter(c.failures, c.agent.audit.failed.Load())
	plane := c.agent.plane.Load()
	if plane == nil {
		return
	}
	s := plane.Status()
	attached := 0
	for _, p := range s.Points {
		if p.Attached {
			attached++
		}
	}
	counter(c.drains, s.Drain.Drains)
	gauge(c.drainTime, s.Drain.Last.Seconds())
	gauge(c.slots, float64(s.CPUs*s.Slots))
	gauge(c.used, float64(s.Drain.Used))
	counter(c.evictions, s.Drain.Evictions)
	gauge(c.points, float64(attached), "true")
	gauge(c.points, float64(len(s.Points)-attached), "false")
	gauge(c.off, float64(len(s.Off)))
	for _, u := range s.Memory {
		gauge(c.memory, float64(u.Bytes), u.Name)
	}
}
