// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"weft/flows"
)

func dropOf(reason string, ifindex uint32, n uint64) flows.DropSample {
	return flows.DropSample{
		At: flows.Point{Netns: 1, Ifindex: ifindex}, Reason: reason, Class: flows.DropClassOf(reason), Packets: n, Bytes: 100 * n,
	}
}

func TestDropsAreCountedByReasonAndDevice(t *testing.T) {
	d := &Drops{Name: func(at flows.Point) (flows.Hop, bool) { return flows.Hop{Interface: "eth0"}, at.Ifindex == 2 }}
	account := flows.Account{
		Drops:   flows.DropAccount{Seen: 17, Drained: 16, Lost: 1},
		Devices: []flows.DeviceDrops{{Hop: flows.Hop{Interface: "eth0"}, Qdisc: 7}},
	}
	d.Add([]flows.DropSample{dropOf("NO_SOCKET", 2, 3), dropOf("NO_SOCKET", 2, 2), dropOf("TCP_OLD_DATA", 9, 11)}, account)
	want := `
# HELP weft_drops_packets_total Packets that the kernel threw away, by its own reason; class loss, noise or unspecified.
# TYPE weft_drops_packets_total counter
weft_drops_packets_total{class="loss",interface="eth0",netns="",reason="NO_SOCKET"} 5
weft_drops_packets_total{class="noise",interface="",netns="",reason="TCP_OLD_DATA"} 11
# HELP weft_drops_untold_packets_total Traced drops that no series has: the kernel's table had no room.
# TYPE weft_drops_untold_packets_total counter
weft_drops_untold_packets_total 1
`
	if err := testutil.CollectAndCompare(d, strings.NewReader(want), "weft_drops_packets_total", "weft_drops_untold_packets_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(d); err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v", problems, err)
	}
}

func TestDropSeriesAreBoundedAndNoneIsLost(t *testing.T) {
	d := &Drops{Name: func(flows.Point) (flows.Hop, bool) { return flows.Hop{}, false }}
	for i := range 2 * maxDropSeries {
		d.Add([]flows.DropSample{dropOf(fmt.Sprintf("REASON_%d", i), 1, 1)}, flows.Account{})
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(d)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "weft_drops_packets_total" {
			continue
		}
		sum := 0.0
		for _, m := range f.Metric {
			sum += m.GetCounter().GetValue()
		}
		if len(f.Metric) > maxDropSeries+3 || sum != 2*maxDropSeries {
			t.Errorf("got %d series that sum up to %v, want at most %d and %d", len(f.Metric), sum, maxDropSeries+3, 2*maxDropSeries)
		}
	}
}
