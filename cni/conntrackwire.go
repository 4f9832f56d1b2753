// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// message asks for d.
func (d dump) message() []byte {
	m := make([]byte, unix.SizeofNlMsghdr+4, 64)
	native.PutUint16(m[4:6], unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet)
	native.PutUint16(m[6:8], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	m[unix.SizeofNlMsghdr] = d.family
	for _, a := range []struct {
		kind  uint16
		value uint32
	}{{ctaStatus, d.status}, {ctaStatusMask, d.mask}} {
		m = native.AppendUint16(native.AppendUint16(m, 8), a.kind)
		m = binary.BigEndian.AppendUint32(m, a.value)
	}
	native.PutUint32(m[0:4], uint32(len(m)))
	return m
}

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctGet         = 1 // IPCTNL_MSG_CT_GET
	ctDelete      = 2 // IPCTNL_MSG_CT_DELETE
	ctaOrig       = 1
	ctaReply      = 2
	ctaStatus     = 3
	ctaZone       = 18
	ctaStatusMask = 26
	ctaIP         = 1
	ctaProto      = 2
	ctaTupleZone  = 3
	ctaProtoNum   = 1
	ctaSrcPort    = 2
	ctaDstPort    = 3
	statusSrcNAT  = 1 << 4
	statusDstNAT  = 1 << 5
	attrType      = 0x3fff // NLA_TYPE_MASK
)

// parseTracked reads one tracked connection and its zone; false: its addresses are not
// translated, or the protocol has no ports to tell connections apart by.
func parseTracked(m []byte) (t flows.Translation, zone uint16, ok bool) {
	if len(m) < 4 {
		return t, 0, false
	}
	var reply flows.Key
	eachAttr(m[4:], func(kind uint16, value []byte) {
		switch {
		case kind == ctaOrig:
			t.Opened = parseTuple(value, &zone)
		case kind == ctaReply:
			reply = parseTuple(value, &zone)
		case kind == ctaZone && len(value) == 2:
			zone = binary.BigEndian.Uint16(value)
		}
	})
	t.Sent = reply.Reverse()
	switch t.Opened.Proto {
	case flows.ProtoTCP, flows.ProtoUDP, flows.ProtoSCTP:
	default:
		return t, zone, false
	}
	return t, zone, t.Opened.Dst.IsValid() && t.Sent.Dst.IsValid() && t.Opened.Proto == t.Sent.Proto && t.Opened != t.Sent
}

// parseTuple reads the addresses of one direction; zone is set where it has one of its own.
func parseTuple(m []byte, zone *uint16) (k flows.Key) {
	var ends [2]netip.Addr
	var ports [2]uint16
	eachAttr(m, func(kind uint16, value []byte) {
		if kind == ctaTupleZone && len(value) == 2 {
			*zone = binary.BigEndian.Uint16(value)
		}
		eachAttr(value, func(of uint16, v []byte) {
			switch {
			case kind == ctaIP && of >= 1 && of <= 4: // of IPv4 the source and destination, of IPv6 the same
				if a, good := netip.AddrFromSlice(v); good {
					ends[(of-1)&1] = a.Unmap()
				}
			case kind == ctaProto && of == ctaProtoNum && len(v) == 1:
				k.Proto = v[0]
			case kind == ctaProto && (of == ctaSrcPort || of == ctaDstPort) && len(v) == 2:
				ports[of-ctaSrcPort] = binary.BigEndian.Uint16(v)
			}
		})
	})
	if ends[0].IsValid() && ends[1].IsValid() {
		k.Src, k.Dst = netip.AddrPortFrom(ends[0], ports[0]), netip.AddrPortFrom(ends[1], ports[1])
	}
	return k
}

// eachAttr calls f with each netlink attribute of m.
func eachAttr(m []byte, f func(kind uint16, value []byte)) {
	for len(m) >= unix.SizeofNlAttr {
		n := int(native.Uint16(m[0:2]))
		if n < unix.SizeofNlAttr || n > len(m) {
			return
		}
		f(native.Uint16(m[2:4])&attrType, m[unix.SizeofNlAttr:n])
		m = m[min(len(m), (n+3)&^3):]
	}
}
