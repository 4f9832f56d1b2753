// SPDX-License-Identifier: Apache-2.0

package flows

import "time"

const (
	// maxDNSQuestions bounds the questions that are followed: those that wait, and those
	// that were answered or timed out not long ago, which give way first. A question for
	// which there is no room is counted as Overflow. About 400 bytes each.
	maxDNSQuestions = 1 << 14
	// maxDNSPlaces is at how many points a question is timed; at further ones it is not.
	maxDNSPlaces = 8
	// dnsRemember is for how many time-outs a question is known after it was answered or
	// timed out: a late answer is then told from one that nobody asked for.
	dnsRemember = 2
	// maxDNSAlike bounds the questions with the same ports and id, among which one is
	// searched: one that was answered or timed out gives way, else a further one is
	// counted as Overflow.
	maxDNSAlike = 64
	// maxDNSPeriods bounds the conversations that wait for their record with DNS figures:
	// those of a further one are counted as Unrecorded. About 250 bytes each.
	maxDNSPeriods = 1 << 16
)

// dnsMatcher matches answers to questions by id, conversation, name and type, and
// times them between two sights at one device. Its only clock is the kernel's.
type dnsMatcher struct {
	timeout   int64 // ns
	index     map[dnsKey]uint32
	questions slab[dnsAsked]
	waiting   dnsQueue // by when they were asked
	done      dnsQueue // by when they were answered or timed out
	periods   map[convKey]*dnsPeriod
	swept     int64 // when periods were last looked through, as Table.now
	resolvers resolvers
	figures   DNSFigures
	changed   bool // since figures were last shown
	shown     *DNSFigures
}

// dnsKey is what a question and its answer have in common, but for the name.
type dnsKey struct {
	conv  convKey
	id    uint16
	asker side
}

// dnsAsked is a question on its way.
type dnsAsked struct {
	key     dnsKey
	name    string
	kind    uint16
	also    uint32 // the next question with the same key; 0: none
	prev    uint32 // in its queue
	next    uint32
	since   int64 // when it was asked, or done. CLOCK_MONOTONIC, ns
	server  *DNSResolver
	places  [maxDNSPlaces]dnsPlace // in the order in which it passed
	nplaces uint8
	isDone  bool
	expired bool // done by time-out

	// An answer that passed a device which the question did not pass.
	elsewhere      bool
	rcode, records uint16
}

// dnsPlace is a point that a question passed.
type dnsPlace struct {
	at        Point
	when      int64 // the last time
	sent, got uint8 // how often the question passed, and an answer came back
	class     PointClass
}

// dnsPeriod is what the next record of a conversation will tell.
type dnsPeriod struct {
	dns  DNS
	last int64 // when it was last added to, as Table.now
}

func newDNSMatcher(timeout time.Duration) dnsMatcher {
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	return dnsMatcher{
		timeout: int64(timeout), index: map[dnsKey]uint32{}, periods: map[convKey]*dnsPeriod{}, resolvers: newResolvers(),
	}
}

// message takes one, in the order in which they passed.
func (d *dnsMatcher) message(m *DNSMessage, now int64) {
	d.changed = true
	var k dnsKey
	from := k.conv.pack(&Sample{Key: m.Key, At: m.At, Domain: m.Domain, VLAN: m.VLAN})
	k.id = m.ID
	if m.Response {
		k.asker = 1 - from
		d.answer(m, &k, now)
		return
	}
	k.asker = from
	d.question(m, &k, now)
}

// find is the question that m is or answers; 0: none. An answer without a question
// of its own answers the only one with that id.
func (d *dnsMatcher) find(m *DNSMessage, k *dnsKey) uint32 {
	i := d.index[*k]
	if m.Name == "" {
		if i != 0 && d.questions.at(i).also != 0 {
			return 0
		}
		return i
	}
	for i != 0 {
		q := d.questions.at(i)
		if q.name == m.Name && q.kind == m.Type {
			break
		}
		i = q.also
	}
	return i
}

func (d *dnsMatcher) question(m *DNSMessage, k *dnsKey, now int64) {
	i := d.find(m, k)
	if i == 0 {
		if i = d.add(m, k); i == 0 {
			d.figures.Overflow++
			return
		}
		d.count(d.questions.at(i), now, func(p *DNS, r *DNSResolver) { p.Queries++; r.Queries++ })
	}
	q := d.questions.at(i)
	n := q.place(m.At)
	if n == int(q.nplaces) {
		if n < maxDNSPlaces {
			q.places[n] = dnsPlace{at: m.At, when: m.When, sent: 1, class: m.Class}
			q.nplaces++
		}
		return
	}
	p := &q.places[n]
	if p.got >= p.sent { // all it was asked before is answered: this is told apart
		p.sent, p.got = 0, 0
	}
	p.when, p.sent = m.When, p.sent+1
	if p.sent == 0 { // so often that it has wrapped
		p.sent--
	}
	if n != 0 {
		return
	}
	if !q.isDone {
		d.count(q, now, func(p *DNS, r *DNSResolver) { p.Retries++; r.Retries++ })
		return
	}
	d.done.remove(&d.questions, i)
	q.isDone, q.expired, q.elsewhere, q.since = false, false, false, m.When
	d.waiting.push(&d.questions, i)
	d.count(q, now, func(p *DNS, r *DNSResolver) { p.Queries++; r.Queries++ })
}

func (d *dnsMatcher) answer(m *DNSMessage, k *dnsKey, now int64) {
	i := d.find(m, k)
	if i == 0 {
		d.figures.Unasked++
		return
	}
	q := d.questions.at(i)
	n := q.place(m.At.opposite())
	if n == int(q.nplaces) {
		q.elsewhere, q.rcode, q.records = true, m.Rcode, m.Records
		return
	}
	p := &q.places[n]
	if p.got >= p.sent {
		d.figures.Duplicates++
		return
	}
	var took int64 // 0: to which of several questions this is the answer is not known
	if p.got++; p.sent == 1 {
		took = max(m.When-p.when, 0)
	}
	if took > 0 && q.firstOfClass(n) {
		d.resolvers.measured(q, p.class, took)
	}
	switch {
	case n != 0:
	case !q.isDone:
		d.answered(i, m.Rcode, m.Records, took, m.When, now)
	case q.expired:
		q.expired = false
		q.server.Late++
	default:
		d.figures.Duplicates++
	}
}

// answered ends the wait of the question with index i.
func (d *dnsMatcher) answered(i uint32, rcode, records uint16, took, when, now int64) {
	q := d.questions.at(i)
	d.finish(i, when)
	d.resolvers.answers(q.server)
	d.count(q, now, func(p *DNS, r *DNSResolver) {
		p.Answers++
		p.rcode(rcode)
		r.Rcodes[rcode&15]++
		if took > 0 {
			p.Latency.add(RTT{Count: 1, Sum: time.Duration(took), Min: time.Duration(took), Max: time.Duration(took)})
		}
		p.tell(DNSQuestion{Name: q.name, Type: q.kind, Rcode: rcode, Records: records, Latency: time.Duration(took)})
	})
}

// finish moves the question with index i to those that are done.
func (d *dnsMatcher) finish(i uint32, when int64) {
	q := d.questions.at(i)
	d.waiting.remove(&d.questions, i)
	q.isDone, q.since = true, when
	d.done.push(&d.questions, i)
}

// expire ends the wait of all that were asked a time-out before read, the kernel's
// time until which all messages are known.
func (d *dnsMatcher) expire(read, now int64) {
	for i := d.waiting.first; i != 0; i = d.waiting.first {
		q := d.questions.at(i)
		if read-q.since < d.timeout {
			break
		}
		d.changed = true
		if q.elsewhere {
			d.answered(i, q.rcode, q.records, 0, q.since+d.timeout, now)
			continue
		}
		d.finish(i, q.since+d.timeout)
		q.expired = true
		d.count(q, now, func(p *DNS, r *DNSResolver) {
			p.Timeouts++
			r.Timeouts++
			p.tell(DNSQuestion{Name: q.name, Type: q.kind, Timeout: true})
		})
	}
	for i := d.done.first; i != 0 && read-d.questions.at(i).since >= dnsRemember*d.timeout; i = d.done.first {
		d.drop(i)
	}
}

// add follows a question that is new; 0: there is no room.
func (d *dnsMatcher) add(m *DNSMessage, k *dnsKey) uint32 {
	if !d.roomAlike(k) {
		return 0
	}
	if d.questions.taken() >= maxDNSQuestions {
		if d.done.first == 0 {
			return 0
		}
		d.drop(d.done.first)
	}
	i := d.questions.take()
	q := d.questions.at(i)
	q.key, q.name, q.kind, q.since = *k, m.Name, m.Type, m.When
	q.server = d.resolvers.find(m.Key.Dst, m.Key.Proto)
	q.also = d.index[*k]
	d.index[*k] = i
	d.waiting.push(&d.questions, i)
	return i
}

// roomAlike makes room for one more question with that key.
func (d *dnsMatcher) roomAlike(k *dnsKey) bool {
	n, done := 0, uint32(0)
	for i := d.index[*k]; i != 0; i = d.questions.at(i).also {
		if n++; d.questions.at(i).isDone {
			done = i
		}
	}
	if n < maxDNSAlike {
		return true
	}
	if done != 0 {
		d.drop(done)
	}
	return done != 0
}

// drop forgets the question with index i, which is done.
func (d *dnsMatcher) drop(i uint32) {
	q := d.questions.at(i)
	d.done.remove(&d.questions, i)
	if first := d.index[q.key]; first != i {
		for d.questions.at(first).also != i {
			first = d.questions.at(first).also
		}
		d.questions.at(first).also = q.also
	} else if q.also != 0 {
		d.index[q.key] = q.also
	} else {
		delete(d.index, q.key)
	}
	d.questions.give(i)
}

// place is the index of the point among those that q passed, or their number.
func (q *dnsAsked) place(at Point) int {
	for n := range q.places[:q.nplaces] {
		if q.places[n].at == at {
			return n
		}
	}
	return int(q.nplaces)
}

// firstOfClass reports whether no earlier place of q is of the class of the n-th:
// what passes three veths is one lookup of that class.
func (q *dnsAsked) firstOfClass(n int) bool {
	for i := range n {
		if q.places[i].class == q.places[n].class {
			return false
		}
	}
	return true
}

// opposite is where what went through p comes back: the same device's other hook.
func (p Point) opposite() Point {
	if p.Hook == HookEgress {
		p.Hook = HookIngress
	} else {
		p.Hook = HookEgress
	}
	return p
}

// dnsQueue is a list of questions through their prev and next, oldest first.
type dnsQueue struct {
	first, last uint32
	n           int
}

func (l *dnsQueue) push(s *slab[dnsAsked], i uint32) {
	q := s.at(i)
	q.prev, q.next = l.last, 0
	if l.last != 0 {
		s.at(l.last).next = i
	} else {
		l.first = i
	}
	l.last = i
	l.n++
}

func (l *dnsQueue) remove(s *slab[dnsAsked], i uint32) {
	q := s.at(i)
	if q.prev != 0 {
		s.at(q.prev).next = q.next
	} else {
		l.first = q.next
	}
	if q.next != 0 {
		s.at(q.next).prev = q.prev
	} else {
		l.last = q.prev
	}
	l.n--
}
