// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/exporter/api"
	"weft/flows"
)

// What a Parquet sink does unless told otherwise.
const (
	DefaultParquetSize = 64 << 20
	DefaultParquetAge  = 5 * time.Minute
	DefaultParquetKeep = 288 // a day of files of 5 minutes
)

// ParquetConfig says where Parquet files are written.
type ParquetConfig struct {
	Name string // of the sink; empty: "parquet"
	// Dir is a folder of its own, made when it is not there. Files of this sink's in it
	// are removed by Keep; others are left alone.
	Dir  string
	Size int           // bytes from which on a file is finished; 0: [DefaultParquetSize]
	Age  time.Duration // a file is finished so long after its first record; 0: [DefaultParquetAge]
	Keep int           // finished files; the oldest over it are removed. 0: [DefaultParquetKeep]

	Compression string            // zstd (also empty), snappy or none
	Derived     bool              // see [ColumnsConfig]
	Metadata    map[string]string // of every file: what the resource is
	Intake                        // which records, and how
	Queue       int               // most records waiting outside the disk; 0: [DefaultQueue]
}

// Check is every mistake of c; each begins with the name of its key.
func (c ParquetConfig) Check() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: is missing; name a folder for the files"))
	}
	if c.Size != 0 && c.Size < 1<<20 {
		errs = append(errs, fmt.Errorf("size=%d: is less than 1MiB; a small file costs more than its records", c.Size))
	}
	if c.Age < 0 || c.Age > 0 && c.Age < time.Second {
		errs = append(errs, fmt.Errorf("age=%s: give at least 1s", c.Age))
	}
	if c.Keep < 0 {
		errs = append(errs, fmt.Errorf("keep=%d: give the number of finished files to keep", c.Keep))
	}
	if _, ok := parquetCodecs[c.Compression]; c.Compression != "" && !ok {
		errs = append(errs, fmt.Errorf("compression=%s: is not one of %s", c.Compression, strings.Join(slices.Sorted(maps.Keys(parquetCodecs)), ", ")))
	}
	return errors.Join(errs...)
}

// Parquet is a sink that writes records into Parquet files, which begin under a
// temporary name. A record is acknowledged when its file was finished, synced and
// renamed: until then a kill loses it, which the next start says.
//
// A disk that takes nothing holds up the sink's own queue and nobody else: the write is
// tried again each second, where it stopped.
type Parquet struct {
	*queue

	c    ParquetConfig
	log  *slog.Logger
	stop chan struct{} // closed: nothing is tried again
	once sync.Once
	done chan struct{}

	columns *Columns
	file    *parquetFile
	folder  parquetFolder
	begun   time.Time // of the first record of the file; zero: there is none
	rows    int       // of the file that were written, and are parked
	pending int       // of the file in columns

	mu    sync.Mutex
	state string // what is wrong now; empty: nothing
}

// NewParquet starts a sink; the caller must Close it. A nil log logs nothing. The error
// is [ParquetConfig.Check]'s. A folder that cannot be written is none: it may be
// later.
func NewParquet(c ParquetConfig, log *slog.Logger) (*Parquet, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Name == "" {
		c.Name = "parquet"
	}
	if c.Compression == "" {
		c.Compression = "zstd"
	}
	c.Size, c.Age, c.Keep = cmp.Or(c.Size, DefaultParquetSize), cmp.Or(c.Age, DefaultParquetAge), cmp.Or(c.Keep, DefaultParquetKeep)
	p := &Parquet{c: c, queue: newQueue(c.Name, c.Queue), stop: make(chan struct{}), done: make(chan struct{})}
	p.queue.intake = c.Intake
	p.c.Metadata = maps.Clone(c.Metadata)
	c.Redact.resource(p.c.Metadata)
	p.log = logger(log).With("sink", c.Name, "dir", c.Dir)
	rows := int(max(1, min(maxColumnRows, p.queue.limit/2))) //nolint:gosec // small
	p.columns = NewColumns(ColumnsConfig{Rows: rows, Derived: c.Derived, Metadata: p.c.Metadata})
	p.folder = parquetFolder{dir: c.Dir, keep: c.Keep, run: rand.Uint32(), log: p.log} //nolint:gosec // it guards nothing
	go p.work()
	return p, nil
}

// State is what keeps the sink from writing; empty: nothing.
func (p *Parquet) State() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Status says how the sink fares: the folder it writes to and what is wrong.
func (p *Parquet) Status() *api.SinkStatus {
	return &api.SinkStatus{Account: AccountToWire(p.Account()), Target: p.c.Dir, State: cmp.Or(p.State(), stateOK)}
}

// Close finishes the file with all that waits, or returns when ctx ends: then what is
// not in a finished file is Lost["shutdown"], which is no error.
func (p *Parquet) Close(ctx context.Context) error {
	p.queue.close()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.queue.abandon()
		p.once.Do(func() { close(p.stop) })
	}
	return nil
}

func (p *Parquet) work() {
	defer close(p.done)
	defer p.folder.close()
	p.note(p.folder.open())
	for {
		records, closed := p.queue.poll(p.columns.c.Rows - p.columns.Len())
		switch {
		case len(records) > 0:
			p.add(records)
		case closed:
			p.finish()
			return
		default:
			p.wait()
		}
		if !p.begun.IsZero() && time.Since(p.begun) >= p.c.Age {
			p.finish()
		}
	}
}

// wait waits for records, but no longer than until the file is finished.
func (p *Parquet) wait() {
	var aged <-chan time.Time
	if !p.begun.IsZero() {
		timer := time.NewTimer(p.c.Age - time.Since(p.begun))
		defer timer.Stop()
		aged = timer.C
	}
	select {
	case <-p.queue.ready:
	case <-aged:
	}
}

// add puts records into columns, and columns that are full into the file.
func (p *Parquet) add(records []flows.Record) {
	for len(records) > 0 {
		if p.begun.IsZero() {
			p.begun = time.Now()
		}
		began := time.Now()
		n := p.columns.Append(records)
		p.queue.stages.Load().Done(StageEncode, began, 0)
		p.pending += n
		if records = records[n:]; len(records) == 0 && p.columns.Len() < p.columns.c.Rows {
			break
		}
		if err := p.flush(); err != nil {
			p.fail(err)
		}
	}
	if p.folder.written() >= int64(p.c.Size) {
		p.finish()
	}
}

// flush writes the columns into the file as a row group.
func (p *Parquet) flush() error {
	if p.pending == 0 {
		return nil
	}
	if p.folder.file == nil {
		if err := p.try(p.folder.begin); err != nil {
			return err
		}
		p.file = cmp.Or(p.file, newParquetFile(p.columns, parquetCodecs[p.c.Compression]()))
		p.file.reset(writerFunc(p.write))
	}
	began, at := time.Now(), p.folder.written()
	if err := p.file.write(p.columns); err != nil {
		return err
	}
	p.queue.stages.Load().Done(StageWrite, began, int(p.folder.written()-at))
	p.queue.park(p.pending)
	p.rows, p.pending = p.rows+p.pending, 0
	p.columns.Reset()
	return p.try(func() error { return p.folder.note(p.rows) })
}

// finish makes the file whole, so that its records are acknowledged.
func (p *Parquet) finish() {
	p.begun = time.Time{}
	err := p.flush()
	if err == nil && p.rows > 0 {
		began, at := time.Now(), p.folder.written()
		if err = p.file.close(); err == nil {
			err = p.folder.sync() // once: what a failed sync left on the disk is not known
		}
		p.queue.stages.Load().Done(StageWrite, began, int(p.folder.written()-at))
		if err == nil {
			err = p.try(p.folder.publish)
		}
	}
	if err != nil {
		p.fail(err)
		return
	}
	p.queue.settleParked(p.rows, p.rows, 0, "")
	p.rows = 0
}

// fail gives the file up.
func (p *Parquet) fail(err error) {
	reason := "write_failed"
	if errors.Is(err, errGone) {
		reason = "file_removed"
	}
	if !errors.Is(err, errStopped) {
		p.log.Error("Parquet file cannot be finished, its records are lost", "records", p.rows+p.pending, "err", err)
	}
	p.queue.settleParked(p.rows, 0, p.rows+p.pending, reason)
	p.rows, p.pending, p.begun = 0, 0, time.Time{}
	p.columns.Reset()
	p.file = nil // who knows what is left in it
	p.folder.giveUp()
}

// errStopped says that something was given up as the sink had to stop.
var errStopped = errors.New("the sink had to stop")

// retryDisk is how long a disk that took nothing is left alone.
const retryDisk = time.Second

// try does what may fail for now until it succeeds. Its error: the sink had to stop, or
// it is [errGone].
func (p *Parquet) try(f func() error) error {
	for {
		err := f()
		if errors.Is(err, errGone) {
			return err
		}
		if p.note(err); err == nil {
			return nil
		}
		select {
		case <-p.stop:
			return errStopped
		case <-time.After(retryDisk):
		}
	}
}

// write writes b, as often as it takes.
func (p *Parquet) write(b []byte) (n int, err error) {
	err = p.try(func() error {
		m, err := p.folder.write(b[n:])
		n += m
		return err
	})
	return n, err
}

// note logs when the disk stops or starts to take files.
func (p *Parquet) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.state, err, func() { p.log.Warn("Parquet files cannot be written, records wait", "err", err) },
		func() { p.log.Info("Parquet files are written again") })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
