// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math/rand/v2"
	"time"
)

// Bounds of a [Table] that are not options.
const (
	// maxHops is how many points a conversation may be seen at in each
	// direction; what further ones count is SkipHopLimit.
	maxHops = 32
	// moreHops bounds all hops together: one and that many more, on average, for
	// every conversation the table may hold. The same happens at the bound.
	moreHops = 3
	// remember is for how many idle time-outs a TCP connection whose handshake
	// was seen keeps its source and ConnectionID while it is silent.
	remember = 20
)

// TableOptions bounds a [Table]. The zero value works.
type TableOptions struct {
	// ActiveTimeout is how long a record's period may be. 0: 60 s.
	ActiveTimeout time.Duration
	// IdleTimeout is how long a conversation may be silent before its record is
	// closed. 0: 15 s. Both are kept to the drain interval.
	IdleTimeout time.Duration
	// MaxConversations bounds the conversations held. 0: 131072. At the bound,
	// the one that has been silent for longest is closed early, with
	// EndLackOfResources, for each new one. No more than twice the bound are
	// closed so in one drain; samples of new conversations beyond that are
	// counted as SkipConversationLimit.
	// Memory: 176 bytes a conversation with its first hop, 48 for each further
	// hop (at most 3 times MaxConversations), 11 to 22 for the index, and as much again for
	// that of TCP connections unless Apart: at most 45 MiB by default; and 72 for each end
	// whose socket is on this host and told something, at most 18 MiB. Taken as needed,
	// never returned.
	MaxConversations int
	// DNSTimeout is how long a DNS question waits for its answer. 0: 5 s. Memory, once
	// there is DNS: 6 MiB for 16,384 questions, and 250 bytes for each of at most 65,536
	// conversations that wait for their record; taken as needed.
	DNSTimeout time.Duration
	// Places names hops. It is asked by the goroutine that calls Fold and Close.
	// Nil: names come from the accounts only.
	Places Places
	// Translations says which conversations are views of one connection whose addresses
	// the kernel translates: they have one record. It is asked as Places is. Nil: only TCP
	// connections whose handshake was seen are joined, by their ConnectionID.
	Translations Translations
	// Apart keeps the views of a connection apart: a record for each.
	Apart bool
}

// Table folds batches into conversations and closes those into records, and
// keeps the ledger while it does. Its only clock is [Batch.At]. Not safe for
// concurrent use; the windows it returns share nothing with it.
type Table struct {
	active, idle int64 // nanoseconds
	max          int   // conversations
	perDrain     int   // records that time-outs may close in a drain

	convs    conversations
	hops     slab[hop]
	health   slab[TCPHealth] // of hops: at most one each
	troubles slab[trouble]   // of conversations: at most one each
	points   points

	read    sources         // how far each source was read
	sources []SourceAccount // of the last drain, as the next two
	devices []DeviceDrops
	unseen  []DeviceFrames
	left    TCPAccount
	dns     dnsMatcher
	times   []Latency // the kernel's, as they were last read

	examples exemplars

	translations Translations
	late         bool // translations of packets before this drain may still become known
	apart        bool
	ids          connIndex

	later []Sample // of ports that are used again while their connection has not ended yet, as far as this drain has told

	sockets   slab[socketEnd]
	unmatched uint64 // events of sockets that are in no record

	epoch  time.Time
	now    int64  // the current batch: nanoseconds since epoch
	opened int64  // the end of the drain before this one: the same
	drain  uint32 // number of the current one, from 1
	hand   uint32 // the conversation that the next sweep starts at

	records []Record // of this drain
	expect  int      // records of the last one: what to make room for
	made    uint64   // ever
	victims victims
	ahead   uint32 // no meaning: what foldSome read, so that it does read it
}

// NewTable returns an empty table.
func NewTable(o TableOptions) *Table {
	if o.ActiveTimeout <= 0 {
		o.ActiveTimeout = 60 * time.Second
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 15 * time.Second
	}
	if o.MaxConversations <= 0 {
		o.MaxConversations = 1 << 17
	}
	return &Table{
		active: int64(o.ActiveTimeout), idle: int64(o.IdleTimeout),
		max: o.MaxConversations, perDrain: max(1024, o.MaxConversations/8),
		convs:        newConversations(),
		points:       points{index: map[Point]uint32{}, places: o.Places},
		dns:          newDNSMatcher(o.DNSTimeout),
		translations: o.Translations, apart: o.Apart, ids: connIndex{seed: rand.Uint64()},
		examples: exemplars{series: map[LatencyKey]*exampled{}},
		drain:    1,
	}
}

// Fold takes one batch. With the drain's final batch it is done, and w holds the
// records that ended and the ledger; the ledger's Sinks are the caller's to
// fill. It keeps nothing of b.
//
// Conversations end as [Record.EndReason] says: TCP that has finished, at the
// first drain that brings nothing more; silence; and a period's end. Time-outs
// close at most an eighth of MaxConversations (but 1024) in one drain and the
// rest in the next ones, so that many conversations that began together do not
// make one huge window. A conversation that gained nothing since its last
// record ends without another.
func (t *Table) Fold(b Batch) (w Window, done bool) {
	t.clock(b.At)
	t.late = t.translations != nil && !t.apart && t.translations.Late(b.At.UnixNano())
	for rest := b.Flows; len(rest) > 0; {
		n := min(len(rest), lookahead)
		t.foldSome(rest[:n])
		rest = rest[n:]
	}
	for i := range b.DNS {
		t.dns.message(&b.DNS[i], t.now)
	}
	if !b.Final {
		return Window{}, false
	}
	t.foldLater()
	t.settleExamples()
	t.dropped(b.Drops)
	t.dns.expire(b.Seen.DNS.Read, t.now)
	t.foldSockets(b.Sockets)
	t.points.account(b.Seen, t.drain)
	t.sources, t.devices, t.unseen, t.left = t.read.account(&b.Seen), b.Seen.Devices, b.Seen.Unseen, b.Seen.TCP
	t.sweep()
	w = t.window(b.At)
	t.dns.sweep(t.now, 2*max(t.active, t.idle))
	w.Latencies, w.TCP = t.latencies(b.Latencies), b.Seen.TCP
	w.DNS = t.dns.show(b.Seen.DNS)
	t.drain++
	t.opened = t.now
	return w, true
}

// Close ends every open conversation, with EndForced unless TCP had finished it,
// and returns the last window. The table is empty then.
func (t *Table) Close(at time.Time) Window {
	t.clock(at)
	t.foldLater()
	for i := uint32(1); i < t.convs.end; i++ {
		if c := t.convs.at(i); c.is(convLive) {
			t.close(i, EndForced)
		}
	}
	return t.window(at)
}

// Conversations is how many are held now: open ones, and silent connections
// that are remembered. For the goroutine that calls Fold.
func (t *Table) Conversations() int { return t.convs.taken() }

// clock sets now from at, by the monotonic clock if at has it.
func (t *Table) clock(at time.Time) {
	if t.epoch.IsZero() {
		t.epoch = at
	}
	t.now = int64(at.Sub(t.epoch))
}

// window hands the records away.
func (t *Table) window(at time.Time) Window {
	w := Window{End: at, Records: t.records, Ledger: t.points.ledger(at, t.made)}
	w.Ledger.Sources, w.Ledger.Devices, w.Ledger.Unseen, w.Ledger.TCP = t.sources, t.devices, t.unseen, t.left
	w.Ledger.SocketsUnmatched = t.unmatched
	t.records, t.expect = nil, len(t.records)
	return w
}

// lookahead is how many samples are folded together: 8 and 32 are slower.
const lookahead = 16

// foldSome folds at most lookahead samples. Before it folds the first it reads
// a little of the conversation that each of them probably belongs to: the
// processor then waits for their cache lines all at once, not one after another.
func (t *Table) foldSome(some []Sample) {
	var keys [lookahead]convKey
	var from [lookahead]side
	var hash, near [lookahead]uint32
	mask := uint32(len(t.convs.slots) - 1)
	for i := range some {
		from[i] = keys[i].pack(&some[i])
		hash[i] = t.convs.hashOf(&keys[i])
	}
	for i := range some {
		near[i] = t.convs.slots[hash[i]&mask].conv
	}
	for _, i := range near {
		if i != 0 {
			c := t.convs.at(i)
			t.ahead ^= uint32(c.key.a.lo) ^ c.first.where ^ c.drain
		}
	}
	for i := range some {
		t.fold(&some[i], &keys[i], hash[i], from[i])
	}
}

// fold adds one sample to its conversation, now or with the drain's last batch.
func (t *Table) fold(s *Sample, key *convKey, hash uint32, from side) {
	if !t.postponed(s, key, hash, from) {
		t.foldNow(s, key, hash, from)
	}
}

// foldNow adds one sample to its conversation, or counts why not.
func (t *Table) foldNow(s *Sample, key *convKey, hash uint32, from side) {
	n := Count{s.Packets, s.Bytes}
	if n == (Count{}) {
		t.learnLater(s, key, hash, from)
		return
	}
	pi := t.points.find(s.At, t.drain)
	p := t.points.at(pi)
	i := t.convs.find(key, hash)
	if i != 0 && t.restarts(i, s, from) {
		t.close(i, EndOfFlow)
		i, t.examples.closed = 0, true
	}
	if i == 0 {
		if !t.room() {
			p.skip(SkipConversationLimit, n)
			return
		}
		i = t.convs.add(key, hash)
	}
	c := t.convs.at(i)
	h := t.hop(c, pi, from)
	if h == nil {
		p.skip(SkipHopLimit, n)
		return
	}
	if c.nhops[from] == 1 && h.count() == (Count{}) && c.dscp[from] == 0 {
		c.dscp[from] = s.DSCP
	}
	goesOn := h.packets > 0
	h.gain(s)
	if was := t.learn(h, s); s.TCP.RTT.Count > 0 || s.TCP.Handshake > 0 {
		t.see(i, s, from, was, goesOn)
	}
	p.fold(n)
	t.gain(i, c, s, from)
}

// gain notes what s says about its conversation, which has the index i.
func (t *Table) gain(i uint32, c *conversation, s *Sample, from side) {
	if !c.is(convGained) {
		c.state |= convGained
		c.opened = t.opened
	}
	c.last, c.drain = t.now, t.drain
	if s.Key.Proto != ProtoTCP {
		return
	}
	c.flags[from] |= s.TCPFlags
	if s.New && s.FirstFlags&FlagSYN != 0 {
		known := c.knows(0) && c.knows(1)
		c.handshake(s, from)
		if id := c.connectionID(); !known && id != 0 && !t.apart {
			t.ids.add(id, i)
		}
	}
}

// sweep closes what has ended or timed out. It begins where the last one had
// to leave time-outs for later.
func (t *Table) sweep() {
	left, i := t.perDrain, t.hand
	t.hand = 0
	for n := t.convs.end; n > 1; n-- {
		if i == 0 || i >= t.convs.end {
			i = 1
		}
		t.expire(i, &left)
		i++
	}
}

// expire closes the conversation with index i, or only its record, if it is time.
// left is how many more time-outs this drain may close.
func (t *Table) expire(i uint32, left *int) {
	c := t.convs.at(i)
	silent, over := t.now-c.last >= t.idle, t.now-c.opened >= t.active
	switch {
	case !c.is(convLive):
	case c.drain != t.drain && c.finished():
		if !t.waits(c, c.last) && (over || !t.busy(c, func(p *conversation) bool { return p.drain == t.drain })) {
			t.close(i, EndOfFlow)
		}
	case !c.is(convGained):
		if silent && t.remembers(c) {
			t.dropIdle(c)
		} else if silent {
			t.close(i, EndIdleTimeout)
		}
	case !silent && !over:
	case *left == 0:
		if t.hand == 0 {
			t.hand = i
		}
	case !over && t.busy(c, func(p *conversation) bool { return t.now-p.last < t.idle }), t.waits(c, min(c.last+t.idle, c.opened+t.active)):
	default:
		*left--
		why := EndActiveTimeout
		if silent {
			why = EndIdleTimeout
		}
		if c.finished() || silent && !t.remembers(c) {
			t.close(i, why)
		} else {
			t.record(c, why)
		}
	}
}

// remembers reports whether a silent conversation is kept, without hops: a
// connection whose handshake was seen, for a while.
func (t *Table) remembers(c *conversation) bool {
	return c.connectionID() != 0 && t.now-c.last < remember*t.idle
}

// close ends the conversation with index i.
func (t *Table) close(i uint32, why EndReason) {
	c := t.convs.at(i)
	t.record(c, why)
	t.dropIdle(c)
	t.forgetSockets(c)
	t.forgetDrops(c)
	if id := c.connectionID(); id != 0 && !t.apart {
		t.ids.remove(id, i)
	}
	t.convs.remove(i)
}
