// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"weft/flows"
)

func attributes(r flows.Record) map[string]any {
	m := map[string]any{}
	for _, a := range AppendAttributes(nil, &r) {
		if _, twice := m[a.Key]; twice {
			m["TWICE "+a.Key] = true
		}
		m[a.Key] = a.Value.Any()
	}
	return m
}

func TestAttributesHaveTheContractsNames(t *testing.T) {
	r := tcpRecord(1)
	r.Scope.VLAN = flows.VLAN{Outer: 100, Inner: 7}
	r.Hops[0].Hop.Netns = "/run/netns/blue"
	r.DSCP = 46
	want := map[string]any{
		"weft.schema.version": int64(1),
		"source.address":      "10.0.0.1", "source.port": int64(40000),
		"destination.address": "10.0.0.2", "destination.port": int64(443),
		"network.transport": "tcp", "network.type": "ipv4",
		"network.interface.name": "eth0", "network.io.direction": "transmit",
		"weft.hop.netns": "/run/netns/blue", "weft.hop.hook": "egress",
		"weft.flow.end_reason": "end_of_flow", "weft.flow.initiator": "syn",
		"weft.flow.community_id": flows.CommunityID(r.Key, 0),
		"weft.connection.id":     "0123456789abcdf0",
		"weft.scope.netns":       int64(4026531840), "weft.scope.vlan": int64(100), "weft.scope.inner_vlan": int64(7),
		"weft.tcp.flags": "FIN+SYN+ACK", "weft.tcp.reverse_flags": "SYN+ACK", "weft.ip.dscp": int64(46),
	}
	if got := attributes(r); !reflect.DeepEqual(got, want) {
		t.Errorf("attributes:\n got %v\nwant %v", got, want)
	}
}

func TestUnknownIsAbsentAndNotZero(t *testing.T) {
	fragment := tcpRecord(1)
	fragment.Fragment, fragment.Key.Src, fragment.ConnectionID = true, portless(fragment), 0
	reply := tcpRecord(1)
	reply.Packets, reply.Bytes, reply.Hops = 0, 0, reply.Hops[1:]
	for name, c := range map[string]struct {
		record       flows.Record
		absent, have []string
	}{
		"icmp": {icmpRecord(),
			[]string{"source.port", "destination.port", "weft.tcp.flags", "weft.connection.id", "weft.scope.vlan", "weft.scope.netns", "network.interface.name"},
			[]string{"weft.icmp.type", "weft.icmp.code", "weft.ip.dscp"}},
		"fragment": {fragment,
			[]string{"source.port", "destination.port", "weft.connection.id", "weft.icmp.type"},
			[]string{"weft.flow.fragment"}},
		"only the reply seen": {reply, []string{"weft.ip.dscp"}, []string{"network.interface.name"}},
		"nothing known": {flows.Record{},
			[]string{"source.address", "destination.address", "network.type", "weft.flow.end_reason", "weft.flow.initiator"}, nil},
	} {
		got := attributes(c.record)
		for _, n := range c.absent {
			if v, ok := got[n]; ok {
				t.Errorf("%s: got %s=%v, want it absent", name, n, v)
			}
		}
		for _, n := range c.have {
			if _, ok := got[n]; !ok {
				t.Errorf("%s: got no %s, want it", name, n)
			}
		}
	}
	if got := attributes(icmpRecord()); got["weft.icmp.type"] != int64(128) || got["weft.icmp.code"] != int64(0) {
		t.Errorf("icmp: got type %v code %v, want 128 0", got["weft.icmp.type"], got["weft.icmp.code"])
	}
}

func TestAttributeNamesAreLeavesOnly(t *testing.T) {
	var names []string
	for _, r := range []flows.Record{tcpRecord(0), icmpRecord(), sickRecord(0), dnsRecord(0)} {
		r.Scope.VLAN, r.Fragment = flows.VLAN{Outer: 1, Inner: 2}, true
		for _, a := range AppendAttributes(nil, &r) {
			names = append(names, a.Key)
		}
	}
	names = append(names, nameStart, nameHops, nameRcode, nameDNSRcodes, nameDNSQuestions)
	for _, t := range totals {
		names = append(names, t.otlp)
	}
	for _, a := range names {
		for _, b := range names {
			if strings.HasPrefix(b, a+".") {
				t.Errorf("%s is a name and the namespace of %s", a, b)
			}
		}
	}
}

func TestJSONIsOneFlatObjectARecord(t *testing.T) {
	r := tcpRecord(1)
	line := AppendJSON([]byte("before "), &r)
	if strings.ContainsAny(string(line), "\n\r") {
		t.Errorf("got a line break in %s", line)
	}
	var got map[string]any
	if err := json.Unmarshal(line[len("before "):], &got); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	for name, want := range map[string]any{
		"start": "2026-11-22T20:30:00.124456789Z", "end": "2026-11-22T20:30:01.327456789Z",
		"packets": 12., "bytes": 3456., "reverse.packets": 10., "reverse.bytes": 15100.,
		"end_reason": "end_of_flow", "source.address": "10.0.0.1", "destination.port": 443., "network.transport": "tcp",
		"hops": []any{
			map[string]any{"interface": "eth0", "direction": "transmit", "hook": "egress", "packets": 12., "bytes": 3456., "reverse": false, "chosen": true},
			map[string]any{"interface": "eth0", "direction": "receive", "hook": "ingress", "packets": 10., "bytes": 15100., "reverse": true, "chosen": true},
		},
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	for name, v := range attributes(r) {
		if s, ok := v.(string); ok && got[name] != s {
			t.Errorf("%s: got %v in JSON, want %v as in OTLP", name, got[name], v)
		}
	}
}

func TestJSONEscapesWhatATerminalCouldObey(t *testing.T) {
	hostile := "e\x1b[2J\u009b\u202e\"\\\n\xff\U000e0001é"
	quoted := appendJSONString(nil, hostile)
	var back string
	if err := json.Unmarshal(quoted, &back); err != nil {
		t.Fatalf("%v in %q", err, quoted)
	}
	if want := strings.ToValidUTF8(hostile, "\uFFFD"); back != want {
		t.Errorf("got %q back, want %q", back, want)
	}
	for _, c := range string(quoted) {
		if c < ' ' || c == 0x9b || c == 0x202e || c == 0xe0001 {
			t.Errorf("got %U raw in %q", c, quoted)
		}
	}
}

func BenchmarkAppendAttributes(b *testing.B) {
	r := tcpRecord(1)
	var room [32]slog.Attr
	b.ReportAllocs()
	for b.Loop() {
		AppendAttributes(room[:0], &r)
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	r := tcpRecord(1)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendJSON(buf[:0], &r)
	}
}
