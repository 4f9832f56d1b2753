// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fillMessage gives fields of m values, deeper ones more rarely.
func fillMessage(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if r.IntN(5) == 0 || depth > 6 && r.IntN(2) == 0 || depth > 9 {
			continue
		}
		if !f.IsList() {
			m.Set(f, someValue(r, m.NewField(f), f, depth))
			continue
		}
		list := m.Mutable(f).List()
		for range r.IntN(6) {
			list.Append(someValue(r, list.NewElement(), f, depth))
		}
	}
}

func someValue(r *rand.Rand, v protoreflect.Value, f protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.MessageKind:
		fillMessage(r, v.Message(), depth+1)
		return v
	case protoreflect.StringKind:
		return protoreflect.ValueOfString([]string{"", "plain", "a \"quoted\\ one", "übel\n\x01\x7f", "\U0001f9f6\u2028"}[r.IntN(5)])
	case protoreflect.BytesKind:
		b := make([]byte, 8*(1+r.IntN(2)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return protoreflect.ValueOfBytes(b)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 1, -1.5, 1e300, 5e-324, 0.1, math.NaN(), math.Inf(1), math.Inf(-1)}[r.IntN(9)])
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.IntN(3)))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind:
		return protoreflect.ValueOfInt32(int32(r.Uint32()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(r.Uint32())
	case protoreflect.Int64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(r.Uint64()))
	}
	return protoreflect.ValueOfUint64(r.Uint64())
}

// hexIDs makes of each id what one who takes hexadecimal for base64 reads.
func hexIDs(t *testing.T, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				hexIDs(t, v.List().Get(i).Message())
			}
		case f.Message() != nil:
			hexIDs(t, v.Message())
		case f.Name() == "trace_id" || f.Name() == "span_id":
			raw, err := base64.StdEncoding.DecodeString(hex.EncodeToString(v.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			m.Set(f, protoreflect.ValueOfBytes(raw))
		}
		return true
	})
}

// Whatever is in a request of logs or metrics, protojson reads in the JSON what proto reads in the bytes.
func TestJSONHasWhatTheProtobufHas(t *testing.T) {
	biggest := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(11, seed))
		want, read, how := proto.Message(&collogs.ExportLogsServiceRequest{}), proto.Message(&collogs.ExportLogsServiceRequest{}), jsonLogs()
		if seed%2 == 0 {
			want, read, how = &colmetrics.ExportMetricsServiceRequest{}, &colmetrics.ExportMetricsServiceRequest{}, jsonMetrics()
		}
		fillMessage(r, want.ProtoReflect(), 0)
		body, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		biggest = max(biggest, len(body))
		text, err := how.append([]byte("before"), body)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		text = bytes.TrimPrefix(text, []byte("before"))
		if err := protojson.Unmarshal(text, read); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		hexIDs(t, want.ProtoReflect())
		if !proto.Equal(want, read) {
			t.Fatalf("seed %d: got %v\nwant %v\nof %s", seed, read, want, text)
		}
		if bytes.ContainsAny(text, "\n\x01\x7f\u2028") {
			t.Errorf("seed %d: got %q, want one line without what a terminal obeys", seed, text)
		}
	}
	if biggest < 10_000 {
		t.Errorf("the largest request has %d bytes: the test shows little", biggest)
	}
}

func TestIDsAreHexadecimalAndNumbersAreTextInJSON(t *testing.T) {
	id := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255}
	body, err := proto.Marshal(&collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{ScopeLogs: []*logs.ScopeLogs{{
		LogRecords: []*logs.LogRecord{{TraceId: id, SpanId: id[8:], TimeUnixNano: 1 << 60, SeverityNumber: 9}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := jsonLogs().append(nil, body)
	want := `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1152921504606846976","severityNumber":9,` +
		`"traceId":"000102030405060708090a0b0c0d0eff","spanId":"08090a0b0c0d0eff"}]}]}]}`
	if err != nil || string(text) != want || !json.Valid(text) {
		t.Errorf("got %s, %v\nwant %s", text, err, want)
	}
}

// What is no request of OTLP is refused, and nothing panics.
func TestWhatIsNoOTLPIsNoJSON(t *testing.T) {
	record, err := proto.Marshal(&collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{SchemaUrl: "x"}, {}}})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		b := bytes.Clone(record)
		b[r.IntN(len(b))] = byte(r.Uint32())
		if text, err := jsonLogs().append(nil, b); err == nil && !json.Valid(text) {
			t.Fatalf("%d: got %q of %x, want JSON or an error", i, text, b)
		}
	}
	apart := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), nil)
	for name, b := range map[string][]byte{
		"cut":                    record[:len(record)-1],
		"a field that is not":    protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1),
		"one value twice":        protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte{3<<3 | 2, 1, 'x', 3<<3 | 2, 1, 'y'}),
		"a group":                protowire.AppendTag(nil, 1, protowire.StartGroupType),
		"a number for a message": protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1),
		"a list in two parts": func() []byte {
			in := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(apart), 3, protowire.BytesType), []byte("x"))
			in = append(in, apart...)
			return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), in)
		}(),
	} {
		if text, err := jsonLogs().append(nil, b); !errors.Is(err, errNoOTLP) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: got %q, %v, want an error", name, text, err)
		}
	}
}

// What a line of OTLP JSON costs to write, beside protojson of the
// decoded request, which is another way to the same text.
func BenchmarkOTLPLine(b *testing.B) {
	e := newTestEncoder(b)
	body, n := e.Append(nil, records(maxLineRecords), t0)
	var text []byte
	per := func(b *testing.B) {
		b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
		b.ReportMetric(float64(len(text))/float64(n), "B/record")
	}
	b.Run("from-the-bytes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if text, err = jsonLogs().append(text[:0], body); err != nil {
				b.Fatal(err)
			}
		}
		per(b)
	})
	b.Run("protojson", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := &collogs.ExportLogsServiceRequest{}
			err := proto.Unmarshal(body, m)
			if err == nil {
				text, err = protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(m)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		per(b)
	})
}
