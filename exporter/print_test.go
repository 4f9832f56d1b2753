// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPrintWritesEveryRecordInOrder(t *testing.T) {
	checkNoLeak(t)
	var out bytes.Buffer
	p := NewPrint(&out, &Formatter{Format: JSONL}, 0, nil)
	all := records(1000)
	export(t, p, all[:500]...)
	export(t, p, all[500:]...)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range all {
		want = append(AppendJSON(want, &all[i]), '\n')
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("got %d bytes, want %d in the order of the records", out.Len(), len(want))
	}
	a := p.Account()
	checkBalance(t, a)
	if a.Acknowledged != 1000 {
		t.Errorf("got %+v, want 1000 acknowledged", a)
	}
}

func TestClosedPipeIsCountedAndNoFault(t *testing.T) {
	checkNoLeak(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p := NewPrint(w, &Formatter{Format: Compact}, 0, slog.New(slog.NewTextHandler(&log, nil)))
	for range 5 {
		export(t, p, records(10)...)
		eventually(t, "the records to be settled", func() bool { return p.Account().Waiting == 0 })
	}
	if err := p.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("close: got %v, want the broken pipe", err)
	}
	a := p.Account()
	checkBalance(t, a)
	if a.Lost["write_failed"] != 50 {
		t.Errorf("got %+v, want 50 lost as write_failed", a)
	}
	if log.String() != "" {
		t.Errorf("got %q, want no word about a reader that left", log.String())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFailedWriteIsReportedOnceAndCounted(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var log syncBuffer
	p := NewPrint(full, &Formatter{Format: Compact}, 0, slog.New(slog.NewTextHandler(&log, nil)))
	for range 5 {
		export(t, p, records(10)...)
		eventually(t, "the records to be settled", func() bool { return p.Account().Waiting == 0 })
	}
	if err := p.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("close: got %v, want the full disk", err)
	}
	if a := p.Account(); a.Lost["write_failed"] != 50 {
		t.Errorf("got %+v, want 50 lost as write_failed", a)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("got %d log lines, want 1:\n%s", n, log.String())
	}
}

func TestStateSaysThatTheReaderReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		p, err := NewStdout(w, StdoutConfig{Flush: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		export(t, p, records(3)...)
		time.Sleep(30 * time.Second)
		if got := p.Status().State; got != stateOK {
			t.Errorf("while records gather: got state %q, want ok", got)
		}
		since := time.Now().Add(-30 * time.Second).UTC().Format(time.RFC3339)
		time.Sleep(32 * time.Second)
		if got, want := p.Status().State, "waiting since "+since+" for its reader"; got != want {
			t.Errorf("when they were due: got state %q, want %q", got, want)
		}
		go func() { _, _ = io.Copy(io.Discard, r) }() // ends with the pipe
		synctest.Wait()
		if got := p.Status().State; got != stateOK {
			t.Errorf("when they were read: got state %q, want ok", got)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestHangingWriterHoldsUpNeitherDrainNorShutdown(t *testing.T) {
	checkNoLeak(t)
	r, w := io.Pipe()
	p := NewPrint(w, &Formatter{Format: Compact}, 100, nil)
	export(t, p, records(500)...)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	a := p.Account()
	checkBalance(t, a)
	if a.Lost["queue_full"] != 400 || a.Lost["shutdown"] != 100 {
		t.Errorf("got %+v, want 400 lost as queue_full and 100 as shutdown", a)
	}
	if err := r.Close(); err != nil { // lets the write fail
		t.Fatal(err)
	}
	<-p.done
	if late := p.Account(); late.Lost["write_failed"] != 0 || late.Waiting != 0 {
		t.Errorf("after the write failed: got %+v, want nothing counted twice", late)
	}
}

// syncBuffer is a buffer that a logger and a test may share.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestStdoutWritesLinesOfEitherFormat(t *testing.T) {
	checkNoLeak(t)
	for _, format := range []LineFormat{LinesFlows, LinesOTLP} {
		var out bytes.Buffer
		p, err := NewStdout(&out, StdoutConfig{Name: "console", Format: format, Getenv: func(string) string { return "" }})
		if err != nil {
			t.Fatal(err)
		}
		export(t, p, numbered(0, 300)...)
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a := p.Account(); a.Name != "console" || a.Acknowledged != 300 {
			t.Errorf("%s: got %+v, want 300 acknowledged", format, a)
		}
		if format == LinesFlows {
			if n := bytes.Count(out.Bytes(), []byte("\n")); n != 300 {
				t.Errorf("got %d lines, want 300", n)
			}
			continue
		}
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/out", out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		checkNumbers(t, writtenBytes(t, dir), 300)
	}
}

func TestStdoutWhoseReaderLeftSaysSoInItsState(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	p, err := NewStdout(w, StdoutConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	export(t, p, records(10)...)
	eventually(t, "the records to be settled", func() bool { return p.Account().Waiting == 0 })
	if s := p.Status(); !strings.Contains(s.GetState(), "broken pipe") || p.Account().Lost["write_failed"] != 10 {
		t.Errorf("got state %q and %+v, want the broken pipe and 10 lost", s.GetState(), p.Account())
	}
	if err := p.Close(t.Context()); err == nil || log.String() != "" {
		t.Errorf("close: got %v and log %q, want the broken pipe and no line", err, log.String())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLinesNameNoHostThatIsRedacted(t *testing.T) {
	c := RedactConfig{IPv4: 24, IPv6: 48}
	c.Fields[RedactNode] = Drop
	hide, err := NewRedactor(c)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := NewStdout(&out, StdoutConfig{Format: LinesOTLP, Intake: Intake{Redact: hide}, Getenv: func(name string) string {
		return map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "host.name=secret,service.namespace=shown"}[name]
	}})
	if err != nil {
		t.Fatal(err)
	}
	export(t, p, records(1)...)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Contains(text, "secret") || !strings.Contains(text, "shown") {
		t.Errorf("got %s, want the namespace and no host", text)
	}
}
