// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"sync/atomic"
	"time"

	"weft/bpf"
	"weft/flows"
)

// tcpKnown is what was read of a slot's TCP line: the counts that grow.
type tcpKnown struct {
	rttSum                          uint64
	rttCount                        uint32
	retransmits, outOfOrder, lost   uint32
	dupAcks, zeroWindows, zeroMilli uint32
	untracked, handshake            uint32
	options                         uint8
}

// gain is what l has more than k, which it brings up to date.
func (k *tcpKnown) gain(l *bpf.FlowTcpLine) flows.TCPHealth {
	h := flows.TCPHealth{
		Handshake:   in32ns(l.Handshake),
		Retransmits: uint64(l.Retransmits - k.retransmits), OutOfOrder: uint64(l.OutOfOrder - k.outOfOrder),
		Lost: uint64(l.Lost - k.lost), DupAcks: uint64(l.DupAcks - k.dupAcks),
		ZeroWindows: uint64(l.ZeroWindows - k.zeroWindows), ZeroWindow: time.Duration(l.ZeroMs-k.zeroMilli) * time.Millisecond,
		Untracked: uint64(l.Untracked - k.untracked),
		MSS:       l.Mss, Options: flows.TCPOptions(l.Options), WindowScale: l.Wscale,
	}
	if n := l.RttCount - k.rttCount; n > 0 {
		h.RTT = flows.RTT{Count: uint64(n), Sum: time.Duration(l.RttSum - k.rttSum), Min: in32ns(l.RttLeast), Max: in32ns(l.RttMost)}
		h.RTT.Max = max(h.RTT.Max, h.RTT.Mean()) // which is not rounded
	}
	*k = tcpKnown{l.RttSum, l.RttCount, l.Retransmits, l.OutOfOrder, l.Lost, l.DupAcks, l.ZeroWindows, l.ZeroMs, l.Untracked, l.Handshake, l.Options}
	return h
}

// in32ns is a time of 32 bits in units of 32 ns.
func in32ns(v uint32) time.Duration { return time.Duration(v) * 32 }

// line is a copy of the TCP line of slot i, whose flow has this key; nil: it has none.
// When its writer is in the middle of a round trip, three times, the next drain has that.
func (t *slotTable) line(i int, key *bpf.FlowFlowKey) *bpf.FlowTcpLine {
	if t.lines == nil || key.Proto != flows.ProtoTCP {
		return nil
	}
	l := t.tcp.at(i)
	for range 3 {
		count := atomic.LoadUint32(&l.RttCount)
		t.freshLine = *l
		if atomic.LoadUint32(&l.RttBegun) == count {
			return &t.freshLine
		}
	}
	k := &t.lines[i]
	t.freshLine.RttCount, t.freshLine.RttSum = k.rttCount, k.rttSum
	return &t.freshLine
}

// leave keeps what was known of the flow that was in slot i until its eviction is read.
func (t *slotTable) leave(i int, k *known) {
	at := leftKey{uint32(i), k.gen}
	t.left[at] = *k
	if t.lines != nil {
		t.leftL[at] = t.lines[i]
		t.lines[i] = tcpKnown{}
	}
}

// tcpAccount sums what the CPUs could not measure.
func (o *objects) tcpAccount() (sum flows.TCPAccount, err error) {
	if !o.size.tcp {
		return sum, nil
	}
	var cpus []bpf.FlowTcpSeen
	if err := o.maps[bpf.HealthMapTcpAccount].Lookup(uint32(0), &cpus); err != nil {
		return sum, fmt.Errorf("read the account of TCP: %w", err)
	}
	for _, c := range cpus {
		sum.Untracked += c.Untracked
		sum.Overflowed += c.Overflow
		sum.Lost += c.Lost
	}
	return sum, nil
}
