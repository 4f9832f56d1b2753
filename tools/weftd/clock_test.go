// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// TestClockStepsLoseNothing sets the machine's clock, so it needs one of its own: while the
// collector is away it goes back an hour, on two, and back three while no agent runs. Records have the time that
// the clock showed, and no step makes a waiting request old.
func TestClockStepsLoseNothing(t *testing.T) {
	if os.Getenv("WEFT_EMULATED") != "1" {
		t.Skip("sets the clock: only where the machine is the test's own (make test-kernels)")
	}
	h := newHouse(t)
	began, right := time.Now(), time.Now().Round(0)
	set := func(off time.Duration) {
		at := unix.NsecToTimespec(right.Add(time.Since(began) + off).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &at); err != nil {
			t.Fatalf("set the clock: %v", err)
		}
	}
	t.Cleanup(func() { set(0) })
	config := quick + "exporter: {spool: {dir: " + filepath.Join(h.dir, "spool") + ", age: 30m}}\n"
	endpoint := "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://127.0.0.1:4317"
	rx0, tx0 := h.counters(t)
	w := h.start(t, config, endpoint)
	for i, off := range []time.Duration{0, -time.Hour, time.Hour} {
		set(off)
		h.talkedAt(t, 5001+i)
	}
	l, _ := h.ledger(t)
	if rx, tx := h.counters(t); !l.Balanced || l.packets() != rx-rx0+tx-tx0 || l.Records.Made < 3 || l.Records.Waiting != l.Records.Made || len(l.Records.Lost) > 0 {
		t.Errorf("got %+v, want the %d packets of the device, and every record to wait", l, rx-rx0+tx-tx0)
	}
	made := l.Records.Made
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine || strings.Contains(w.log.String(), "level=ERROR") {
		t.Errorf("got exit code %d and the log\n%s\nwant 0 and no error", code, &w.log)
	}

	set(-2 * time.Hour)
	w = h.start(t, config, endpoint)
	h.talkedAt(t, 5010)
	c, server := &countingLogs{}, grpc.NewServer()
	collogs.RegisterLogsServiceServer(server, c)
	h.in(t, h.here, func() error {
		lis, err := net.Listen("tcp", "127.0.0.1:4317")
		if err == nil {
			go func() { _ = server.Serve(lis) }() // until it is stopped
		}
		return err
	})
	t.Cleanup(server.Stop)
	h.within(t, time.Minute, "the collector has all", func() error {
		l, _ = h.ledger(t)
		if n := c.records.Load(); l.Records.Waiting > 0 || n != made+l.Records.Made {
			return fmt.Errorf("%d records, %d of the run before and %+v", n, made, l.Records)
		}
		return nil
	})
	if !l.Balanced || len(l.Records.Lost) > 0 {
		t.Errorf("got %+v, want it balanced and nothing lost", l)
	}
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine || strings.Count(w.log.String(), "clock was set back: spooled requests are from the future and count as new") != 1 {
		t.Errorf("got exit code %d and the log\n%s\nwant 0 and one line on the clock", code, &w.log)
	}
}

// talkedAt has a connection to the port, and wants its record to begin and end between now
// and then, by the clock as it is set.
func (h *house) talkedAt(t *testing.T, port int) {
	t.Helper()
	from := time.Now().Add(-20 * time.Millisecond).Round(0) // two ticks of the slowest kernel's
	h.talk(t, port, 10_000)
	to := time.Now().Add(20 * time.Millisecond).Round(0)
	var r struct{ Start, End time.Time }
	h.eventually(t, "the connection is a record", func() error {
		text, complaint, code := h.flowctl(t, "observe", "--to-port", strconv.Itoa(port), "-o", "jsonl")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, complaint)
		}
		return json.Unmarshal([]byte(text), &r)
	})
	if r.Start.Before(from) || r.End.Before(r.Start) || r.End.After(to) {
		t.Errorf("port %d: got a record from %s to %s, want it between %s and %s", port, r.Start, r.End, from, to)
	}
}
