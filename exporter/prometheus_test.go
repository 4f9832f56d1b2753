// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"weft/flows"
)

// fullLedger has two points that differ in the hook only, two that a receiver
// cannot tell apart, a hostile name, and one figure of every kind.
func fullLedger() flows.Ledger {
	point := func(ifindex uint32, hook flows.Hook, name, netns string, n uint64) flows.PointLedger {
		p := flows.PointLedger{
			At: flows.Point{Netns: 1, Ifindex: ifindex, Hook: hook}, Hop: flows.Hop{Interface: name, Netns: netns},
			Seen: flows.Count{Packets: 10 * n, Bytes: 1000 * n}, GSO: flows.Count{Packets: n, Bytes: 66 * n},
			Flows: flows.Count{Packets: 7 * n, Bytes: 700 * n}, Recorded: flows.Count{Packets: 5 * n, Bytes: 500 * n},
			Open: flows.Count{Packets: 2 * n, Bytes: 200 * n}, InTable: flows.Count{Packets: n, Bytes: 100 * n},
			Unaccounted: flows.SignedCount{Packets: -1, Bytes: -100},
		}
		p.Skipped[flows.SkipARP] = flows.Count{Packets: 2 * n, Bytes: 200 * n}
		return p
	}
	return flows.Ledger{
		At: t0,
		Points: []flows.PointLedger{
			point(2, flows.HookIngress, "eth0", "", 1), point(2, flows.HookXDP, "eth0", "", 1),
			point(3, flows.HookEgress, "veth1", "/run/netns/blue", 2), point(4, flows.HookEgress, "veth1", "/run/netns/blue", 3),
			point(5, flows.HookEgress, "e\xff\n\"}", "", 1),
		},
		Gone: point(0, 0, "", "", 4), GoneUnbalanced: 1, Made: 100,
		Sources: []flows.SourceAccount{{Name: "drops", Seen: 9, Drained: 5, Lost: 1, Pending: 4, Missed: 7, Unaccounted: -1}},
		Sinks: []flows.SinkAccount{
			{Name: "otlp", Offered: 94, Acknowledged: 70, Waiting: 15, Lost: map[string]uint64{"queue_full": 2, "refused": 3}, LeftOut: map[string]uint64{"filtered": 4}},
			{Name: "store", Offered: 100, Acknowledged: 100},
		},
	}
}

func startWeb(t *testing.T, o WebOptions) string {
	t.Helper()
	o.Addr = "127.0.0.1:0"
	w, err := ListenHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return "http://" + w.Addr()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	status, body, _ := fetch(t, url, "")
	return status, body
}

// fetch is what the URL answers one who accepts that.
func fetch(t *testing.T, url, accept string) (status int, body string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text), answer.Header
}

func TestMetricsShowTheLedger(t *testing.T) {
	checkNoLeak(t)
	url := startWeb(t, WebOptions{Version: "1.2.3", Ledger: fullLedger})
	status, body := get(t, url+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("got %d: %s", status, body)
	}
	for _, want := range []string{
		`weft_ledger_seen_packets_total{direction="receive",hook="ingress",interface="eth0",netns=""} 10`,
		`weft_ledger_seen_bytes_total{direction="receive",hook="xdp",interface="eth0",netns=""} 1000`,
		`weft_ledger_gso_bytes_total{direction="receive",hook="ingress",interface="eth0",netns=""} 66`,
		`weft_ledger_flows_packets_total{direction="transmit",hook="egress",interface="veth1",netns="/run/netns/blue"} 35`, // 14 + 21
		`weft_ledger_recorded_packets_total{direction="receive",hook="ingress",interface="eth0",netns=""} 5`,
		`weft_ledger_open_packets{direction="receive",hook="ingress",interface="eth0",netns=""} 2`,
		`weft_ledger_in_table_bytes{direction="receive",hook="ingress",interface="eth0",netns=""} 100`,
		`weft_ledger_skipped_packets_total{direction="receive",hook="ingress",interface="eth0",netns="",reason="not_ip_arp"} 2`,
		`weft_ledger_unaccounted_bytes{direction="receive",hook="ingress",interface="eth0",netns=""} -100`,
		`weft_ledger_seen_packets_total{direction="",hook="",interface="(gone)",netns=""} 40`,
		`weft_ledger_seen_packets_total{direction="transmit",hook="egress",interface="e\\xff\\x0a\"}",netns=""} 10`,
		`weft_ledger_gone_unbalanced_total 1`,
		`weft_ledger_source_seen_events_total{source="drops"} 9`,
		`weft_ledger_source_missed_events_total{source="drops"} 7`,
		`weft_ledger_source_unaccounted_events{source="drops"} -1`,
		`weft_ledger_records_made_total 100`,
		`weft_ledger_records_offered_total{sink="otlp"} 94`,
		`weft_ledger_records_left_out_total{reason="filtered",sink="otlp"} 4`,
		`weft_ledger_records_acknowledged_total{sink="store"} 100`,
		`weft_ledger_records_waiting{sink="otlp"} 15`,
		`weft_ledger_records_lost_total{reason="queue_full",sink="otlp"} 2`,
		`weft_build_info{goversion="go`, `version="1.2.3"} 1`,
		`process_resident_memory_bytes`, `go_goroutines`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("got no %s in /metrics", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weft_") {
			t.Errorf("got %s: %s, want names as Prometheus has them", p.Metric, p.Text)
		}
	}
	for line := range strings.Lines(body) {
		name, _, _ := strings.Cut(line, "{")
		if strings.HasPrefix(line, "weft_ledger_") && strings.Contains(name, "skipped") && !strings.Contains(line, "reason=\"not_ip_arp\"") {
			t.Errorf("got %s, want no series for a reason that counted nothing", line)
		}
	}
}

func TestMetricsWithoutALedgerAreNotZeros(t *testing.T) {
	url := startWeb(t, WebOptions{Ledger: func() flows.Ledger { return flows.Ledger{} }})
	if status, body := get(t, url+"/metrics"); status != http.StatusOK || strings.Contains(body, "weft_ledger_") {
		t.Errorf("got %d with a ledger, want 200 without", status)
	}
}

func TestHealthAndReadinessAnswerForTheAgent(t *testing.T) {
	var health, ready error
	url := startWeb(t, WebOptions{
		Ledger: fullLedger, Health: func() error { return health }, Ready: func() error { return ready },
	})
	for _, c := range []struct {
		health, ready error
		path          string
		status        int
		body          string
	}{
		{nil, nil, "/healthz", 200, "ok"},
		{nil, errors.New("not attached yet"), "/readyz", 503, "not attached yet"},
		{errors.New("last drain 30s ago"), nil, "/healthz", 503, "last drain 30s ago"},
		{nil, nil, "/readyz", 200, "ok"},
		{nil, nil, "/debug/pprof/", 404, "404"},
	} {
		health, ready = c.health, c.ready
		status, body := get(t, url+c.path)
		if status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("%s: got %d %q, want %d %q", c.path, status, body, c.status, c.body)
		}
	}
}

func TestTakenPortIsAnErrorThatNamesTheMend(t *testing.T) {
	o := WebOptions{Addr: "127.0.0.1:0", Ledger: fullLedger}
	w, err := ListenHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	o.Addr = w.Addr()
	if _, err := ListenHTTP(o); err == nil || !strings.Contains(err.Error(), "listen.http") ||
		!strings.Contains(err.Error(), o.Addr) || !strings.Contains(err.Error(), "set another listen.http") {
		t.Errorf("taken: got %v, want listen.http, the address and the mend", err)
	}
	for _, addr := range []string{"nonsense", "127.0.0.1:99999", "127.0.0.1"} {
		o.Addr = addr
		if _, err := ListenHTTP(o); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("listen.http: cannot listen on %q", addr)) {
			t.Errorf("%s: got %v, want it named with listen.http", addr, err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
