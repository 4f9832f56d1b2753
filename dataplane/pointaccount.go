// SPDX-License-Identifier: Apache-2.0

package dataplane

import "weft/flows"

// drainAccount is the account of the points that a drain began with.
type drainAccount struct {
	t      *pointTable
	points []*point
	last   bool
}

// begin reads every point's counter before the table is read. last: all programs
// are detached, and this is the end.
func (t *pointTable) begin(last bool) *drainAccount {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &drainAccount{t: t, last: last}
	for i := range t.byID {
		p := t.byID[i].Load()
		if p == nil {
			continue
		}
		if p.leaving > 0 {
			p.leaving++
		}
		p.before = minus(t.seen(p.id), p.base.After)
		a.points = append(a.points, p)
	}
	return a
}

// end reads them again. Unplaced frames have points of their own only if any came.
func (a *drainAccount) end() []flows.PointAccount {
	out := make([]flows.PointAccount, 0, len(a.points))
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	for _, p := range a.points {
		acct := a.t.read(p.id)
		acct.At, acct.Hop, acct.Before = p.at, p.hop, p.before
		acct.After = minus(acct.After, p.base.After)
		acct.GSO = minus(acct.GSO, p.base.GSO)
		for r := range acct.Skipped {
			acct.Skipped[r] = minus(acct.Skipped[r], p.base.Skipped[r])
		}
		p.gone = p.leaving >= goneAfter
		acct.Gone = a.last || p.gone
		if int(p.id) < hooks && acct.After == (flows.Count{}) {
			continue
		}
		out = append(out, acct)
	}
	return out
}

// forget frees the places of the points whose last account was sent.
func (t *pointTable) forget(a *drainAccount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range a.points {
		if !p.gone {
			continue
		}
		t.byID[p.id].Store(nil)
		if t.byAt[p.at] == p {
			delete(t.byAt, p.at)
		}
		if d := t.domains[p.at.Netns]; d.points > 1 {
			d.points--
		} else {
			delete(t.domains, p.at.Netns)
		}
		if place := int(p.id) / hooks; t.used[place] && t.empty(place) {
			t.used[place] = false
			t.free++
		}
	}
}

func (t *pointTable) empty(place int) bool {
	for h := range hooks {
		if t.byID[place*hooks+h].Load() != nil {
			return false
		}
	}
	return true
}

func minus(a, b flows.Count) flows.Count {
	return flows.Count{Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}
