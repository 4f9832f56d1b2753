// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"syscall"

	"weft/flows"
)

// Print is a sink that writes records for a person, in any [Format]. A slow
// reader does not hold the drain up: records wait in a bounded queue.
//
// After a failed write it writes no more: the failure is logged once (a reader
// that left is none to log), and these and all further records are
// Lost["write_failed"]. Writing to a closed pipe as
// standard output also raises SIGPIPE, which ends a program that does not
// ask for the signal with os/signal.
type Print struct {
	out    io.Writer
	format *Formatter
	log    *slog.Logger
	queue  *queue
	done   chan struct{}
	failed error // the worker's
}

// NewPrint starts a printer of up to queue waiting records (0: [DefaultQueue]).
// A nil log logs nothing. The caller must Close it.
func NewPrint(out io.Writer, format *Formatter, queue int, log *slog.Logger) *Print {
	p := &Print{out: out, format: format, log: logger(log), queue: newQueue("print", queue), done: make(chan struct{})}
	go p.work()
	return p
}

// Name is "print".
func (p *Print) Name() string { return p.queue.account.Name }

// Export queues w's records.
func (p *Print) Export(_ context.Context, w flows.Window) error {
	p.queue.put(w.Records)
	return nil
}

// Account says where every record is; acknowledged ones were written.
func (p *Print) Account() flows.SinkAccount { return p.queue.snapshot() }

// Close writes what waits and returns when the worker is gone, or when ctx ends:
// then what still waits is Lost["shutdown"], which is no error, and a write that
// hangs is left behind. The error is the one that stopped the writing.
func (p *Print) Close(ctx context.Context) error {
	p.queue.close()
	select {
	case <-p.done:
		return p.failed
	case <-ctx.Done():
		p.queue.abandon("shutdown")
		return nil
	}
}

func (p *Print) work() {
	defer close(p.done)
	var text []byte
	for {
		records, ok := p.queue.next(256, 0)
		if !ok {
			return
		}
		text = text[:0]
		for i := range records {
			text = p.format.Append(text, &records[i])
		}
		p.write(text, len(records))
	}
}

func (p *Print) write(text []byte, records int) {
	if p.failed == nil {
		if _, p.failed = p.out.Write(text); p.failed != nil && !errors.Is(p.failed, syscall.EPIPE) {
			p.log.Error("printing flows stopped", "err", p.failed)
		}
	}
	if p.failed != nil {
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
