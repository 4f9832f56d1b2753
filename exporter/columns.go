// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"maps"
	"slices"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"weft/flows"
)

// The bounds of a [Columns].
const (
	maxColumnRows   = 16384
	maxDictionaries = 4 << 20 // bytes of text and of finding it; then they are replaced
	maxListedRows   = 4       // hops, questions, labels a record, over a whole batch
)

// ColumnsConfig says what a [Columns] is of. The zero value works.
type ColumnsConfig struct {
	// Rows is the most records of a batch; 0: 16,384, which is also the most.
	Rows int
	// Derived adds what other columns say already: weft.flow.community_id, which is 20
	// bytes of SHA-1 of five of them that nothing compresses, and the packets and bytes of
	// a chosen hop, which are the record's totals in its direction.
	Derived bool
	// Metadata is of the schema: what the records' resource is.
	Metadata map[string]string
}

// ordered is where a record belongs: its protocol, the ids of its two addresses, and
// its place among the records of the call.
type ordered uint64

const (
	recordBits  = 14 // maxColumnRows
	addressBits = 20 // of an id; the bound of dictionaries is a quarter of that many
)

func (o ordered) record() int { return int(o & (1<<recordBits - 1)) }
func (o ordered) dst() int32  { return int32(o>>recordBits&(1<<addressBits-1)) - 1 }
func (o ordered) src() int32  { return int32(o>>(recordBits+addressBits)&(1<<addressBits-1)) - 1 }

// order is where each of records belongs, in the order of the rows. room is as large,
// to sort in.
func (s *columnSet) order(all, room []ordered, records []flows.Record) (sorted, other []ordered) {
	all = slices.Grow(all[:0], len(records))[:len(records)]
	for i := range records {
		k := &records[i].Key
		src, dst := s.src.idOf(k.Src.Addr())+1, s.dst.idOf(k.Dst.Addr())+1
		all[i] = (ordered(k.Proto)<<addressBits|ordered(src))<<(addressBits+recordBits) | ordered(dst)<<recordBits | ordered(i) //nolint:gosec // ids are positive
	}
	room = slices.Grow(room[:0], len(records))[:len(records)]
	for shift := recordBits; shift < 8+2*addressBits+recordBits; shift += sortBits {
		if sortDigit(room, all, shift) {
			all, room = room, all
		}
	}
	return all, room
}

// sortBits is how many bits of an ordered one pass sorts by.
const sortBits = 10

// sortDigit copies from to to in order of one digit, what has the same as it was; false,
// and to as it was: all have the same.
func sortDigit(to, from []ordered, shift int) bool {
	var places [1 << sortBits]int32
	for _, o := range from {
		places[o>>shift&(1<<sortBits-1)]++
	}
	if len(from) == 0 || int(places[from[0]>>shift&(1<<sortBits-1)]) == len(from) {
		return false
	}
	next := int32(0)
	for i, n := range places {
		places[i], next = next, next+n
	}
	for _, o := range from {
		place := &places[o>>shift&(1<<sortBits-1)]
		to[*place] = o
		*place++
	}
	return true
}

// Columns turns flow records into Arrow record batches: one row a record, one column
// an attribute, under its exported name. What is not known is null. Texts are
// dictionaries that only grow, so an id means the same in all batches, until
// [Columns.Replaced] says otherwise.
//
// The schema has the columns that had a value in any batch so far: it grows, at most
// once for each of about 150 names, and never shrinks. Only time_unix_nano, the end of
// the period, is no attribute in OTLP either but a field of its own. A connection's id
// is a number here. Labels are a map; lists are lists of structs.
//
// It is for one goroutine. Its memory: the columns that are in use, of 16,384 rows,
// and 8 MiB of dictionaries.
type Columns struct {
	c        ColumnsConfig
	set      *columnSet
	n        int
	dict     budget
	schema   *arrow.Schema
	all      []vector // in the order of export
	live     []vector // those in schema
	replaced uint64
	attrs    []slog.Attr
	words    words
	order    []ordered
	spare    []ordered
}

// NewColumns is an empty batch. An all-or-nothing schema is not needed to begin.
func NewColumns(c ColumnsConfig) *Columns {
	if c.Rows <= 0 || c.Rows > maxColumnRows {
		c.Rows = maxColumnRows
	}
	b := &Columns{c: c}
	b.set = newColumnSet(&b.dict)
	b.all = b.set.all
	return b
}

// Append adds the first n of records to the batch: fewer than all when it is full, and
// then it has to be taken and Reset. An empty batch takes at least one. The rows of one
// call are in order of protocol, source and destination, and of records within: what
// is alike next to each other compresses to four fifths.
func (b *Columns) Append(records []flows.Record) (n int) {
	n = b.room(records)
	b.order, b.spare = b.set.order(b.order, b.spare, records[:n])
	b.set.reserve(b.n + n)
	for _, o := range b.order {
		b.set.append(b, b.n, &records[o.record()], o)
		b.n++
	}
	return n
}

// room is how many of records the batch takes.
func (b *Columns) room(records []flows.Record) (n int) {
	if b.n > 0 && b.dict.used > 2*maxDictionaries {
		return 0
	}
	listed := b.set.listed()
	for n < min(len(records), b.c.Rows-b.n) {
		r := &records[n]
		if listed += len(r.Hops); r.DNS != nil {
			listed += len(r.DNS.Rcodes) + len(r.DNS.Questions)
		}
		if listed > maxListedRows*b.c.Rows && b.n+n > 0 {
			break
		}
		n++
	}
	return n
}

// Len is how many records are in the batch.
func (b *Columns) Len() int { return b.n }

// Replaced is how often all dictionaries of names were begun anew, since they had
// reached their bound: an id of before means something else after.
func (b *Columns) Replaced() uint64 { return b.replaced }

// Batch is what was appended since the last Reset. It shares the columns' memory: it
// is good until Reset, and its dictionaries for ever.
func (b *Columns) Batch() arrow.RecordBatch {
	b.grow()
	arrays := make([]arrow.Array, len(b.live))
	for i, c := range b.live {
		arrays[i] = array.MakeFromData(c.data(b.n))
	}
	return array.NewRecordBatch(b.schema, arrays, int64(b.n))
}

// grow takes the columns that have a value for the first time into the schema.
func (b *Columns) grow() {
	live := 0
	for _, c := range b.all {
		if c.used() {
			live++
		}
	}
	if b.schema != nil && live == len(b.live) {
		return
	}
	b.live = b.live[:0:0]
	fields := make([]arrow.Field, 0, live)
	for _, c := range b.all {
		if c.used() {
			b.live = append(b.live, c)
			fields = append(fields, c.field())
		}
	}
	b.schema = arrow.NewSchema(fields, b.metadata())
}

func (b *Columns) metadata() *arrow.Metadata {
	names := slices.Sorted(maps.Keys(b.c.Metadata))
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = b.c.Metadata[name]
	}
	m := arrow.NewMetadata(append(names, nameSchema), append(values, strconv.Itoa(SchemaVersion)))
	return &m
}

// Reset empties the batch. The dictionaries stay, unless they have reached their bound.
func (b *Columns) Reset() {
	for _, c := range b.all {
		c.reset()
	}
	b.n = 0
	if b.dict.used > maxDictionaries {
		b.set.forget()
		b.dict.used = 0
		b.replaced++
	}
}
