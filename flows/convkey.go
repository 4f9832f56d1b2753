// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"encoding/binary"
	"net/netip"
)

// convKey is the canonical key of a conversation with its scope: what
// [Canonical] yields, in words.
type convKey struct {
	netns        uint64
	a, b         address // the endpoints: a is the lower one
	aPort, bPort uint16
	outer, inner uint16
	proto        uint8
	v4           bool
	fragment     bool // ports are not known, which is not the same as port 0
	oneWay       bool // an ICMP type without counterpart: a sends, b never does
}

// address is a 16-byte address, big-endian; IPv4 in its mapped form.
type address struct{ hi, lo uint64 }

func packAddress(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// side is an end of a conversation and the direction of what it sends: 0 for
// the lower endpoint, 1 for the other.
type side uint8

// pack sets k to the key of s's conversation and returns the side that sent s.
// It is [Canonical] but for fragments, which have no ICMP type.
func (k *convKey) pack(s *Sample) side {
	*k = convKey{
		netns: cmp.Or(s.Domain, s.At.Netns), outer: s.VLAN.Outer, inner: s.VLAN.Inner,
		a: packAddress(s.Key.Src.Addr()), aPort: s.Key.Src.Port(),
		b: packAddress(s.Key.Dst.Addr()), bPort: s.Key.Dst.Port(),
		proto: s.Key.Proto, v4: s.Key.Src.Addr().Is4(), fragment: s.Fragment,
	}
	if k.icmp() {
		peer, _, paired := icmpPeer(k.proto, k.aPort)
		if !paired {
			k.oneWay = true
			return 0
		}
		k.bPort = peer
	}
	if cmp.Or(cmp.Compare(k.a.hi, k.b.hi), cmp.Compare(k.a.lo, k.b.lo), cmp.Compare(k.aPort, k.bPort)) <= 0 {
		return 0
	}
	k.a, k.b, k.aPort, k.bPort = k.b, k.a, k.bPort, k.aPort
	return 1
}

// equal is k == o, in words.
func (k *convKey) equal(o *convKey) bool {
	return k.a.lo == o.a.lo && k.b.lo == o.b.lo && k.rest() == o.rest() && k.netns == o.netns &&
		k.a.hi == o.a.hi && k.b.hi == o.b.hi && k.proto == o.proto &&
		k.v4 == o.v4 && k.fragment == o.fragment && k.oneWay == o.oneWay
}

// rest is ports and tags in one word.
func (k *convKey) rest() uint64 {
	return uint64(k.aPort) | uint64(k.bPort)<<16 | uint64(k.outer)<<32 | uint64(k.inner)<<48
}

// scope is what keeps equal 5-tuples apart.
func (k *convKey) scope() Scope {
	return Scope{Netns: k.netns, VLAN: VLAN{k.outer, k.inner}}
}

// addr is the address of one side.
func (k *convKey) addr(s side) netip.Addr {
	a := k.a
	if s == 1 {
		a = k.b
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	if k.v4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// icmp reports whether the ports are ICMP types.
func (k *convKey) icmp() bool {
	return !k.fragment && (k.proto == ProtoICMP || k.proto == ProtoICMPv6)
}

// from is the key of what source sends, as a [Record] has it.
func (k *convKey) from(source side) Key {
	src, dst := k.aPort, k.bPort
	if source == 1 {
		src, dst = dst, src
	}
	if k.icmp() && !k.oneWay {
		dst = 0 // the code: dst is the counterpart's type
	}
	return Key{
		Src:   netip.AddrPortFrom(k.addr(source), src),
		Dst:   netip.AddrPortFrom(k.addr(1-source), dst),
		Proto: k.proto,
	}
}
