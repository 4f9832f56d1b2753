// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"weft/flows"
)

// SchemaVersion is weft.schema.version: it grows when a name or the meaning of
// a value below changes, not when a name is added.
const SchemaVersion = 1

// EventName is the event_name of a flow record's log record.
const EventName = "weft.flow"

// The names of a record's attributes, in the order they are exported. OTLP, the
// JSON of flowctl and of weftd -print all take them from here.
const (
	nameSchema          = "weft.schema.version"
	nameSrcAddr         = "source.address"
	nameSrcPort         = "source.port"
	nameDstAddr         = "destination.address"
	nameDstPort         = "destination.port"
	nameSrcNATAddr      = "weft.source.nat.address" // the source as the destination knows it
	nameSrcNATPort      = "weft.source.nat.port"
	nameDstNATAddr      = "weft.destination.nat.address" // where the source sends to, as the address of a Service
	nameDstNATPort      = "weft.destination.nat.port"
	nameNATEvidence     = "weft.nat.evidence" // conntrack, connection_id
	nameTransport       = "network.transport"
	nameNetworkType     = "network.type"
	nameInterface       = "network.interface.name" // of the chosen point
	nameDirection       = "network.io.direction"   // receive or transmit at that interface
	nameNetns           = "weft.hop.netns"         // path or name; absent: the agent's own
	nameHook            = "weft.hop.hook"          // ingress, egress, xdp
	nameLayer           = "weft.isolation.layer"   // of the hop
	nameEndReason       = "weft.flow.end_reason"
	nameInitiator       = "weft.flow.initiator"
	nameCommunityID     = "weft.flow.community_id"
	nameFragment        = "weft.flow.fragment"
	nameConnection      = "weft.connection.id" // 16 hexadecimal digits
	nameScopeNetns      = "weft.scope.netns"   // cookie
	nameScopeVLAN       = "weft.scope.vlan"
	nameScopeInnerVLAN  = "weft.scope.inner_vlan"
	nameICMPType        = "weft.icmp.type"
	nameICMPCode        = "weft.icmp.code"
	nameTCPFlags        = "weft.tcp.flags"
	nameReverseTCPFlags = "weft.tcp.reverse_flags"
	nameDSCP            = "weft.ip.dscp"
	nameStart           = "weft.flow.start_unix_nano" // OTLP; JSON has start
	nameHops            = "weft.flow.hops"            // OTLP; JSON has hops
	nameSamplingRate    = "weft.sampling.rate"        // absent: 1
	nameReason          = "weft.ledger.reason"
	nameSink            = "weft.ledger.sink"
	nameSource          = "weft.ledger.source" // drops, dns, sockets
)

// The names of one hop's fields, in OTLP and JSON alike.
const (
	hopInterface = "interface"
	hopDirection = "direction"
	hopHook      = "hook"
	hopNetns     = "netns"
	hopLayer     = "layer"
	hopNAT       = "nat" // before, between or after the addresses are translated
	hopReverse   = "reverse"
	hopChosen    = "chosen"
	hopPackets   = "packets"
	hopBytes     = "bytes"
)

// totals are a record's counts: the name in JSON and in OTLP.
var totals = [...]struct {
	json, otlp string
	of         func(*flows.Record) uint64
}{
	{"packets", "weft.flow.packets", func(r *flows.Record) uint64 { return r.Packets }},
	{"bytes", "weft.flow.bytes", func(r *flows.Record) uint64 { return r.Bytes }},
	{"reverse.packets", "weft.flow.reverse.packets", func(r *flows.Record) uint64 { return r.ReversePackets }},
	{"reverse.bytes", "weft.flow.reverse.bytes", func(r *flows.Record) uint64 { return r.ReverseBytes }},
}

// list is a record's attribute that is a list of rows, each with a few fields.
type list uint8

// The lists, in the order of export.
const (
	listRcodes list = iota
	listQuestions
	listHops
	numLists
)

// names are l's in JSON and in OTLP.
func (l list) names() (json, otlp string) {
	switch l {
	case listRcodes:
		return nameDNSRcodes, nameDNSRcodes
	case listQuestions:
		return nameDNSQuestions, nameDNSQuestions
	}
	return "hops", nameHops
}

func (l list) len(r *flows.Record) int {
	switch {
	case l == listHops:
		return len(r.Hops)
	case r.DNS == nil:
		return 0
	case l == listRcodes:
		return len(r.DNS.Rcodes)
	}
	return len(r.DNS.Questions)
}

// inJSON reports whether JSON has l: the hops always, the others when there are any.
func (l list) inJSON(r *flows.Record) bool { return l == listHops || l.len(r) > 0 }

func (l list) appendRow(dst []slog.Attr, r *flows.Record, i int) []slog.Attr {
	switch l {
	case listRcodes:
		return appendRcode(dst, r.DNS.Rcodes[i])
	case listQuestions:
		return appendQuestion(dst, &r.DNS.Questions[i])
	}
	return appendHop(dst, &r.Hops[i])
}

// AppendAttributes appends what is known about r, in a stable order, as strings,
// int64s, float64s and bools with their exported names. What is not known is not
// there: a conversation without ports has no port, one whose round trip was not
// measured none of 0. The record's totals, its times and its lists are not among
// them.
func AppendAttributes(dst []slog.Attr, r *flows.Record) []slog.Attr {
	var w words
	dst = appendMeasured(dst, &w, r, true)
	dst = appendWho(dst, &sourceWho, r.Source, r.SourceProcess != nil)
	dst = appendWho(dst, &destinationWho, r.Destination, r.DestinationProcess != nil)
	return appendSockets(dst, &w, r)
}

// appendMeasured appends the attributes in front of those that say who the two ends
// are, the Community ID if wanted. Its texts are in w: they are good until w is used anew.
func appendMeasured(dst []slog.Attr, w *words, r *flows.Record, community bool) []slog.Attr {
	str := func(name, v string) {
		if v != "" {
			dst = append(dst, slog.String(name, v))
		}
	}
	number := func(name string, v uint64) { dst = append(dst, slog.Int64(name, signed(v))) }

	number(nameSchema, SchemaVersion)
	str(nameSrcAddr, w.address(r.Key.Src.Addr()))
	if hasPorts(r) {
		number(nameSrcPort, uint64(r.Key.Src.Port()))
	}
	str(nameDstAddr, w.address(r.Key.Dst.Addr()))
	if hasPorts(r) {
		number(nameDstPort, uint64(r.Key.Dst.Port()))
	}
	if r.NAT != nil {
		dst = appendNAT(dst, w, r.NAT)
	}
	str(nameTransport, flows.ProtoName(r.Key.Proto))
	str(nameNetworkType, networkType(r.Key))
	if h := chosenHop(r); h != nil {
		str(nameInterface, h.Hop.Interface)
		str(nameDirection, direction(h.At.Hook))
		str(nameHook, h.At.Hook.String())
		str(nameLayer, h.Layer.String())
		str(nameNetns, h.Hop.Netns)
	}
	if r.EndReason != 0 {
		str(nameEndReason, r.EndReason.String())
	}
	if r.Initiator != 0 {
		str(nameInitiator, r.Initiator.String())
	}
	switch {
	case r.Fragment:
		dst = append(dst, slog.Bool(nameFragment, true))
	case community && !r.Redacted: // of other ports or addresses the identifier would be another conversation's
		str(nameCommunityID, w.community(r.Key))
	}
	if r.ConnectionID != 0 {
		str(nameConnection, w.hex(r.ConnectionID))
	}
	if r.Scope.Netns != 0 {
		number(nameScopeNetns, r.Scope.Netns)
	}
	if r.Scope.VLAN.Outer != 0 {
		number(nameScopeVLAN, uint64(r.Scope.VLAN.Outer))
	}
	if r.Scope.VLAN.Inner != 0 {
		number(nameScopeInnerVLAN, uint64(r.Scope.VLAN.Inner))
	}
	if r.Key.ICMP() && !r.Fragment {
		number(nameICMPType, uint64(r.Key.Src.Port()))
		number(nameICMPCode, uint64(r.Key.Dst.Port()))
	}
	str(nameTCPFlags, flows.FlagNames(r.TCPFlags))
	str(nameReverseTCPFlags, flows.FlagNames(r.ReverseTCPFlags))
	if r.Packets > 0 {
		number(nameDSCP, uint64(r.DSCP))
	}
	if r.SamplingRate != 0 {
		dst = append(dst, slog.Float64(nameSamplingRate, r.SamplingRate))
	}
	return appendHealth(dst, r)
}

// appendNAT appends as what the ends know each other, where that is not their own address.
func appendNAT(dst []slog.Attr, w *words, n *flows.NAT) []slog.Attr {
	if n.Source.IsValid() {
		dst = append(dst, slog.String(nameSrcNATAddr, w.address(n.Source.Addr())), slog.Int64(nameSrcNATPort, int64(n.Source.Port())))
	}
	if n.Destination.IsValid() {
		dst = append(dst, slog.String(nameDstNATAddr, w.address(n.Destination.Addr())), slog.Int64(nameDstNATPort, int64(n.Destination.Port())))
	}
	return append(dst, slog.String(nameNATEvidence, n.Basis.String()))
}

// appendHop appends one hop's fields, as AppendAttributes does a record's.
func appendHop(dst []slog.Attr, h *flows.HopCount) []slog.Attr {
	if h.Hop.Interface != "" {
		dst = append(dst, slog.String(hopInterface, h.Hop.Interface))
	}
	dst = append(dst, slog.String(hopDirection, direction(h.At.Hook)), slog.String(hopHook, h.At.Hook.String()))
	if h.Hop.Netns != "" {
		dst = append(dst, slog.String(hopNetns, h.Hop.Netns))
	}
	if h.Layer != flows.LayerUnknown {
		dst = append(dst, slog.String(hopLayer, h.Layer.String()))
	}
	if h.NAT != flows.NATNone {
		dst = append(dst, slog.String(hopNAT, h.NAT.String()))
	}
	return append(dst,
		slog.Int64(hopPackets, signed(h.Packets)), slog.Int64(hopBytes, signed(h.Bytes)),
		slog.Bool(hopReverse, h.Reverse), slog.Bool(hopChosen, h.Chosen))
}

// rfc3339 always has nine digits, so that times sort as text.
const rfc3339 = "2006-01-02T15:04:05.000000000Z07:00"

// appendDocument appends r's flat members: start, end, every attribute, the
// totals and end_reason.
func appendDocument(dst []slog.Attr, r *flows.Record) []slog.Attr {
	for _, t := range [...]struct {
		name string
		at   time.Time
	}{{"start", r.Start}, {"end", r.End}} {
		if !t.at.IsZero() {
			dst = append(dst, slog.String(t.name, t.at.UTC().Format(rfc3339)))
		}
	}
	dst = AppendAttributes(dst, r)
	for _, t := range totals {
		dst = append(dst, slog.Uint64(t.json, t.of(r)))
	}
	if r.EndReason != 0 {
		dst = append(dst, slog.String("end_reason", r.EndReason.String()))
	}
	return dst
}

// AppendJSON appends r as one JSON object on one line: start, end, every
// attribute as a flat key, the totals, end_reason and the lists. Text that a
// terminal could obey is escaped.
func AppendJSON(dst []byte, r *flows.Record) []byte {
	var room [96]slog.Attr
	dst = append(dst, '{')
	for _, a := range appendDocument(room[:0], r) {
		dst = append(appendMember(dst, a), ',')
	}
	for l := range numLists {
		if !l.inJSON(r) {
			continue
		}
		name, _ := l.names()
		dst = append(append(append(dst, '"'), name...), `":[`...)
		for i := range l.len(r) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendRow(dst, l.appendRow(room[:0], r, i))
		}
		dst = append(dst, "],"...)
	}
	dst[len(dst)-1] = '}'
	return dst
}

func appendRow(dst []byte, fields []slog.Attr) []byte {
	dst = append(dst, '{')
	for i, a := range fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendMember(dst, a)
	}
	return append(dst, '}')
}

func appendMember(dst []byte, a slog.Attr) []byte {
	dst = append(append(append(dst, '"'), a.Key...), `":`...) // a name of ours needs no escape
	switch a.Value.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(dst, a.Value.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(dst, a.Value.Uint64(), 10)
	case slog.KindFloat64:
		return strconv.AppendFloat(dst, a.Value.Float64(), 'f', -1, 64)
	case slog.KindBool:
		return strconv.AppendBool(dst, a.Value.Bool())
	}
	return appendJSONString(dst, a.Value.String())
}

func appendJSONString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	plain := 0
	for plain < len(s) && s[plain] >= ' ' && s[plain] < 0x7f && s[plain] != '"' && s[plain] != '\\' {
		plain++
	}
	dst = append(dst, s[:plain]...)
	for _, c := range string(s[plain:]) { // invalid UTF-8 yields U+FFFD
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case unicode.IsPrint(c):
			dst = utf8.AppendRune(dst, c)
		case c > 0xffff:
			hi, lo := (c-0x10000)>>10+0xd800, (c-0x10000)&0x3ff+0xdc00
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, hi, lo)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, c)
		}
	}
	return append(dst, '"')
}

// hasPorts: a fragment whose first part was not seen has ports, but nobody knows them.
func hasPorts(r *flows.Record) bool {
	switch r.Key.Proto {
	case flows.ProtoTCP, flows.ProtoUDP, flows.ProtoSCTP, 33, 136: // DCCP, UDP-Lite
		return !r.Fragment
	}
	return false
}

func networkType(k flows.Key) string {
	switch a := k.Src.Addr(); {
	case a.Is4() || hashedFamily(a) == 4:
		return "ipv4"
	case a.Is6():
		return "ipv6"
	}
	return ""
}

// direction is network.io.direction: what the interface did, not the flow.
func direction(h flows.Hook) string {
	if h == flows.HookEgress {
		return "transmit"
	}
	return "receive"
}

// chosenHop is the point whose figures are the totals from source to
// destination; when that direction was not seen, those of the other.
func chosenHop(r *flows.Record) *flows.HopCount {
	var found *flows.HopCount
	for i := range r.Hops {
		if h := &r.Hops[i]; h.Chosen {
			if !h.Reverse {
				return h
			}
			found = h
		}
	}
	return found
}

func signed(v uint64) int64 { return int64(min(v, math.MaxInt64)) }
