// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// jsonMessage is how a message is written as OTLP's JSON: enumerations are numbers, 64-bit integers
// are strings, bytes are base64, but trace and span ids are hexadecimal. It writes from the
// serialised message, without decoding it into structs.
type jsonMessage struct {
	name   protoreflect.FullName
	fields []jsonField // by number; those that are not there have no name
}

type jsonField struct {
	name string // "name":
	kind protoreflect.Kind
	list bool
	id   bool         // of a trace or span
	of   *jsonMessage // what a message holds
}

// The messages that are sent, made from their descriptors when first needed.
var (
	jsonLogs = sync.OnceValue(func() *jsonMessage {
		return jsonMessageOf((&collogs.ExportLogsServiceRequest{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*jsonMessage{})
	})
	jsonMetrics = sync.OnceValue(func() *jsonMessage {
		return jsonMessageOf((&colmetrics.ExportMetricsServiceRequest{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*jsonMessage{})
	})
)

func jsonMessageOf(d protoreflect.MessageDescriptor, made map[protoreflect.FullName]*jsonMessage) *jsonMessage {
	m := made[d.FullName()]
	if m != nil {
		return m
	}
	m = &jsonMessage{name: d.FullName()}
	made[m.name] = m
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		j := jsonField{name: `"` + f.JSONName() + `":`, kind: f.Kind(), list: f.IsList()}
		j.id = f.JSONName() == "traceId" || f.JSONName() == "spanId" || f.JSONName() == "parentSpanId"
		if f.Message() != nil {
			j.of = jsonMessageOf(f.Message(), made)
		}
		for len(m.fields) <= int(f.Number()) {
			m.fields = append(m.fields, jsonField{})
		}
		m.fields[f.Number()] = j
	}
	return m
}

var errNoOTLP = errors.New("is no OTLP")

// append appends the message that body is. The elements of a list must follow each other, as
// every encoder has them.
func (m *jsonMessage) append(dst, body []byte) (_ []byte, err error) {
	dst = append(dst, '{')
	var last protowire.Number
	var seen uint64
	for len(body) > 0 {
		number, wire, n := protowire.ConsumeTag(body)
		if n < 0 || number >= 64 || int(number) >= len(m.fields) || m.fields[number].name == "" || number != last && seen>>number&1 > 0 {
			return dst, fmt.Errorf("%w: field %d of %s", errNoOTLP, number, m.name)
		}
		f := &m.fields[number]
		if number == last && !f.list {
			return dst, fmt.Errorf("%w: %s of %s twice", errNoOTLP, f.name, m.name)
		}
		if number != last {
			dst = append(m.shut(dst, last), f.name...)
			if f.list {
				dst = append(dst, '[')
			}
		} else {
			dst = append(dst, ',')
		}
		last, seen = number, seen|1<<number
		if dst, n, err = f.append(dst, body[n:], wire); err != nil {
			return dst, err
		}
		body = body[len(body)-n:]
	}
	dst = m.shut(dst, last)
	if last != 0 {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '}'), nil
}

// shut ends the field that was written last, with the comma before the next.
func (m *jsonMessage) shut(dst []byte, last protowire.Number) []byte {
	if last == 0 {
		return dst
	}
	if m.fields[last].list {
		dst = append(dst, ']')
	}
	return append(dst, ',')
}

// append appends the value that body begins with, or the values of a packed list, and says how
// much of body is left.
func (f *jsonField) append(dst, body []byte, wire protowire.Type) (_ []byte, left int, err error) {
	if wire != protowire.BytesType {
		v, n := jsonNumber(body, wire)
		if n < 0 || f.of != nil || f.kind == protoreflect.StringKind || f.kind == protoreflect.BytesKind {
			return dst, 0, fmt.Errorf("%w: a %s%s", errNoOTLP, f.name, f.kind)
		}
		return f.appendNumber(dst, v), len(body) - n, nil
	}
	text, n := protowire.ConsumeBytes(body)
	if n < 0 {
		return dst, 0, fmt.Errorf("%w: %w", errNoOTLP, protowire.ParseError(n))
	}
	switch left = len(body) - n; {
	case f.of != nil:
		dst, err = f.of.append(dst, text)
	case f.kind == protoreflect.StringKind:
		dst = appendJSONString(dst, text)
	case f.kind == protoreflect.BytesKind && f.id:
		dst = append(hex.AppendEncode(append(dst, '"'), text), '"')
	case f.kind == protoreflect.BytesKind:
		dst = append(base64.StdEncoding.AppendEncode(append(dst, '"'), text), '"')
	default:
		dst, err = f.appendPacked(dst, text)
	}
	return dst, left, err
}

func (f *jsonField) appendPacked(dst, body []byte) ([]byte, error) {
	wire := protowire.VarintType
	switch f.kind {
	case protoreflect.DoubleKind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		wire = protowire.Fixed64Type
	}
	for len(body) > 0 {
		v, n := jsonNumber(body, wire)
		if n < 0 {
			return dst, fmt.Errorf("%w: %w", errNoOTLP, protowire.ParseError(n))
		}
		if dst = f.appendNumber(dst, v); n < len(body) {
			dst = append(dst, ',')
		}
		body = body[n:]
	}
	return dst, nil
}

func jsonNumber(body []byte, wire protowire.Type) (v uint64, n int) {
	switch wire {
	case protowire.VarintType:
		return protowire.ConsumeVarint(body)
	case protowire.Fixed64Type:
		return protowire.ConsumeFixed64(body)
	case protowire.Fixed32Type:
		short, n := protowire.ConsumeFixed32(body)
		return uint64(short), n
	}
	return 0, -1
}

// appendNumber appends what v is by the field's kind.
func (f *jsonField) appendNumber(dst []byte, v uint64) []byte {
	switch f.kind {
	case protoreflect.BoolKind:
		return strconv.AppendBool(dst, v != 0)
	case protoreflect.DoubleKind:
		d := math.Float64frombits(v)
		switch {
		case math.IsNaN(d):
			return append(dst, `"NaN"`...)
		case math.IsInf(d, 1):
			return append(dst, `"Infinity"`...)
		case math.IsInf(d, -1):
			return append(dst, `"-Infinity"`...)
		}
		return strconv.AppendFloat(dst, d, 'g', -1, 64)
	case protoreflect.Int64Kind, protoreflect.Sfixed64Kind:
		return append(strconv.AppendInt(append(dst, '"'), int64(v), 10), '"')
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return append(strconv.AppendUint(append(dst, '"'), v, 10), '"')
	case protoreflect.Sint32Kind:
		return strconv.AppendInt(dst, protowire.DecodeZigZag(v), 10)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return strconv.AppendUint(dst, uint64(uint32(v)), 10)
	}
	return strconv.AppendInt(dst, int64(int32(v)), 10) // int32 and enumerations
}
