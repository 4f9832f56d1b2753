// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"weft/flows"
)

// reserve makes room for so many rows in the columns that nearly every record has a
// value of.
func (s *columnSet) reserve(rows int) {
	for _, c := range s.common {
		c.reserve(rows)
	}
}

// append sets a row to r. It says of the record's own fields what appendMeasured does;
// a test compares the two.
func (s *columnSet) append(b *Columns, row int, r *flows.Record, o ordered) {
	setMoment(s.end, row, r.End)
	s.schema.fill(row, SchemaVersion)
	s.appendKey(b, row, r, o)
	if h := chosenHop(r); h != nil {
		if h.Hop.Interface != "" {
			s.iface.text(row, h.Hop.Interface)
		}
		s.direction.value(row, uint8(h.At.Hook))
		s.hook.value(row, uint8(h.At.Hook))
		if h.Layer != flows.LayerUnknown {
			s.layer.value(row, uint8(h.Layer))
		}
		if h.Hop.Netns != "" {
			s.netns.text(row, h.Hop.Netns)
		}
	}
	if r.EndReason != 0 {
		s.endReason.value(row, uint8(r.EndReason))
	}
	if r.Initiator != 0 {
		s.basis.value(row, uint8(r.Initiator))
	}
	setPositive(s.connection, row, r.ConnectionID)
	setPositive(s.scope, row, uint64(signed(r.Scope.Netns))) //nolint:gosec // positive
	setPositive(s.vlan, row, r.Scope.VLAN.Outer)
	setPositive(s.innerVLAN, row, r.Scope.VLAN.Inner)
	s.flags.value(row, r.TCPFlags)
	s.reverseFlags.value(row, r.ReverseTCPFlags)
	if r.Packets > 0 {
		s.dscp.fill(row, r.DSCP)
	}
	if r.TCP != nil || r.Dropped > 0 || r.DNS != nil {
		b.attrs = appendHealth(b.attrs[:0], r)
		s.put(row, b.attrs)
	}
	s.source.set(row, r.Source, r.SourceProcess != nil)
	s.destination.set(row, r.Destination, r.DestinationProcess != nil)
	if r.SourceProcess != nil || r.DestinationProcess != nil || r.SourceSocket != nil || r.DestinationSocket != nil {
		b.words.reset()
		b.attrs = appendSockets(b.attrs[:0], &b.words, r)
		s.put(row, b.attrs)
	}
	s.totals[0].fill(row, signed(r.Packets))
	s.totals[1].fill(row, signed(r.Bytes))
	s.totals[2].fill(row, signed(r.ReversePackets))
	s.totals[3].fill(row, signed(r.ReverseBytes))
	setMoment(s.start, row, r.Start)
	if r.SamplingRate != 0 {
		s.rate.set(row, r.SamplingRate)
	}
	s.appendLists(b, row, r)
}

// appendKey sets what the conversation's key says.
func (s *columnSet) appendKey(b *Columns, row int, r *flows.Record, o ordered) {
	src := r.Key.Src.Addr()
	if id := o.src(); id >= 0 {
		s.src.fill(row, id)
	}
	if id := o.dst(); id >= 0 {
		s.dst.fill(row, id)
	}
	if hasPorts(r) {
		s.srcPort.fill(row, r.Key.Src.Port())
		s.dstPort.fill(row, r.Key.Dst.Port())
	}
	if r.NAT != nil {
		b.words.reset()
		b.attrs = appendNAT(b.attrs[:0], &b.words, r.NAT)
		s.put(row, b.attrs)
	}
	s.transport.value(row, r.Key.Proto)
	switch {
	case src.Is4():
		s.network.value(row, 4)
	case src.Is6():
		s.network.value(row, 6)
	}
	switch {
	case r.Fragment:
		s.fragment.set(row, true)
	case b.c.Derived && !r.Redacted:
		b.words.reset()
		if id := b.words.community(r.Key); id != "" {
			s.community.set(row, id)
		}
	}
	if r.Key.ICMP() && !r.Fragment {
		s.icmpType.set(row, r.Key.Src.Port())
		s.icmpCode.set(row, r.Key.Dst.Port())
	}
}

func setPositive[T uint16 | uint64](c *fixed[T], row int, v T) {
	if v != 0 {
		c.set(row, v)
	}
}

func setMoment(c *moments, row int, t time.Time) {
	if !t.IsZero() {
		c.fill(row, arrow.Timestamp(t.UnixNano()))
	}
}

func (s *columnSet) appendLists(b *Columns, row int, r *flows.Record) {
	if len(r.Hops) > 0 {
		at := s.hops.begin(row)
		s.hopDirection.reserve(at + len(r.Hops))
		s.hopHook.reserve(at + len(r.Hops))
		for i := range r.Hops {
			s.appendHop(at+i, &r.Hops[i])
			if h := &r.Hops[i]; b.c.Derived || !isTotal(r, h) {
				s.hopPackets.set(at+i, signed(h.Packets))
				s.hopBytes.set(at+i, signed(h.Bytes))
			}
		}
		s.hops.end(row, len(r.Hops))
	}
	if r.DNS == nil {
		return
	}
	for _, l := range [...]list{listRcodes, listQuestions} {
		c, n := s.lists[l], l.len(r)
		if n == 0 {
			continue
		}
		at := c.begin(row)
		for i := range n {
			b.attrs = l.appendRow(b.attrs[:0], r, i)
			for _, a := range b.attrs {
				c.byName[a.Key].put(at+i, a.Value)
			}
		}
		c.end(row, n)
	}
}

func (s *columnSet) appendHop(row int, h *flows.HopCount) {
	if h.Hop.Interface != "" {
		s.hopInterface.text(row, h.Hop.Interface)
	}
	s.hopDirection.value(row, uint8(h.At.Hook))
	s.hopHook.value(row, uint8(h.At.Hook))
	if h.Hop.Netns != "" {
		s.hopNetns.text(row, h.Hop.Netns)
	}
	if h.Layer != flows.LayerUnknown {
		s.hopLayer.reserve(row + 1)
		s.hopLayer.value(row, uint8(h.Layer))
	}
	if h.NAT != flows.NATNone {
		s.hopNAT.reserve(row + 1)
		s.hopNAT.value(row, uint8(h.NAT))
	}
	s.hopReverse.set(row, h.Reverse)
	s.hopChosen.set(row, h.Chosen)
}

// isTotal reports whether h's figures are r's in h's direction, as a chosen hop's are.
func isTotal(r *flows.Record, h *flows.HopCount) bool {
	if h.Reverse {
		return h.Chosen && h.Packets == r.ReversePackets && h.Bytes == r.ReverseBytes
	}
	return h.Chosen && h.Packets == r.Packets && h.Bytes == r.Bytes
}
