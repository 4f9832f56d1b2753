// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/exporter"
	"weft/flows"
)

// unbalanced is a ledger in which a point saw more than it can explain.
var unbalanced = flows.Ledger{At: time.Unix(1, 0), Points: []flows.PointLedger{{
	Hop: flows.Hop{Interface: "eth0"}, Seen: flows.Count{Packets: 3, Bytes: 300}, Unaccounted: flows.SignedCount{Packets: 3, Bytes: 300},
}}}

func TestSelfCheckLogsOneLineAChange(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	var a audit
	good := flows.Ledger{At: time.Unix(1, 0)}
	for _, l := range []*flows.Ledger{&good, &unbalanced, &unbalanced, &unbalanced, &good, &good, &unbalanced} {
		a.check(l, log)
	}
	got := strings.Split(strings.TrimSpace(text.String()), "\n")
	want := []string{"level=ERROR", "level=INFO", "level=ERROR"}
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%s", len(got), len(want), text.String())
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("line %d: got %s, want %s", i, got[i], want[i])
		}
	}
	if !strings.Contains(got[0], "eth0") || !strings.Contains(got[0], "seen 3") {
		t.Errorf("error line: got %s, want the point and its figures", got[0])
	}
	if n := a.failed.Load(); n != 4 {
		t.Errorf("counter: got %d unbalanced ledgers, want 4", n)
	}
}

// ledgers is a sink that keeps the ledgers it is given.
type ledgers struct {
	records uint64
	got     []flows.Ledger
	err     error
}

func (*ledgers) Name() string { return "ledgers" }

func (s *ledgers) Export(_ context.Context, w flows.Window) error {
	s.records += uint64(len(w.Records))
	if !w.Ledger.At.IsZero() {
		s.got = append(s.got, w.Ledger)
	}
	return s.err
}

func (s *ledgers) Account() flows.SinkAccount {
	return flows.SinkAccount{Name: "ledgers", Offered: s.records, Acknowledged: s.records}
}

func TestLedgerOfAWindowCountsItsRecordsAtEverySink(t *testing.T) {
	sink := &ledgers{}
	store := exporter.NewStore(16)
	a := &agent{log: slog.New(slog.DiscardHandler), sinks: []flows.Sink{store, sink}, table: flows.NewTable(flows.TableOptions{})}
	at := time.Unix(100, 0)
	record := flows.Record{Key: flows.Key{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2"), Proto: flows.ProtoUDP}, Start: at, End: at}
	a.deliver(flows.Window{End: at, Records: []flows.Record{record, record}, Ledger: flows.Ledger{At: at, Made: 2}})

	kept, _ := store.Ledger()
	for name, l := range map[string]flows.Ledger{"store": kept, "sink": sink.got[0]} {
		i := slices.IndexFunc(l.Sinks, func(s flows.SinkAccount) bool { return s.Name == "store" })
		if len(l.Sinks) != 2 || i < 0 || l.Sinks[i].Offered != 2 || !l.Balanced() {
			t.Errorf("ledger in the %s: got %+v, want both sinks with the window's 2 records", name, l.Sinks)
		}
	}
	if len(sink.got) != 1 {
		t.Errorf("ledgers: got %d, want 1 a window", len(sink.got))
	}
}

func TestRefusingSinkIsALineWhenItChanges(t *testing.T) {
	var text bytes.Buffer
	sink := &ledgers{err: errors.New("disk full")}
	a := &agent{log: slog.New(slog.NewTextHandler(&text, nil)), sinks: []flows.Sink{sink}, refused: map[string]string{}}
	for range 3 {
		a.export(flows.Window{})
	}
	sink.err = nil
	a.export(flows.Window{})
	if got := strings.Count(text.String(), "\n"); got != 2 || !strings.Contains(text.String(), "disk full") {
		t.Errorf("got %d lines, want 2: refused, and well again\n%s", got, text.String())
	}
}

func TestCaughtPanicNamesItsPlace(t *testing.T) {
	var nothing []int
	err := caught("drain", func() error { nothing[3] = 1; return nil })
	if err == nil || !strings.Contains(err.Error(), "drain: panic: ") || !strings.Contains(err.Error(), "agent_test.go:") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line with the panic and its file", err)
	}
	if err := caught("drain", func() error { return syscall.EPIPE }); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v, want the function's own error", err)
	}
}

func TestServiceManagerHearsReadyAndWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "2000000")
	t.Setenv("WATCHDOG_PID", "")
	n := newNotifier()
	start := time.Unix(1000, 0)
	if err := n.tell("READY=1"); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, 500 * time.Millisecond, time.Second, 1500 * time.Millisecond} {
		if err := n.alive(start.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.tell("STOPPING=1"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"} {
		buf := make([]byte, 64)
		k, err := conn.Read(buf)
		if got := string(buf[:k]); got != want || err != nil {
			t.Errorf("message %d: got %q, error %v, want %q", i, got, err, want)
		}
	}
}
