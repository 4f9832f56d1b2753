// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"fmt"
	"time"
)

// Ledger is the account that proves seen = delivered + every named loss, from
// the first counted packet to the receiver's acknowledgement. All figures are
// cumulative since the agent started.
type Ledger struct {
	At     time.Time
	Points []PointLedger
	Gone   PointLedger // the sum of every point that was detached
	// GoneUnbalanced is how many of those points did not balance. In their sum
	// the differences may cancel out.
	GoneUnbalanced uint64
	Made           uint64 // records
	Sinks          []SinkAccount
	Sources        []SourceAccount // those that are on
	Devices        []DeviceDrops   // what devices say they dropped, as last read; in no sum
	Unseen         []DeviceFrames  // what passed devices before they were watched, as last read; in no sum
	TCP            TCPAccount      // what measuring TCP left out; in no sum
	// SocketsUnmatched is how many events of sockets are in no record: no watched
	// device saw the flow, or its last record was made before.
	SocketsUnmatched uint64
}

// PointLedger is one point's account:
// Seen = Flows + sum(Skipped) + sum(Foreign) + InTable + Unaccounted, and
// Flows = Recorded + Open.
type PointLedger struct {
	At          Point
	Hop         Hop
	Seen        Count            // counted before any table
	GSO         Count            // see [PointAccount]
	Flows       Count            // drained from the kernel into conversations
	Recorded    Count            // of those, in records already made
	Open        Count            // of those, in conversations still open
	Skipped     [NumSkip]Count   // in no flow, by reason
	Foreign     map[string]Count // the same, by reasons that only another version knows; nil: none
	InTable     Count            // counted, and to be read by the next drain
	Unaccounted SignedCount      // what no line above explains: zero, or a bug
}

// SignedCount is a difference of counts: positive, seen but nowhere; negative,
// counted more often than seen.
type SignedCount struct{ Packets, Bytes int64 }

// TotalSkipped is the sum of p.Skipped and p.Foreign.
func (p PointLedger) TotalSkipped() Count {
	var sum Count
	for _, c := range p.Skipped {
		sum.Add(c)
	}
	for _, c := range p.Foreign {
		sum.Add(c)
	}
	return sum
}

// Balanced reports whether every line of l adds up.
func (l Ledger) Balanced() bool { return l.Check() == nil }

// Check returns one joined error for each line that does not add up, naming the
// point or sink and its figures; nil when the ledger balances.
func (l Ledger) Check() error {
	var errs []error
	for _, p := range l.Points {
		errs = append(errs, p.check(fmt.Sprintf("%s %s (netns %d, ifindex %d)", p.Hop.Interface, p.At.Hook, p.At.Netns, p.At.Ifindex))...)
	}
	errs = append(errs, l.Gone.check("detached points")...)
	if l.GoneUnbalanced > 0 {
		errs = append(errs, fmt.Errorf("detached points: %d did not balance when they went", l.GoneUnbalanced))
	}
	for _, s := range l.Sinks {
		errs = append(errs, s.check(l.Made)...)
	}
	for _, s := range l.Sources {
		errs = append(errs, s.check()...)
	}
	return errors.Join(errs...)
}

// check is what does not add up in p, packets and bytes apart.
func (p PointLedger) check(name string) []error {
	var errs []error
	skipped := p.TotalSkipped()
	for _, u := range []struct {
		unit                                          string
		seen, flows, recorded, open, skipped, inTable uint64
		unaccounted                                   int64
	}{
		{"packets", p.Seen.Packets, p.Flows.Packets, p.Recorded.Packets, p.Open.Packets, skipped.Packets, p.InTable.Packets, p.Unaccounted.Packets},
		{"bytes", p.Seen.Bytes, p.Flows.Bytes, p.Recorded.Bytes, p.Open.Bytes, skipped.Bytes, p.InTable.Bytes, p.Unaccounted.Bytes},
	} {
		sum := u.flows + u.skipped + u.inTable + uint64(u.unaccounted)
		if u.unaccounted != 0 || sum != u.seen {
			errs = append(errs, fmt.Errorf("%s: %s: seen %d, flows %d + skipped %d + in table %d: unaccounted %d",
				name, u.unit, u.seen, u.flows, u.skipped, u.inTable, int64(u.seen-u.flows-u.skipped-u.inTable)))
		}
		if u.flows != u.recorded+u.open {
			errs = append(errs, fmt.Errorf("%s: %s: flows %d, recorded %d + open %d: unaccounted %d",
				name, u.unit, u.flows, u.recorded, u.open, int64(u.flows-u.recorded-u.open)))
		}
	}
	return errs
}

// check is what does not add up in s, when made records exist.
func (s SinkAccount) check(made uint64) []error {
	var errs []error
	lost, left := s.TotalLost(), s.TotalLeftOut()
	if s.Offered != s.Acknowledged+s.Waiting+lost+left {
		told := ""
		if left > 0 {
			told = fmt.Sprintf(" + left out %d", left)
		}
		errs = append(errs, fmt.Errorf("sink %s: records: offered %d, acknowledged %d + waiting %d + lost %d%s: unaccounted %d",
			s.Name, s.Offered, s.Acknowledged, s.Waiting, lost, told, int64(s.Offered-s.Acknowledged-s.Waiting-lost-left)))
	}
	if s.Offered > made {
		errs = append(errs, fmt.Errorf("sink %s: records: offered %d of %d made", s.Name, s.Offered, made))
	}
	return errs
}

// TotalLost is the sum of s.Lost, in records.
func (s SinkAccount) TotalLost() uint64 { return total(s.Lost) }

// TotalLeftOut is the sum of s.LeftOut, in records.
func (s SinkAccount) TotalLeftOut() uint64 { return total(s.LeftOut) }

func total(by map[string]uint64) uint64 {
	var sum uint64
	for _, n := range by {
		sum += n
	}
	return sum
}
