// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/flows"
)

// SpoolConfig says where requests wait on disk. The zero value: nowhere, they
// wait in memory.
type SpoolConfig struct {
	Dir    string        // folder of its own; made when it is not there
	Size   int           // bytes at most; over it the oldest are lost. 0: [DefaultSpoolSize]
	Age    time.Duration // longest wait; over it they are lost. 0: [DefaultSpoolAge]
	NoSync bool          // leave it to the kernel when it writes: a power cut may lose what is not yet on the disk
}

// maxHeld is how many requests wait in memory when the disk takes none: with
// 3.5 MiB each, 14 MiB. The next ones wait in the queue, as records.
const maxHeld = 4

// What a spool may hold unless told otherwise.
const (
	DefaultSpoolSize = 1 << 30
	DefaultSpoolAge  = 24 * time.Hour
)

// spool keeps encoded requests in order, each in a file of its own: a frame of
// zstd, which has a checksum, written aside and renamed. The name has the order,
// the run that made it and the number of records, so that a file whose content is
// damaged is still accounted for. Bounded by Size and Age; the oldest go first.
type spool struct {
	c   SpoolConfig
	run uint64 // random; with the number it is the id of a request, in any life of the agent
	log *slog.Logger

	stages *atomic.Pointer[Stages] // nil: not measured

	mu      sync.Mutex
	lock    *os.File // nil: the folder is not open yet
	carried bool     // the tally of the run before was read
	entries []*spooled
	dropped []*spooled // accounted for, and their files could not be removed
	bytes   int        // of the files of both
	next    uint64     // number of the next request
	fault   string     // why the disk took nothing last time
	unread  string     // why the oldest could not be read last time
	untold  string     // why the tally could not be written last time
	tally   spoolTally
	missed  atomic.Uint64 // packets of tally.Missing
	unseen  atomic.Uint64 // frames of tally.Unwatched
	asked   bool          // the devices were compared with what the last run said of them
	closed  bool
	wake    chan struct{} // one token: something to take, or closed
}

// spooled is one request that waits.
type spooled struct {
	name      string // of its file
	records   int
	size      int       // of the file
	since     time.Time // with the monotonic clock, which no step of the wall clock moves
	held      []byte    // nil: in the file
	recovered bool      // an earlier run made it, and accounted for it
	busy      bool      // being sent
}

// evicted is what became of requests that were not sent.
type evicted struct {
	spooled
	reason string
}

func newSpool(c SpoolConfig, run uint64, log *slog.Logger) *spool {
	c.Size, c.Age = cmp.Or(c.Size, DefaultSpoolSize), cmp.Or(c.Age, DefaultSpoolAge)
	s := &spool{c: c, run: run, log: log.With("spool", c.Dir), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(s.open())
	return s
}

// id is what the next request is to be called: the same in every try, in this
// life of the agent and the next, and of no other request.
func (s *spool) id() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return batchID(s.next, s.run)
}

func batchID(number, run uint64) string { return fmt.Sprintf("%016x-%016x", number, run) }

// put takes a request, on disk or, when that fails, in memory; false: neither has
// room, try again later. What had to go for it is in lost; kept says that it is
// on disk. count is what the records have of their points.
func (s *spool) put(body []byte, records int, count flows.Count) (ok, kept bool, lost []evicted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &spooled{name: spoolName(batchID(s.next, s.run), records), records: records, since: time.Now()}
	began := time.Now()
	packed, err := packers["zstd"](body)
	if err == nil {
		e.size = len(packed)
		lost = s.expire()
		var gone []evicted
		if gone, err = s.makeRoom(e.size); err == nil {
			err = s.write(e.name, packed)
		}
		lost = append(lost, gone...)
	}
	s.note(err)
	if err != nil {
		held := 0
		for _, other := range s.entries {
			if other.held != nil {
				held++
			}
		}
		if held >= maxHeld {
			return false, false, lost
		}
		e.size, e.held = 0, slices.Clone(body)
	}
	s.next++
	if err == nil { // noted before it can be sent and removed
		if s.stages != nil {
			s.stages.Load().Done(StageSpool, began, e.size)
		}
		s.tally.Next = s.next
		s.tally.Safe.Add(count)
		s.keepTally()
	}
	s.bytes += e.size
	s.entries = append(s.entries, e)
	s.signal()
	return true, err == nil, lost
}

// expire removes what has waited for longer than Age.
func (s *spool) expire() []evicted {
	lost, err := s.evict("spool_age", func(e *spooled) bool { return time.Since(e.since) > s.c.Age })
	if err != nil {
		s.note(err)
	}
	return lost
}

// makeRoom removes the oldest until size more bytes fit. An error: they do not, since the disk lets nothing be removed.
func (s *spool) makeRoom(size int) ([]evicted, error) {
	lost, err := s.evict("spool_full", func(e *spooled) bool { return e.held == nil && s.bytes+size > s.c.Size })
	if s.bytes+size <= s.c.Size {
		err = nil
	}
	return lost, err
}

// evict removes, from the oldest on, what is chosen and not being sent. What cannot be removed has not gone: it
// waits on, and is not lost.
func (s *spool) evict(reason string, chosen func(*spooled) bool) (lost []evicted, err error) {
	var left []*spooled
	for _, e := range s.entries {
		if e.busy || !chosen(e) {
			left = append(left, e)
			continue
		}
		if failed := s.unlink(e); failed != nil {
			left, err = append(left, e), failed
			continue
		}
		lost = append(lost, evicted{*e, reason})
	}
	s.entries = left
	return lost, err
}

// take is the oldest request; nil: none now. What is damaged is in lost; what only
// cannot be read now stays, and keeps its place.
func (s *spool) take() (e *spooled, body []byte, lost []evicted, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost = s.expire()
	for len(s.entries) > 0 {
		e = s.entries[0]
		body, err := s.read(e)
		if !errors.Is(err, errDamaged) {
			change(&s.unread, err, func() { s.log.Warn("spool cannot be read, requests wait there", "err", err) },
				func() { s.log.Info("spool is read again") })
			if err != nil {
				return nil, nil, lost, s.closed
			}
			e.busy = true
			return e, body, lost, false
		}
		s.log.Warn("spooled request is damaged, its records are lost", "file", e.name, "records", e.records, "err", err)
		s.drop(e)
		s.entries = s.entries[1:]
		lost = append(lost, evicted{*e, "spool_damaged"})
	}
	return nil, nil, lost, s.closed
}

// done is told that e was answered for good, or split.
func (s *spool) done(e *spooled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.entries, e); i >= 0 { // else its halves are there
		s.drop(e)
		s.entries = slices.Delete(s.entries, i, i+1)
	}
}

// finish says that nothing more is put.
func (s *spool) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.signal()
}

// close frees the folder and returns what was in memory only.
func (s *spool) close() (held []evicted, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := 0
	for _, e := range s.entries {
		if e.held != nil {
			held = append(held, evicted{*e, "shutdown"})
		} else {
			left += e.records
		}
	}
	if left > 0 {
		s.log.Info("records wait in the spool for the next start", "records", left)
	}
	s.tally.Flows, s.tally.Safe = flows.Count{}, flows.Count{} // what is lost now is in the ledger
	s.keepTally()
	if s.lock != nil {
		err = s.lock.Close()
	}
	return held, err
}

// change calls began when a fault begins, ended when it is over, and nothing while
// it lasts.
func change(fault *string, err error, began, ended func()) {
	was := *fault
	if *fault = ""; err != nil {
		*fault = err.Error()
	}
	switch {
	case was == "" && *fault != "":
		began()
	case was != "" && *fault == "":
		ended()
	}
}

func (s *spool) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
