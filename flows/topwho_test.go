// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"net/netip"
	"testing"
)

// named is a conversation of 10 packets there and 4 back, with what is known of its ends.
func named(src, dst string, from, to *Entity) Live {
	k := topTCP(src, dst)
	return Live{Record: Record{Key: k, Source: from, Destination: to, Packets: 10, Bytes: 1000, ReversePackets: 4, ReverseBytes: 400}, New: true}
}

func TestConversationThroughAServiceCountsOnceForItsPods(t *testing.T) {
	client := &Entity{Pod: "client-1", Namespace: "shop", Workload: "client", WorkloadKind: "daemonset", Node: "n1"}
	web := &Entity{Pod: "web-1", Namespace: "shop", Workload: "web", WorkloadKind: "deployment", Service: "front", Node: "n1"}
	a := Activity{
		Start: topStart, End: topStart.Add(1e9),
		Live: []Live{
			named("10.0.0.1:4000", "10.96.0.1:8080", client, web), // as opened, and as sent
			named("10.0.0.1:4000", "10.0.0.2:80", client, web),
			named("10.0.0.1:4001", "10.0.0.2:80", client, web), // another
			named("192.0.2.1:4000", "10.0.0.2:80", nil, web),   // from outside
			named("10.0.0.1:4002", "192.0.2.1:443", client, nil),
		},
		Drops: []DropSample{
			{Key: topTCP("10.0.0.1:4000", "10.0.0.2:80"), Reason: "x", Class: DropLoss, Packets: 3},
			{Key: topTCP("10.0.0.2:80", "192.0.2.1:4000"), Reason: "x", Class: DropLoss, Packets: 2},
		},
	}
	for by, want := range map[TopBy][]string{
		ByPod: {
			"shop//client-1 out 30 in 12 flows 3 drops 3",
			"shop//web-1 out 12 in 30 flows 3 drops 2",
		},
		ByWorkload: {
			"shop/daemonset/client out 30 in 12 flows 3 drops 3",
			"shop/deployment/web out 12 in 30 flows 3 drops 2",
		},
		ByService: {"shop//front out 30 in 12 flows 3 drops 5"},
		ByNode:    {"//n1 out 42 in 42 flows 4 drops 5"},
	} {
		x := NewTop(by, nil)
		x.Add(&a)
		r := x.Take("bytes", 10)
		var got []string
		for _, row := range r.Rows {
			got = append(got, fmt.Sprintf("%s/%s/%s out %d in %d flows %d drops %d", row.Namespace, row.Kind, row.Name, row.Packets, row.ReversePackets, row.Flows, row.Drops))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("by %s: got\n%v, want\n%v", by, got, want)
		}
		if r.Total.Packets != 40 || r.Total.Flows != 4 {
			t.Errorf("by %s: total of %d packets in %d flows, want 40 in 4", by, r.Total.Packets, r.Total.Flows)
		}
	}
}

func TestViewsOfATopAreForgottenWithItsRows(t *testing.T) {
	web := &Entity{Pod: "web-1", Namespace: "shop", Service: "front"}
	x := NewTop(ByPod, nil)
	for i, dst := range []string{"10.96.0.1:8080", "10.0.0.2:80"} { // the second view alone, in the next interval
		x.Add(&Activity{Start: topStart, End: topStart, Live: []Live{named("10.0.0.1:4000", dst, nil, web)}})
		if r := x.Take("bytes", 10); len(r.Rows) != 1 || r.Rows[0].ReversePackets != 10 {
			t.Errorf("interval %d: got %+v, want one row that received 10 packets", i, r.Rows)
		}
	}
	for i := range 2 * maxTopRows {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
		x.Add(&Activity{Live: []Live{named(src.String(), "10.96.0.1:8080", nil, web)}})
	}
	if len(x.who.views) > maxTopRows || len(x.who.rows) > maxTopRows {
		t.Errorf("%d views and %d ends are remembered, want at most %d", len(x.who.views), len(x.who.rows), maxTopRows)
	}
}
