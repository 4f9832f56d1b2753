// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/compress/snappy"
	"github.com/parquet-go/parquet-go/compress/uncompressed"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// parquetCodecs are the compressions of Parquet files by name.
var parquetCodecs = map[string]func() compress.Codec{
	"zstd":   func() compress.Codec { return &zstd.Codec{Level: zstd.SpeedDefault} },
	"snappy": func() compress.Codec { return &snappy.Codec{} },
	"none":   func() compress.Codec { return &uncompressed.Codec{} },
}

// parquetFile writes batches of a [Columns] as the row groups of one file, which always
// has all columns, so that a folder of files reads as one table. A column that no
// record has costs a null a row before compression, and some bytes in the footer.
type parquetFile struct {
	w      *parquet.GenericWriter[any]
	leaves map[string]int // a leaf's number by its path
	values []parquet.Value
	nulls  []parquet.Value
}

// newParquetFile is for files with the columns of b; reset begins one.
func newParquetFile(b *Columns, codec compress.Codec) *parquetFile {
	group := parquet.Group{}
	for _, c := range b.all {
		f := c.field()
		group[f.Name] = parquet.Optional(parquetNode(f.Type))
	}
	schema := parquet.NewSchema("weft_flow", group)
	p := &parquetFile{leaves: map[string]int{}}
	for i, path := range schema.Columns() {
		p.leaves[leafPath(path...)] = i
	}
	options := []parquet.WriterOption{schema, parquet.Compression(codec), parquet.CreatedBy("weft", b.c.Metadata[agentVersion], "")}
	for _, name := range slices.Sorted(maps.Keys(b.c.Metadata)) {
		options = append(options, parquet.KeyValueMetadata(name, b.c.Metadata[name]))
	}
	p.w = parquet.NewGenericWriter[any](io.Discard, append(options, parquet.KeyValueMetadata(nameSchema, fmt.Sprint(SchemaVersion)))...)
	return p
}

// agentVersion is the name of the agent's version among a resource's attributes.
const agentVersion = "service.version"

func leafPath(path ...string) string { return fmt.Sprintf("%q", path) }

// parquetNode is an Arrow type as Parquet has it.
func parquetNode(t arrow.DataType) parquet.Node {
	switch t := t.(type) {
	case *arrow.DictionaryType, *arrow.StringType:
		return parquet.Encoded(parquet.String(), &parquet.RLEDictionary)
	case *arrow.TimestampType:
		return parquet.Encoded(parquet.Timestamp(parquet.Nanosecond), &parquet.DeltaBinaryPacked)
	case *arrow.BooleanType:
		return parquet.Leaf(parquet.BooleanType)
	case *arrow.Float64Type:
		return parquet.Leaf(parquet.DoubleType)
	case *arrow.Int64Type:
		return parquet.Int(64)
	case *arrow.Uint8Type:
		return parquet.Uint(8)
	case *arrow.Uint16Type:
		return parquet.Uint(16)
	case *arrow.Uint64Type:
		return parquet.Uint(64)
	case *arrow.MapType:
		return parquet.Map(parquetNode(t.KeyType()), parquetNode(t.ItemType()))
	case *arrow.ListType:
		fields := parquet.Group{}
		for _, f := range t.Elem().(*arrow.StructType).Fields() {
			fields[f.Name] = parquet.Optional(parquetNode(f.Type))
		}
		return parquet.List(fields)
	}
	panic(fmt.Sprintf("a column of %s: say here what it is in Parquet", t))
}

// reset begins a file on out.
func (p *parquetFile) reset(out io.Writer) { p.w.Reset(out) }

// write adds what was appended to b as a row group; at most the last 32 KiB of it are written
// with what comes next.
func (p *parquetFile) write(b *Columns) error {
	writers := p.w.ColumnWriters()
	for _, c := range b.all {
		name := c.field().Name
		switch l, ok := c.(*listed); {
		case ok:
			if err := p.writeList(writers, l, b.n); err != nil {
				return err
			}
		default:
			at := p.leaves[leafPath(name)]
			if err := p.writeValues(writers[at], p.leaf(c, at, b.n)); err != nil {
				return err
			}
		}
	}
	return p.w.Flush()
}

func (p *parquetFile) writeValues(w *parquet.ColumnWriter, values []parquet.Value) error {
	_, err := w.WriteRowValues(values)
	return err
}

// leaf is a column of one value a row.
func (p *parquetFile) leaf(c vector, at, rows int) []parquet.Value {
	if !c.filled() {
		return p.allNull(rows)
	}
	a := array.MakeFromData(c.data(rows))
	p.values = p.values[:0]
	for i := range rows {
		if a.IsNull(i) {
			p.values = append(p.values, parquet.NullValue().Level(0, 0, at))
		} else {
			p.values = append(p.values, parquetValue(a, i).Level(0, 1, at))
		}
	}
	return p.values
}

// allNull is so many nulls, for any column: its number in a value is for readers.
func (p *parquetFile) allNull(rows int) []parquet.Value {
	for len(p.nulls) < rows {
		p.nulls = append(p.nulls, parquet.NullValue().Level(0, 0, 0))
	}
	return p.nulls[:rows]
}

// writeList writes the leaves of a list or map. Definition levels: 0 no list, 2 an
// element; of a list's fields, which may be null, 3 a value.
func (p *parquetFile) writeList(writers []*parquet.ColumnWriter, c *listed, rows int) error {
	path, defined := []string{c.name, "list", "element"}, 3
	if c.of.ID() == arrow.MAP {
		path, defined = []string{c.name, "key_value"}, 2
	}
	c.skip(rows)
	for _, f := range c.fields {
		at := p.leaves[leafPath(append(path, f.field().Name)...)]
		if c.n == 0 {
			if err := p.writeValues(writers[at], p.allNull(rows)); err != nil {
				return err
			}
			continue
		}
		a := array.MakeFromData(f.data(c.n))
		p.values = p.values[:0]
		for row := range rows {
			first, end := int(c.offsets[row]), int(c.offsets[row+1])
			if first == end {
				p.values = append(p.values, parquet.NullValue().Level(0, 0, at))
			}
			for i := first; i < end; i++ {
				v, level := parquet.NullValue(), 2
				if !a.IsNull(i) {
					v, level = parquetValue(a, i), defined
				}
				p.values = append(p.values, v.Level(min(i-first, 1), level, at))
			}
		}
		if err := p.writeValues(writers[at], p.values); err != nil {
			return err
		}
	}
	return nil
}

// close writes the footer.
func (p *parquetFile) close() error { return p.w.Close() }

// parquetValue is a value that is not null. Text is not copied.
func parquetValue(a arrow.Array, i int) parquet.Value {
	switch a := a.(type) {
	case *array.Dictionary:
		return textValue(a.Dictionary().(*array.String), a.GetValueIndex(i))
	case *array.String:
		return textValue(a, i)
	case *array.Timestamp:
		return parquet.Int64Value(int64(a.Value(i)))
	case *array.Int64:
		return parquet.Int64Value(a.Value(i))
	case *array.Uint64:
		return parquet.Int64Value(int64(a.Value(i))) //nolint:gosec // Parquet has the bits
	case *array.Uint8:
		return parquet.Int32Value(int32(a.Value(i)))
	case *array.Uint16:
		return parquet.Int32Value(int32(a.Value(i)))
	case *array.Float64:
		return parquet.DoubleValue(a.Value(i))
	case *array.Boolean:
		return parquet.BooleanValue(a.Value(i))
	}
	panic(fmt.Sprintf("a column of %s: say here how Parquet has its values", a.DataType()))
}

func textValue(a *array.String, i int) parquet.Value {
	s := a.Value(i)
	return parquet.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s)))
}
