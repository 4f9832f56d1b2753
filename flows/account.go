// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"slices"
	"time"
)

// Count is a number of wire packets and of their L2 bytes.
type Count struct{ Packets, Bytes uint64 }

// Add adds d to c.
func (c *Count) Add(d Count) { c.Packets += d.Packets; c.Bytes += d.Bytes }

// Plus is c + d.
func (c Count) Plus(d Count) Count { return Count{c.Packets + d.Packets, c.Bytes + d.Bytes} }

// SkipReason names why a packet is in no flow.
type SkipReason uint8

// The reasons: the kernel's have the values of enum weft_skip in abi.h, those
// of user space follow.
const (
	SkipARP  SkipReason = iota
	SkipLLC             // 802.3 length field: STP, IS-IS ...
	SkipLLDP            // LLDP and the slow protocols (LACP)
	SkipMPLS
	SkipPPPoE
	SkipEthertype         // every other ethertype
	SkipVLANDepth         // more than two tags
	SkipTruncated         // the frame ends inside a header
	SkipMalformed         // a header contradicts itself
	SkipIPv6Extensions    // more extension headers than the parser follows
	SkipTableFull         // no slot, and no room to evict one
	SkipUnplaced          // from a device that the agent had already let go
	SkipConversationLimit // user space: more live conversations than flows.conversations allows
	SkipHopLimit          // user space: the conversation was seen at more points than a record holds
	NumSkip
)

var skipNames = [NumSkip]string{
	"not_ip_arp", "not_ip_llc", "not_ip_lldp", "not_ip_mpls", "not_ip_pppoe", "not_ip_other",
	"vlan_depth", "truncated", "malformed", "ipv6_extensions", "table_full", "unplaced", "conversation_limit", "hop_limit",
}

// String is the reason's name in the ledger.
func (r SkipReason) String() string {
	if r < NumSkip {
		return skipNames[r]
	}
	return "unknown"
}

// SkipReasonNamed is the reason whose String is name; false: this version has none.
func SkipReasonNamed(name string) (SkipReason, bool) {
	i := slices.Index(skipNames[:], name)
	return SkipReason(max(i, 0)), i >= 0
}

// PointAccount is what the kernel counted at a point since it was attached,
// before any table. Cumulative.
type PointAccount struct {
	At  Point
	Hop Hop
	// Before and After are the packets seen, read before and after the drain
	// read the flow table. Before <= flows + skipped <= After up to packets that
	// were being counted while it was read, which the next drain finds.
	Before, After Count
	// GSO is how many more wire packets and bytes Before and After hold than
	// the interface's own counters, because those count a GSO frame as one.
	GSO     Count
	Skipped [NumSkip]Count // the kernel's reasons
	Gone    bool           // detached: this is the point's last account
}

// Account is the kernel's side of the ledger after one drain.
type Account struct {
	At      time.Time
	Points  []PointAccount
	Drops   DropAccount
	DNS     DNSAccount
	Sockets SocketAccount
	Devices []DeviceDrops  // the latest reading; nil: not read
	Unseen  []DeviceFrames // the same
	TCP     TCPAccount
}

// TCPAccount is what measuring TCP left out, cumulative since the agent started.
// Zero: nothing, or TCP is not measured.
type TCPAccount struct {
	Untracked  uint64 // packets of connections for which no line was free: counted in flows, not measured
	Overflowed uint64 // times in the histograms without a server, since there was no room for another
	Lost       uint64 // times in no histogram
}

// SinkAccount says where every record that was offered to a sink is.
// Offered = Acknowledged + Waiting + sum(Lost) + sum(LeftOut).
type SinkAccount struct {
	Name         string
	Offered      uint64            // records
	Acknowledged uint64            // the receiver said it has them
	Waiting      uint64            // queued or in flight
	Lost         map[string]uint64 // by reason
	// LeftOut is what was not for the sink, by the reason that its configuration gives:
	// not lost. nil: nothing.
	LeftOut map[string]uint64
}
