// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"hash/maphash"
	"log/slog"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// budget is how many bytes all dictionaries of names together take.
type budget struct{ used int }

// An entry costs so much beside its text: its place, its slot, room for more of both.
const entryBytes = 32

// dictionary is the texts of a column, each once: an id is a text's place. Texts are
// only ever added, so that arrays of before go on being right.
type dictionary struct {
	text    []byte
	offsets []int32
	slots   buckets
	seed    maphash.Seed
	budget  *budget
	array   *array.Data // of the first so many; nil: none was made
}

// buckets find ids, which count from 0, by the hash of what they are of: a power of two
// of places, at most half of them taken.
type buckets []bucket

// bucket is a place; the entry is an id and one.
type bucket struct {
	hash  uint32
	entry int32
}

func newBuckets() buckets { return make(buckets, 16) }

// find is the id with a hash that is the one; false: there is none.
func (b buckets) find(hash uint32, is func(id int32) bool) (int32, bool) {
	mask := uint32(len(b) - 1) //nolint:gosec // at most 2^31
	for i := hash & mask; b[i].entry != 0; i = (i + 1) & mask {
		if e := b[i]; e.hash == hash && is(e.entry-1) {
			return e.entry - 1, true
		}
	}
	return 0, false
}

// add takes the next id.
func (b *buckets) add(hash uint32, id int32) {
	if 2*(int(id)+1) > len(*b) {
		old := *b
		*b = make(buckets, 2*len(old))
		for _, e := range old {
			if e.entry != 0 {
				b.take(e)
			}
		}
	}
	b.take(bucket{hash, id + 1})
}

func (b buckets) take(e bucket) {
	mask := uint32(len(b) - 1) //nolint:gosec // at most 2^31
	i := e.hash & mask
	for b[i].entry != 0 {
		i = (i + 1) & mask
	}
	b[i] = e
}

func (d *dictionary) len() int { return len(d.offsets) - 1 }

// forget begins anew. What was made of it before keeps its texts.
func (d *dictionary) forget() {
	*d = dictionary{offsets: []int32{0}, slots: newBuckets(), seed: maphash.MakeSeed(), budget: d.budget}
}

// id is the id of s, which is added when it is new.
func (d *dictionary) id(s string) int32 {
	hash := uint32(maphash.String(d.seed, s)) //nolint:gosec // half of it will do
	if id, ok := d.find(hash, s); ok {
		return id
	}
	if !utf8.ValidString(s) { // as OTLP has it
		return d.id(strings.ToValidUTF8(s, "\uFFFD"))
	}
	d.text = append(d.text, s...)
	return d.added(hash)
}

func (d *dictionary) find(hash uint32, s string) (int32, bool) {
	return d.slots.find(hash, func(id int32) bool { return string(d.text[d.offsets[id]:d.offsets[id+1]]) == s })
}

// added makes what was appended to text an entry.
func (d *dictionary) added(hash uint32) int32 {
	id := int32(d.len()) //nolint:gosec // the budget is far below 2^31
	d.budget.used += len(d.text) - int(d.offsets[id]) + entryBytes
	d.offsets = append(d.offsets, int32(len(d.text))) //nolint:gosec // as above
	d.slots.add(hash, id)
	return id
}

// data is the dictionary as Arrow has it: the same as before when nothing was added.
func (d *dictionary) data() *array.Data {
	if d.array == nil || d.array.Len() != d.len() {
		d.array = array.NewData(arrow.BinaryTypes.String, d.len(), []*memory.Buffer{nil,
			memory.NewBufferBytes(arrow.GetBytes(d.offsets)), memory.NewBufferBytes(d.text)}, nil, 0, 0)
	}
	return d.array
}

// interned is a column of texts that repeat: ids into its dictionary.
type interned[I int16 | int32] struct {
	fixed[I]
	dict dictionary
	last struct {
		text string
		id   int32
		ok   bool
	}
}

func newInterned[I int16 | int32](name string, index arrow.DataType, b *budget) *interned[I] {
	c := &interned[I]{fixed: *newFixed[I](name, &arrow.DictionaryType{IndexType: index, ValueType: arrow.BinaryTypes.String})}
	c.dict.budget = b
	c.forget()
	return c
}

// names is a column of any texts.
type names = interned[int32]

func newNames(name string, b *budget) *names {
	return newInterned[int32](name, arrow.PrimitiveTypes.Int32, b)
}

func (c *interned[I]) forget() {
	c.dict.forget()
	c.last.ok = false
}

// text sets a row to s.
func (c *interned[I]) text(row int, s string) {
	if !c.last.ok || s != c.last.text {
		c.last.text, c.last.id, c.last.ok = s, c.dict.id(s), true
	}
	c.set(row, I(c.last.id))
}

// put does not remember the text, which may be of the record's [words].
func (c *interned[I]) put(row int, v slog.Value) { c.set(row, I(c.dict.id(v.String()))) }

func (c *interned[I]) data(rows int) arrow.ArrayData {
	if rows > len(c.values) {
		c.grow(rows)
	}
	valid, nulls := c.bitmap(rows)
	return array.NewDataWithDictionary(c.of, rows, []*memory.Buffer{valid,
		memory.NewBufferBytes(arrow.GetBytes(c.values[:rows]))}, nulls, 0, c.dict.data())
}

// enum is a column of the names of a byte's values, each made once. Its dictionary has
// at most 256 entries and is never replaced.
type enum struct {
	interned[int16]
	known [256]int16 // the id and one; -1: has no name
	name  func(uint8) string
}

func newEnum(name string, of func(uint8) string) *enum {
	return &enum{interned: *newInterned[int16](name, arrow.PrimitiveTypes.Int16, &budget{}), name: of}
}

// value sets a row, for which there is room, to the name of v, if it has one.
func (c *enum) value(row int, v uint8) {
	id := c.known[v]
	if id == 0 {
		id = c.learn(v)
	}
	if id > 0 {
		c.fill(row, id-1)
	}
}

func (c *enum) learn(v uint8) int16 {
	c.known[v] = -1
	if s := c.name(v); s != "" {
		c.known[v] = int16(c.dict.id(s)) + 1 //nolint:gosec // at most 256
	}
	return c.known[v]
}

// addresses is a column of addresses as text.
type addresses struct {
	names
	slots buckets
	keys  []netip.Addr // by id
}

func newAddresses(name string, b *budget) *addresses {
	c := &addresses{names: *newNames(name, b)}
	c.forget()
	return c
}

func (c *addresses) forget() {
	c.names.forget()
	c.slots, c.keys = newBuckets(), nil
}

// idOf is the id of a; -1: it is none.
func (c *addresses) idOf(a netip.Addr) int32 {
	if !a.IsValid() {
		return -1
	}
	key := a.As16()
	hash := uint32(maphash.Bytes(c.dict.seed, key[:])) //nolint:gosec // half of it will do
	if id, ok := c.slots.find(hash, func(id int32) bool { return c.keys[id] == a }); ok {
		return id
	}
	return c.learn(a, hash)
}

// learn adds a, which is new.
func (c *addresses) learn(a netip.Addr, hash uint32) int32 {
	d := &c.dict
	d.text = a.AppendTo(d.text)
	start := d.offsets[d.len()]
	id := d.added(uint32(maphash.String(d.seed, string(d.text[start:])))) //nolint:gosec // half of it will do
	c.keys = append(c.keys, a)
	d.budget.used += entryBytes
	c.slots.add(hash, id)
	return id
}
