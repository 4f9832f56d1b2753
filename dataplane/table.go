// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"net/netip"
	"time"

	"weft/bpf"
	"weft/flows"
)

// table is a flow table in the kernel. One goroutine reads it.
type table interface {
	// drain emits what every flow gained since the last drain.
	drain(e *emitter) (drained, error)
	// drainEvicted emits the flows that had to leave the table.
	drainEvicted(e *emitter) error
	// wait returns at the deadline, or earlier when evicted flows should be drained
	// or ctx ends.
	wait(ctx context.Context, deadline time.Time) error
	close() error
}

type drained struct {
	live, used int
	evictions  uint64
}

func newTable(d *Dataplane) (table, error) {
	if d.objs.backend == BackendHash {
		return newHashTable(d)
	}
	return newSlotTable(d)
}

// keyOf is the 5-tuple in a key.
func keyOf(k *bpf.FlowFlowKey) flows.Key {
	var src, dst netip.Addr
	if k.Kind&uint8(bpf.FlowWeftKindWEFT_KIND_IPV4) != 0 {
		src, dst = netip.AddrFrom4([4]byte(k.Src[12:])), netip.AddrFrom4([4]byte(k.Dst[12:]))
	} else {
		src, dst = netip.AddrFrom16(k.Src), netip.AddrFrom16(k.Dst)
	}
	return flows.Key{
		Src: netip.AddrPortFrom(src, swap16(k.Sport)), Dst: netip.AddrPortFrom(dst, swap16(k.Dport)), Proto: k.Proto,
	}
}

// decode fills the parts of s that the key and the tag hold.
func decode(s *flows.Sample, k *bpf.FlowFlowKey, vlan uint32, points *pointTable) {
	s.Key = keyOf(k)
	points.place(s, k.Point)
	s.VLAN = flows.VLAN{Outer: uint16(vlan & 0xfff), Inner: uint16(vlan >> 12 & 0xfff)}
	s.Fragment = k.Kind&uint8(bpf.FlowWeftKindWEFT_KIND_FRAGMENT) != 0
}

// decodeCold fills what was noted at the flow's first packet.
func decodeCold(s *flows.Sample, c *bpf.FlowFlowCold) {
	s.FirstFlags, s.DSCP, s.TTL = c.Flags, c.Dscp, c.Ttl
	s.SeqNumber, s.AckNumber = c.Seq, c.Ack
	s.SrcMAC, s.DstMAC = c.Smac, c.Dmac
}

// swap16 turns a port from network to host order; the objects are little-endian.
func swap16(v uint16) uint16 { return v<<8 | v>>8 }
