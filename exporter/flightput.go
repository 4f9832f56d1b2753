// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"weft/flows"
)

const (
	maxFlightRows = 8192             // with all attributes 0.8 MiB of zstd: gRPC servers take 4 MiB
	putTimeout    = 10 * time.Second // without an answer that is due, the stream is given up
	streamAge     = 10 * time.Second // of a stream of which nothing was acknowledged for so long, the end is asked for
)

// putBatch is the records of one batch, kept until they are acknowledged.
type putBatch struct {
	id      string
	records []flows.Record
	sent    time.Time // the last time
}

// putStream is one DoPut.
type putStream struct {
	put      flight.FlightService_DoPutClient
	w        *flight.Writer
	schema   *arrow.Schema
	cancel   context.CancelFunc
	watchdog *time.Timer // gives the stream up
	late     atomic.Bool // it did
	unacked  []*putBatch // sent, in order
	since    time.Time   // the oldest of unacked was sent, or the last was acknowledged
	ending   bool        // the service was told that nothing follows
	results  chan string // app_metadata of its answers
	ended    chan error  // how it ended, once; io.EOF: all was taken
}

// Reasons to try again that no gRPC code is for.
var (
	errLate  = fmt.Errorf("no answer for %s", putTimeout)
	errEarly = errors.New("the service ended the stream before everything was sent")
)

func (f *Flight) work() {
	defer close(f.done)
	for {
		f.gather()
		for len(f.unsent) > 0 && f.again == nil && (f.stream == nil || !f.stream.ending) {
			if !f.send(f.unsent[0]) {
				break
			}
		}
		f.endStream()
		if f.ctx.Err() != nil || f.idle() {
			return // what is left of a stream ends with ctx
		}
		f.wait()
	}
}

// idle: the sink was closed and nothing is left to do.
func (f *Flight) idle() bool {
	f.queue.mu.Lock()
	defer f.queue.mu.Unlock()
	return f.queue.closed && f.queue.account.Waiting == 0 && f.stream == nil
}

// gather makes a batch of what waits, when that is enough or has waited long enough.
func (f *Flight) gather() {
	for len(f.unsent) == 0 {
		records, closed := f.queue.poll(f.rows - len(f.rest))
		if f.rest = append(f.rest, records...); len(f.rest) == 0 {
			return
		}
		if f.gathered.IsZero() {
			f.gathered = time.Now()
		}
		if len(f.rest) < f.rows && !closed && time.Since(f.gathered) < f.c.Flush {
			return
		}
		f.unsent = append(f.unsent, &putBatch{id: batchID(f.next, f.run), records: f.rest})
		f.next++
		f.rest, f.gathered = nil, time.Time{}
	}
}

// wait waits until there is something to do.
func (f *Flight) wait() {
	var s putStream // its channels are nil
	if f.stream != nil {
		s.results, s.ended = f.stream.results, f.stream.ended
	}
	var due <-chan time.Time
	var ready <-chan struct{}
	if len(f.unsent) > 0 {
		due = f.again // nil: it waits for the stream's end
	} else {
		ready = f.queue.ready
		if d, ok := f.deadline(); ok {
			timer := time.NewTimer(d)
			defer timer.Stop()
			due = timer.C
		}
	}
	select {
	case <-ready:
	case id := <-s.results:
		f.acknowledged(id)
	case err := <-s.ended:
		f.ended(err)
	case <-due:
		f.again = nil
	case <-f.ctx.Done():
	}
}

// deadline is how long the worker can wait for records; false: for ever.
func (f *Flight) deadline() (d time.Duration, ok bool) {
	if !f.gathered.IsZero() {
		d, ok = f.c.Flush-time.Since(f.gathered), true
	}
	if s := f.stream; s != nil && len(s.unacked) > 0 && !s.ending {
		if left := streamAge - time.Since(s.since); !ok || left < d {
			d, ok = left, true
		}
	}
	return d, ok
}

// send writes a batch on the stream, or on a new one; false: it has to wait.
func (f *Flight) send(b *putBatch) bool {
	began := time.Now()
	n := f.columns.Append(b.records)
	defer f.columns.Reset()
	f.queue.stages.Load().Done(StageEncode, began, 0)
	if n < len(b.records) { // of very many hops
		f.split(b, n)
	}
	batch := f.columns.Batch()
	defer batch.Release()
	if f.stream != nil && f.stream.schema != batch.Schema() {
		f.stream.end() // one stream has one schema; the batch goes on the next
		return false
	}
	if f.stream == nil {
		if err := f.open(batch.Schema()); err != nil {
			f.failed(err, 1)
			return false
		}
	}
	s := f.stream
	s.watchdog.Reset(putTimeout)
	if err := s.w.WriteWithAppMetadata(batch, []byte(b.id)); err != nil {
		f.broken(err)
		return false
	}
	s.watchdog.Stop()
	if len(s.unacked) == 0 {
		s.since = time.Now()
	}
	b.sent = time.Now()
	s.unacked, f.unsent = append(s.unacked, b), f.unsent[1:]
	if f.alone > 0 {
		s.end()
	}
	return true
}

// split makes two of the first of unsent.
func (f *Flight) split(b *putBatch, n int) {
	rest := &putBatch{id: b.id + ".1", records: b.records[n:]}
	b.id, b.records = b.id+".0", b.records[:n]
	f.unsent = append([]*putBatch{b, rest}, f.unsent[1:]...)
}

func (f *Flight) open(schema *arrow.Schema) error {
	ctx, cancel := context.WithCancel(f.ctx)
	s := &putStream{schema: schema, cancel: cancel, results: make(chan string), ended: make(chan error, 1)}
	s.watchdog = time.AfterFunc(putTimeout, func() {
		s.late.Store(true)
		cancel()
	})
	put, err := f.client.DoPut(ctx)
	if err != nil {
		s.watchdog.Stop()
		cancel()
		return err
	}
	options := []ipc.Option{ipc.WithSchema(schema), ipc.WithDictionaryDeltas(true)}
	if f.c.Compression == "zstd" {
		options = append(options, ipc.WithZstd())
	}
	s.put, s.w = put, flight.NewRecordWriter(put, options...)
	s.w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{f.c.Path}})
	f.stream = s
	go s.receive(ctx)
	return nil
}

// receive passes the service's answers on, until the last one.
func (s *putStream) receive(ctx context.Context) {
	for {
		answer, err := s.put.Recv()
		if err != nil {
			s.ended <- err
			return
		}
		select {
		case s.results <- string(answer.GetAppMetadata()):
		case <-ctx.Done(): // Recv fails now
		}
	}
}

// end tells the service that nothing follows: it has to say whether it took all.
func (s *putStream) end() {
	if s.ending {
		return
	}
	s.ending = true
	s.watchdog.Reset(putTimeout)
	_ = s.w.Close()       // it has nothing left to write
	_ = s.put.CloseSend() // a broken stream says so in receive
}

// endStream ends a stream that should go on no longer: it acknowledges nothing, too
// much waits for it, or the sink was closed.
func (f *Flight) endStream() {
	s := f.stream
	if s == nil || s.ending || len(f.unsent) > 0 {
		return
	}
	open := uint64(0)
	for _, b := range s.unacked {
		open += uint64(len(b.records))
	}
	f.queue.mu.Lock()
	closed := f.queue.closed && len(f.queue.waiting) == 0 && len(f.rest) == 0
	f.queue.mu.Unlock()
	if closed || open > f.queue.limit/2 || open > 0 && time.Since(s.since) >= streamAge {
		s.end()
	}
}

// acknowledged is told that the service took a batch; an id of none says nothing.
func (f *Flight) acknowledged(id string) {
	s := f.stream
	i := slices.IndexFunc(s.unacked, func(b *putBatch) bool { return b.id == id })
	if i < 0 {
		return
	}
	f.queue.settle(len(s.unacked[i].records), 0, "")
	f.queue.stages.Load().Done(StageSend, s.unacked[i].sent, 0)
	s.unacked, s.since = slices.Delete(s.unacked, i, i+1), time.Now()
	f.well()
}

// ended is told how the stream ended.
func (f *Flight) ended(err error) {
	s := f.stream
	if !errors.Is(err, io.EOF) || !s.ending {
		if errors.Is(err, io.EOF) {
			err = errEarly
		}
		f.broken(err)
		return
	}
	for _, b := range s.unacked {
		f.queue.stages.Load().Done(StageSend, b.sent, 0)
		f.queue.settle(len(b.records), 0, "")
	}
	s.unacked = nil
	f.forget()
	f.alone = max(0, f.alone-1)
	f.well()
}

// well: the service took something.
func (f *Flight) well() {
	f.note(nil)
	f.pause = minBackoff
	if patience := f.closing.Load(); patience != nil {
		patience.Reset(f.c.Finish)
	}
}

// forget lets go of the stream; what it did not acknowledge has to be sent again.
func (f *Flight) forget() {
	f.stream.watchdog.Stop()
	f.stream.cancel()
	f.unsent = append(f.stream.unacked, f.unsent...)
	f.stream = nil
}

// broken is told that the stream broke.
func (f *Flight) broken(err error) {
	s := f.stream
	for errors.Is(err, io.EOF) { // gRPC tells a sender no more: the reason comes where answers do
		select {
		case id := <-s.results:
			f.acknowledged(id)
		case err = <-s.ended:
			if errors.Is(err, io.EOF) {
				err = errEarly
			}
		}
	}
	if s.late.Load() {
		err = errLate
	}
	sent := len(s.unacked)
	f.forget()
	f.failed(err, max(1, sent))
}

// failed decides what becomes of the first so many of unsent, which were on the stream.
func (f *Flight) failed(err error, sent int) {
	if f.ctx.Err() != nil {
		return
	}
	a := grpcFailure(err)
	if errors.Is(err, errLate) || errors.Is(err, errEarly) {
		a.state = stateRetry
	}
	f.note(err)
	sent = min(sent, len(f.unsent))
	switch {
	case a.state == stateTooLarge && f.rows > 1:
		f.shrink()
		f.again = time.After(0) // there is no reason to wait
		return
	case (a.state == stateTooLarge || a.state == stateRefused) && sent > 1:
		f.alone = sent // the error does not say which of them it is about
		f.again = time.After(0)
		return
	case a.state == stateTooLarge:
		f.lose("too_large", err)
	case a.state == stateRefused:
		f.lose("refused", err)
	}
	if a.wait = min(a.wait, maxTold); a.wait == 0 {
		a.wait = f.pause/2 + rand.N(f.pause/2)
		f.pause = min(2*f.pause, maxBackoff)
	}
	f.again = time.After(a.wait)
}

// lose gives up the first of unsent.
func (f *Flight) lose(reason string, err error) {
	if len(f.unsent) == 0 {
		return
	}
	records := len(f.unsent[0].records)
	f.log.Warn("service refuses records, which are not sent again", "reason", reason, "records", records, "err", err)
	f.queue.settle(0, records, reason)
	f.unsent = f.unsent[1:]
	f.alone = max(0, f.alone-1)
}

// shrink makes batches half as large, with dictionaries of only what they name.
func (f *Flight) shrink() {
	largest := 0
	for _, b := range f.unsent {
		largest = max(largest, len(b.records))
	}
	f.rows = max(1, min(f.rows, largest)/2)
	f.log.Warn("service takes smaller messages only", "records", f.rows)
	f.columns = f.newColumns()
	var all []*putBatch
	for _, b := range f.unsent {
		if len(b.records) <= f.rows {
			all = append(all, b)
			continue
		}
		i := 0
		for part := range slices.Chunk(b.records, f.rows) {
			all = append(all, &putBatch{id: fmt.Sprintf("%s.%d", b.id, i), records: part})
			i++
		}
	}
	f.unsent = all
}
