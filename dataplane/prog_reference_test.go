// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"net/netip"

	"weft/flows"
)

// reference is a second parser, written from the RFCs with slices instead of
// bounds checks, that the kernel's is compared with.
type reference struct{ fragments map[refFragment]refPorts }

type refFragment struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

type refPorts struct {
	sport, dport uint16
	proto        uint8
}

func newReference() *reference { return &reference{fragments: map[refFragment]refPorts{}} }

func (ref *reference) parse(f []byte) place {
	proto, rest := binary.BigEndian.Uint16(f[12:]), f[14:]
	var tags []uint16
	for proto == 0x8100 || proto == 0x88a8 {
		if len(tags) == 2 {
			return skip(flows.SkipVLANDepth)
		}
		if len(rest) < 4 {
			return skip(flows.SkipTruncated)
		}
		tags = append(tags, binary.BigEndian.Uint16(rest)&0xfff)
		proto, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	var p place
	switch {
	case proto == 0x0800:
		p = ref.ipv4(rest)
	case proto == 0x86dd:
		p = ref.ipv6(rest)
	case proto < 1536:
		return skip(flows.SkipLLC)
	default:
		reasons := map[uint16]flows.SkipReason{
			0x0806: flows.SkipARP, 0x8035: flows.SkipARP, 0x88cc: flows.SkipLLDP, 0x8809: flows.SkipLLDP,
			0x8847: flows.SkipMPLS, 0x8848: flows.SkipMPLS, 0x8863: flows.SkipPPPoE, 0x8864: flows.SkipPPPoE,
		}
		if r, ok := reasons[proto]; ok {
			return skip(r)
		}
		return skip(flows.SkipEthertype)
	}
	if !p.skipped && len(tags) > 0 {
		p.vlan.Outer = tags[0]
		if len(tags) > 1 {
			p.vlan.Inner = tags[1]
		}
	}
	return p
}

func (ref *reference) ipv4(b []byte) place {
	if len(b) < 20 {
		return skip(flows.SkipTruncated)
	}
	hlen, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || hlen < 20 || (total != 0 && total < hlen) {
		return skip(flows.SkipMalformed)
	}
	frag := binary.BigEndian.Uint16(b[6:])
	id := refFragment{netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), uint32(binary.BigEndian.Uint16(b[4:])), b[9]}
	if frag&0x1fff != 0 {
		return ref.join(id)
	}
	if total != 0 && total < len(b) {
		b = b[:total]
	}
	p := transport(id.src, id.dst, b[9], after(b, hlen))
	if frag&0x2000 != 0 && !p.skipped {
		ref.fragments[id] = refPorts{p.key.Src.Port(), p.key.Dst.Port(), p.key.Proto}
	}
	return p
}

func after(b []byte, n int) []byte {
	if n > len(b) {
		return nil
	}
	return b[n:]
}

func (ref *reference) join(id refFragment) place {
	if ports, ok := ref.fragments[id]; ok {
		return inFlow(flows.Key{Src: netip.AddrPortFrom(id.src, ports.sport), Dst: netip.AddrPortFrom(id.dst, ports.dport), Proto: ports.proto})
	}
	return place{key: flows.Key{Src: netip.AddrPortFrom(id.src, 0), Dst: netip.AddrPortFrom(id.dst, 0), Proto: id.proto}, fragment: true}
}

func (ref *reference) ipv6(b []byte) place {
	if len(b) < 40 {
		return skip(flows.SkipTruncated)
	}
	if b[0]>>4 != 6 {
		return skip(flows.SkipMalformed)
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	next, n := b[6], int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:]
	if n != 0 && n < len(b) {
		b = b[:n]
	}
	var first *refFragment
	for i := 0; ; i++ {
		switch next {
		case 0, 43, 44, 51, 60, 135, 139, 140:
		default:
			p := transport(src, dst, next, b)
			if first != nil && !p.skipped {
				ref.fragments[*first] = refPorts{p.key.Src.Port(), p.key.Dst.Port(), p.key.Proto}
			}
			return p
		}
		if i == 8 {
			return skip(flows.SkipIPv6Extensions)
		}
		if len(b) < 8 {
			return skip(flows.SkipTruncated)
		}
		hlen := (int(b[1]) + 1) * 8
		switch next {
		case 51:
			hlen = (int(b[1]) + 2) * 4
		case 44:
			hlen = 8
			frag := binary.BigEndian.Uint16(b[2:])
			id := refFragment{src, dst, binary.BigEndian.Uint32(b[4:]), b[0]}
			if frag&0xfff8 != 0 {
				return ref.join(id)
			}
			if frag&1 != 0 {
				first = &id
			}
		}
		if hlen > len(b) {
			return skip(flows.SkipTruncated)
		}
		next, b = b[0], b[hlen:]
	}
}

func transport(src, dst netip.Addr, proto uint8, b []byte) place {
	k := flows.Key{Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0), Proto: proto}
	var need int
	icmp := false
	switch proto {
	case 6:
		need = 20
	case 17, 33, 136:
		need = 8
	case 132:
		need = 12
	case 1, 58:
		need, icmp = 4, true
	default:
		return inFlow(k)
	}
	if len(b) < need {
		return skip(flows.SkipTruncated)
	}
	if proto == 6 && b[12]>>4 < 5 {
		return skip(flows.SkipMalformed)
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if icmp {
		sport, dport = uint16(b[0]), uint16(b[1])
	}
	k.Src, k.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return inFlow(k)
}
