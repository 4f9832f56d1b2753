// SPDX-License-Identifier: Apache-2.0

// Package flows owns the vocabulary of the house and what is derived from it:
// keys and points, samples, conversations, records, windows and the ledger.
//
// Data runs one way. A [Source] yields batches of samples; a [Table] folds
// them into conversations and closes them into records; a [Window] carries the
// records of one drain interval and the [Ledger] that proves where every packet
// and every record went.
//
// The package imports the standard library only, does no I/O, starts no
// goroutine and never logs: what goes wrong is a number in the ledger.
package flows

import (
	"context"
	"time"
)

// Source yields batches until ctx ends, then sends what is left and returns.
// It is the only stage that takes a context and the only one that may fail.
// Run closes out when it returns.
type Source interface {
	Run(ctx context.Context, out chan<- Batch) error
}

// Sink receives every window. Export must not block the drain for longer than
// it takes to queue the records: what it cannot queue it counts as lost.
type Sink interface {
	Name() string
	Export(ctx context.Context, w Window) error
	// Account says where every record this sink was ever given is now.
	Account() SinkAccount
}

// Places names the device behind a point. Two implementations: the data plane
// (live) and a capture file (replay).
type Places interface {
	Hop(Point) (Hop, bool)
}

// Hop is a point placed in the topology.
type Hop struct {
	Interface string // device name when the packet was seen
	Netns     string // path or name of the namespace; empty: the agent's own
}

// Batch is one part of what a drain yielded. A drain of many flows is sent as
// several batches; only the last one is Final and carries Drops, DNS, Sockets and Seen.
//
// Flows, Drops, DNS and Sockets belong to the source and are valid until the next
// Batch is received.
type Batch struct {
	At    time.Time // wall clock of the drain
	Flows []Sample
	Final bool
	Drops []DropSample // only in the final batch of a drain; one or more of a flow
	DNS   []DNSMessage // only in the final batch of a drain; in the order in which they passed
	// Latencies are all histograms of the kernel as they are now: only in the final
	// batch of a drain, nil when they were not read. Not written to afterwards.
	Latencies []Latency
	Sockets   []SocketSample // only in the final batch of a drain; at most one an end of a flow, and Overflow
	Seen      Account        // only in the final batch of a drain
}

// Window is everything one drain interval yielded.
type Window struct {
	End     time.Time
	Records []Record
	Ledger  Ledger
	// Latencies are all histograms as they are now; nil: not measured, or not read
	// in this window. They belong to the window.
	Latencies []Latency
	TCP       TCPAccount // what measuring TCP left out; meaningful with Latencies
	// Servers is who the servers of Latencies are, as far as that is known.
	Servers []NamedServer
	// DNS is what is known of resolvers now, not written to afterwards; nil: DNS was
	// not read, or not in this window.
	DNS *DNSFigures
}
