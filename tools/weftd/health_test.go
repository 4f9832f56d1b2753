// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
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
	h.exemplified(t, out)
	// The server is a namespace that nothing but its name tells of, on this node, and who listens there.
	info := regexp.MustCompile(`(?m)^weft_server_info{.*node="[^"]+".*server_address="` + regexp.QuoteMeta(thereAddr) + `",server_port="8080",.*} 1$`)
	h.eventually(t, "the server has a name", func() error {
		text, err := h.get(t, "/metrics")
		if err == nil && len(info.FindAllString(text, -1)) != 1 {
			err = fmt.Errorf("no %s", info)
		}
		return err
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

// exemplified wants exemplars in the server's histogram of handshakes, each of a connection
// that has one of these records, and of what that record says.
func (h *house) exemplified(t *testing.T, records string) {
	t.Helper()
	took := map[string]float64{}
	for line := range strings.Lines(records) {
		var r struct {
			ID   string  `json:"weft.connection.id"`
			Took float64 `json:"weft.tcp.destination.handshake.duration"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		took[r.ID] = r.Took
	}
	bucket := regexp.MustCompile(`weft_tcp_handshake_duration_seconds_bucket{class="veth",.*side="server",.*} \d+ # {weft_connection_id="(\w{16})"} (\S+) `)
	h.eventually(t, "there are exemplars", func() error {
		text, err := h.get(t, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
		if err != nil {
			return err
		}
		all := bucket.FindAllStringSubmatch(text, -1)
		for _, e := range all {
			value, err := strconv.ParseFloat(e[2], 64)
			if want, ok := took[e[1]]; err != nil || !ok || math.Abs(value-want) > 1e-9 {
				t.Errorf("exemplar %s: got %s s (%v), the record of the connection says %v", e[1], e[2], err, want)
			}
		}
		if len(all) == 0 {
			return errors.New("none yet")
		}
		return nil
	})
}
