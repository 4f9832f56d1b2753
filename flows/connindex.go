// SPDX-License-Identifier: Apache-2.0

package flows

import "iter"

// connIndex finds conversations by their ConnectionID, several of which may have the
// same: an open-addressed index with linear probing, at most three quarters full. 8
// bytes a slot; at most one entry a conversation.
type connIndex struct {
	slots []convSlot // a power of two; nil: none
	seed  uint64     // random: a peer cannot aim at one slot
	taken int
}

func (x *connIndex) hashOf(id uint64) uint32 { return uint32(mix(id^x.seed, 0x9e3779b97f4a7c15)) }

// add notes the conversation with index i, whose identifier is id.
func (x *connIndex) add(id uint64, i uint32) {
	if x.taken >= len(x.slots)/4*3 {
		old := x.slots
		x.slots = make([]convSlot, max(1024, 2*len(old)))
		for _, s := range old {
			if s.conv != 0 {
				x.place(s)
			}
		}
	}
	x.taken++
	x.place(convSlot{x.hashOf(id), i})
}

func (x *connIndex) place(s convSlot) {
	mask := uint32(len(x.slots) - 1)
	at := s.hash & mask
	for x.slots[at].conv != 0 {
		at = (at + 1) & mask
	}
	x.slots[at] = s
}

// each yields the conversations with that identifier.
func (x *connIndex) each(convs *conversations, id uint64) iter.Seq[*conversation] {
	return func(yield func(*conversation) bool) {
		if x.taken == 0 {
			return
		}
		mask, hash := uint32(len(x.slots)-1), x.hashOf(id)
		for at := hash & mask; x.slots[at].conv != 0; at = (at + 1) & mask {
			if s := x.slots[at]; s.hash == hash {
				if c := convs.at(s.conv); c.connectionID() == id && !yield(c) {
					return
				}
			}
		}
	}
}

// remove forgets the conversation with index i and moves those that follow its slot
// back, so that no probe meets a hole.
func (x *connIndex) remove(id uint64, i uint32) {
	mask := uint32(len(x.slots) - 1)
	hole := x.hashOf(id) & mask
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
	x.taken--
}
