// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"weft/flows"
)

// maxDropSeries bounds the series of a [Drops]. What is over it is counted with
// the reason "other" and without a device.
const maxDropSeries = 2048

// Drops counts the packets that the kernel threw away by reason and device, and
// shows what devices and their queues say they dropped. Safe for concurrent use.
type Drops struct {
	// Name finds the device of a point without a hook; ok is false when it is in a
	// namespace that is not watched.
	Name func(at flows.Point) (hop flows.Hop, ok bool)

	mu      sync.Mutex
	series  map[dropSeries]flows.Count // at most maxDropSeries and one for each class
	account flows.DropAccount
	devices []flows.DeviceDrops
}

type dropSeries struct{ reason, class, iface, netns string }

var (
	dropLabels  = []string{"reason", "class", "interface", "netns"}
	dropPackets = prometheus.NewDesc("weft_drops_packets_total",
		"Packets that the kernel threw away, by its own reason; class loss, noise or unspecified.", dropLabels, nil)
	dropBytes = prometheus.NewDesc("weft_drops_bytes_total",
		"L3 bytes of the packets that the kernel threw away.", dropLabels, nil)
	dropTraced = prometheus.NewDesc("weft_drops_traced_packets_total", "Packets whose drop was traced, before any table.", nil, nil)
	dropLost   = prometheus.NewDesc("weft_drops_untold_packets_total", "Traced drops that no series has: the kernel's table had no room.", nil, nil)
	dropMissed = prometheus.NewDesc("weft_drops_missed_events_total", "Drops during which the tracing program was running already.", nil, nil)
	deviceDrop = prometheus.NewDesc("weft_device_dropped_packets_total",
		"Packets that a device or its root queueing discipline says it dropped; many are traced drops too.",
		[]string{"interface", "netns", "kind"}, nil)
)

// Add takes the drops of a drain and its account.
func (d *Drops) Add(samples []flows.DropSample, a flows.Account) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.series == nil {
		d.series = map[dropSeries]flows.Count{}
	}
	d.account = a.Drops
	if a.Devices != nil {
		d.devices = a.Devices
	}
	for i := range samples {
		s := &samples[i]
		at := dropSeries{reason: s.Reason, class: string(s.Class)}
		if hop, ok := d.Name(s.At); ok {
			at.iface, at.netns = hop.Interface, hop.Netns
		}
		if _, known := d.series[at]; !known && len(d.series) >= maxDropSeries {
			at = dropSeries{reason: "other", class: string(s.Class)}
		}
		d.series[at] = d.series[at].Plus(flows.Count{Packets: s.Packets, Bytes: s.Bytes})
	}
}

// Describe sends every description.
func (d *Drops) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{dropPackets, dropBytes, dropTraced, dropLost, dropMissed, deviceDrop} {
		ch <- desc
	}
}

// Collect sends what was added.
func (d *Drops) Collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	send := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	for at, n := range d.series {
		send(dropPackets, n.Packets, at.reason, at.class, at.iface, at.netns)
		send(dropBytes, n.Bytes, at.reason, at.class, at.iface, at.netns)
	}
	send(dropTraced, d.account.Seen)
	send(dropLost, d.account.Lost)
	send(dropMissed, d.account.Missed)
	for _, dev := range d.devices {
		for _, k := range []struct {
			kind string
			n    uint64
		}{
			{"rx_dropped", dev.RxDropped}, {"tx_dropped", dev.TxDropped}, {"rx_missed", dev.RxMissed},
			{"rx_fifo", dev.RxFIFO}, {"tx_fifo", dev.TxFIFO}, {"qdisc", dev.Qdisc},
		} {
			send(deviceDrop, k.n, dev.Hop.Interface, dev.Hop.Netns, k.kind)
		}
	}
}
