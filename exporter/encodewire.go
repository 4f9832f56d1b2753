// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/binary"
	"log/slog"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The fields of OTLP's attributes, in the messages named before the dash.
const (
	fieldKey          = 1 // KeyValue - text
	fieldValue        = 2 // KeyValue - AnyValue
	fieldText         = 1 // AnyValue - text
	fieldBool         = 2 // AnyValue - bool
	fieldInt          = 3 // AnyValue - int64
	fieldDouble       = 4 // AnyValue - double
	fieldArray        = 5 // AnyValue - ArrayValue
	fieldKeyValueList = 6 // AnyValue - KeyValueList
	fieldArrayValue   = 1 // ArrayValue - AnyValue
	fieldListed       = 1 // KeyValueList - KeyValue
)

// lengthBytes is the room that open leaves for a length: of messages of 128 to
// 16,383 bytes, as most of ours are.
const lengthBytes = 2

// open appends the tag of a message and room for its length. The message begins at
// body; what follows is its fields, and shut ends it.
func open(b []byte, field protowire.Number) (_ []byte, body int) {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), 0, 0)
	return b, len(b)
}

// shut writes the length of the message that ends b, and moves the message when the
// length is not of the size for which there was room.
func shut(b []byte, body int) []byte {
	size := len(b) - body
	if size >= 1<<7 && size < 1<<14 {
		b[body-2], b[body-1] = byte(size)|0x80, byte(size>>7)
		return b
	}
	width := protowire.SizeVarint(uint64(size))
	for range width - lengthBytes {
		b = append(b, 0)
	}
	at := body - lengthBytes
	copy(b[at+width:], b[body:body+size])
	protowire.AppendVarint(b[:at], uint64(size))
	return b[:at+width+size]
}

// openWide is open for a message that is too large to be moved: closeWide writes its
// length in as many bytes as there is room for, which every reader of protobuf takes.
func openWide(b []byte, field protowire.Number) (_ []byte, body int) {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), make([]byte, requestLengthBytes)...)
	return b, len(b)
}

func closeWide(b []byte, body int) {
	size := len(b) - body
	for i := range requestLengthBytes {
		b[body-requestLengthBytes+i] = byte(size>>(7*i))&0x7f | 0x80
	}
	b[body-1] &= 0x7f
}

// appendFixed64 appends a field; as a 0 is not written, nothing.
func appendFixed64(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint64(protowire.AppendTag(b, field, protowire.Fixed64Type), v)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// appendKeyValues appends attributes as OTLP has them, each as the given field. Text
// must be UTF-8 there; the kernel's names need not be, and one of them must not spoil
// a request.
func appendKeyValues(b []byte, field protowire.Number, attrs []slog.Attr) []byte {
	tag := byte(field<<3) | byte(protowire.BytesType) // fields up to 15
	for i := range attrs {
		a := &attrs[i]
		switch a.Value.Kind() {
		case slog.KindInt64:
			v := uint64(a.Value.Int64())
			b = appendKey(b, tag, a.Key, 1+protowire.SizeVarint(v))
			b = protowire.AppendVarint(append(b, fieldInt<<3|byte(protowire.VarintType)), v)
		case slog.KindFloat64:
			b = append(appendKey(b, tag, a.Key, 9), fieldDouble<<3|byte(protowire.Fixed64Type))
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(a.Value.Float64()))
		case slog.KindBool:
			b = append(appendKey(b, tag, a.Key, 2), fieldBool<<3|byte(protowire.VarintType), 0)
			if a.Value.Bool() {
				b[len(b)-1] = 1
			}
		default:
			s := a.Value.String()
			if !utf8.ValidString(s) {
				s = strings.ToValidUTF8(s, "\uFFFD")
			}
			b = appendText(appendKey(b, tag, a.Key, sized(len(s))), fieldText, s)
		}
	}
	return b
}

// sized is the size of a field of n bytes with a tag of one.
func sized(n int) int {
	if n < 1<<7 {
		return 2 + n
	}
	return 1 + protowire.SizeBytes(n)
}

// appendText appends a field, up to 15, that holds s.
func appendText(b []byte, field byte, s string) []byte {
	tag := field<<3 | byte(protowire.BytesType)
	if len(s) < 1<<7 {
		return append(append(b, tag, byte(len(s))), s...)
	}
	return append(protowire.AppendVarint(append(b, tag), uint64(len(s))), s...)
}

// appendKey appends a KeyValue up to its AnyValue, of which value bytes follow.
func appendKey(b []byte, tag byte, name string, value int) []byte {
	const keyTag, valueTag = fieldKey<<3 | byte(protowire.BytesType), fieldValue<<3 | byte(protowire.BytesType)
	if all := len(name) + value + 4; all < 1<<7 { // and so is each part of it
		b = append(append(b, tag, byte(all), keyTag, byte(len(name))), name...)
		return append(b, valueTag, byte(value))
	}
	b = protowire.AppendVarint(append(b, tag), uint64(sized(len(name))+sized(value)))
	b = append(appendText(b, fieldKey, name), valueTag)
	return protowire.AppendVarint(b, uint64(value))
}
