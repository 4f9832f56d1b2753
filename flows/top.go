// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxTopRows bounds the rows a [Top] adds up. What would be a further row is in
// the total and in Ranking.Over.
const maxTopRows = 1 << 16

// TopBy is what a ranking has a row for.
type TopBy string

// The rankings.
const (
	ByFlow      TopBy = "flow"        // conversation; its figures by direction
	ByEndpoint  TopBy = "endpoint"    // address: what it sent and received
	ByServer    TopBy = "server"      // address and port that conversations are opened to
	ByPort      TopBy = "port"        // destination port
	ByPod       TopBy = "pod"         // what it sent and received; ends that are in none have no row
	ByWorkload  TopBy = "workload"    // the same
	ByService   TopBy = "service"     // what was sent to it and came back
	ByNode      TopBy = "node"        // what its ends sent and received
	ByInterface TopBy = "interface"   // device: what it received and transmitted, flows or not
	ByReason    TopBy = "drop-reason" // what the kernel drops packets for
)

// TopBys are all rankings, in the order of help.
var TopBys = []TopBy{ByFlow, ByEndpoint, ByServer, ByPort, ByPod, ByWorkload, ByService, ByNode, ByInterface, ByReason}

// TopOrder is the figure that a ranking is by.
type TopOrder string

// TopOrders are all orders, in the order of help: each of [Traffic]'s figures,
// both directions together, the largest first.
var TopOrders = []TopOrder{"bytes", "packets", "flows", "drops", "retransmits", "rtt"}

// ParseTop checks the names of a ranking and its order; empty is flow by bytes,
// and drop-reason by drops. The error says what there is.
func ParseTop(by, order string) (TopBy, TopOrder, error) {
	b := TopBy(cmp.Or(by, string(ByFlow)))
	if !slices.Contains(TopBys, b) {
		return "", "", fmt.Errorf("by %q: want %s", by, list(TopBys))
	}
	o := TopOrder(order)
	if o == "" {
		if o = "bytes"; b == ByReason {
			o = "drops"
		}
	}
	if !slices.Contains(TopOrders, o) {
		return "", "", fmt.Errorf("order %q: want %s", order, list(TopOrders))
	}
	return b, o, nil
}

func list[T ~string](all []T) string {
	s := make([]string, len(all))
	for i := range all {
		s[i] = string(all[i])
	}
	return strings.Join(s[:len(s)-1], ", ") + " or " + s[len(s)-1]
}

// TopKey says what a row is of. The ranking sets those fields that tell its rows
// apart.
type TopKey struct {
	Scope  Scope
	Key    Key // ByEndpoint: the source address; ByServer, ByPort: the destination
	Device Hop
	Reason string
	Class  DropClass

	Namespace, Kind, Name string // of a pod, workload, Service or node, as far as each has them
}

// Traffic is the figures of a row over [Ranking.Start] to End.
type Traffic struct {
	Packets, Bytes               uint64 // forth: from the source; sent; received by the device; dropped
	ReversePackets, ReverseBytes uint64 // back: from the destination; received; transmitted
	Flows                        uint64 // conversations that were seen first; of drops none
	Drops                        uint64 // packets that the kernel threw away, losses and unspecified
	Retransmits                  uint64 // TCP segments sent again, both directions
	RTT                          RTT    // between the point that counts and the destination, or the endpoint
}

func (t *Traffic) add(s Traffic) {
	t.Packets += s.Packets
	t.Bytes += s.Bytes
	t.ReversePackets += s.ReversePackets
	t.ReverseBytes += s.ReverseBytes
	t.Flows += s.Flows
	t.Drops += s.Drops
	t.Retransmits += s.Retransmits
	t.RTT.add(s.RTT)
}

// reverse is t told from the other side.
func (t Traffic) reverse() Traffic {
	t.Packets, t.ReversePackets = t.ReversePackets, t.Packets
	t.Bytes, t.ReverseBytes = t.ReverseBytes, t.Bytes
	return t
}

// figure is what o ranks by.
func (t *Traffic) figure(o TopOrder) uint64 {
	switch o {
	case "packets":
		return t.Packets + t.ReversePackets
	case "flows":
		return t.Flows
	case "drops":
		return t.Drops
	case "retransmits":
		return t.Retransmits
	case "rtt":
		return uint64(t.RTT.Mean())
	}
	return t.Bytes + t.ReverseBytes
}

// TopRow is one row of a ranking.
type TopRow struct {
	TopKey
	Traffic
}

// Ranking is the largest rows of a time.
type Ranking struct {
	Start, End time.Time
	Rows       []TopRow
	Of         int     // rows there were
	Total      Traffic // of all rows; by endpoint each conversation is in it once
	Over       uint64  // conversations, or rows, that had no room
}

// Top adds activities up and ranks them. Not safe for concurrent use.
type Top struct {
	by    TopBy
	match *Filter
	now   Ranking
	rows  map[TopKey]*Traffic // at most maxTopRows
	who   topWho
}

// NewTop ranks by what by says the conversations that match lets pass; nil: all.
// Devices are filtered by nothing.
func NewTop(by TopBy, match *Filter) *Top {
	return &Top{by: by, match: match, rows: map[TopKey]*Traffic{}, who: topWho{map[topView]netip.AddrPort{}, map[topEnd]TopKey{}}}
}

// Add adds a.
func (x *Top) Add(a *Activity) {
	if x.now.Start.IsZero() {
		x.now.Start = a.Start
	}
	x.now.End = a.End
	x.now.Over += a.Over
	switch x.by {
	case ByInterface:
		x.points(a.Points)
		x.dropped(a.Drops, func(d *DropSample) (TopKey, bool) { return x.device(a.Points, d.At) })
	case ByReason:
		x.dropped(a.Drops, func(d *DropSample) (TopKey, bool) { return TopKey{Reason: d.Reason, Class: d.Class}, true })
	default:
		for i := range a.Live {
			x.live(&a.Live[i])
		}
		x.dropped(a.Drops, x.dropKey)
	}
}

func (x *Top) live(l *Live) {
	if !x.match.Match(&l.Record) {
		return
	}
	t := Traffic{Packets: l.Packets, Bytes: l.Bytes, ReversePackets: l.ReversePackets, ReverseBytes: l.ReverseBytes}
	if l.New {
		t.Flows = 1
	}
	if l.TCP != nil {
		t.Retransmits = l.TCP.Source.Retransmits + l.TCP.Destination.Retransmits
		t.RTT = l.TCP.Destination.RTT
	}
	if x.by.named() {
		x.named(l, t)
		return
	}
	x.now.Total.add(t)
	if x.by == ByEndpoint {
		x.row(x.key(l.Scope, l.Key.Reverse()), t.reverse())
		if l.TCP != nil {
			t.RTT = l.TCP.Source.RTT // to this row's end
		}
	}
	x.row(x.key(l.Scope, l.Key), t)
}

// key is the row of a conversation.
func (x *Top) key(scope Scope, k Key) TopKey {
	switch x.by {
	case ByEndpoint:
		return TopKey{Scope: scope, Key: Key{Src: netip.AddrPortFrom(k.Src.Addr(), 0)}}
	case ByServer:
		return TopKey{Scope: scope, Key: Key{Dst: k.Dst, Proto: k.Proto}}
	case ByPort:
		return TopKey{Key: Key{Dst: netip.AddrPortFrom(netip.Addr{}, k.Dst.Port()), Proto: k.Proto}}
	}
	return TopKey{Scope: scope, Key: k}
}

// dropKey is the row that a drop belongs to, if there is one: whose conversation
// passes the filter was seen by then.
func (x *Top) dropKey(d *DropSample) (TopKey, bool) {
	for _, k := range []Key{d.Key, d.Key.Reverse()} {
		for _, scope := range []Scope{{Netns: d.Domain}, {Netns: d.At.Netns}} {
			if x.by.named() {
				if key, ok := x.who.rows[topEnd{scope, k}]; ok {
					return key, true
				}
				continue
			}
			key := x.key(scope, k)
			if _, ok := x.rows[key]; ok {
				return key, true
			}
		}
	}
	return TopKey{}, false
}

func (x *Top) points(gained []PointAccount) {
	for i := range gained {
		p := &gained[i]
		t := Traffic{Packets: p.Before.Packets, Bytes: p.Before.Bytes}
		if p.At.Hook == HookXDP && slices.ContainsFunc(gained, func(q PointAccount) bool {
			return q.At == Point{p.At.Netns, p.At.Ifindex, HookIngress}
		}) {
			continue // the same packets come by again
		}
		if p.At.Hook == HookEgress {
			t = t.reverse()
		}
		x.now.Total.add(t)
		x.row(TopKey{Device: p.Hop}, t)
	}
}

// device is the row of the device at at, if it is watched.
func (x *Top) device(points []PointAccount, at Point) (TopKey, bool) {
	for i := range points {
		if p := &points[i]; p.At.Netns == at.Netns && p.At.Ifindex == at.Ifindex {
			return TopKey{Device: p.Hop}, true
		}
	}
	return TopKey{}, false
}

// dropped adds drops to the rows that key finds. Noise is nobody's loss: it shows
// in the ranking by reason alone.
func (x *Top) dropped(drops []DropSample, key func(*DropSample) (TopKey, bool)) {
	for i := range drops {
		d := &drops[i]
		if d.Class == DropNoise && x.by != ByReason {
			continue
		}
		if k, ok := key(d); ok {
			t := Traffic{Drops: d.Packets}
			if x.by == ByReason {
				t.Packets, t.Bytes = d.Packets, d.Bytes
			}
			x.now.Total.add(t)
			x.row(k, t)
		}
	}
}

func (x *Top) row(k TopKey, t Traffic) {
	r := x.rows[k]
	if r == nil {
		if len(x.rows) >= maxTopRows {
			x.now.Over++
			return
		}
		r = &Traffic{}
		x.rows[k] = r
	}
	r.add(t)
}

// Take is the ranking of what was added since the last Take: at most most rows,
// those without anything of order left out.
func (x *Top) Take(order TopOrder, most int) Ranking {
	r := x.now
	for k, t := range x.rows {
		if t.figure(order) > 0 {
			r.Rows = append(r.Rows, TopRow{k, *t})
		}
	}
	r.Of = len(r.Rows)
	slices.SortFunc(r.Rows, func(a, b TopRow) int {
		return cmp.Or(cmp.Compare(b.figure(order), a.figure(order)), a.compare(b.TopKey))
	})
	r.Rows = slices.Clone(r.Rows[:min(most, len(r.Rows))])
	x.now = Ranking{Start: r.End}
	clear(x.rows)
	clear(x.who.views)
	clear(x.who.rows)
	return r
}

// compare orders rows that are equal in figures, so that they do not change places.
func (k TopKey) compare(o TopKey) int {
	return cmp.Or(k.Key.Src.Compare(o.Key.Src), k.Key.Dst.Compare(o.Key.Dst), cmp.Compare(k.Key.Proto, o.Key.Proto),
		cmp.Compare(k.Device.Interface, o.Device.Interface), cmp.Compare(k.Device.Netns, o.Device.Netns),
		cmp.Compare(k.Reason, o.Reason), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name), cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Scope.Netns, o.Scope.Netns),
		cmp.Compare(k.Scope.VLAN.Outer, o.Scope.VLAN.Outer), cmp.Compare(k.Scope.VLAN.Inner, o.Scope.VLAN.Inner))
}
