// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestHangingCollectorIsShownAndDoesNotHoldUpTheStop(t *testing.T) {
	h := newHouse(t)
	var collector net.Listener
	h.in(t, h.here, func() (err error) {
		collector, err = net.Listen("tcp", "127.0.0.1:4317") // connections wait in its backlog for ever
		return err
	})
	defer collector.Close()
	w := h.start(t, quick+"exporter: {finish: 1s}\n", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317")
	h.talk(t, 5010, 1000)
	h.eventually(t, "status shows that the collector hangs", func() error {
		text, complaint, _ := h.flowctl(t, "status", "-o", "json")
		var s struct {
			Sinks    []struct{ Name, State string }
			Settings map[string]string
		}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return fmt.Errorf("%w: %s", err, complaint)
		}
		if s.Settings["exporter.otlp.protocol"] != "grpc" || s.Settings["exporter.otlp.compression"] != "gzip" || s.Settings["exporter.otlp.endpoint"] != "http://127.0.0.1:4317" {
			return fmt.Errorf("got settings %v, want those in force", s.Settings)
		}
		for _, sink := range s.Sinks {
			if sink.Name == "otlp" && strings.HasPrefix(sink.State, "waiting since 20") {
				return nil
			}
		}
		return fmt.Errorf("got sinks %+v, want otlp waiting since a time", s.Sinks)
	})
	began := time.Now()
	w.signal(t, syscall.SIGTERM)
	code := w.wait(t)
	if took := time.Since(began); code != exitFine || took > 5*time.Second {
		t.Errorf("SIGTERM: got exit code %d after %s, want 0 after about a second", code, took)
	}
	made := regexp.MustCompile(`msg="weftd stopped" records=(\d+) .* balanced=true`).FindStringSubmatch(w.log.String())
	lost := regexp.MustCompile(`level=WARN msg="records lost" sink=otlp records=(\d+) reason.shutdown=(\d+) receiver="waiting since`).FindStringSubmatch(w.log.String())
	if made == nil || lost == nil || made[1] == "0" || lost[1] != made[1] || lost[2] != made[1] {
		t.Errorf("got %q lost of %q, want every record that was made, by reason, and a balance", lost, made)
	}
}

func TestFlowctlGivesUpOnAStoppedAgent(t *testing.T) {
	h := newHouse(t)
	w := h.start(t, quick)
	w.signal(t, syscall.SIGSTOP)
	for _, args := range [][]string{{"status"}, {"ledger"}, {"observe"}, {"observe", "--follow"}} {
		began := time.Now()
		_, complaint, code := h.flowctl(t, append(args, "--timeout", "300ms")...)
		if code != exitFailed || !strings.Contains(complaint, h.socket) || time.Since(began) > 5*time.Second {
			t.Errorf("%v: got exit code %d and %q after %s, want 1 and the socket after 300 ms", args, code, complaint, time.Since(began))
		}
	}
	w.signal(t, syscall.SIGCONT)
	if _, complaint, code := h.flowctl(t, "status"); code != exitFine {
		t.Errorf("after SIGCONT: got exit code %d and %q, want 0", code, complaint)
	}
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine {
		t.Errorf("SIGTERM: got exit code %d, want 0", code)
	}
}

func TestReloadWhileStartingWaits(t *testing.T) {
	h := newHouse(t)
	w := h.launch(t, filepath.Join(h.dir, "weftd"), quick)
	for deadline := time.Now().Add(20 * time.Second); ; { // the socket comes first, the data plane after it
		if _, err := os.Lstat(h.socket); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	w.signal(t, syscall.SIGHUP)
	h.eventually(t, "the agent is ready", func() error {
		if text, err := h.get(t, "/readyz"); err != nil || text != "ok\n" {
			return fmt.Errorf("%q, %w", text, err)
		}
		return nil
	})
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine || !strings.Contains(w.log.String(), "configuration reloaded") {
		t.Errorf("got exit code %d and\n%s\nwant 0 and a reload", code, w.log.String())
	}
}

func TestReloadAskedForEarlyIsDoneOnceOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reloads := 0
		a := &agent{
			log: slog.New(slog.DiscardHandler), got: make(chan os.Signal, 8),
			reload: func() (Config, error) { reloads++; return Config{}, errors.New("a mistake") }, // ends the reload here
		}
		ctx, cancel := context.WithCancel(t.Context())
		open, done := make(chan struct{}), make(chan error, 1)
		a.got <- syscall.SIGHUP
		a.got <- syscall.SIGHUP
		go func() { done <- a.signals(ctx, open, cancel) }()
		synctest.Wait()
		if reloads != 0 {
			t.Errorf("before the agent is open: got %d reloads, want 0", reloads)
		}
		close(open)
		synctest.Wait()
		if reloads != 1 {
			t.Errorf("once it is open: got %d reloads, want 1", reloads)
		}
		a.got <- syscall.SIGHUP
		synctest.Wait()
		if reloads != 2 {
			t.Errorf("later: got %d reloads, want 2", reloads)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(a.got)
	})
}

func TestTopShowsWhatNoRecordTellsYet(t *testing.T) {
	h := newHouse(t)
	w := h.start(t, "dataplane: {interfaces: [wire0], interval: 100ms}\n") // records come after 15 s at the earliest
	stop, done := make(chan struct{}), make(chan error, 1)
	h.in(t, h.here, func() error {
		conn, err := net.Dial("udp", net.JoinHostPort(thereAddr, "5020"))
		if err != nil {
			return err
		}
		go func() {
			for tick := time.NewTicker(10 * time.Millisecond); ; {
				select {
				case <-stop:
					done <- conn.Close()
					return
				case <-tick.C:
					_, _ = conn.Write(make([]byte, 958)) // 1000 bytes of IP; refused by the other side, which does not matter
				}
			}
		}()
		return nil
	})
	h.eventually(t, "top shows about 100 packets a second", func() error {
		text, complaint, code := h.flowctl(t, "top", "--once", "--interval", "1s", "--to-port", "5020", "-o", "json")
		var top struct {
			Rows []struct {
				Source  string  `json:"source.address"`
				Packets float64 `json:"packets_per_second"`
				Bytes   float64 `json:"bytes_per_second"`
			}
		}
		if err := json.Unmarshal([]byte(text), &top); err != nil || code != exitFine {
			return fmt.Errorf("exit code %d, %w: %s", code, err, complaint)
		}
		if len(top.Rows) != 1 || top.Rows[0].Source != hereAddr || top.Rows[0].Packets < 50 || top.Rows[0].Packets > 110 || top.Rows[0].Bytes != top.Rows[0].Packets*1000 {
			return fmt.Errorf("got %+v, want one row of %s with about 100 packets of 1000 bytes a second", top.Rows, hereAddr)
		}
		return nil
	})
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine {
		t.Errorf("SIGTERM: got exit code %d, want 0", code)
	}
}
