// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math"
	"math/bits"
	"math/rand/v2"
)

// conversation is the state of one live conversation: 176 bytes, no pointers.
type conversation struct {
	key    convKey
	first  hop      // the first of its hops; the others follow it
	flags  [2]uint8 // TCP flags each side has sent, OR
	dscp   [2]uint8 // of each side's first packet
	nhops  [2]uint8 // hops of each direction
	state  convState
	basis  InitiatorBasis // of source, once settled
	isn    [2]uint32      // each side's initial sequence number, when state says so
	socket [2]uint32      // what each side's socket told, in Table.sockets; 0: nothing
	chosen [2]uint32      // where the hop is that makes each direction's total; 0: none yet
	opened int64          // start of the period: nanoseconds since the table's epoch
	last   int64          // the drain that last brought packets: the same
	drain  uint32         // that drain's number
	hash   uint32

	trouble uint32 // in the table's troubles; 0: nothing dropped
	syn     uint32 // when the opener's SYN was first seen, in units of 256 ns, modulo 2^32; 0: it was not
	answer  uint32 // when the SYN-ACK was: the same
}

// convState is a set of facts about a conversation.
type convState uint8

const (
	convLive    convState = 1 << iota
	convGained            // the period holds packets
	convSettled           // source is in a record: it stays
	convSource            // the source is side 1
	convSYN               // the side that opened the connection is known
	convOpener            // it is side 1
	convISN               // side 0's isn is known
	convISN1              // side 1's is
)

func (c *conversation) is(s convState) bool { return c.state&s != 0 }

// source is the side that records are told from.
func (c *conversation) source() side { return sideIf(c.is(convSource)) }

// opener is the side that sent the SYN, when convSYN.
func (c *conversation) opener() side { return sideIf(c.is(convOpener)) }

func sideIf(one bool) side {
	if one {
		return 1
	}
	return 0
}

// knows reports whether the initial sequence number of s is known.
func (c *conversation) knows(s side) bool { return c.is(convISN << s) }

// finished reports whether TCP has ended it: FIN from both sides, or RST.
func (c *conversation) finished() bool {
	return c.flags[0]&c.flags[1]&FlagFIN != 0 || (c.flags[0]|c.flags[1])&FlagRST != 0
}

// handshake reads the first packet of a flow that began with SYN, sent by d.
func (c *conversation) handshake(s *Sample, d side) {
	opener := d
	if s.FirstFlags&FlagACK != 0 {
		opener = 1 - d
		c.learnISN(opener, s.AckNumber-1)
	}
	c.learnISN(d, s.SeqNumber)
	seen := &c.syn
	if d != opener {
		seen = &c.answer
	}
	if at := max(uint32(s.First>>8), 1); *seen == 0 || int32(at-*seen) < 0 {
		*seen = at
	}
	if !c.is(convSYN) {
		c.state |= convSYN
		if opener == 1 {
			c.state |= convOpener
		}
	}
}

func (c *conversation) learnISN(s side, isn uint32) {
	if !c.knows(s) {
		c.isn[s] = isn
		c.state |= convISN << s
	}
}

// contradicts reports whether the SYN or SYN-ACK that s began with belongs to
// another connection than the one c knows; known is false when c cannot say.
func (c *conversation) contradicts(s *Sample, d side) (other, known bool) {
	if c.knows(d) {
		return c.isn[d] != s.SeqNumber, true
	}
	if s.FirstFlags&FlagACK != 0 && c.knows(1-d) {
		return c.isn[1-d] != s.AckNumber-1, true
	}
	return false, false
}

// connectionID is [Record.ConnectionID]. The mixing is a bijection (the finaliser
// of splitmix64), so different pairs of numbers never share an identifier; the one
// pair that would yield zero gets 1.
func (c *conversation) connectionID() uint64 {
	if !c.knows(0) || !c.knows(1) {
		return 0
	}
	o := c.opener()
	x := uint64(c.isn[o])<<32 | uint64(c.isn[1-o])
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return max(x^x>>31, 1)
}

// settle decides the source, once: what the handshake said, else a guess. first
// is when each side was first seen, never for a side that was not.
func (c *conversation) settle(first [2]int64) {
	if c.is(convSettled) {
		return
	}
	source, basis := c.guess(first)
	if c.is(convSYN) {
		source, basis = c.opener(), InitiatorSYN
	}
	c.state |= convSettled
	c.basis = basis
	if source == 1 {
		c.state |= convSource
	}
}

// never is later than every packet.
const never = math.MaxInt64

// guess is the likely initiator when no handshake was seen.
func (c *conversation) guess(first [2]int64) (side, InitiatorBasis) {
	seen := sideIf(first[1] < first[0])
	if c.key.icmp() {
		_, request, paired := icmpPeer(c.key.proto, c.key.aPort)
		asker := sideIf(!request)
		if paired && (first[asker] != never || !c.key.addr(asker).IsMulticast()) {
			return asker, InitiatorICMP
		}
		return seen, InitiatorFirst
	}
	a, b := portRank(c.key.aPort), portRank(c.key.bPort)
	client := sideIf(a < b)
	if a != b && a != 0 && b != 0 && !c.key.addr(client).IsMulticast() {
		return client, InitiatorPort
	}
	return seen, InitiatorFirst
}

// portRank orders ports from a service's to a client's: system ports, those
// below Linux's ephemeral range (32768), the rest. 0: no port.
func portRank(p uint16) int {
	switch {
	case p == 0:
		return 0
	case p < 1024:
		return 1
	case p < 32768:
		return 2
	}
	return 3
}

// conversations finds live conversations by key: an open-addressed index with
// linear probing, at most three quarters full, over a slab. 8 bytes a slot.
type conversations struct {
	slab[conversation]
	seed  [3]uint64  // random: a peer cannot aim at one slot
	slots []convSlot // a power of two
}

type convSlot struct{ hash, conv uint32 } // conv 0: empty

func newConversations() conversations {
	return conversations{seed: [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}, slots: make([]convSlot, 1024)}
}

// hashOf mixes k's words by 64x64-bit multiplications.
func (x *conversations) hashOf(k *convKey) uint32 {
	h := mix(k.netns^x.seed[0], k.rest()^uint64(k.proto)<<40^x.seed[1])
	h = mix(h^k.a.hi, k.a.lo^x.seed[2])
	h = mix(h^k.b.hi, k.b.lo^x.seed[1])
	return uint32(h ^ h>>32)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// find is the index of k's conversation; 0: there is none.
func (x *conversations) find(k *convKey, hash uint32) uint32 {
	mask := uint32(len(x.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		s := x.slots[at]
		if s.conv == 0 {
			return 0
		}
		if s.hash == hash && x.at(s.conv).key.equal(k) {
			return s.conv
		}
	}
}

// add makes a conversation for k, which has none.
func (x *conversations) add(k *convKey, hash uint32) uint32 {
	if x.taken() >= len(x.slots)/4*3 {
		old := x.slots
		x.slots = make([]convSlot, 2*len(old))
		for _, s := range old {
			if s.conv != 0 {
				x.place(s)
			}
		}
	}
	i := x.take()
	c := x.at(i)
	c.key, c.hash, c.state = *k, hash, convLive
	x.place(convSlot{hash, i})
	return i
}

func (x *conversations) place(s convSlot) {
	mask := uint32(len(x.slots) - 1)
	at := s.hash & mask
	for x.slots[at].conv != 0 {
		at = (at + 1) & mask
	}
	x.slots[at] = s
}

// remove forgets the conversation with index i and moves those that follow its
// slot back, so that no probe meets a hole.
func (x *conversations) remove(i uint32) {
	mask := uint32(len(x.slots) - 1)
	hole := x.at(i).hash & mask
	for x.slots[hole].conv != i {
		hole = (hole + 1) & mask
	}
	for at := (hole + 1) & mask; x.slots[at].conv != 0; at = (at + 1) & mask {
		home := x.slots[at].hash & mask
		if (at-home)&mask >= (at-hole)&mask {
			x.slots[hole] = x.slots[at]
			hole = at
		}
	}
	x.slots[hole] = convSlot{}
	x.give(i)
}
