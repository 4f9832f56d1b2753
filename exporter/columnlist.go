// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// listed is a column of lists of structs, or of maps: the fields' rows of all its rows,
// one behind the other.
type listed struct {
	presence
	of      arrow.DataType
	element arrow.DataType
	fields  []vector
	byName  map[string]vector
	offsets []int32
	n       int // rows of the fields
}

func newListed(name string, fields ...vector) *listed {
	c := &listed{presence: presence{name: name}, fields: fields, byName: map[string]vector{}, offsets: make([]int32, 1, 1024)}
	children := make([]arrow.Field, len(fields))
	for i, f := range fields {
		children[i] = f.field()
		c.byName[children[i].Name] = f
	}
	c.element = arrow.StructOf(children...)
	c.of = arrow.ListOfField(arrow.Field{Name: "element", Type: c.element})
	return c
}

// newMapped is a column of maps of texts.
func newMapped(name string, d *budget) *listed {
	key, value := newNames("key", d), newNames("value", d)
	c := newListed(name, key, value)
	m := arrow.MapOf(key.of, value.of)
	c.of, c.element = m, m.Elem()
	return c
}

func (c *listed) field() arrow.Field { return arrow.Field{Name: c.name, Type: c.of, Nullable: true} }

// begin is the first row of the fields for a row that gets a list; end says that it
// got so many.
func (c *listed) begin(row int) int {
	c.skip(row)
	return c.n
}

func (c *listed) end(row, rows int) {
	c.n += rows
	c.offsets = append(c.offsets, int32(c.n)) //nolint:gosec // bounded by maxListedRows
	if row>>3 >= len(c.valid) {
		c.reach(max(1024, row+1))
	}
	c.valid[row>>3] |= 1 << (row & 7)
	c.count++
}

// skip leaves the rows in front of row without a list.
func (c *listed) skip(row int) {
	for len(c.offsets) <= row {
		c.offsets = append(c.offsets, c.offsets[len(c.offsets)-1])
	}
}

// put is not used: a list is no attribute of one value.
func (c *listed) put(int, slog.Value) {}

func (c *listed) data(rows int) arrow.ArrayData {
	c.skip(rows)
	children := make([]arrow.ArrayData, len(c.fields))
	for i, f := range c.fields {
		children[i] = f.data(c.n)
	}
	elements := array.NewData(c.element, c.n, []*memory.Buffer{nil}, children, 0, 0)
	valid, nulls := c.bitmap(rows)
	return array.NewData(c.of, rows, []*memory.Buffer{valid, memory.NewBufferBytes(arrow.GetBytes(c.offsets[:rows+1]))},
		[]arrow.ArrayData{elements}, nulls, 0)
}

func (c *listed) reset() {
	if c.count > 0 {
		c.clear()
	}
	c.n, c.offsets = 0, c.offsets[:1]
	for _, f := range c.fields {
		f.reset()
	}
}

func (c *listed) forget() {
	for _, f := range c.fields {
		if n, ok := f.(*names); ok {
			n.forget()
		}
	}
}
