// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

var update = flag.Bool("update", false, "rewrite testdata from what comes out")

// TestMain fixes what would differ from machine to machine.
func TestMain(m *testing.M) {
	time.Local, version = time.UTC, "v1"
	os.Exit(m.Run())
}

var noon = time.Date(2026, 3, 4, 12, 0, 0, 123456789, time.UTC)

// record is a conversation from 10.0.0.n to a port of 192.0.2.1, seen at a veth
// and at eth0.
func record(n byte, proto uint8, port uint16) flows.Record {
	return flows.Record{
		Scope:     flows.Scope{Netns: 1},
		Key:       flows.Key{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 40000+uint16(n)), Dst: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), Proto: proto},
		Initiator: flows.InitiatorSYN, Start: noon, End: noon.Add(1500 * time.Millisecond), EndReason: flows.EndOfFlow,
		Packets: 10, Bytes: 1000, ReversePackets: 8, ReverseBytes: 123456,
		TCPFlags: flows.FlagSYN | flows.FlagACK | flows.FlagFIN, ReverseTCPFlags: flows.FlagSYN | flows.FlagACK | flows.FlagFIN,
		ConnectionID: 0xfeedface,
		Hops: []flows.HopCount{
			{At: flows.Point{Netns: 1, Ifindex: 2, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: "veth1"}, Chosen: true, Packets: 10, Bytes: 1000, First: noon, Last: noon.Add(time.Second)},
			{At: flows.Point{Netns: 1, Ifindex: 3, Hook: flows.HookEgress}, Hop: flows.Hop{Interface: "eth0"}, Packets: 9, Bytes: 900, First: noon, Last: noon.Add(time.Second)},
			{At: flows.Point{Netns: 1, Ifindex: 3, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: "eth0"}, Reverse: true, Chosen: true, Packets: 8, Bytes: 123456, First: noon, Last: noon.Add(time.Second)},
		},
	}
}

// ledger is an account of one point and two sinks that balances.
func ledger() flows.Ledger {
	p := flows.PointLedger{
		At: flows.Point{Netns: 1, Ifindex: 3, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: "eth0"},
		Seen: flows.Count{Packets: 120, Bytes: 12000}, GSO: flows.Count{Packets: 20, Bytes: 1000},
		Flows: flows.Count{Packets: 100, Bytes: 10000}, Recorded: flows.Count{Packets: 90, Bytes: 9000}, Open: flows.Count{Packets: 10, Bytes: 1000},
		InTable: flows.Count{Packets: 5, Bytes: 500},
	}
	p.Skipped[flows.SkipARP] = flows.Count{Packets: 12, Bytes: 1200}
	p.Skipped[flows.SkipTruncated] = flows.Count{Packets: 3, Bytes: 300}
	return flows.Ledger{At: noon, Points: []flows.PointLedger{p}, Made: 50, Sinks: []flows.SinkAccount{
		{Name: "store", Offered: 50, Acknowledged: 50},
		{Name: "otlp", Offered: 50, Acknowledged: 40, Waiting: 7, Lost: map[string]uint64{"queue_full": 3}},
	}}
}

// agent is a real API server with records and a ledger, and its address.
func agent(t *testing.T, l flows.Ledger, records ...flows.Record) string {
	t.Helper()
	store := exporter.NewStore(1024)
	if err := store.Export(context.Background(), flows.Window{End: noon, Records: records, Ledger: l}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "weft.sock")
	server, err := exporter.ListenSocket(path, "", store, func() *api.StatusResponse {
		return &api.StatusResponse{
			Version: "v1", Started: noon.UnixNano(), Pid: 42, Kernel: "6.18.0", Backend: "slots", Hooks: "tcx", Cpus: 2, Slots: 65536,
			Memory: []*api.MemoryUse{{Name: "flow slots", Bytes: 8 << 20}, {Name: "eviction ring", Bytes: 4 << 20}},
			Points: []*api.PointStatus{
				{At: exporter.PointToWire(flows.Point{Netns: 1, Ifindex: 3, Hook: flows.HookIngress}, flows.Hop{Interface: "eth0"}), Attached: true},
				{At: exporter.PointToWire(flows.Point{Netns: 1, Ifindex: 4, Hook: flows.HookEgress}, flows.Hop{Interface: "bad\x1b[31m"}), Err: "device is busy"},
			},
			Programs: []*api.ProgramStatus{{Name: "tc_ingress", Runs: 1000, Nanos: 30000, Instrs: 2500}, {Name: "tc_egress"}},
			Off:      []*api.Capability{{Name: "tcx", Needs: "Linux 6.6", Err: "invalid argument"}},
			Drain:    &api.DrainStatus{Drains: 7, Live: 3, Used: 5, Evictions: 1, LastNs: 1234567},
			Sinks:    []*api.SinkStatus{{Account: exporter.AccountToWire(l.Sinks[1]), Target: "http://collector:4317", State: "ok"}},
			Settings: []*api.Setting{{Key: "log.level", Value: "info"}}, ResidentBytes: 30 << 20, Conversations: 9,
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return "unix://" + path
}

// ctl runs the command line against a server.
func ctl(t *testing.T, server string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, complaint bytes.Buffer
	code = run(ctx, append([]string{"--server", server}, args...), &out, &complaint)
	return out.String(), complaint.String(), code
}

func TestNotNegatesTheFilterThatFollowsIt(t *testing.T) {
	for _, c := range []struct {
		args string
		want []flows.Term
	}{
		{"--port 80 --not --ip 10.0.0.1 --port 443", []flows.Term{{Kind: "port", Value: "80"}, {Kind: "ip", Value: "10.0.0.1", Negate: true}, {Kind: "port", Value: "443"}}},
		{"--not --from-ip 10.0.0.0/8 --not --protocol=udp", []flows.Term{{Kind: "from-ip", Value: "10.0.0.0/8", Negate: true}, {Kind: "protocol", Value: "udp", Negate: true}}},
		{"--not --follow --to-port 22 --interface eth*", []flows.Term{{Kind: "to-port", Value: "22", Negate: true}, {Kind: "interface", Value: "eth*"}}},
	} {
		var got terms
		g := &global{}
		cmd := newObserve(g)
		cmd.ResetFlags()
		cmd.Flags().Bool("follow", false, "")
		got.addTo(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(c.args)); err != nil {
			t.Errorf("%s: %v", c.args, err)
		}
		if !slices.Equal(got.list, c.want) || got.not {
			t.Errorf("%s: got %v, want %v", c.args, got.list, c.want)
		}
	}
}

func TestEveryFilterOfFlowsIsAFlag(t *testing.T) {
	cmd := newObserve(&global{})
	for _, k := range flows.FilterKinds() {
		if f := cmd.Flags().Lookup(k.Name); f == nil || f.Usage == "" {
			t.Errorf("observe has no flag --%s with help", k.Name)
		}
	}
}

func TestObserveChooses(t *testing.T) {
	server := agent(t, ledger(), record(1, flows.ProtoTCP, 443), record(2, flows.ProtoTCP, 80), record(3, flows.ProtoUDP, 53), record(4, flows.ProtoTCP, 443))
	for args, want := range map[string]string{
		"":                                  "1 2 3 4",
		"--port 443":                        "1 4",
		"--port 443 --port 53":              "1 3 4",
		"--last 2":                          "3 4",
		"-n 1 --port 443":                   "4",
		"--not --port 443":                  "2 3",
		"--protocol tcp --not --to-port 80": "1 4",
		"--not --to-port 80 --protocol tcp": "1 4",
		"--to-port 80 --not --protocol udp": "2",
		"--from-ip 10.0.0.0/31":             "1",
		"--since 100000h":                   "1 2 3 4",
		"--interface veth1 --ip 10.0.0.2":   "2",
	} {
		out, complaint, code := ctl(t, server, append([]string{"observe", "-o", "jsonl"}, strings.Fields(args)...)...)
		var got []string
		for line := range strings.Lines(out) {
			var r struct {
				Source string `json:"source.address"`
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %v: %s", args, err, line)
			}
			got = append(got, strings.TrimPrefix(r.Source, "10.0.0."))
		}
		if strings.Join(got, " ") != want || code != exitFine {
			t.Errorf("observe %s: got records %v, exit code %d, %s, want %s", args, got, code, complaint, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	server := agent(t, ledger(), record(1, flows.ProtoTCP, 443))
	broken := ledger()
	broken.Points[0].Unaccounted.Packets = 4
	off := agent(t, broken)
	for _, c := range []struct {
		server, args string
		want         int
		says         string // on stderr
	}{
		{server, "observe", exitFine, ""},
		{server, "ledger", exitFine, ""},
		{server, "status", exitFine, ""},
		{server, "version", exitFine, ""},
		{server, "completion bash", exitFine, ""},
		{server, "observe --help", exitFine, ""},
		{server, "observe --port 1", exitNothing, "nothing matched"},
		{server, "observe --since 1ns", exitNothing, "nothing matched"},
		{off, "ledger", exitFailed, "does not balance"},
		{off, "ledger -o json", exitFailed, "does not balance"},
		{"unix:///nonexistent/weft.sock", "status", exitFailed, "is weftd running?"},
		{"localhost:1", "status", exitUsage, `--server "localhost:1": want unix:///path`},
		{server, "observ", exitUsage, "did you mean observe?"},
		{server, "observe --prot 1", exitUsage, "--prot"},
		{server, "observe --port seventy", exitUsage, "want a port number"},
		{server, "observe --not", exitUsage, "--not negates the filter that follows it"},
		{server, "observe --not --not --port 1", exitUsage, "twice"},
		{server, "observe --last=-1", exitUsage, `--last "-1": want a whole number from 0`},
		{server, "observe --last abc", exitUsage, `--last "abc": want a whole number from 0`},
		{server, "observe -n 1.5", exitUsage, `--last "1.5": want a whole number from 0`},
		{server, "observe --last 99999999999", exitUsage, `--last "99999999999": want a whole number from 0 to 2147483647`},
		{server, "observe --last", exitUsage, "--last needs a value"},
		{server, "observe --since yesterday", exitUsage, `--since "yesterday": want a time`},
		{server, "observe --since -5m", exitUsage, `--since "-5m": want a time that is not negative`},
		{server, "observe --follow=maybe", exitUsage, `--follow "maybe": want true, false or no value`},
		{server, "observe --not=no --port 1", exitUsage, `--not "no": it takes no value`},
		{server, "observe --ip ten --tcp-flags XMAS", exitUsage, "--ip \"ten\": want an address such as 10.0.0.1 or 2001:db8::1, or a prefix such as 10.0.0.0/8\nflowctl: --tcp-flags \"XMAS\": want"},
		{server, "status --timeout soon", exitUsage, `--timeout "soon": want a time`},
		{server, "status --no-color=7", exitUsage, `--no-color "7": want true, false`},
		{server, "completion klingon", exitUsage, "want bash, zsh, fish or powershell"},
		{server, "observe eth0", exitUsage, "takes no argument"},
		{server, "ledger -o xml", exitUsage, `--output "xml": want compact`},
	} {
		_, complaint, code := ctl(t, c.server, strings.Fields(c.args)...)
		if code != c.want || !strings.Contains(complaint, c.says) || (c.says == "") != (complaint == "") {
			t.Errorf("%s: got exit code %d and %q, want %d and %q", c.args, code, complaint, c.want, c.says)
		}
		if strings.Contains(complaint, "strconv") || strings.Contains(complaint, "invalid argument") {
			t.Errorf("%s: got %q, want no word of a library", c.args, complaint)
		}
	}
}

func TestHelpHasExamples(t *testing.T) {
	for _, cmd := range newRoot(&bytes.Buffer{}).Commands() {
		if cmd.Example == "" {
			t.Errorf("%s --help has no example", cmd.Name())
		}
	}
}

// The output that scripts read: -update rewrites it, and the diff is a CHANGELOG entry.
func TestOutputIsStable(t *testing.T) {
	server := agent(t, ledger(), record(1, flows.ProtoTCP, 443), record(2, flows.ProtoUDP, 53))
	for name, args := range map[string]string{
		"observe.compact": "observe", "observe.wide": "observe -o wide", "observe.json": "observe -o json",
		"observe.jsonl": "observe -o jsonl", "observe.yaml": "observe -o yaml",
		"ledger.compact": "ledger", "ledger.wide": "ledger -o wide", "ledger.json": "ledger -o json", "ledger.yaml": "ledger -o yaml",
		"status.json": "status -o json",
	} {
		got, complaint, code := ctl(t, server, strings.Fields(args)...)
		if code != exitFine {
			t.Errorf("%s: exit code %d: %s", args, code, complaint)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("flowctl %s: got\n%s\nwant\n%s", args, got, want)
		}
	}
}

func TestJSONAndYAMLSayTheSame(t *testing.T) {
	server := agent(t, ledger(), record(1, flows.ProtoTCP, 443))
	for _, cmd := range []string{"ledger", "status"} {
		asJSON, _, _ := ctl(t, server, cmd, "-o", "json")
		asYAML, _, _ := ctl(t, server, cmd, "-o", "yaml")
		var a, b any
		if err := json.Unmarshal([]byte(asJSON), &a); err != nil {
			t.Fatalf("%s -o json: %v", cmd, err)
		}
		if err := yaml.Unmarshal([]byte(asYAML), &b); err != nil {
			t.Fatalf("%s -o yaml: %v", cmd, err)
		}
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var c any
		if err := json.Unmarshal(again, &c); err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(a) // both came out of an encoder
		y, _ := json.Marshal(c)
		if !bytes.Equal(x, y) {
			t.Errorf("%s: yaml holds %s, json %s", cmd, y, x)
		}
	}
}

func TestRecordsBalanceBesideASinkThatTakesNone(t *testing.T) {
	l := flows.Ledger{At: noon, Made: 50, Sinks: []flows.SinkAccount{
		{Name: "store", Offered: 50, Acknowledged: 50},
		{Name: "otlp"}, // metrics alone
	}}
	out, stderr, code := ctl(t, agent(t, l), "ledger", "-o", "json")
	var got struct {
		Records struct{ Made, Acknowledged uint64 }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitFine {
		t.Fatalf("ledger: exit code %d, %v, %s", code, err, stderr)
	}
	if got.Records.Made != 50 || got.Records.Acknowledged != 50 {
		t.Errorf("got %+v, want 50 made and 50 acknowledged", got.Records)
	}
}

func TestStatusShowsWhatIsOffAndHidesNoEscapes(t *testing.T) {
	out, _, _ := ctl(t, agent(t, ledger()), "status", "-o", "wide")
	for _, want := range []string{
		"eth0 ingress", "attached", "device is busy", "tc_ingress", " 30 ", "Linux 6.6", "http://collector:4317", "queue_full 3",
		"5 of 131072 slots used", "agent 30.0 MiB resident", "kernel 12.0 MiB at most", "log.level",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("a device's name reached the terminal as an escape sequence:\n%q", out)
	}
}

func TestFollowGoesOnUntilInterrupted(t *testing.T) {
	store := exporter.NewStore(16)
	path := filepath.Join(t.TempDir(), "weft.sock")
	server, err := exporter.ListenSocket(path, "", store, func() *api.StatusResponse { return &api.StatusResponse{} })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--server", path, "observe", "--follow", "--last", "5", "-o", "jsonl"}, w, os.Stderr)
		w.Close()
	}()
	if err := store.Export(ctx, flows.Window{Records: []flows.Record{record(7, flows.ProtoTCP, 443)}}); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := r.Read(line)
	if err != nil || !bytes.Contains(line[:n], []byte(`"10.0.0.7"`)) {
		t.Errorf("followed: got %q, error %v, want the record that came later", line[:n], err)
	}
	cancel() // Ctrl-C
	if got := <-code; got != exitFine {
		t.Errorf("exit code after Ctrl-C: got %d, want 0", got)
	}
}

func TestPrintedFilterIsWhatASinkTakes(t *testing.T) {
	for args, want := range map[string][]string{
		"observe --print-filter": {},
		"observe --port 80 --not --from-ip 10.0.0.0/8 --label app=web --failed --retransmits=5 --print-filter": {"port 80", "not from-ip 10.0.0.0/8", "label app=web", "failed any", "retransmits 5"},
	} {
		out, complaint, code := ctl(t, "unix:///nobody/listens/here", strings.Fields(args)...)
		var doc struct{ Filter []string }
		if err := yaml.Unmarshal([]byte(out), &doc); err != nil || code != exitFine || !slices.Equal(doc.Filter, want) {
			t.Errorf("%s: got code %d, %q, %q, error %v, want %q", args, code, out, complaint, err, want)
		}
		for _, text := range doc.Filter {
			if _, err := flows.ParseTerm(text); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestLedgerShowsWhatSinksLeaveOut(t *testing.T) {
	l := ledger()
	l.Sinks = append(l.Sinks, flows.SinkAccount{Name: "siem", Offered: 50, Acknowledged: 8, LeftOut: map[string]uint64{"filtered": 30, "sampled_out": 12}})
	server := agent(t, l)
	out, _, code := ctl(t, server, "ledger")
	for _, want := range []string{"LEFT-OUT", "filtered 30, sampled_out 12", "balanced: "} {
		if code != exitFine || !strings.Contains(out, want) {
			t.Errorf("got code %d and\n%s\nwant %s in it", code, out, want)
		}
	}
	out, _, _ = ctl(t, server, "ledger", "-o", "json")
	var doc struct {
		Records struct{ Acknowledged uint64 }
		Sinks   []struct {
			LeftOut map[string]uint64 `json:"left_out"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Sinks[2].LeftOut["sampled_out"] != 12 || doc.Records.Acknowledged != 40 {
		t.Errorf("got %+v, error %v, want what is left out, and the records' account that of a sink that takes all", doc, err)
	}
}
