// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"time"
)

// DNS is what a record's conversation asked and was answered, in the period. A
// question is told by the point that saw it first, and its answer when it reaches
// that device again: a message that is seen at several points counts once.
type DNS struct {
	Queries   uint64 // questions, each counted once however often it was sent
	Retries   uint64 // times one of them was sent again before its answer
	Answers   uint64 // questions that were answered
	Timeouts  uint64 // questions that were not, within the time-out
	Latency   RTT    // question to answer; of questions sent once
	Rcodes    []DNSRcode
	Questions []DNSQuestion // the last few, newest first: at most maxQuestions
}

// maxQuestions bounds [DNS.Questions]; older ones are in the counts only.
const maxQuestions = 8

// DNSRcode counts answers of one code.
type DNSRcode struct {
	Rcode uint16
	Count uint64
}

// DNSQuestion is one question and what became of it.
type DNSQuestion struct {
	Name    string // as asked, lower case, without the last dot; bytes that do not print are \DDD
	Type    uint16
	Rcode   uint16        // meaningless with Timeout
	Records uint16        // in the answer section
	Latency time.Duration // 0: not measured
	Timeout bool
}

// DNSMessage is one question or answer that passed a point.
type DNSMessage struct {
	Key    Key // of the packet; the server has port 53
	At     Point
	Domain uint64 // as [Sample.Domain]
	VLAN   VLAN
	Class  PointClass // of At
	When   int64      // CLOCK_MONOTONIC, ns

	ID       uint16
	Response bool
	Rcode    uint16 // of the header: 0 to 15, meaningless in a question
	Name     string // as in [DNSQuestion]; empty: an answer without question
	Type     uint16
	Records  uint16 // in the answer section, as the header says
}

// DNSFault says why a packet from or to port 53, or a part of it, is no [DNSMessage].
type DNSFault uint8

// The faults.
const (
	DNSSound     DNSFault = iota // none
	DNSShort                     // less than a header
	DNSOpcode                    // no query: an update, a notification, or no DNS at all
	DNSDirection                 // a question that is not for port 53, or an answer that is not from it
	DNSQuestions                 // not one question
	DNSName                      // the name has no end, is over 255 bytes or points in circles
	DNSCut                       // the kernel's copy ends before the question does
	DNSSplit                     // TCP: the question is in more than one segment, or where it begins is not known
	DNSUnread                    // sound, but too many for one drain
	NumDNSFaults
)

var dnsFaultNames = [NumDNSFaults]string{
	"", "short", "opcode", "direction", "questions", "name", "cut", "split", "unread",
}

// String is the fault's name in metrics.
func (f DNSFault) String() string {
	if f < NumDNSFaults {
		return dnsFaultNames[f]
	}
	return "unknown"
}

// DNSAccount proves where every packet with payload from and to port 53 went,
// cumulative since the agent started, at all points: Seen = Drained + Lost + what the
// next drain finds, which is nothing in the last account. Zero: DNS is not read.
type DNSAccount struct {
	Seen    uint64 // packets, before anything else
	Lost    uint64 // of them: the kernel's ring buffer was full
	Drained uint64 // of them: read

	Messages  uint64 // found in those that were read; over TCP a packet may hold several or none
	Continued uint64 // TCP segments in which no message begins, or only such as were read before
	Faults    [NumDNSFaults]uint64

	Read int64 // CLOCK_MONOTONIC, ns: what passed before is in this batch or an earlier one
}

// DNSFigures are those of all resolvers, cumulative since the agent started.
type DNSFigures struct {
	// Resolvers that were asked, in the order of their addresses: at most maxResolvers,
	// and one with a zero Server for all that had no room.
	Resolvers []DNSResolver

	Outstanding int    // questions that wait for their answer now
	Overflow    uint64 // questions that were not followed, since too many waited
	// Answers, as often as points saw them, which nobody is known to have asked for:
	// traffic of which one direction is seen, or made up.
	Unasked    uint64
	Duplicates uint64 // further answers to a question, the same
	Unrecorded uint64 // answers and time-outs that came when their conversation had ended

	Account DNSAccount
}

// DNSResolver is one server's.
type DNSResolver struct {
	Server   netip.AddrPort
	Protocol uint8  // ProtoUDP or ProtoTCP
	Queries  uint64 // as in [DNS], as the next two
	Retries  uint64
	Timeouts uint64
	Late     uint64     // of Timeouts: answered after all
	Rcodes   [16]uint64 // answers by code
}
