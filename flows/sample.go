// SPDX-License-Identifier: Apache-2.0

package flows

// Sample is what one flow gained at one point since it was last read.
// Packets and Bytes are increments; the same flow yields further samples for as
// long as it lives.
type Sample struct {
	Key  Key
	At   Point
	VLAN VLAN

	// Domain is the netns cookie that stands for all namespaces in which the same
	// packets are seen, because veth pairs join them. 0: At.Netns alone.
	Domain uint64

	// Packets on the wire: a GSO frame counts its segments.
	Packets uint64
	// Bytes of the L2 frames on the wire, VLAN tags included, without FCS:
	// the headers of a GSO frame count once a segment.
	Bytes uint64
	// First is when the flow's first packet was seen if New, else a lower bound:
	// the previous drain. Unix nanoseconds.
	First int64
	// Last is when the last packet was seen, to the kernel's tick. Unix nanoseconds.
	Last int64

	TCPFlags   uint8 // OR of every packet's flags since the flow started
	FirstFlags uint8 // flags of the flow's first packet; meaningful with New
	New        bool  // the flow's first sample
	Fragment   bool  // later fragments whose ports are not known
	DSCP       uint8 // of the flow's first packet
	TTL        uint8 // or hop limit, of the flow's first packet
	Class      PointClass

	// SeqNumber and AckNumber are those of the flow's first packet when it
	// carried SYN: the initial sequence number of the sender, and with ACK the
	// peer's plus one. Host byte order. Zero otherwise.
	SeqNumber, AckNumber uint32

	SrcMAC, DstMAC [6]byte // of the flow's first packet; zero on a layer 3 device

	TCP TCPHealth // zero: not TCP, or not measured
}
