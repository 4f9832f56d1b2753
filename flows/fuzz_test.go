// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// fuzzSample makes a sample of 12 bytes: few values of each field, so that
// conversations meet, and any of them in any combination.
func fuzzSample(b []byte) Sample {
	addr := func(x byte) netip.Addr {
		return [4]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, x & 3}), netip.AddrFrom4([4]byte{224, 0, 0, 1}), netip.AddrFrom16([16]byte{15: x & 3}), {}}[x>>2&3]
	}
	s := Sample{
		Key: Key{
			Src:   netip.AddrPortFrom(addr(b[0]), uint16(b[1])),
			Dst:   netip.AddrPortFrom(addr(b[0]>>4), uint16(b[2])<<8),
			Proto: []uint8{ProtoTCP, ProtoUDP, ProtoICMP, ProtoICMPv6, ProtoSCTP, 47, 0, 255}[b[3]&7],
		},
		At:      Point{Netns: uint64(b[4] >> 7), Ifindex: uint32(b[4] >> 2 & 31), Hook: Hook(b[4] & 3)},
		VLAN:    VLAN{Outer: uint16(b[3] >> 7)},
		Packets: uint64(b[5]), Bytes: uint64(b[6]) << 4,
		First: int64(int8(b[7])) << 32, Last: int64(int8(b[8])) << 32,
		TCPFlags: b[9], FirstFlags: b[10], New: b[11]&1 != 0, Fragment: b[11]&6 == 6,
		DSCP: b[11] >> 3, SeqNumber: uint32(b[11] >> 6), AckNumber: uint32(b[10] >> 6),
	}
	return s
}

// Whatever the samples are, every one is in a record, open, or skipped, and the
// table's books are consistent after each drain.
func FuzzFold(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("abcdefghijklmnopqrstuvwxyz0123456789"))
	f.Add(append(make([]byte, 64), 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9))
	f.Fuzz(func(t *testing.T, data []byte) {
		table := NewTable(TableOptions{MaxConversations: 8, ActiveTimeout: 3 * time.Second, IdleTimeout: 2 * time.Second})
		table.convs.seed = [3]uint64{1, 2, 3} // the same input takes the same way
		var fed, told Count
		at := 0.0
		tell := func(w Window) {
			for _, r := range w.Records {
				if len(r.Hops) == 0 || r.Packets|r.Bytes|r.ReversePackets|r.ReverseBytes == 0 {
					t.Fatalf("empty record %+v", r)
				}
				for _, h := range r.Hops {
					told.Add(Count{h.Packets, h.Bytes})
				}
			}
			var flows, open, recorded, skipped Count
			for _, p := range append(w.Ledger.Points, w.Ledger.Gone) {
				flows.Add(p.Flows)
				open.Add(p.Open)
				recorded.Add(p.Recorded)
				skipped.Add(p.TotalSkipped())
			}
			if flows.Plus(skipped) != fed || recorded != told || recorded.Plus(open) != flows {
				t.Fatalf("fed %v, told %v: got flows %v, skipped %v, recorded %v, open %v", fed, told, flows, skipped, recorded, open)
			}
			audit(t, table)
		}
		var batch []Sample
		data = data[:min(len(data), 12*200)]
		for len(data) >= 12 {
			s := fuzzSample(data)
			fed.Add(Count{s.Packets, s.Bytes})
			batch = append(batch, s)
			next := binary.LittleEndian.Uint16(data[10:])
			data = data[12:]
			if next%3 != 0 {
				continue
			}
			at += float64(next%7) / 2
			seen := Account{Points: []PointAccount{{At: s.At, Gone: next%5 == 0}}}
			w, _ := table.Fold(Batch{At: second(at), Flows: batch, Final: true, Seen: seen})
			tell(w)
			batch = nil
		}
		table.Fold(Batch{At: second(at), Flows: batch})
		tell(table.Close(second(at + 1)))
	})
}
