// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"strconv"
	"time"
)

// EndReason says why a record was closed, with the numbers and names of IPFIX
// flowEndReason (RFC 5102 section 5.11.3).
type EndReason uint8

// The IPFIX end reasons.
const (
	EndIdleTimeout     EndReason = 1 // nothing seen for the idle time-out
	EndActiveTimeout   EndReason = 2 // the period ended; a further record follows when more is seen
	EndOfFlow          EndReason = 3 // TCP FIN both ways, or RST
	EndForced          EndReason = 4 // the agent or the device stopped
	EndLackOfResources EndReason = 5 // closed early to stay within a bound
)

// String is the snake_case name exported as weft.flow.end_reason.
func (r EndReason) String() string {
	switch r {
	case EndIdleTimeout:
		return "idle_timeout"
	case EndActiveTimeout:
		return "active_timeout"
	case EndOfFlow:
		return "end_of_flow"
	case EndForced:
		return "forced_end"
	case EndLackOfResources:
		return "lack_of_resources"
	}
	return "reason" + strconv.Itoa(int(r))
}

// InitiatorBasis says how the source of a record was chosen.
type InitiatorBasis uint8

// From certain to guessed.
const (
	InitiatorSYN   InitiatorBasis = 1 // the source sent SYN, or the destination SYN-ACK
	InitiatorICMP  InitiatorBasis = 2 // the source sent the request
	InitiatorPort  InitiatorBasis = 3 // the destination port is a service's, the source's is not
	InitiatorFirst InitiatorBasis = 4 // the source was seen first

	InitiatorTracked InitiatorBasis = 5 // the kernel's connection tracking has it as the opener: nearly as certain as a SYN
)

// String is the name exported as weft.flow.initiator.
func (b InitiatorBasis) String() string {
	switch b {
	case InitiatorSYN:
		return "syn"
	case InitiatorICMP:
		return "icmp"
	case InitiatorPort:
		return "port"
	case InitiatorFirst:
		return "first_seen"
	case InitiatorTracked:
		return "conntrack"
	}
	return "basis" + strconv.Itoa(int(b))
}

// Record is one conversation over one period. Its totals come from one chosen
// point per direction, so a packet seen at several points is counted once;
// Hops has every point's own figures. Never sum Hops.
type Record struct {
	Scope     Scope
	Key       Key  // from the initiator (source) to the responder (destination), their own addresses
	NAT       *NAT // nil: not translated on this host, as far as is known
	Initiator InitiatorBasis
	Start     time.Time // first packet of the period
	End       time.Time // last packet of the period
	EndReason EndReason

	Packets, Bytes               uint64 // source to destination, at the chosen point
	ReversePackets, ReverseBytes uint64 // destination to source, at the chosen point
	TCPFlags, ReverseTCPFlags    uint8  // OR over the conversation so far, per direction
	Fragment                     bool   // later fragments whose ports are not known
	DSCP                         uint8  // of the source's first packet

	// ConnectionID is a fingerprint of both initial sequence numbers, equal at
	// every point and across NAT. Zero: the handshake was not seen, or not TCP.
	ConnectionID uint64

	// TCP is nil when the protocol is another. What was not measured is zero in it.
	TCP *TCPRecord
	// Dropped is how many packets of the conversation the kernel of this host threw
	// away in the period, losses and unspecified only; DropReason is the reason of
	// most of them. Source: see [DropSample].
	Dropped    uint64
	DropReason string
	DNS        *DNS // nil: none seen

	// Who the two ends are; nil: not known. Shared: not to be written to.
	Source, Destination *Entity

	// The owners of the sockets, where they are on this host and known; else nil.
	SourceProcess, DestinationProcess *Process
	// What those sockets told of themselves in the period; nil: no socket here told
	// anything of this connection. Unlike TCP, no guess from packets.
	SourceSocket, DestinationSocket *SocketFigures

	Hops []HopCount

	// SamplingRate is the share of records such as this one that a sink takes; 0: all.
	// Set in the records of sinks that sample only.
	SamplingRate float64
	// Redacted: the addresses of Key are not those that passed, so that nothing can be
	// computed of them, such as a Community ID. Set in the records of sinks that redact only.
	Redacted bool
}

// HopCount is what one point saw of a record's conversation in the record's period.
type HopCount struct {
	At      Point
	Hop     Hop // empty when the device was gone before the record closed and unknown
	NAT     NATStage
	Layer   Layer // what a packet runs in there; source: the topology when the record closed
	Reverse bool  // the packets went from destination to source
	Chosen  bool  // this point's figures are the record's totals
	Packets uint64
	Bytes   uint64
	First   time.Time
	Last    time.Time
}
