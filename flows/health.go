// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"slices"
	"time"
)

// trouble is what was dropped of a conversation in the period.
type trouble struct {
	packets uint64
	reasons [4]reasonCount // the first four reasons; others only add to packets
}

type reasonCount struct {
	reason  string
	packets uint64
}

func (d *trouble) add(reason string, packets uint64) {
	d.packets += packets
	for i := range d.reasons {
		r := &d.reasons[i]
		if r.packets == 0 {
			r.reason = reason
		}
		if r.reason == reason {
			r.packets += packets
			return
		}
	}
}

// learn adds what s measured of TCP to c's hop h; the handshake that was known before is was.
func (t *Table) learn(h *hop, s *Sample) (was time.Duration) {
	if s.TCP == (TCPHealth{}) {
		return 0
	}
	if h.tcp == 0 {
		h.tcp = t.health.take()
	}
	health := t.health.at(h.tcp)
	was = health.Handshake
	health.add(&s.TCP)
	return was
}

// learnLater adds what was measured of packets that an earlier sample counted. A conversation
// that has gone meanwhile is not begun anew for it.
func (t *Table) learnLater(s *Sample, key *convKey, hash uint32, from side) {
	i := t.convs.find(key, hash)
	if i == 0 || s.TCP == (TCPHealth{}) {
		return
	}
	for h := &t.convs.at(i).first; h != nil; h = t.after(h) {
		if h.from() == from && t.pointOf(h).at == s.At {
			t.learn(h, s)
			return
		}
	}
}

// dropped adds the drops of a drain to the conversations they are of. A drop of a
// conversation that is not known, as of a packet that never reached a watched
// device, stays in the drop account only.
func (t *Table) dropped(drops []DropSample) {
	for i := range drops {
		d := &drops[i]
		if d.Overflow || d.Key.Proto == 0 || d.Class == DropNoise {
			continue
		}
		var key convKey
		key.pack(&Sample{Key: d.Key, At: Point{Netns: d.At.Netns}, Domain: d.Domain})
		var c *conversation
		if at := t.convs.find(&key, t.convs.hashOf(&key)); at != 0 {
			c = t.convs.at(at)
		}
		if c, _ = t.held(c, 0, Scope{Netns: key.netns}, d.Key, d.First, d.Last); c == nil {
			continue
		}
		if c.trouble == 0 {
			c.trouble = t.troubles.take()
		}
		t.troubles.at(c.trouble).add(d.Reason, d.Packets)
	}
}

// recordDrops adds up what was dropped in all views: a packet is in one of them.
func (t *Table) recordDrops(r *Record, v *views) {
	var reasons []reasonCount
	for _, w := range v.all() {
		if w.c.trouble == 0 {
			continue
		}
		d := t.troubles.at(w.c.trouble)
		r.Dropped += d.packets
		for _, n := range d.reasons {
			i := slices.IndexFunc(reasons, func(o reasonCount) bool { return o.reason == n.reason })
			if i < 0 {
				i, reasons = len(reasons), append(reasons, reasonCount{reason: n.reason})
			}
			reasons[i].packets += n.packets
		}
		t.forgetDrops(w.c)
	}
	most := uint64(0)
	for _, n := range reasons {
		if n.packets > most {
			r.DropReason, most = n.reason, n.packets
		}
	}
}

// forgetDrops lets go of what was dropped of c. What came after its last record is in
// the drop account alone.
func (t *Table) forgetDrops(c *conversation) {
	if c.trouble != 0 {
		t.troubles.give(c.trouble)
		c.trouble = 0
	}
}

// tell adds to r what v's view with index i knows beyond counts.
func (t *Table) tell(r *Record, v *views, i int) {
	c, src := v.of[i].c, v.of[i].src
	if r.TCP == nil {
		return
	}
	for h := &c.first; h != nil; h = t.after(h) {
		if h.tcp == 0 {
			continue
		}
		health := t.health.at(h.tcp)
		if health.Options&TCPQueueFull != 0 && r.TCP.Failure == FailUnanswered {
			r.TCP.Failure = FailBacklog
		}
		if v.makesTotal(i, h) {
			if h.from() == src {
				r.TCP.Source = *health
			} else {
				r.TCP.Destination = *health
			}
		}
		*health = health.lasting()
	}
}

// lasting is what is known of the connection whatever the period.
func (t *TCPHealth) lasting() TCPHealth {
	return TCPHealth{Handshake: t.Handshake, MSS: t.MSS, WindowScale: t.WindowScale, Options: t.Options}
}

// failure is how the connection failed, as far as flags tell.
func (c *conversation) failure(why EndReason) Failure {
	if !c.is(convSYN) {
		if (c.flags[0]|c.flags[1])&FlagRST != 0 && !c.closed() {
			return FailReset
		}
		return FailNone
	}
	asked, answer := c.flags[c.opener()], c.flags[1-c.opener()]
	over := why != EndActiveTimeout
	switch {
	case answer == 0:
		if over && asked&^(FlagECE|FlagCWR) == FlagSYN {
			return FailUnanswered
		}
	case answer&FlagSYN == 0:
		if answer&FlagRST != 0 && asked&FlagACK == 0 {
			return FailRefused
		}
	case asked&FlagACK == 0:
		if asked&FlagRST != 0 {
			return FailAborted
		}
		if over {
			return FailHalfOpen
		}
	}
	if (asked|answer)&FlagRST != 0 && !c.closed() {
		return FailReset
	}
	return FailNone
}

// closed: both sides said that they were done. What is reset then fails nobody.
func (c *conversation) closed() bool { return c.flags[0]&c.flags[1]&FlagFIN != 0 }
