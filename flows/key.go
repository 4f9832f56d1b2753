// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"net/netip"
	"strconv"
)

// IP protocol numbers that the house treats specially (IANA).
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// TCP flags in the order of the header's octet.
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE
	FlagCWR
)

// Key is one direction of a conversation: the 5-tuple. Ports are zero for
// protocols without them and for fragments whose first part was not seen.
// For ICMP and ICMPv6 the source port is the type and the destination port the
// code of the packet.
type Key struct {
	Src, Dst netip.AddrPort
	Proto    uint8
}

// ICMP reports whether the ports of k are an ICMP type and code.
func (k Key) ICMP() bool { return k.Proto == ProtoICMP || k.Proto == ProtoICMPv6 }

// Reverse is the key of the opposite direction. For ICMP see [Canonical].
func (k Key) Reverse() Key { return Key{Src: k.Dst, Dst: k.Src, Proto: k.Proto} }

// String is "protocol source -> destination".
func (k Key) String() string {
	if k.ICMP() {
		return fmt.Sprintf("%s %s -> %s type %d code %d", ProtoName(k.Proto), k.Src.Addr(), k.Dst.Addr(), k.Src.Port(), k.Dst.Port())
	}
	return fmt.Sprintf("%s %s -> %s", ProtoName(k.Proto), k.Src, k.Dst)
}

// ProtoName is the value of network.transport: the lower-case keyword, or the
// number when it has none here.
func ProtoName(p uint8) string {
	switch p {
	case ProtoICMP:
		return "icmp"
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoICMPv6:
		return "icmpv6"
	case ProtoSCTP:
		return "sctp"
	case 2:
		return "igmp"
	case 4:
		return "ipip"
	case 33:
		return "dccp"
	case 41:
		return "ipv6"
	case 47:
		return "gre"
	case 50:
		return "esp"
	case 51:
		return "ah"
	case 89:
		return "ospf"
	case 103:
		return "pim"
	case 112:
		return "vrrp"
	case 136:
		return "udplite"
	}
	return strconv.Itoa(int(p))
}

// Hook is the place in the kernel where a point sees packets.
type Hook uint8

// The hooks, with the values of enum weft_hook in abi.h.
const (
	HookIngress Hook = 1 // TC ingress: received by the interface
	HookEgress  Hook = 2 // TC egress: about to be transmitted by the interface
	HookXDP     Hook = 3 // XDP: received, before the stack
)

// String is "ingress", "egress" or "xdp".
func (h Hook) String() string {
	switch h {
	case HookIngress:
		return "ingress"
	case HookEgress:
		return "egress"
	case HookXDP:
		return "xdp"
	}
	return "hook" + strconv.Itoa(int(h))
}

// Point is an observation point. The namespace is part of it, so equal
// ifindexes of two namespaces never meet.
type Point struct {
	Netns   uint64 // netns cookie (SO_NETNS_COOKIE)
	Ifindex uint32
	Hook    Hook
}

// VLAN holds the tags of a frame: Outer is 0 when untagged, Inner is 0 unless
// QinQ. 12-bit identifiers.
type VLAN struct{ Outer, Inner uint16 }

// Scope keeps equal 5-tuples of different tenants apart.
type Scope struct {
	Netns uint64 // cookie of the points' namespace, or of the oldest that veth pairs join with it
	VLAN  VLAN
}
