// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"weft/exporter/api"
	"weft/flows"
)

// Print is a sink that writes records as text, for a person in any [Format] or for a
// program as lines of JSON. A slow reader does not hold the drain up: records wait in a
// bounded queue.
//
// After a failed write it writes no more: the failure is logged once (a reader
// that left is none to log), and these and all further records are
// Lost["write_failed"]. Writing to a closed pipe as
// standard output also raises SIGPIPE, which ends a program that does not
// ask for the signal with os/signal.
type Print struct {
	*queue

	out    io.Writer
	lines  appendLines
	linger time.Duration
	log    *slog.Logger
	done   chan struct{}

	mu     sync.Mutex
	failed error // of the first write that failed
}

// NewPrint starts a printer of up to queue waiting records (0: [DefaultQueue]).
// A nil log logs nothing. The caller must Close it.
func NewPrint(out io.Writer, format *Formatter, queue int, log *slog.Logger) *Print {
	return startPrint("print", out, func(dst []byte, records []flows.Record) ([]byte, int, error) {
		for i := range records {
			dst = format.Append(dst, &records[i])
		}
		return dst, len(records), nil
	}, 0, queue, Intake{}, log)
}

// StdoutConfig says what a sink writes to standard output.
type StdoutConfig struct {
	Name   string        // of the sink; empty: "stdout"
	Format LineFormat    // empty: [LinesFlows]
	Flush  time.Duration // how long records gather before they are written; 0: not at all
	Queue  int           // records that may wait; 0: [DefaultQueue]

	Intake // which records it takes

	Version string              // service.version, of [LinesOTLP]
	Getenv  func(string) string // for OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME; nil: os.Getenv
	Log     *slog.Logger        // nil: none
}

// Check is what is wrong with c, with the name of its key.
func (c StdoutConfig) Check() error {
	if c.Format == "" {
		return nil
	}
	if _, err := ParseLineFormat(string(c.Format)); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	return nil
}

// NewStdout starts a sink that writes lines of JSON to out. The caller must Close it.
func NewStdout(out io.Writer, c StdoutConfig) (*Print, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	l, err := newLiner(cmp.Or(c.Format, LinesFlows), c.Version, c.Getenv, c.Redact)
	if err != nil {
		return nil, err
	}
	return startPrint(cmp.Or(c.Name, "stdout"), out, l.append, c.Flush, c.Queue, c.Intake, c.Log), nil
}

func startPrint(name string, out io.Writer, lines appendLines, linger time.Duration, queue int, in Intake, log *slog.Logger) *Print {
	p := &Print{out: out, lines: lines, linger: linger, log: logger(log).With("sink", name), queue: newQueue(name, queue), done: make(chan struct{})}
	p.queue.intake = in
	go p.work()
	return p
}

// Status is the sink for `flowctl status`.
func (p *Print) Status() *api.SinkStatus {
	s := &api.SinkStatus{Account: AccountToWire(p.Account()), Target: "standard output",
		State: cmp.Or(p.queue.idle(p.linger, "its reader"), stateOK)}
	if err := p.failure(); err != nil {
		s.State = stateRefused + ": " + err.Error()
	}
	return s
}

// Close writes what waits and returns when the worker is gone, or when ctx ends:
// then what still waits is Lost["shutdown"], which is no error, and a write that
// hangs is left behind. The error is the one that stopped the writing.
func (p *Print) Close(ctx context.Context) error {
	p.queue.close()
	select {
	case <-p.done:
		return p.failure()
	case <-ctx.Done():
		p.queue.abandon()
		return nil
	}
}

func (p *Print) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *Print) work() {
	defer close(p.done)
	writeLines(p.queue, p.lines, p.linger, p.log, p.write)
}

func (p *Print) write(text []byte, records int) {
	failed := p.failure()
	if failed == nil {
		if _, failed = p.out.Write(text); failed != nil && !errors.Is(failed, syscall.EPIPE) {
			p.log.Error("printing flows stopped", "err", failed)
		}
		p.mu.Lock()
		p.failed = failed
		p.mu.Unlock()
	}
	if failed != nil {
		p.queue.settle(0, records, "write_failed")
		return
	}
	p.queue.settle(records, 0, "")
}

func logger(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
