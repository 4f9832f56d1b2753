// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"time"
)

// Measure says what a latency is of.
type Measure uint8

// The measures. Kernel values: enum weft_measure in abi.h.
const (
	RTTServer       Measure = iota // from the point to the server and back
	RTTClient                      // from the point to the client and back
	HandshakeServer                // SYN to SYN-ACK
	HandshakeClient                // SYN-ACK to its acknowledgement
	DNSLookup                      // question to answer
	NumMeasures
)

var measureNames = [NumMeasures]string{"rtt_server", "rtt_client", "handshake_server", "handshake_client", "dns_lookup"}

// String is the measure's name.
func (m Measure) String() string {
	if m < NumMeasures {
		return measureNames[m]
	}
	return "unknown"
}

// PointClass is the kind of device that a latency was measured at, so that the
// same round trip seen at several devices is not one series.
type PointClass uint8

// The classes. Kernel values: enum weft_class in abi.h.
const (
	ClassOther PointClass = iota
	ClassNIC              // a device of a driver: hardware, or virtio in a guest
	ClassVeth
	ClassBridge
	ClassVLAN
	ClassBond
	ClassTunnel // vxlan, geneve, gre, ipip, wireguard
	ClassTap
	ClassLoopback
	NumClasses
)

var classNames = [NumClasses]string{"other", "nic", "veth", "bridge", "vlan", "bond", "tunnel", "tap", "loopback"}

// String is the class's name.
func (c PointClass) String() string {
	if c < NumClasses {
		return classNames[c]
	}
	return "unknown"
}

// LatencyKey is what a histogram is kept by.
type LatencyKey struct {
	Server   netip.AddrPort // zero: the overflow series, of servers that had no room
	Protocol uint8          // IP protocol
	Measure  Measure
	Class    PointClass
}

// HistogramScale is the scale of every histogram: OTLP exponential, bucket i
// covers (2^(i/8), 2^((i+1)/8)] seconds.
const HistogramScale = 3

// Latency is one histogram, cumulative since Start.
type Latency struct {
	Key   LatencyKey
	Start int64  // Unix nanoseconds
	Count uint64 // sum of Counts
	Sum   uint64 // nanoseconds
	// Counts[k] is how many fell into bucket Offset+k of HistogramScale.
	Offset int
	Counts []uint64
	// Exemplars are some of those times: at most 8, each in a bucket of its own.
	Exemplars []Exemplar
}

// Exemplar is one of the times in a histogram, and the connection that it is of.
type Exemplar struct {
	Value        time.Duration
	At           int64  // Unix nanoseconds: a packet of the connection, not long after
	ConnectionID uint64 // as [Record.ConnectionID]
}
