// SPDX-License-Identifier: Apache-2.0

package flows

import "fmt"

// SourceAccount is the account of what is read beside the flow table: traced drops,
// DNS packets, events of sockets. Cumulative since the agent started:
// Seen = Drained + Lost + Pending + Unaccounted.
type SourceAccount struct {
	Name string
	Seen uint64 // counted in the kernel before any table
	// Drained and Lost are where they went; a lost one is counted and nothing more is
	// known of it.
	Drained, Lost uint64
	Pending       uint64 // counted since the drain before: the next one finds it
	Missed        uint64 // not in Seen: the kernel did not run the program, which was running on that CPU already
	Unaccounted   int64  // what no line above explains: zero, or a bug
}

// sources keeps the account of each source; seen is how much of it the drain before had
// counted, which this one must have found.
type sources struct {
	drops, dns, sockets uint64
}

// account is the accounts of the sources that are on.
func (s *sources) account(a *Account) []SourceAccount {
	var out []SourceAccount
	if d := &a.Drops; *d != (DropAccount{}) {
		out = append(out, sourceAccount("drops", d.Seen, d.Drained, d.Lost, d.Missed, s.drops))
		s.drops = d.Before
	}
	if d := &a.DNS; *d != (DNSAccount{}) {
		out = append(out, sourceAccount("dns", d.Seen, d.Drained, d.Lost, 0, s.dns))
		s.dns = d.Seen
	}
	if d := &a.Sockets; *d != (SocketAccount{}) {
		out = append(out, sourceAccount("sockets", d.Seen, d.Drained, d.Lost, d.Missed, s.sockets))
		s.sockets = d.Before
	}
	return out
}

// sourceAccount is one account; due is what must have been found by now.
func sourceAccount(name string, seen, drained, lost, missed, due uint64) SourceAccount {
	a := SourceAccount{Name: name, Seen: seen, Drained: drained, Lost: lost, Missed: missed}
	switch found := drained + lost; {
	case found > seen:
		a.Unaccounted = -int64(found - seen)
	case found < due:
		a.Unaccounted = int64(due - found)
		a.Pending = seen - due
	default:
		a.Pending = seen - found
	}
	return a
}

// check is what does not add up in a.
func (a SourceAccount) check() []error {
	if a.Unaccounted == 0 && a.Seen == a.Drained+a.Lost+a.Pending {
		return nil
	}
	return []error{fmt.Errorf("%s: seen %d, drained %d + lost %d + pending %d: unaccounted %d",
		a.Name, a.Seen, a.Drained, a.Lost, a.Pending, a.Unaccounted)}
}
