// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"

	"weft/flows"
)

// The bounds of a whoCache: two generations of so many ends and encoded bytes.
const (
	maxWho      = 2048
	maxWhoBytes = 2 << 20
)

// whoCache holds the encoded attributes of the ends that records met last. An Entity
// is never written to once it is shared, so the pointer is its identity; the cache
// keeps what it points to, so no other Entity can take its place. When a generation
// is full, the one before it goes: what is still asked for has moved on by then.
type whoCache struct {
	now, before map[whoKey][]byte
	bytes       int // encoded, in now
	attrs       []slog.Attr
}

// whoKey is an end: the same Entity reads differently as source and as destination,
// and without its process where the record tells that itself.
type whoKey struct {
	who   *flows.Entity
	names *entityNames
	told  bool
}

// append appends the attributes of a log record that say who e is.
func (c *whoCache) append(b []byte, n *entityNames, e *flows.Entity, told bool) []byte {
	if e == nil {
		return b
	}
	key := whoKey{e, n, told}
	encoded, ok := c.now[key]
	if !ok {
		if encoded, ok = c.before[key]; !ok {
			c.attrs = appendWho(c.attrs[:0], n, e, told)
			encoded = appendKeyValues(nil, fieldAttribute, c.attrs)
		}
		c.keep(key, encoded)
	}
	return append(b, encoded...)
}

func (c *whoCache) keep(key whoKey, encoded []byte) {
	if c.now == nil || len(c.now) >= maxWho || c.bytes+len(encoded) > maxWhoBytes {
		c.now, c.before, c.bytes = c.before, c.now, 0
		clear(c.now)
		if c.now == nil {
			c.now = map[whoKey][]byte{}
		}
	}
	c.now[key] = encoded
	c.bytes += len(encoded)
}
