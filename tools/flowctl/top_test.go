// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

// busyAgent is an API server on which a client talks to two servers, one of
// which is slow and dropped from, for as long as anybody watches.
func busyAgent(t *testing.T) string {
	t.Helper()
	store := exporter.NewStore(16)
	path := filepath.Join(t.TempDir(), "weft.sock")
	server, err := exporter.ListenSocket(path, "", store, func() *api.StatusResponse { return &api.StatusResponse{} })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; <-time.After(5 * time.Millisecond) {
			if !store.Live.Watched() {
				continue
			}
			n++
			a := flows.Activity{Start: noon.Add(time.Duration(n-1) * time.Second), End: noon.Add(time.Duration(n) * time.Second)}
			slow := record(2, flows.ProtoTCP, 80)
			slow.TCP = &flows.TCPRecord{Destination: flows.TCPHealth{Retransmits: 5, RTT: flows.RTT{Count: 2, Sum: 61 * time.Millisecond}}}
			slow.ReverseBytes = 10
			slow.Source = &flows.Entity{Pod: "client-1", Namespace: "shop", Workload: "client", WorkloadKind: "daemonset", Node: "n1"}
			slow.Destination = &flows.Entity{Pod: "web-1", Namespace: "shop", Workload: "web", WorkloadKind: "deployment", Service: "front", Node: "n2"}
			a.Live = []flows.Live{{Record: record(1, flows.ProtoTCP, 443), New: true}, {Record: slow}}
			a.Drops = []flows.DropSample{{Key: slow.Key, At: flows.Point{Netns: 1}, Reason: "NO_SOCKET", Class: flows.DropLoss, Packets: 3, Bytes: 300}}
			store.Live.Offer(&a)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestTopOnceIsATable(t *testing.T) {
	server := busyAgent(t)
	for args, want := range map[string]string{
		"": `PROTO  SOURCE          DESTINATION    OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S  DROPS/S  RETRANS/S     RTT
tcp    10.0.0.1:40001  192.0.2.1:443     1.0k       10    123k     8.0      1.0        0          0       -
tcp    10.0.0.2:40002  192.0.2.1:80      1.0k       10      10     8.0        0      3.0        5.0  30.5ms
`,
		"--by server --sort rtt": `PROTO  SERVER        OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S  DROPS/S  RETRANS/S     RTT
tcp    192.0.2.1:80     1.0k       10      10     8.0        0      3.0        5.0  30.5ms
`,
		"--by endpoint --rows 1": `ENDPOINT   OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S  DROPS/S  RETRANS/S     RTT
192.0.2.1     123k       16    2.0k      20      1.0        0        5.0  30.5ms
`,
		"--by drop-reason": `REASON     CLASS  DROPS/S
NO_SOCKET  loss       3.0
`,
		"--by port --port 443": `PROTO  PORT  OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S
tcp    443      1.0k       10    123k     8.0      1.0
`,
		"--by interface": "nothing\n",
		"--by pod --to-workload deployment/web": `NAMESPACE  POD       OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  DROPS/S  RETRANS/S     RTT
shop       client-1     1.0k       10      10     8.0      3.0        5.0       -
shop       web-1          10      8.0    1.0k      10        0        5.0  30.5ms
`,
		"--by workload": `NAMESPACE  KIND        WORKLOAD  OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S  DROPS/S  RETRANS/S     RTT
shop       daemonset   client       1.0k       10      10     8.0        0      3.0        5.0       -
shop       deployment  web            10      8.0    1.0k      10        0        0        5.0  30.5ms
`,
		"--by service --service shop/front": `NAMESPACE  SERVICE  OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  DROPS/S  RETRANS/S     RTT
shop       front       1.0k       10      10     8.0      3.0        5.0  30.5ms
`,
		"--by node": `NODE  OUT-B/S  OUT-P/S  IN-B/S  IN-P/S  FLOWS/S  DROPS/S  RETRANS/S     RTT
n1       1.0k       10      10     8.0        0      3.0        5.0       -
n2         10      8.0    1.0k      10        0        0        5.0  30.5ms
`,
	} {
		out, complaint, code := ctl(t, server, append([]string{"top", "--once", "--interval", "1s"}, strings.Fields(args)...)...)
		title, table, _ := strings.Cut(out, "\n")
		if code != exitFine || table != want || !strings.Contains(title, ", 1.0 s: ") {
			t.Errorf("top %s: got exit code %d, %s and\n%s\nwant\n%s", args, code, complaint, out, want)
		}
	}
}

func TestTopAsJSONHasTheAttributesOfOTLP(t *testing.T) {
	out, complaint, code := ctl(t, busyAgent(t), "top", "--once", "--interval", "2s", "-o", "json", "--sort", "retransmits")
	var got struct {
		By, Sort string
		Rows     []map[string]any
		Of       int
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitFine {
		t.Fatalf("exit code %d, %v, %s", code, err, complaint)
	}
	if got.By != "flow" || got.Sort != "retransmits" || got.Of != 1 || len(got.Rows) != 1 {
		t.Fatalf("got %+v, want the one flow with retransmits", got)
	}
	for name, want := range map[string]any{
		"source.address": "10.0.0.2", "destination.port": 80.0, "network.transport": "tcp", "bytes_per_second": 1000.0,
		"reverse.packets_per_second": 8.0, "retransmits_per_second": 5.0, "drops_per_second": 3.0, "rtt_ns": 30500000.0,
	} {
		if got.Rows[0][name] != want {
			t.Errorf("%s: got %v, want %v", name, got.Rows[0][name], want)
		}
	}
}

func TestTopFlagsSayWhatThereIs(t *testing.T) {
	for args, want := range map[string]string{
		"--by pods": "want flow, endpoint", "--by colour": `--by "colour": want flow, endpoint`,
		"--sort size": `--sort "size": want bytes, packets`, "--rows many": `--rows "many": want a whole number`,
		"--interval 2": `--interval "2": want a time`, "--port x": `--port "x": want a port number`,
	} {
		_, complaint, code := ctl(t, "/nowhere", append([]string{"top"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(complaint, want) {
			t.Errorf("top %s: got exit code %d and %q, want 2 and %q", args, code, complaint, want)
		}
	}
}

// press makes a key of a terminal.
func press(text string, code rune) tea.KeyPressMsg { return tea.KeyPressMsg{Text: text, Code: code} }

func TestScreenObeysItsKeys(t *testing.T) {
	var asked []string
	m := &topModel{by: flows.ByFlow, order: "bytes", ask: func(q exporter.TopQuery, _ int) { asked = append(asked, q.By+" "+q.Order) }}
	m.Init()
	m.Update(tea.WindowSizeMsg{Width: 60, Height: 5})
	var r flows.Ranking
	r.Start, r.End = noon, noon.Add(time.Second)
	for i := range 10 {
		r.Rows = append(r.Rows, flows.TopRow{TopKey: flows.TopKey{Key: record(byte(i), flows.ProtoTCP, 443).Key}, Traffic: flows.Traffic{Bytes: 1000}})
	}
	m.Update(rankingMsg{1, r})
	lines := strings.Split(m.View().Content, "\n")
	if len(lines) != 5 || !strings.Contains(lines[0], "top flow by bytes") || !strings.Contains(lines[3], "10.0.0.0:40000") || !strings.Contains(lines[4], "quit") {
		t.Errorf("got\n%s\nwant title, heading, one row and the keys on 5 lines", m.View().Content)
	}
	for _, l := range lines {
		if len([]rune(l)) > 60 {
			t.Errorf("got a line of %d columns, want 60 at most: %s", len([]rune(l)), l)
		}
	}
	for range len(flows.TopBys) - 1 {
		m.Update(press("", tea.KeyTab))
	}
	m.Update(press("", tea.KeyTab)) // around
	m.Update(press("s", 's'))
	want := "flow bytes, endpoint bytes, server bytes, port bytes, pod bytes, workload bytes, service bytes, node bytes, interface bytes, drop-reason drops, flow bytes, flow packets"
	if got := strings.Join(asked, ", "); got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	m.Update(rankingMsg{1, r}) // of the first request: too late
	if !strings.Contains(m.View().Content, "waiting for the agent") {
		t.Errorf("got\n%s\nwant no ranking of an earlier request", m.View().Content)
	}
	m.Update(press("p", 'p'))
	m.Update(rankingMsg{m.asked, r})
	if m.last != nil || !strings.Contains(m.View().Content, "HELD") {
		t.Error("held: got a new ranking, want none")
	}
	m.Update(saidMsg("weftd stopped"))
	if !strings.Contains(m.View().Content, "weftd stopped") {
		t.Errorf("got\n%s\nwant what the client said", m.View().Content)
	}
	if _, cmd := m.Update(press("q", 'q')); cmd == nil {
		t.Error("q: got no command, want to quit")
	}
}

func TestRateHasThreeDigitsAndAUnit(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 1: "1.0", 9: "9.0", 10: "10", 999: "999", 1000: "1.0k", 9960: "10k", 123_456: "123k", 999_999: "1.0M", 5_000_000_000_000: "5.0T"} {
		if got := rate(n, 1); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestTopGoesOnUntilInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out := &stopAfter{n: 3, stop: cancel}
	var complaint bytes.Buffer
	code := run(ctx, []string{"--server", busyAgent(t), "top", "--interval", "1s", "-o", "jsonl"}, out, &complaint)
	if code != exitFine || out.n > 0 || complaint.Len() > 0 {
		t.Errorf("got exit code %d and %q, with %d rankings to come, want 0 after three", code, complaint.String(), out.n)
	}
}

// stopAfter calls stop with the n-th write.
type stopAfter struct {
	n    int
	stop func()
}

func (s *stopAfter) Write(p []byte) (int, error) {
	if s.n--; s.n == 0 {
		s.stop()
	}
	return len(p), nil
}
