// SPDX-License-Identifier: Apache-2.0

package flows

import "slices"

// count adds to what the next record of q's conversation tells, and to its server's.
func (d *dnsMatcher) count(q *dnsAsked, now int64, add func(*DNS, *DNSResolver)) {
	p := d.periods[q.key.conv]
	if p == nil {
		p = &dnsPeriod{}
		if len(d.periods) < maxDNSPeriods {
			d.periods[q.key.conv] = p
		} else {
			defer d.unrecorded(p)
		}
	}
	p.last = now
	add(&p.dns, q.server)
}

func (d *dnsMatcher) unrecorded(p *dnsPeriod) { d.figures.Unrecorded += p.dns.Answers + p.dns.Timeouts }

// take hands the period of a conversation to its record; nil: there was no DNS.
func (d *dnsMatcher) take(k *convKey) *DNS {
	if k.aPort != dnsPort && k.bPort != dnsPort {
		return nil
	}
	p := d.periods[*k]
	if p == nil {
		return nil
	}
	delete(d.periods, *k)
	return &p.dns
}

const dnsPort = 53

// sweep drops, once in every such time, periods that nothing was added to for as long:
// their conversation has ended, or never was.
func (d *dnsMatcher) sweep(now, every int64) {
	if now-d.swept < every {
		return
	}
	d.swept = now
	for k, p := range d.periods {
		if now-p.last >= every {
			d.unrecorded(p)
			delete(d.periods, k)
			d.changed = true
		}
	}
}

// latencies is what a window tells: the kernel's as they were last read, and those of
// DNS; nil when neither is new.
func (t *Table) latencies(read []Latency) []Latency {
	if read != nil {
		t.examples.give(read)
		t.times = read
	} else if !t.dns.changed {
		return nil
	}
	return append(slices.Clip(t.times), t.dns.resolvers.latencies(t.epoch)...)
}

// show is a copy of the figures as they are now, the same one while nothing changes.
func (d *dnsMatcher) show(a DNSAccount) *DNSFigures {
	if a == (DNSAccount{}) && !d.changed {
		return nil
	}
	if d.shown == nil || d.changed || d.shown.Account != a {
		f := d.figures
		f.Outstanding, f.Account = d.waiting.n, a
		if d.shown != nil && !d.changed {
			f.Resolvers = d.shown.Resolvers
		} else {
			f.Resolvers = d.resolvers.list()
		}
		d.shown, d.changed = &f, false
	}
	return d.shown
}

// rcode counts one.
func (d *DNS) rcode(code uint16) {
	for i := range d.Rcodes {
		if d.Rcodes[i].Rcode == code {
			d.Rcodes[i].Count++
			return
		}
	}
	d.Rcodes = append(d.Rcodes, DNSRcode{code, 1})
}

// tell puts q in front of the last questions.
func (d *DNS) tell(q DNSQuestion) {
	if len(d.Questions) == maxQuestions {
		d.Questions = d.Questions[:maxQuestions-1]
	}
	d.Questions = slices.Insert(d.Questions, 0, q)
}
