// SPDX-License-Identifier: Apache-2.0

package flows

import "net/netip"

// topWho is what a ranking by who an end is remembers until its rows are taken.
type topWho struct {
	views map[topView]netip.AddrPort // where each was seen to go first; at most maxTopRows
	rows  map[topEnd]TopKey          // for drops; at most maxTopRows
}

// topView is a conversation as its opener sees it, with the pod that it ends at: one
// through a Service is seen to go to the Service's address and to the pod's.
type topView struct {
	proto          uint8
	src            netip.AddrPort
	namespace, pod string
}

// topEnd is the packets of one direction.
type topEnd struct {
	scope Scope
	key   Key
}

// named reports whether the rows are of those who are behind addresses.
func (b TopBy) named() bool {
	return b == ByPod || b == ByWorkload || b == ByService || b == ByNode
}

// who is the row of an end; false: it has none.
func (b TopBy) who(e *Entity) (TopKey, bool) {
	var k TopKey
	switch b {
	case ByPod:
		k = TopKey{Namespace: e.Namespace, Name: e.Pod}
	case ByWorkload:
		k = TopKey{Namespace: e.Namespace, Kind: e.WorkloadKind, Name: e.Workload}
	case ByService:
		k = TopKey{Namespace: e.Namespace, Name: e.Service}
	case ByNode:
		k = TopKey{Name: e.Node}
	}
	return k, k.Name != ""
}

// again reports whether l is the second view of a conversation whose first one is
// counted.
func (x *Top) again(l *Live) bool {
	to := l.who(false)
	if to.Pod == "" || to.Service == "" {
		return false
	}
	v := topView{l.Key.Proto, l.Key.Src, to.Namespace, to.Pod}
	first, known := x.who.views[v]
	if !known && len(x.who.views) < maxTopRows {
		x.who.views[v] = l.Key.Dst
	}
	return known && first != l.Key.Dst
}

// named adds t to the rows of both ends, to that of the Service alone in a ranking of those.
func (x *Top) named(l *Live, t Traffic) {
	src, from := x.by.who(l.who(true))
	dst, to := x.by.who(l.who(false))
	if x.by == ByService {
		src, from = dst, to
	}
	if from {
		x.end(topEnd{l.Scope, l.Key}, src)
	}
	if to {
		x.end(topEnd{l.Scope, l.Key.Reverse()}, dst)
	}
	if x.again(l) {
		return
	}
	x.now.Total.add(t)
	if x.by == ByService { // which opens nothing
		if to {
			x.row(dst, t)
		}
		return
	}
	if to {
		x.row(dst, t.reverse())
	}
	if !from {
		return
	}
	if to && src == dst {
		t.Flows = 0 // it is counted
	}
	if l.TCP != nil {
		t.RTT = l.TCP.Source.RTT // to this row's end
	}
	x.row(src, t)
}

// end notes whose row a drop of such packets belongs to.
func (x *Top) end(e topEnd, k TopKey) {
	if len(x.who.rows) < maxTopRows {
		x.who.rows[e] = k
	}
}
