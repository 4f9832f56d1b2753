// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"weft/flows"
)

// beyond is what r's attributes have that tcpRecord's have not.
func beyond(r flows.Record) map[string]any {
	got, plain := attributes(r), attributes(tcpRecord(1))
	maps.DeleteFunc(got, func(name string, _ any) bool { _, ok := plain[name]; return ok })
	return got
}

func TestHealthHasTheContractsNames(t *testing.T) {
	fine := map[string]any{
		"weft.tcp.source.rtt.count": int64(4), "weft.tcp.source.rtt.mean": 0.000250001,
		"weft.tcp.source.rtt.min": 0.000200001, "weft.tcp.source.rtt.max": 0.000400003,
		"weft.tcp.source.handshake.duration": 0.00025,
		"weft.tcp.source.retransmits":        int64(0), "weft.tcp.source.out_of_order": int64(0), "weft.tcp.source.lost": int64(0),
		"weft.tcp.source.dup_acks": int64(0), "weft.tcp.source.zero_windows": int64(0),
		"weft.tcp.source.mss": int64(1460), "weft.tcp.source.window_scale": int64(7), "weft.tcp.source.options": "timestamps+sack+window_scale",
		"weft.tcp.destination.rtt.count": int64(3), "weft.tcp.destination.rtt.mean": 0.012,
		"weft.tcp.destination.rtt.min": 0.0115, "weft.tcp.destination.rtt.max": 0.0125,
		"weft.tcp.destination.handshake.duration": 0.012,
		"weft.tcp.destination.retransmits":        int64(0), "weft.tcp.destination.out_of_order": int64(0), "weft.tcp.destination.lost": int64(0),
		"weft.tcp.destination.dup_acks": int64(0), "weft.tcp.destination.zero_windows": int64(0),
		"weft.tcp.destination.mss": int64(1460), "weft.tcp.destination.window_scale": int64(9), "weft.tcp.destination.options": "window_scale",
	}
	sick := maps.Clone(fine)
	maps.Copy(sick, map[string]any{
		"weft.tcp.failure": "reset", "weft.tcp.reset_by": "destination",
		"weft.tcp.source.retransmits": int64(5), "weft.tcp.source.out_of_order": int64(2), "weft.tcp.source.lost": int64(3),
		"weft.tcp.source.dup_acks": int64(7), "weft.tcp.destination.retransmits": int64(1),
		"weft.tcp.destination.zero_windows": int64(2), "weft.tcp.destination.zero_window.duration": 1.5,
		"weft.drop.packets": int64(4), "weft.drop.reason": "NETFILTER_DROP",
		"source.process.pid": int64(4711), "source.process.executable.name": "curl", "weft.source.cgroup.id": int64(8765),
		"destination.process.executable.name": "ngi\x1b[2Jnx",
	})
	for name, c := range map[string]struct {
		record flows.Record
		want   map[string]any
	}{
		"fine": {healthyRecord(1), fine}, "sick": {sickRecord(1), sick},
		"lookup": {dnsRecord(1), map[string]any{
			"dns.question.name": "gone.example.com", "weft.dns.question.type": "AAAA",
			"weft.dns.queries": int64(4), "weft.dns.retries": int64(1), "weft.dns.answers": int64(3), "weft.dns.timeouts": int64(1),
			"weft.dns.latency.count": int64(3), "weft.dns.latency.mean": 0.003, "weft.dns.latency.min": 0.001, "weft.dns.latency.max": 0.005,
		}},
	} {
		if got := beyond(c.record); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, c.want)
		}
	}
}

func TestWhatWasNotMeasuredIsAbsentAndNotZero(t *testing.T) {
	oneSided := tcpRecord(1)
	oneSided.TCP = &flows.TCPRecord{Failure: flows.FailUnanswered}
	oneSided.TCP.Source.Options = flows.TCPSYNSeen
	crowded := tcpRecord(1) // of the source some packets found no room, of the destination all
	crowded.TCP = &flows.TCPRecord{
		Source:      flows.TCPHealth{RTT: flows.RTT{Count: 1, Sum: 2, Min: 2, Max: 2}, Retransmits: 3, ZeroWindow: 4, Untracked: 5},
		Destination: flows.TCPHealth{Untracked: 6},
	}
	both := tcpRecord(1)
	both.TCP = &flows.TCPRecord{SourceReset: true, DestinationReset: true}
	zeros := []string{
		"weft.tcp.source.dup_acks", "weft.tcp.source.lost", "weft.tcp.source.out_of_order", "weft.tcp.source.retransmits", "weft.tcp.source.zero_windows",
	}
	for name, c := range map[string]struct {
		record flows.Record
		want   []string // and nothing else
	}{
		"not TCP":                            {tcpRecord(1), nil},
		"TCP off":                            {both, []string{"weft.tcp.reset_by"}},
		"one side seen, SYN without options": {oneSided, append(slices.Clone(zeros), "weft.tcp.failure", "weft.tcp.source.options")},
		"no room for the connection": {crowded, []string{
			"weft.tcp.source.rtt.count", "weft.tcp.source.rtt.max", "weft.tcp.source.rtt.mean", "weft.tcp.source.rtt.min",
			"weft.tcp.source.untracked.packets", "weft.tcp.destination.untracked.packets",
		}},
		"a process without a name": {func() flows.Record {
			r := tcpRecord(1)
			r.SourceProcess, r.DestinationProcess = &flows.Process{PID: 3}, &flows.Process{}
			return r
		}(), []string{"source.process.pid"}},
		"DNS without questions": {func() flows.Record {
			r := tcpRecord(1)
			r.DNS = &flows.DNS{Answers: 1}
			return r
		}(), []string{"weft.dns.answers", "weft.dns.queries", "weft.dns.retries", "weft.dns.timeouts"}},
	} {
		slices.Sort(c.want)
		if got := slices.Sorted(maps.Keys(beyond(c.record))); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, c.want)
		}
	}
	if got := resent(&crowded.TCP.Source) + resent(&crowded.TCP.Destination); got != "--" {
		t.Errorf("sent again, in a table: got %q, want - for either side", got)
	}
	answered := dnsRecord(1)
	answered.DNS.Questions = answered.DNS.Questions[1:]
	if got := attributes(both)["weft.tcp.reset_by"]; got != "both" {
		t.Errorf("reset by: got %v, want both", got)
	}
	if got := attributes(answered)["weft.dns.rcode"]; got != "NXDOMAIN" {
		t.Errorf("the last answer's code: got %v, want NXDOMAIN", got)
	}
}

func TestJSONAndYAMLHoldTheHealth(t *testing.T) {
	lookup := dnsRecord(1)
	sick := sickRecord(1)
	sick.DNS = lookup.DNS
	var fromJSON map[string]any
	if err := json.Unmarshal(AppendJSON(nil, &sick), &fromJSON); err != nil {
		t.Fatal(err)
	}
	var fromYAML []map[string]any
	if err := yaml.Unmarshal((&Formatter{Format: YAML}).Append(nil, &sick), &fromYAML); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"weft.dns.rcodes": []any{map[string]any{"rcode": "NXDOMAIN", "count": 1.}, map[string]any{"rcode": "NOERROR", "count": 2.}},
		"weft.dns.questions": []any{
			map[string]any{"name": "gone.example.com", "type": "AAAA", "timeout": true},
			map[string]any{"name": "nowhere.example.com", "type": "A", "rcode": "NXDOMAIN", "records": 0., "latency": 0.005},
			map[string]any{"name": "www.example.com", "type": "HTTPS", "rcode": "NOERROR", "records": 2.},
		},
	}
	for name, v := range attributes(sick) {
		switch v := v.(type) {
		case int64:
			want[name] = float64(v)
		default:
			want[name] = v
		}
	}
	asJSON := func(v any) (back any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		return back
	}
	for name, value := range want {
		if got := fromJSON[name]; !reflect.DeepEqual(got, value) {
			t.Errorf("JSON %s: got %v, want %v", name, got, value)
		}
		if s, ok := value.(string); ok {
			value = Printable(s)
		}
		if got := asJSON(fromYAML[0][name]); !reflect.DeepEqual(got, value) {
			t.Errorf("YAML %s: got %v, want %v", name, got, value)
		}
	}
	plain := tcpRecord(1)
	if line := string(AppendJSON(nil, &plain)); strings.Contains(line, "dns") || !strings.Contains(line, `"hops":[{`) {
		t.Errorf("without DNS: got %s, want no list but the hops", line)
	}
}
