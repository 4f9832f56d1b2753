// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"weft/exporter/api"
)

// FileConfig says which file records go to.
type FileConfig struct {
	Name   string     // of the sink; empty: "file"
	Path   string     // of the file that is written; its folder has to be there
	Format LineFormat // empty: [LinesOTLP]

	// Before a write that would make the file larger than Size bytes (0: 100 MiB), or
	// when it is older than Age (0: of any age), it is renamed: flows.jsonl becomes
	// flows.000001.jsonl, and a higher number is a later file. Keep of those are kept
	// (0: ten), the others are removed, the lowest number first.
	Size int
	Age  time.Duration
	Keep int
	// Compression of the renamed ones: "zstd", "gzip" or "none" (also when empty).
	Compression string
	// NoSync leaves it to the system when a line is on the disk: those of the last half a
	// minute may be gone after a loss of power, although they are acknowledged.
	NoSync bool

	Flush time.Duration // how long records gather into one line; 0: one second
	Queue int           // records that may wait; 0: [DefaultQueue]

	Intake // which records it takes

	Version string              // service.version
	Getenv  func(string) string // for OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME; nil: os.Getenv
	Log     *slog.Logger        // one line per change of state; nil: none
}

// Check joins every mistake in c, each with the name of its key. It looks at no file.
func (c FileConfig) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Path) {
		errs = append(errs, fmt.Errorf("path=%q: want the whole path of a file, such as /var/log/weft/flows.jsonl", c.Path))
	} else if filepath.Clean(c.Path) != c.Path {
		errs = append(errs, fmt.Errorf("path=%q: want the path of a file, as %s is", c.Path, filepath.Clean(c.Path)))
	}
	if c.Format != "" {
		if _, err := ParseLineFormat(string(c.Format)); err != nil {
			errs = append(errs, fmt.Errorf("format: %w", err))
		}
	}
	if c.Compression != "" && compressors[c.Compression].open == nil && c.Compression != "none" {
		errs = append(errs, fmt.Errorf("compression=%q: want zstd, gzip or none", c.Compression))
	}
	return errors.Join(errs...)
}

// Renames reports whether a file of this sink's may be renamed to path, and so packed or
// removed there.
func (c FileConfig) Renames(path string) bool {
	_, ok := c.old(filepath.Base(path))
	return ok && filepath.Dir(path) == filepath.Dir(c.Path)
}

// File is a sink that writes records as lines of JSON into a file, which it renames
// when it is large or old. A record is acknowledged when its line is whole in the file
// and, unless NoSync, on the disk. While the disk takes nothing (full, read-only, the
// folder gone), records wait in a bounded queue and it is tried again each second.
// The ways to lose one are queue_full, too_large (it alone is over a MiB of JSON),
// refused (it cannot be encoded) and shutdown (the agent stopped while the disk took
// nothing).
//
// A file that another program renamed or removed is begun anew at the next write.
type File struct {
	*queue

	c     FileConfig
	log   *slog.Logger
	lines *liner // the worker's
	out   *rotated
	descs fileDescs

	mu     sync.Mutex
	failed error     // why the last write failed; nil: it did not
	since  time.Time // of the first of those failures

	stop, done chan struct{}
	gone       context.Context // ended when Close stops waiting
	giveUp     context.CancelFunc
	once       sync.Once
}

// NewFile starts the sink. A file that cannot be written now is no error: it is tried
// again. The error joins every mistake in c. The caller must Close it.
func NewFile(c FileConfig) (*File, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	c.Name, c.Format, c.Compression = cmp.Or(c.Name, "file"), cmp.Or(c.Format, LinesOTLP), cmp.Or(c.Compression, "none")
	c.Size, c.Keep, c.Flush = cmp.Or(c.Size, 100<<20), cmp.Or(c.Keep, 10), cmp.Or(c.Flush, time.Second)
	lines, err := newLiner(c.Format, c.Version, c.Getenv, c.Redact)
	if err != nil {
		return nil, err
	}
	f := &File{
		c: c, log: logger(c.Log).With("sink", c.Name, "path", c.Path), queue: newQueue(c.Name, c.Queue), lines: lines,
		stop: make(chan struct{}), done: make(chan struct{}), descs: newFileDescs(c.Name),
	}
	f.queue.intake = c.Intake
	f.gone, f.giveUp = context.WithCancel(context.Background())
	f.out = newRotated(f.gone, c, f.log)
	go f.work()
	return f, nil
}

// Reopen lets go of the file, so that the next write opens its path anew. It waits
// for nothing.
func (f *File) Reopen() { f.out.reopen() }

// Close writes what waits, until the disk takes no more or ctx ends: then what still
// waits is Lost["shutdown"], which is no error, and a write that hangs is left behind.
// Closing again does nothing.
func (f *File) Close(ctx context.Context) error {
	f.once.Do(func() {
		close(f.stop)
		f.queue.close()
	})
	defer f.giveUp()
	select {
	case <-f.done:
		f.giveUp() // whatever is being compressed is begun again at the next start
		return f.out.close()
	case <-ctx.Done():
		f.queue.abandon()
		return nil
	}
}

func (f *File) work() {
	defer close(f.done)
	writeLines(f.queue, f.lines.append, f.c.Flush, f.log, func(text []byte, n int) {
		if f.deliver(text) {
			f.queue.settle(n, 0, "")
		} else {
			f.queue.settle(0, n, "shutdown")
		}
	})
}

// deliver writes text until the disk took it. False: the sink was closed, and a last
// try failed.
func (f *File) deliver(text []byte) bool {
	for last := false; ; {
		err := f.out.write(text)
		f.note(err)
		if err == nil {
			return true
		}
		if last {
			return false
		}
		select {
		case <-f.stop:
			last = true
		case <-time.After(time.Second):
		}
	}
}

// note keeps the outcome of a write and logs when it changes.
func (f *File) note(err error) {
	f.mu.Lock()
	before, since := f.failed, f.since
	f.failed = err
	if err != nil && before == nil {
		f.since = time.Now()
	}
	f.mu.Unlock()
	switch {
	case err != nil && before == nil:
		f.log.Warn("file cannot be written, records wait", "err", err)
	case err == nil && before != nil:
		f.log.Info("file is written again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// Status is the sink for `flowctl status`.
func (f *File) Status() *api.SinkStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &api.SinkStatus{Account: AccountToWire(f.Account()), Target: f.c.Path, State: stateOK}
	if f.failed != nil {
		s.State = stateRetry + " since " + f.since.UTC().Format(time.RFC3339) + ": " + f.failed.Error()
	}
	return s
}

type fileDescs struct{ written, renamed, removed *prometheus.Desc }

func newFileDescs(sink string) fileDescs {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("weft_file_"+name+"_total", help, nil, prometheus.Labels{"sink": sink})
	}
	return fileDescs{
		written: desc("written_bytes", "Bytes written to the file of a sink."),
		renamed: desc("renamed", "How often the file of a sink was renamed because it was large or old."),
		removed: desc("removed", "Renamed files of a sink that were removed because there were more than are kept."),
	}
}

// Describe sends the descriptions of what Collect sends.
func (f *File) Describe(ch chan<- *prometheus.Desc) {
	ch <- f.descs.written
	ch <- f.descs.renamed
	ch <- f.descs.removed
}

// Collect sends weft_file_*_total.
func (f *File) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, n uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	send(f.descs.written, f.out.written.Load())
	send(f.descs.renamed, f.out.renamed.Load())
	send(f.descs.removed, f.out.removed.Load())
}
