// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const quick = `
dataplane: {interfaces: [wire0], interval: 200ms}
flows: {active_timeout: 2s, idle_timeout: 1s}
`

// ledgerAnswer is what the test reads of `flowctl ledger -o json`.
type ledgerAnswer struct {
	Balanced bool
	Points   []struct {
		Interface, Hook        string
		Seen, Flows, GSO, Open uint64
		Skipped                map[string]uint64
		InTable                uint64 `json:"in_table"`
		Unaccounted            int64
	}
	Records struct {
		Made, Acknowledged, Waiting uint64
		Lost                        map[string]uint64
	}
}

func (l ledgerAnswer) packets() (n uint64) {
	for _, p := range l.Points {
		n += p.Seen - p.GSO
	}
	return n
}

func (h *house) ledger(t *testing.T) (l ledgerAnswer, code int) {
	t.Helper()
	text, complaint, code := h.flowctl(t, "ledger", "-o", "json")
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("flowctl ledger -o json: %v\n%s%s", err, text, complaint)
	}
	return l, code
}

func TestAgentShowsTrafficBalancesAndLeavesNothing(t *testing.T) {
	h := newHouse(t)
	rx0, tx0 := h.counters(t)
	w := h.start(t, quick)
	h.talk(t, 5001, 100_000)

	var record struct {
		Packets, Bytes uint64
		RPackets       uint64 `json:"reverse.packets"`
		RBytes         uint64 `json:"reverse.bytes"`
		Source         string `json:"source.address"`
		Destination    string `json:"destination.address"`
		Reason         string `json:"end_reason"`
		Hops           []struct{ Interface, Direction, Layer string }
	}
	h.eventually(t, "the connection is a record", func() error {
		text, complaint, code := h.flowctl(t, "observe", "--to-port", "5001", "--protocol", "tcp", "-o", "jsonl")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, complaint)
		}
		return json.Unmarshal([]byte(text), &record)
	})
	if record.Source != hereAddr || record.Destination != thereAddr || record.Reason != "end_of_flow" || len(record.Hops) != 2 || record.Hops[0].Layer == "" {
		t.Errorf("record: got %+v, want %s to %s over 2 hops that ended", record, hereAddr, thereAddr)
	}
	// At least the payload and a header of 66 bytes a packet.
	if least := 100_000 + 66*(record.Packets-3); record.Bytes < least || record.RBytes < 50_000+54*record.RPackets {
		t.Errorf("record: got %d and %d bytes in %d and %d packets, want at least the payload and its headers", record.Bytes, record.RBytes, record.Packets, record.RPackets)
	}
	if _, _, code := h.flowctl(t, "observe", "--port", "9"); code != 3 {
		t.Errorf("observe without a match: got exit code %d, want 3", code)
	}

	h.eventually(t, "the ledger has what the device counted", func() error {
		l, code := h.ledger(t)
		rx, tx := h.counters(t)
		want := map[string]uint64{"ingress": rx - rx0, "egress": tx - tx0}
		for _, p := range l.Points {
			if got := p.Seen - p.GSO; got != want[p.Hook] || p.Unaccounted != 0 {
				return fmt.Errorf("%s %s: seen %d without GSO segments, the device counted %d", p.Interface, p.Hook, got, want[p.Hook])
			}
		}
		if !l.Balanced || code != 0 || len(l.Points) != 2 || l.Records.Made == 0 || l.Records.Made != l.Records.Acknowledged {
			return fmt.Errorf("exit code %d, %+v", code, l)
		}
		return nil
	})

	status, _, code := h.flowctl(t, "status")
	for _, want := range []string{device + " ingress", device + " egress", "attached", "store"} {
		if code != 0 || !strings.Contains(status, want) {
			t.Errorf("status: exit code %d, want 0 and %q in\n%s", code, want, status)
		}
	}
	metrics, err := h.get(t, "/metrics")
	for _, want := range []string{
		`weft_ledger_seen_packets_total{direction="receive",hook="ingress",interface="wire0",netns=""}`,
		`weft_dataplane_points{attached="true"} 2`, "weft_ledger_unbalanced_total 0", "weft_build_info",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics: error %v, want %s in\n%s", err, want, metrics)
		}
	}
	if text, err := h.get(t, "/healthz"); text != "ok\n" {
		t.Errorf("/healthz: got %q, error %v, want ok", text, err)
	}

	second := h.launch(t, filepath.Join(h.dir, "weftd"), quick)
	if code := second.wait(t); code != exitFailed || !strings.Contains(second.log.String(), "another weftd") {
		t.Errorf("second agent: got exit code %d and %q, want 1 and that another one is there", code, second.log.String())
	}

	h.reload(t, w)

	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine {
		t.Errorf("SIGTERM: got exit code %d, want 0", code)
	}
	for _, want := range []string{"weftd stopped", "balanced=true", "key needs a restart"} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("log: want %q in\n%s", want, w.log.String())
		}
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("after SIGTERM: %v left on the device, want nothing", left)
	}
	if _, err := os.Stat(h.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after SIGTERM: socket: got %v, want it gone", err)
	}
	if _, complaint, code := h.flowctl(t, "status"); code != exitFailed || !strings.Contains(complaint, "is weftd running?") {
		t.Errorf("flowctl without an agent: got exit code %d and %q, want 1 and how to start one", code, complaint)
	}
}

// reload changes a key that SIGHUP applies and one that it does not.
func (h *house) reload(t *testing.T, w *weftd) {
	t.Helper()
	changed := strings.Replace(quick, "interfaces: [wire0]", "exclude: [lo, wire*]", 1) + "log: {format: json}\n"
	if err := os.WriteFile(filepath.Join(h.dir, "weft.yaml"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	w.signal(t, syscall.SIGHUP)
	h.eventually(t, "the excluded device is let go", func() error {
		if left := h.leftovers(t); len(left) > 0 {
			return fmt.Errorf("%v still attached", left)
		}
		return nil
	})
	h.eventually(t, "what was counted there stays in the account", func() error {
		if l, code := h.ledger(t); !l.Balanced || code != 0 || len(l.Points) != 0 {
			return fmt.Errorf("exit code %d, %+v", code, l)
		}
		return nil
	})
}

func TestKilledAgentLeavesNothingToTheNext(t *testing.T) {
	h := newHouse(t)
	for _, hooks := range []string{"auto", "clsact"} {
		t.Run(hooks, func(t *testing.T) {
			w := h.start(t, quick, "WEFT_DATAPLANE_HOOKS="+hooks)
			before := h.leftovers(t)
			w.signal(t, syscall.SIGKILL)
			w.wait(t)
			// A new agent takes the dead one's socket, and its place on the device.
			w = h.start(t, quick, "WEFT_DATAPLANE_HOOKS="+hooks)
			if after := h.leftovers(t); len(after) != len(before) {
				t.Errorf("after kill -9 and a restart: %v on the device, want %v", after, before)
			}
			w.signal(t, syscall.SIGINT)
			if code := w.wait(t); code != exitFine {
				t.Errorf("SIGINT: got exit code %d, want 0", code)
			}
			if left := h.leftovers(t); len(left) > 0 {
				t.Errorf("after the restarted agent: %v left on the device, want nothing", left)
			}
		})
	}
}

// With clsact, so that it is the agent that detaches and not its death.
func TestPanicStillDetaches(t *testing.T) {
	h := newHouse(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := h.launch(t, self, quick, "E2E_PANIC=1", "WEFT_DATAPLANE_HOOKS=clsact")
	h.eventually(t, "the agent is attached", func() error {
		if len(h.leftovers(t)) < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	h.talk(t, 5002, 1000)
	if code := w.wait(t); code != exitFailed {
		t.Errorf("exit code: got %d, want %d", code, exitFailed)
	}
	lines := regexp.MustCompile(`(?m)^.*a sink with a bug.*$`).FindAllString(w.log.String(), -1)
	if len(lines) != 1 || !strings.Contains(lines[0], "house_test.go:") || strings.Contains(w.log.String(), "goroutine ") {
		t.Errorf("log: got\n%s\nwant one line that names the panic and its place, and no stack", w.log.String())
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("after a panic: %v left on the device, want nothing", left)
	}
}

func TestPrintShowsAConversationAtOnce(t *testing.T) {
	h := newHouse(t)
	cmd := exec.Command("nsenter", "--net=/run/netns/"+h.here, filepath.Join(h.dir, "weftd"), "-print")
	cmd.Env = append(os.Environ(), "WEFT_LISTEN_SOCKET="+h.socket, "WEFT_LISTEN_HTTP=off")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	h.eventually(t, "the agent is attached", func() error {
		if len(h.leftovers(t)) < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	h.talk(t, 5003, 1000)
	began := time.Now()
	text := make([]byte, 0, 4096)
	for !bytes.Contains(text, []byte(":5003 ")) {
		n, err := pipe.Read(text[len(text):cap(text)])
		if text = text[:len(text)+n]; err != nil {
			t.Fatalf("weftd ended: %v\n%s%s", err, text, log.String())
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the connection was on the screen after %s, want about two seconds at most", took)
	}
	// A client that hangs up raises SIGPIPE: no reason to stop.
	if err := cmd.Process.Signal(syscall.SIGPIPE); err != nil {
		t.Fatal(err)
	}
	h.talk(t, 5005, 1000)
	for !bytes.Contains(text, []byte(":5005 ")) {
		n, err := pipe.Read(text[len(text):cap(text)])
		if text = text[:len(text)+n]; err != nil {
			t.Fatalf("weftd ended after SIGPIPE: %v\n%s%s", err, text, log.String())
		}
	}
	// A reader that leaves, as `weftd -print | head` does, stops the agent.
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	h.talk(t, 5004, 1000)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after the reader left: got %v, want exit code 0\n%s", err, log.String())
	}
	for _, word := range []string{"level=ERROR", "level=WARN", "weftd:"} {
		if strings.Contains(log.String(), word) {
			t.Errorf("after the reader left: got %s in\n%s\nwant a quiet end", word, log.String())
		}
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("after the reader left: %v left on the device, want nothing", left)
	}
}

// confined is a check of this machine by an agent that has only those
// capabilities, in the house's namespace.
func (h *house) confined(t *testing.T, capabilities string) (out string, code int) {
	t.Helper()
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Fatal("needs setpriv (util-linux)")
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+h.here, "setpriv", "--bounding-set=-all"+capabilities, filepath.Join(h.dir, "weftd"), "-check")
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func TestThreeCapabilitiesAreEnough(t *testing.T) {
	h := newHouse(t)
	out, code := h.confined(t, ",+bpf,+net_admin,+perfmon")
	if code != exitFine || !strings.Contains(out, "attached    "+device+" ingress") {
		t.Errorf("with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: got exit code %d and\n%s\nwant 0 and %s attached", code, out, device)
	}
}

func TestMissingPrivilegeIsOneLineWithTheMend(t *testing.T) {
	h := newHouse(t)
	for capabilities, missing := range map[string]string{
		"": "CAP_BPF", ",+net_admin,+perfmon": "CAP_BPF", ",+bpf,+perfmon": "CAP_NET_ADMIN", ",+bpf,+net_admin": "CAP_PERFMON",
	} {
		out, code := h.confined(t, capabilities)
		if code != exitFailed || strings.Count(out, "\n") != 1 || !strings.Contains(out, missing) {
			t.Errorf("with capabilities %q: got exit code %d and\n%s\nwant 1 and one line that asks for %s", capabilities, code, out, missing)
		}
	}
}

func TestWhatCannotStartSaysWhyInOneLine(t *testing.T) {
	h := newHouse(t)
	var taken net.Listener
	h.in(t, h.here, func() (err error) {
		taken, err = net.Listen("tcp", "127.0.0.1:9470")
		return err
	})
	defer taken.Close()
	for config, want := range map[string]struct {
		code int
		text string
	}{
		"dataplane: {interfaces: [nosuch0]}\nlisten: {http: off}\n": {exitUsage, `dataplane.interfaces: no interface named "nosuch0"`},
		"dataplane: {netns: [nosuch]}\nlisten: {http: off}\n":       {exitUsage, `dataplane.netns: cannot watch network namespace "nosuch"`},
		"dataplane: {netns: [/dev/null]}\nlisten: {http: off}\n":    {exitUsage, "/dev/null is no network namespace"},
		"dataplane: {interfaces: []}\nlisten: {http: off}\n":        {exitUsage, "dataplane.interfaces: an empty list would watch nothing"},
		"listen: {http: \"127.0.0.1:9470\"}\n":                      {exitFailed, "listen.http: 127.0.0.1:9470 is in use"},
		"listen: {http: \"203.0.113.9:80\"}\n":                      {exitFailed, "listen.http"},
	} {
		w := h.launch(t, filepath.Join(h.dir, "weftd"), config)
		code := w.wait(t)
		if got := w.log.String(); code != want.code || strings.Count(got, "\n") != 1 || !strings.Contains(got, want.text) {
			t.Errorf("%sgot exit code %d and\n%s\nwant %d and one line with %q", config, code, got, want.code, want.text)
		}
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("after failed starts: %v left on the device, want nothing", left)
	}
}
