// SPDX-License-Identifier: Apache-2.0

package flows

import "time"

// TCPHealth is what a point learned of the sender of one direction of a TCP
// connection. Counts are increments in a [Sample] and sums over the period in a
// record. A figure that could not be measured is zero, and its count too: no
// figure here is ever a guess.
type TCPHealth struct {
	// RTT is from the point to the sender and back: from a segment that passed
	// towards it until its acknowledgement passed. The sender's own delay of an
	// acknowledgement is in it. A segment that was sent twice is not measured.
	RTT RTT
	// Handshake is the same for the SYN or SYN-ACK that the sender acknowledged; 0:
	// not seen, or sent twice. Of the connection, not of the period.
	Handshake time.Duration

	Retransmits uint64 // segments that had passed the point before
	OutOfOrder  uint64 // segments that came after later ones, too soon to be sent again
	Lost        uint64 // gaps that were filled by sending again: lost before the point
	DupAcks     uint64 // acknowledgements that said nothing new while data was on its way
	ZeroWindows uint64 // times the sender's receive window closed
	ZeroWindow  time.Duration

	// Untracked is how many of the direction's packets were not looked at, since the kernel's
	// table of connections had no room: then all counts are of the others, and at least that.
	Untracked uint64

	// What the options of the sender's SYN said; Options is 0 when it was not seen.
	MSS         uint16 // bytes
	WindowScale uint8  // shift; meaningful with TCPWindowScale
	Options     TCPOptions
}

// TCPOptions is a set of facts about a SYN. Kernel values: enum weft_tcp_options.
type TCPOptions uint8

// The facts.
const (
	TCPSYNSeen TCPOptions = 1 << iota
	TCPTimestamps
	TCPSACK
	TCPWindowScale
	TCPQueueFull // it met a socket of this host whose accept queue was full
)

// RTT sums up measured times. Zero: none was measured.
type RTT struct {
	Count uint64
	Sum   time.Duration
	Min   time.Duration // of the whole connection
	Max   time.Duration // of the period
}

// Mean is the average; 0 without any.
func (r RTT) Mean() time.Duration {
	if r.Count == 0 {
		return 0
	}
	return r.Sum / time.Duration(r.Count)
}

// add adds what was measured later.
func (r *RTT) add(s RTT) {
	if s.Count == 0 {
		return
	}
	if r.Count == 0 || r.Min == 0 || s.Min < r.Min {
		r.Min = s.Min
	}
	r.Count += s.Count
	r.Sum += s.Sum
	r.Max = max(r.Max, s.Max)
}

// add adds an increment.
func (t *TCPHealth) add(s *TCPHealth) {
	t.RTT.add(s.RTT)
	if s.Handshake != 0 {
		t.Handshake = s.Handshake
	}
	t.Retransmits += s.Retransmits
	t.OutOfOrder += s.OutOfOrder
	t.Lost += s.Lost
	t.DupAcks += s.DupAcks
	t.ZeroWindows += s.ZeroWindows
	t.ZeroWindow += s.ZeroWindow
	t.Untracked += s.Untracked
	if s.Options != 0 {
		t.MSS, t.WindowScale, t.Options = s.MSS, s.WindowScale, s.Options
	}
}

// TCPRecord is the TCP side of a record: each end as the chosen point of the
// direction that it sends saw it.
type TCPRecord struct {
	Source, Destination TCPHealth
	// Resets: the side sent RST in this connection so far.
	SourceReset, DestinationReset bool
	Failure                       Failure
}

// Failure says how a connection failed. One word a connection, the first that
// applies.
type Failure uint8

// The failures. Packets tell those up to FailReset, which alone needs no SYN seen.
const (
	FailNone        Failure = iota
	FailRefused             // the destination answered SYN with RST
	FailUnanswered          // SYN, and nothing came back before the record ended
	FailHalfOpen            // SYN-ACK came back, and the source never acknowledged it
	FailAborted             // SYN-ACK came back, and the source answered with RST
	FailReset               // RST after data had flowed or the connection stood
	FailUnreachable         // what was sent could not be delivered, as ICMP or the routes said; sockets only
	FailTimedOut            // it stood, and the other end fell silent; sockets only
	FailBacklog             // unanswered, as the destination's accept queue was full: its program did not keep up
)

var failureNames = [...]string{"", "refused", "unanswered", "half_open", "aborted", "reset", "unreachable", "timed_out", "backlog_full"}

// String is the name exported as weft.tcp.failure; empty: none.
func (f Failure) String() string {
	if int(f) < len(failureNames) {
		return failureNames[f]
	}
	return "unknown"
}
