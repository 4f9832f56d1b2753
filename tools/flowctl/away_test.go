// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

func TestStoppedAgentIsAnErrorInTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	lis, err := net.Listen("unix", path) // takes connections and never answers, as a process under SIGSTOP
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	for _, args := range []string{"status", "ledger", "ledger --follow", "observe", "observe --follow", "observe --last 1 -o json"} {
		began := time.Now()
		_, complaint, code := ctl(t, path, append(strings.Fields(args), "--timeout", "100ms")...)
		if code != exitFailed || !strings.Contains(complaint, path) || !strings.Contains(complaint, "did not answer within 100ms") ||
			!strings.Contains(complaint, "--timeout") || time.Since(began) > 5*time.Second {
			t.Errorf("%s: got exit code %d and %q after %s, want 1 and the socket and the mend within 100 ms", args, code, complaint, time.Since(began))
		}
	}
}

// lines reads r's lines until it is closed.
func lines(r io.Reader) <-chan string {
	out := make(chan string, 100)
	go func() {
		defer close(out)
		for s := bufio.NewScanner(r); s.Scan(); {
			out <- s.Text()
		}
	}()
	return out
}

// comes fails unless a line with text in it is the next one.
func comes(t *testing.T, from <-chan string, text string) {
	t.Helper()
	select {
	case line := <-from:
		if !strings.Contains(line, text) {
			t.Fatalf("got %q, want %q in it", line, text)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("got nothing, want %q", text)
	}
}

func TestFollowOutlivesTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	serve := func(records ...flows.Record) *exporter.Server {
		t.Helper()
		store := exporter.NewStore(16)
		if err := store.Export(t.Context(), flows.Window{End: noon, Records: records, Ledger: ledger()}); err != nil {
			t.Fatal(err)
		}
		s, err := exporter.ListenSocket(path, "", store, func() *api.StatusResponse { return &api.StatusResponse{} })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for args, want := range map[string][2]string{
		"observe --follow --last 1 -o jsonl": {`"10.0.0.1"`, `"10.0.0.2"`},
		"ledger --follow -o jsonl":           {`"balanced":true`, `"balanced":true`},
	} {
		server := serve(record(1, flows.ProtoTCP, 443))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		outR, outW := io.Pipe()
		errR, errW := io.Pipe()
		code := make(chan int, 1)
		go func() {
			code <- run(ctx, append([]string{"--server", path}, strings.Fields(args)...), outW, errW)
			_, _ = outW.Close(), errW.Close() // a pipe's Close does not fail
		}()
		out, complaint := lines(outR), lines(errR)
		comes(t, out, want[0])
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		comes(t, complaint, path+" stopped; waiting for it to come back")
		server = serve(record(2, flows.ProtoTCP, 443))
		comes(t, complaint, path+" is back")
		comes(t, out, want[1])
		cancel()
		if got := <-code; got != exitFine {
			t.Errorf("%s: exit code after Ctrl-C: got %d, want 0", args, got)
		}
		for line := range out {
			t.Errorf("%s: got %q once more, want nothing twice", args, line)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
