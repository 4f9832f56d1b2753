// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
)

// icmpPair is an ICMP message type and the one that answers it. These are the
// pairs of Community ID v1; every other type is one way.
type icmpPair struct{ request, reply uint16 }

var icmpPairs = []icmpPair{
	{8, 0},   // echo
	{10, 9},  // router solicitation, advertisement
	{13, 14}, // timestamp
	{15, 16}, // information
	{17, 18}, // address mask
}

var icmpv6Pairs = []icmpPair{
	{128, 129}, // echo
	{130, 131}, // multicast listener query, report
	{133, 134}, // router solicitation, advertisement
	{135, 136}, // neighbour solicitation, advertisement
	{139, 140}, // node information
	{144, 145}, // home agent address discovery
}

// icmpPeer is the type at the other end of a message of type kind, and whether
// kind is the request. Not ok: kind is one way.
func icmpPeer(proto uint8, kind uint16) (peer uint16, request, ok bool) {
	pairs := icmpPairs
	if proto == ProtoICMPv6 {
		pairs = icmpv6Pairs
	}
	for _, p := range pairs {
		switch kind {
		case p.request:
			return p.reply, true, true
		case p.reply:
			return p.request, false, true
		}
	}
	return 0, false, false
}

// Canonical is one key for both directions of a conversation: the lower
// endpoint is the source; reversed, that is not the side k came from. An ICMP
// request and its reply have one canonical key, in which each port is the type
// that side sends; an ICMP type without a counterpart is a conversation of its
// own in each direction and stays as it is.
func Canonical(k Key) (c Key, reversed bool) {
	if k.ICMP() {
		peer, _, ok := icmpPeer(k.Proto, k.Src.Port())
		if !ok {
			return k, false
		}
		k.Dst = netip.AddrPortFrom(k.Dst.Addr(), peer)
	}
	if k.Src.Compare(k.Dst) > 0 {
		return k.Reverse(), true
	}
	return k, false
}

// CommunityID is the Community ID v1 of k's conversation, "1:" and 28
// characters, the same for both directions and for every tool that is given the
// same seed (0 unless agreed otherwise). Keys of fragments whose ports are not
// known yield an identifier of nothing else.
func CommunityID(k Key, seed uint16) string {
	return string(AppendCommunityID(make([]byte, 0, 30), k, seed))
}

// AppendCommunityID appends what CommunityID returns.
func AppendCommunityID(dst []byte, k Key, seed uint16) []byte {
	c, _ := Canonical(k)
	b := make([]byte, 0, 2+16+16+2+4)
	b = binary.BigEndian.AppendUint16(b, seed)
	b = appendAddr(b, c.Src.Addr())
	b = appendAddr(b, c.Dst.Addr())
	b = append(b, c.Proto, 0)
	if c.ICMP() || c.ports() {
		b = binary.BigEndian.AppendUint16(b, c.Src.Port())
		b = binary.BigEndian.AppendUint16(b, c.Dst.Port())
	}
	sum := sha1.Sum(b)
	return base64.StdEncoding.AppendEncode(append(dst, "1:"...), sum[:])
}

// appendAddr appends a's 4 or 16 bytes; none when it is no address.
func appendAddr(dst []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		b := a.As4()
		return append(dst, b[:]...)
	case a.Is6():
		b := a.As16()
		return append(dst, b[:]...)
	}
	return dst
}
