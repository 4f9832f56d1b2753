// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"weft/flows"
)

// wantRow is what a batch should have of r: each attribute that OTLP has of it, by
// name, and the end of its period.
func wantRow(r *flows.Record, derived bool) map[string]any {
	row := map[string]any{}
	if !r.End.IsZero() {
		row[nameTime] = r.End.UnixNano()
	}
	if !r.Start.IsZero() {
		row[nameStart] = r.Start.UnixNano()
	}
	for _, a := range AppendAttributes(nil, r) {
		if a.Key == nameCommunityID && !derived {
			continue
		}
		row[a.Key] = plainValue(a.Value)
	}
	for _, t := range totals {
		row[t.otlp] = signed(t.of(r))
	}
	for l := range numLists {
		if l.len(r) == 0 {
			continue
		}
		_, name := l.names()
		rows := []any{}
		for i := range l.len(r) {
			fields := map[string]any{}
			for _, a := range l.appendRow(nil, r, i) {
				fields[a.Key] = plainValue(a.Value)
			}
			if l == listHops && !derived && isTotal(r, &r.Hops[i]) {
				delete(fields, hopPackets)
				delete(fields, hopBytes)
			}
			rows = append(rows, fields)
		}
		row[name] = rows
	}
	return row
}

func plainValue(v slog.Value) any {
	if v.Kind() == slog.KindString {
		return strings.ToValidUTF8(v.String(), "\uFFFD")
	}
	return v.Any()
}

// gotRow is a row of a batch, with labels and the connection's id as OTLP has them.
func gotRow(t testing.TB, rec arrow.RecordBatch, row int) map[string]any {
	t.Helper()
	got := map[string]any{}
	for i, c := range rec.Columns() {
		name := rec.ColumnName(i)
		v := valueAt(t, c, row)
		switch {
		case v == nil:
		case name == nameConnection:
			got[name] = fmt.Sprintf("%016x", v)
		case strings.HasSuffix(name, ".k8s.pod.label"):
			for _, pair := range v.([]any) {
				got[name+"."+pair.(map[string]any)["key"].(string)] = pair.(map[string]any)["value"]
			}
		default:
			got[name] = v
		}
	}
	return got
}

func valueAt(t testing.TB, a arrow.Array, i int) any {
	t.Helper()
	if a.IsNull(i) {
		return nil
	}
	switch a := a.(type) {
	case *array.Dictionary:
		return strings.Clone(a.Dictionary().(*array.String).Value(a.GetValueIndex(i)))
	case *array.String:
		return strings.Clone(a.Value(i))
	case *array.Int64:
		return a.Value(i)
	case *array.Uint8:
		return int64(a.Value(i))
	case *array.Uint16:
		return int64(a.Value(i))
	case *array.Uint64:
		if v := a.Value(i); v > 1<<63 {
			return v
		}
		return int64(a.Value(i)) //nolint:gosec // fits
	case *array.Float64:
		return a.Value(i)
	case *array.Boolean:
		return a.Value(i)
	case *array.Timestamp:
		return int64(a.Value(i))
	case array.ListLike: // a map too
		from, to := a.ValueOffsets(i)
		all := []any{}
		for j := from; j < to; j++ {
			all = append(all, valueAt(t, a.ListValues(), int(j)))
		}
		return all
	case *array.Struct:
		row := map[string]any{}
		for f := range a.NumField() {
			if v := valueAt(t, a.Field(f), i); v != nil {
				row[a.DataType().(*arrow.StructType).Field(f).Name] = v
			}
		}
		return row
	}
	t.Fatalf("a column of %s: say here how it reads", a.DataType())
	return nil
}

// requireRows compares rows in any order.
func requireRows(t *testing.T, where string, got, want []map[string]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: got %d rows, want %d", where, len(got), len(want))
	}
	left := map[string]int{}
	for _, row := range want {
		left[fmt.Sprint(row)]++
	}
	for i, row := range got {
		text := fmt.Sprint(row)
		if left[text]--; left[text] >= 0 {
			continue
		}
		t.Errorf("%s, row %d: got one that is none of the records':\n%s", where, i, text)
		for _, w := range want {
			if w[nameStart] == row[nameStart] && w["weft.flow.bytes"] == row["weft.flow.bytes"] {
				t.Errorf("want\n%s", fmt.Sprint(w))
			}
		}
		t.FailNow()
	}
}

// stream is batches through Arrow's own writer and reader.
type stream struct {
	buf    bytes.Buffer
	w      *ipc.Writer
	schema *arrow.Schema
}

// anyRecords are n records, some of whose ends are the same.
func anyRecords(r *rand.Rand, n int) []flows.Record {
	all := make([]flows.Record, n)
	for i := range all {
		all[i] = anyRecord(r)
		if i > 0 && r.IntN(2) == 0 {
			all[i].Source, all[i].Destination = all[r.IntN(i)].Source, all[r.IntN(i)].Destination
		}
	}
	return all
}

// Through Arrow's own writer and reader, with dictionaries that grow from batch to
// batch, records of every kind come back with all the attributes that OTLP has of
// them and no other.
func TestColumnsHaveWhatTheTableOfNamesSays(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(11, seed))
		derived := seed%2 == 0
		b := NewColumns(ColumnsConfig{Rows: 70, Derived: derived, Metadata: map[string]string{"service.name": "weft"}})
		var batches [][]flows.Record
		var streams []*stream
		for range 8 {
			all := anyRecords(r, 60)
			if n := b.Append(all); n != len(all) {
				t.Fatalf("seed %d: got %d of %d records into a batch", seed, n, len(all))
			}
			batches = append(batches, all)
			streams = writeStream(t, streams, b.Batch())
			b.Reset()
		}
		i := 0
		for _, s := range streams {
			i = readStream(t, s, batches, i, derived, seen)
		}
		if i != len(batches) || b.Replaced() != 0 {
			t.Errorf("seed %d: got %d batches, dictionaries replaced %d times; want %d, and never", seed, i, b.Replaced(), len(batches))
		}
	}
	if len(seen) < 135 {
		t.Errorf("the records had %d attributes in all, want every one that there is, at least 135", len(seen))
	}
}

// writeStream writes rec behind the last stream, or begins another when its schema grew.
func writeStream(t *testing.T, all []*stream, rec arrow.RecordBatch) []*stream {
	t.Helper()
	if len(all) == 0 || all[len(all)-1].schema != rec.Schema() {
		s := &stream{schema: rec.Schema()}
		s.w = ipc.NewWriter(&s.buf, ipc.WithSchema(s.schema), ipc.WithDictionaryDeltas(true), ipc.WithZstd())
		all = append(all, s)
	}
	if err := all[len(all)-1].w.Write(rec); err != nil {
		t.Fatal(err)
	}
	return all
}

// readStream compares s with the batches from i on, and returns the next.
func readStream(t *testing.T, s *stream, batches [][]flows.Record, i int, derived bool, seen map[string]bool) int {
	t.Helper()
	if err := s.w.Close(); err != nil {
		t.Fatal(err)
	}
	reader, err := ipc.NewReader(&s.buf)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()
	for ; reader.Next(); i++ {
		rec := reader.RecordBatch()
		if v, _ := rec.Schema().Metadata().GetValue("service.name"); v != "weft" || int(rec.NumRows()) != len(batches[i]) {
			t.Fatalf("batch %d: got %d rows of %q, want %d of weft", i, rec.NumRows(), v, len(batches[i]))
		}
		var got, want []map[string]any
		for row := range batches[i] {
			got, want = append(got, gotRow(t, rec, row)), append(want, wantRow(&batches[i][row], derived))
			for name := range want[row] {
				seen[name] = true
			}
		}
		requireRows(t, fmt.Sprintf("batch %d", i), got, want)
	}
	if err := reader.Err(); err != nil {
		t.Fatal(err)
	}
	return i
}

// figured are n ordinary records with one hop each way, both chosen.
func figured(n int) []flows.Record {
	ends := pods(50)
	all := make([]flows.Record, n)
	for i := range all {
		all[i] = healthyRecord(i)
		all[i].Source, all[i].Destination = ends[i%len(ends)], ends[i*7%len(ends)]
	}
	return all
}

func TestColumnsLeaveOutOnlyWhatOthersSay(t *testing.T) {
	all := figured(20)
	b := NewColumns(ColumnsConfig{})
	b.Append(all)
	var got, want []map[string]any
	rec := b.Batch()
	for i := range all {
		got, want = append(got, gotRow(t, rec, i)), append(want, wantRow(&all[i], false))
		hops := got[i][nameHops].([]any)
		for _, h := range hops {
			if h := h.(map[string]any); h[hopPackets] != nil || h[hopBytes] != nil || h[hopChosen] != true {
				t.Fatalf("got hop %v, want one that is chosen, and figures of it only as the record's totals", h)
			}
		}
	}
	requireRows(t, "lean", got, want)
	all[3].Hops[0].Bytes++ // no longer the total
	b.Reset()
	b.Append(all[3:4])
	want[3] = wantRow(&all[3], false)
	requireRows(t, "a hop of its own", []map[string]any{gotRow(t, b.Batch(), 0)}, want[3:4])
	if h := want[3][nameHops].([]any)[0].(map[string]any); h[hopBytes] != int64(3457) {
		t.Errorf("got hop %v, want its own bytes", h)
	}
}

func TestColumnsAllocateNothingARecord(t *testing.T) {
	for _, n := range []int{1000, 8000} {
		all := figured(n)
		b := NewColumns(ColumnsConfig{Derived: true})
		got := testing.AllocsPerRun(5, func() {
			if b.Append(all) != n {
				t.Fatal("the batch does not take all")
			}
			b.Reset()
		})
		if got != 0 {
			t.Errorf("got %v allocations for %d records, want none", got, n)
		}
		perBatch := testing.AllocsPerRun(5, func() {
			b.Append(all)
			b.Batch().Release()
			b.Reset()
		})
		if perBatch > 1000 {
			t.Errorf("got %v allocations for a batch of %d records, want them to be of its columns only", perBatch, n)
		}
	}
}

func TestColumnsKeepIdsAndGrowOnlyInSchema(t *testing.T) {
	b := NewColumns(ColumnsConfig{Rows: 100})
	ids := map[string]int{}
	var last *arrow.Schema
	for round := range 6 {
		all := figured(100)
		for i := range all {
			all[i].Source = &flows.Entity{Pod: fmt.Sprintf("pod-%d", (i+round*20)%200)} // new pointers, texts of before
			all[i].Source.Service = []string{"", "shop"}[round/3]
		}
		b.Append(all)
		rec := b.Batch()
		if grown := last != nil && rec.Schema() != last; grown != (round == 3) {
			t.Errorf("batch %d: got a new schema %v, want one only for a new column", round, grown)
		}
		last = rec.Schema()
		column := rec.Column(last.FieldIndices("source.k8s.pod.name")[0]).(*array.Dictionary)
		for i := range column.Len() {
			pod, id := column.Dictionary().(*array.String).Value(column.GetValueIndex(i)), column.GetValueIndex(i)
			if before, ok := ids[pod]; ok && before != id {
				t.Fatalf("%s: got id %d, want %d as before", pod, id, before)
			}
			ids[pod] = id
		}
		b.Reset()
	}
	if len(ids) != 200 || b.Replaced() != 0 {
		t.Errorf("got %d pods, dictionaries replaced %d times; want 200, and never", len(ids), b.Replaced())
	}
}

// A scan from more addresses than the dictionaries may hold.
func TestColumnsReplaceDictionariesAtTheirBound(t *testing.T) {
	b := NewColumns(ColumnsConfig{Metadata: map[string]string{"service.name": "weft"}})
	var streams []*stream
	var batches [][]flows.Record
	next := uint32(0)
	for b.Replaced() < 2 {
		all := make([]flows.Record, 6000)
		for i := range all {
			next++
			all[i] = tcpRecord(i)
			all[i].Key.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(next >> 16), byte(next >> 8), byte(next)}), 1)
			all[i].Source = &flows.Entity{Pod: fmt.Sprintf("%0200d", next)}
		}
		if n := b.Append(all); n != len(all) {
			t.Fatalf("got %d of %d records into a batch", n, len(all))
		}
		batches = append(batches, all)
		streams = writeStream(t, streams, b.Batch())
		if b.dict.used > 2*maxDictionaries {
			t.Fatalf("dictionaries have %d bytes, want at most %d", b.dict.used, 2*maxDictionaries)
		}
		b.Reset()
		if len(batches) > 20 {
			t.Fatal("120,000 long names, and the dictionaries were not replaced twice")
		}
	}
	if len(streams) != 1 {
		t.Fatalf("got %d streams, want one: replaced dictionaries are no new schema", len(streams))
	}
	if n := readStream(t, streams[0], batches, 0, false, map[string]bool{}); n != len(batches) {
		t.Errorf("read %d batches, want %d", n, len(batches))
	}
}

func TestBatchIsFullAtItsBounds(t *testing.T) {
	many := make([]flows.Record, 300)
	for i := range many {
		many[i] = tcpRecord(i)
	}
	b := NewColumns(ColumnsConfig{Rows: 200})
	if n := b.Append(many); n != 200 || b.Append(many) != 0 || b.Len() != 200 {
		t.Errorf("got %d records into a batch of %d, want 200 of both", n, b.Len())
	}
	for i := range many {
		many[i] = withHops(many[i], 64)
	}
	b.Reset()
	if n := b.Append(many); n != 200*maxListedRows/64 {
		t.Errorf("got %d records of 64 hops, want %d", n, 200*maxListedRows/64)
	}
	b.Reset()
	if n := b.Append([]flows.Record{withHops(many[0], 5000)}); n != 1 {
		t.Errorf("got %d records of 5,000 hops into an empty batch, want it taken", n)
	}
	if n := b.Append(many); n != 0 {
		t.Errorf("got %d more, want none", n)
	}
}
