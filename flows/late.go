// SPDX-License-Identifier: Apache-2.0

package flows

// lateWaits is for how long a record waits for what connection tracking has not told yet, ns:
// who reads it did not get to run.
const lateWaits = 3_000_000_000

// waits reports whether c's record, due since the time at, waits: words of its packets may still
// be unread, that it is a view of a translated connection.
func (t *Table) waits(c *conversation, at int64) bool {
	if !t.late || !c.is(convGained) || t.now-at >= lateWaits || !c.key.translatable() {
		return false
	}
	_, last := t.span(c)
	return t.translations.Late(last)
}
