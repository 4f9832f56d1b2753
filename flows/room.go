// SPDX-License-Identifier: Apache-2.0

package flows

// room makes sure that one more conversation fits. Not: nothing more may be
// closed in this drain.
func (t *Table) room() bool {
	if t.convs.taken() < t.max {
		return true
	}
	i := t.victims.next(&t.convs, t.drain)
	if i != 0 {
		t.close(i, EndLackOfResources)
	}
	return i != 0
}

// victims queues every conversation, the longest silent first, when the first
// one has to be closed early in a drain. At most one index a conversation.
type victims struct {
	queue []uint32
	at    int
	again bool   // second pass: also those that gained something in this drain
	drain uint32 // of the queue
}

// next is the conversation to close early; 0: none is left in this drain.
func (v *victims) next(x *conversations, drain uint32) uint32 {
	if v.drain != drain {
		v.fill(x, drain)
	}
	for {
		for v.at < len(v.queue) {
			i := v.queue[v.at]
			v.at++
			if c := x.at(i); c.is(convLive) && (v.again || c.drain != drain) {
				return i
			}
		}
		if v.again {
			return 0
		}
		v.again, v.at = true, 0
	}
}

// fill sorts the conversations by the drains since they last gained, counting;
// those of 63 and more drains are alike.
func (v *victims) fill(x *conversations, drain uint32) {
	const oldest = 63
	age := func(c *conversation) int { return oldest - int(min(drain-c.drain, oldest)) }
	var start [oldest + 2]int
	for i := uint32(1); i < x.end; i++ {
		if c := x.at(i); c.is(convLive) {
			start[age(c)+1]++
		}
	}
	for k := range oldest {
		start[k+1] += start[k]
	}
	*v = victims{queue: append(v.queue[:0], make([]uint32, x.taken())...), drain: drain}
	for i := uint32(1); i < x.end; i++ {
		if c := x.at(i); c.is(convLive) {
			v.queue[start[age(c)]] = i
			start[age(c)]++
		}
	}
}
