// SPDX-License-Identifier: Apache-2.0

package flows

// restarts reports whether s begins a new connection with the ports of the one
// with index i, which has ended or has been silent since its last record. The
// initial sequence numbers tell; where they are not known, time does.
func (t *Table) restarts(i uint32, s *Sample, from side) bool {
	if !s.New || s.FirstFlags&FlagSYN == 0 {
		return false
	}
	c := t.convs.at(i)
	if c.is(convGained) && !c.finished() {
		return false
	}
	if other, known := c.contradicts(s, from); known {
		return other
	}
	for h := &c.first; h != nil; h = t.after(h) {
		if h.last >= s.First {
			return false
		}
	}
	return true
}

// maxLater bounds the samples that wait for the end of their drain.
const maxLater = 1024

// foldLater folds the samples that waited. What has ended meanwhile gives way; of what goes on they are
// a part, as a stranger's SYN is.
func (t *Table) foldLater() {
	for i := range t.later {
		s := &t.later[i]
		var key convKey
		from := key.pack(s)
		t.foldNow(s, &key, t.convs.hashOf(&key), from)
	}
	t.later = t.later[:0]
}

// postponed keeps s for the end of the drain if it begins another connection than that of key,
// whose end another CPU's flow or another point may yet tell.
func (t *Table) postponed(s *Sample, key *convKey, hash uint32, from side) bool {
	if !s.New || s.FirstFlags&FlagSYN == 0 || len(t.later) == maxLater || s.Packets|s.Bytes == 0 {
		return false
	}
	i := t.convs.find(key, hash)
	if i == 0 || t.restarts(i, s, from) {
		return false
	}
	if other, _ := t.convs.at(i).contradicts(s, from); !other {
		return false
	}
	t.later = append(t.later, *s)
	return true
}
