// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestHealthReachesFlowctlAndMetrics(t *testing.T) {
	h := newHouse(t)
	w := h.start(t, "dataplane: {interfaces: ["+device+"], exclude: [], tcp: on}\nflows: {idle_timeout: 1s}\n")
	const n = 20
	for range n {
		h.talk(t, 8080, 100)
	}
	series := fmt.Sprintf(`weft_tcp_handshake_duration_seconds_count{class="veth",server_address=%q,server_port="8080",side="server",transport="tcp"} %d`, thereAddr, n)
	h.eventually(t, "every handshake is in the server's histogram", func() error {
		text, err := h.get(t, "/metrics")
		if err == nil && !strings.Contains(text, series+"\n") {
			err = fmt.Errorf("no %s", series)
		}
		return err
	})
	var out string
	h.eventually(t, "every connection has a record that did not fail", func() error {
		var complaint string
		out, complaint, _ = h.flowctl(t, "observe", "--port", "8080", "--not", "--failed", "-o", "jsonl")
		if lines := strings.Count(out, "\n"); lines != n {
			return fmt.Errorf("got %d records, want %d: %s", lines, n, complaint)
		}
		return nil
	})
	var r map[string]any
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatal(err)
	}
	if s, ok := r["weft.tcp.destination.handshake.duration"].(float64); !ok || s <= 0 || s > 1 || r["weft.tcp.source.retransmits"] != 0. {
		t.Errorf("got %s, want a handshake of less than a second and no retransmits", line)
	}
	if _, _, code := h.flowctl(t, "observe", "--rtt-over", "10s"); code != 3 {
		t.Errorf("observe --rtt-over 10s: got exit code %d, want 3: nothing took so long", code)
	}
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
}
