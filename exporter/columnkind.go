// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// vector is one attribute of all records of a batch.
type vector interface {
	field() arrow.Field
	// put sets a row to an attribute's value, for those columns whose rows are not set
	// directly.
	put(row int, v slog.Value)
	used() bool                    // it had a value in some batch
	filled() bool                  // it has one in this batch
	data(rows int) arrow.ArrayData // of the batch; good until reset
	reset()
}

// presence says which rows of a column have a value.
type presence struct {
	name  string
	valid []byte // a bit a row
	count int    // of rows with a value
	ever  bool   // some batch had one
}

func (p *presence) used() bool { return p.ever || p.count > 0 }

func (p *presence) filled() bool { return p.count > 0 }

// bitmap is the rows' validity as Arrow has it, and how many are null.
func (p *presence) bitmap(rows int) (*memory.Buffer, int) {
	if p.count == rows {
		return nil, 0
	}
	p.reach(rows)
	return memory.NewBufferBytes(p.valid[:(rows+7)/8]), rows - p.count
}

// reach makes room for so many rows.
func (p *presence) reach(rows int) {
	if need := (rows + 7) / 8; need > len(p.valid) {
		p.valid = append(p.valid, make([]byte, max(need, 2*len(p.valid))-len(p.valid))...)
	}
}

func (p *presence) clear() {
	p.ever = p.used()
	p.count = 0
	clear(p.valid)
}

// fixed is a column of numbers.
type fixed[T arrow.FixedWidthType] struct {
	presence
	of     arrow.DataType
	values []T
}

func newFixed[T arrow.FixedWidthType](name string, of arrow.DataType) *fixed[T] {
	return &fixed[T]{presence: presence{name: name}, of: of}
}

func (c *fixed[T]) field() arrow.Field { return arrow.Field{Name: c.name, Type: c.of, Nullable: true} }

func (c *fixed[T]) set(row int, v T) {
	if row >= len(c.values) {
		c.grow(row + 1)
	}
	c.values[row] = v
	c.valid[row>>3] |= 1 << (row & 7)
	c.count++
}

// fill is set of a row for which there is room: small enough to be inlined.
func (c *fixed[T]) fill(row int, v T) {
	c.values[row] = v
	c.valid[row>>3] |= 1 << (row & 7)
	c.count++
}

func (c *fixed[T]) reserve(rows int) {
	if rows > len(c.values) {
		c.grow(rows)
	}
}

// grow makes room for so many rows, and for twice as many as before.
//
//go:noinline
func (c *fixed[T]) grow(rows int) {
	rows = max(1024, rows, 2*len(c.values))
	c.values = append(c.values, make([]T, rows-len(c.values))...)
	c.reach(rows)
}

func (c *fixed[T]) put(row int, v slog.Value) {
	switch to := any(c).(type) {
	case *fixed[int64]:
		to.set(row, v.Int64())
	case *fixed[float64]:
		to.set(row, v.Float64())
	}
}

func (c *fixed[T]) data(rows int) arrow.ArrayData {
	if rows > len(c.values) {
		c.grow(rows)
	}
	valid, nulls := c.bitmap(rows)
	return array.NewData(c.of, rows, []*memory.Buffer{valid, memory.NewBufferBytes(arrow.GetBytes(c.values[:rows]))}, nil, nulls, 0)
}

func (c *fixed[T]) reset() {
	if c.count > 0 {
		clear(c.values)
		c.clear()
	}
}

// bits is a column of truth values.
type bits struct {
	presence
	values []byte // a bit a row
}

func newBits(name string) *bits { return &bits{presence: presence{name: name}} }

func (c *bits) field() arrow.Field {
	return arrow.Field{Name: c.name, Type: arrow.FixedWidthTypes.Boolean, Nullable: true}
}

func (c *bits) set(row int, v bool) {
	if row>>3 >= len(c.values) {
		c.grow(row + 1)
	}
	if v {
		c.values[row>>3] |= 1 << (row & 7)
	}
	c.valid[row>>3] |= 1 << (row & 7)
	c.count++
}

//go:noinline
func (c *bits) grow(rows int) {
	c.reach(max(1024, rows))
	c.values = append(c.values, make([]byte, len(c.valid)-len(c.values))...)
}

func (c *bits) put(row int, v slog.Value) { c.set(row, v.Bool()) }

func (c *bits) data(rows int) arrow.ArrayData {
	c.grow(rows)
	valid, nulls := c.bitmap(rows)
	return array.NewData(arrow.FixedWidthTypes.Boolean, rows, []*memory.Buffer{valid, memory.NewBufferBytes(c.values[:(rows+7)/8])}, nil, nulls, 0)
}

func (c *bits) reset() {
	if c.count > 0 {
		clear(c.values)
		c.clear()
	}
}

// plain is a column of texts that do not repeat.
type plainTexts struct {
	presence
	text    []byte
	offsets []int32
}

func newPlainTexts(name string) *plainTexts {
	return &plainTexts{presence: presence{name: name}, offsets: make([]int32, 1, 1024)}
}

func (c *plainTexts) field() arrow.Field {
	return arrow.Field{Name: c.name, Type: arrow.BinaryTypes.String, Nullable: true}
}

func (c *plainTexts) set(row int, s string) {
	c.skip(row)
	c.text = append(c.text, s...)
	c.offsets = append(c.offsets, int32(len(c.text))) //nolint:gosec // at most 255 bytes a row
	c.reach(row + 1)
	c.valid[row>>3] |= 1 << (row & 7)
	c.count++
}

// skip leaves the rows in front of row without text.
func (c *plainTexts) skip(row int) {
	for len(c.offsets) <= row {
		c.offsets = append(c.offsets, c.offsets[len(c.offsets)-1])
	}
}

func (c *plainTexts) put(row int, v slog.Value) { c.set(row, v.String()) }

func (c *plainTexts) data(rows int) arrow.ArrayData {
	c.skip(rows)
	valid, nulls := c.bitmap(rows)
	return array.NewData(arrow.BinaryTypes.String, rows, []*memory.Buffer{valid,
		memory.NewBufferBytes(arrow.GetBytes(c.offsets[:rows+1])), memory.NewBufferBytes(c.text)}, nil, nulls, 0)
}

func (c *plainTexts) reset() {
	if c.count > 0 {
		c.clear()
	}
	c.text, c.offsets = c.text[:0], c.offsets[:1]
}
