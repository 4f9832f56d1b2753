// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"weft/exporter"
	"weft/flows"
)

// sourceTables shows what is accounted beside points and sinks, if anything is.
func (g *global) sourceTables(l *flows.Ledger) error {
	if len(l.Sources) > 0 {
		fmt.Fprintln(g.stdout)
		t := table{head: []string{"SOURCE", "SEEN", "DRAINED", "LOST", "PENDING", "UNACCOUNTED", "MISSED"}, text: []int{0}}
		for _, s := range l.Sources {
			t.add(s.Name, count(s.Seen), count(s.Drained), count(s.Lost), count(s.Pending), signed(s.Unaccounted), count(s.Missed))
		}
		if err := t.write(g.stdout); err != nil {
			return err
		}
	}
	t := table{head: []string{"DEVICE DROPS", "RX", "TX", "RX-MISSED", "RX-FIFO", "TX-FIFO", "QDISC"}, text: []int{0}}
	rows := 0
	for _, d := range l.Devices {
		if d.RxDropped|d.TxDropped|d.RxMissed|d.RxFIFO|d.TxFIFO|d.Qdisc == 0 && g.format != exporter.Wide {
			continue
		}
		t.add(pointName(d.At, d.Hop), count(d.RxDropped), count(d.TxDropped), count(d.RxMissed), count(d.RxFIFO), count(d.TxFIFO), count(d.Qdisc))
		rows++
	}
	if rows > 0 {
		fmt.Fprintln(g.stdout)
		if err := t.write(g.stdout); err != nil {
			return err
		}
	}
	if l.TCP != (flows.TCPAccount{}) {
		fmt.Fprintf(g.stdout, "\nTCP not measured: %d packets without a line, %d times without a server, %d times in no histogram\n",
			l.TCP.Untracked, l.TCP.Overflowed, l.TCP.Lost)
	}
	if l.SocketsUnmatched > 0 {
		fmt.Fprintf(g.stdout, "\nSockets: %d events of flows that no watched device saw\n", l.SocketsUnmatched)
	}
	return nil
}

// sourceDocument is a source of `flowctl ledger -o json`.
type sourceDocument struct {
	Name        string `json:"name"`
	Seen        uint64 `json:"seen"`
	Drained     uint64 `json:"drained"`
	Lost        uint64 `json:"lost"`
	Pending     uint64 `json:"pending"`
	Missed      uint64 `json:"missed"` // not in seen: the program was running on that CPU already
	Unaccounted int64  `json:"unaccounted"`
}

// deviceDocument is what a device says it dropped, in packets.
type deviceDocument struct {
	Interface string `json:"interface"`
	Netns     string `json:"netns,omitempty"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
	RxMissed  uint64 `json:"rx_missed"`
	RxFIFO    uint64 `json:"rx_fifo"`
	TxFIFO    uint64 `json:"tx_fifo"`
	Qdisc     uint64 `json:"qdisc"`
}

// tcpDocument is what measuring TCP left out.
type tcpDocument struct {
	Untracked  uint64 `json:"untracked_packets"`
	Overflowed uint64 `json:"overflowed_times"`
	Lost       uint64 `json:"lost_times"`
}

func sourceDocuments(l *flows.Ledger) (sources []sourceDocument, devices []deviceDocument, tcp *tcpDocument) {
	for _, s := range l.Sources {
		sources = append(sources, sourceDocument(s))
	}
	for _, d := range l.Devices {
		devices = append(devices, deviceDocument{
			d.Hop.Interface, d.Hop.Netns, d.RxDropped, d.TxDropped, d.RxMissed, d.RxFIFO, d.TxFIFO, d.Qdisc,
		})
	}
	if l.TCP != (flows.TCPAccount{}) {
		tcp = &tcpDocument{l.TCP.Untracked, l.TCP.Overflowed, l.TCP.Lost}
	}
	return sources, devices, tcp
}
