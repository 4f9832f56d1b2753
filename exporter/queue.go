// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"weft/flows"
)

// DefaultQueue is the number of records a sink lets wait unless told otherwise.
const DefaultQueue = 65536

// queue is what sinks have in common: the records that wait for one worker, and the
// account of all that were ever offered. A record is waiting from put until settle says what became
// of it, so at every instant
// Offered = Acknowledged + Waiting + sum(Lost) + sum(LeftOut).
//
// It is bounded by limit records, those in the worker's hands included; what is
// over it is Lost["queue_full"]. It keeps the slices it was given and writes to
// none of them.
type queue struct {
	mu                sync.Mutex
	limit             uint64
	intake            Intake // set before the first put
	waiting           []queued
	parked            uint64 // of account.Waiting: on disk, beyond limit
	account           flows.SinkAccount
	counted           bool        // taken is kept; set before the first put
	taken             flows.Count // of all records that the intake took, at their points
	moved             time.Time   // the last settlement, or put into an empty queue
	closed, abandoned bool
	stages            atomic.Pointer[Stages]
	ready             chan struct{} // one token: there is something to take, or closed
}

// queued are records that were put at once.
type queued struct {
	records []flows.Record
	since   time.Time
}

func newQueue(name string, limit int) *queue {
	if limit <= 0 {
		limit = DefaultQueue
	}
	return &queue{
		limit:   uint64(limit),
		account: flows.SinkAccount{Name: name, Lost: map[string]uint64{}},
		ready:   make(chan struct{}, 1),
	}
}

// Stages measures the sink's stages from the first call on.
func (q *queue) Stages() *Stages {
	q.stages.CompareAndSwap(nil, NewStages(q.account.Name))
	return q.stages.Load()
}

// Name is the sink's.
func (q *queue) Name() string { return q.account.Name }

// Export queues w's records, for which it waits for nothing.
func (q *queue) Export(_ context.Context, w flows.Window) error {
	q.put(w.Records)
	return nil
}

// Account says where every record is; what is acknowledged the sink has handed over.
func (q *queue) Account() flows.SinkAccount { return q.snapshot() }

// put queues the records that the intake takes, or counts them lost: "queue_full", or
// "shutdown" after close.
func (q *queue) put(records []flows.Record) {
	if len(records) == 0 {
		return
	}
	records, filtered, sampled := q.intake.choose(records)
	var count flows.Count
	for i := range records {
		if !q.counted {
			break
		}
		count.Add(hopCount(&records[i]))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken.Add(count)
	n := uint64(len(records))
	q.account.Offered += n + filtered + sampled
	q.leaveOut(leftFiltered, filtered)
	q.leaveOut(leftSampled, sampled)
	if n == 0 {
		return
	}
	if q.closed {
		q.account.Lost["shutdown"] += n
		return
	}
	if room := q.limit - (q.account.Waiting - q.parked); n > room {
		q.account.Lost["queue_full"] += n - room
		n = room
	}
	if n > 0 {
		if q.account.Waiting == 0 {
			q.moved = time.Now()
		}
		q.waiting = append(q.waiting, queued{records[:n], time.Now()})
		q.account.Waiting += n
		q.wake()
	}
}

func (q *queue) leaveOut(reason string, n uint64) {
	if n == 0 {
		return
	}
	if q.account.LeftOut == nil {
		q.account.LeftOut = map[string]uint64{}
	}
	q.account.LeftOut[reason] += n
}

// next waits for records and removes up to most from the front; they go on
// waiting until settled. It lingers for most of them to gather, but for none longer
// than linger from when it was put, whatever the worker did meanwhile. False: closed
// and empty, or abandoned.
func (q *queue) next(most int, linger time.Duration) ([]flows.Record, bool) {
	var expired <-chan time.Time
	patient := linger > 0
	for {
		q.mu.Lock()
		n := q.gathered()
		if n > 0 && (!patient || q.closed || n >= uint64(most)) {
			records := q.take(most)
			q.mu.Unlock()
			q.intake.Redact.apply(records)
			return records, true
		}
		closed := q.closed
		if n > 0 && expired == nil {
			expired = time.After(linger - time.Since(q.waiting[0].since))
		}
		q.mu.Unlock()
		if closed {
			return nil, false
		}
		select {
		case <-q.ready:
		case <-expired:
			patient = false
		}
	}
}

// poll is next for a worker that has its own reasons to wake up and waits for ready
// itself: it takes what is there. Nothing and closed: nothing more will come.
func (q *queue) poll(most int) (records []flows.Record, closed bool) {
	q.mu.Lock()
	records, closed = q.take(most), q.closed
	q.mu.Unlock()
	q.intake.Redact.apply(records)
	return records, closed
}

// take copies records, so that the worker may write to its own.
func (q *queue) take(most int) (records []flows.Record) {
	if len(q.waiting) > 0 {
		q.stages.Load().Done(StageQueue, q.waiting[0].since, 0)
	}
	for len(q.waiting) > 0 && len(records) < most {
		front := &q.waiting[0]
		n := min(len(front.records), most-len(records))
		records = append(records, front.records[:n]...)
		if front.records = front.records[n:]; len(front.records) == 0 {
			front.records = nil
			q.waiting = q.waiting[1:]
		}
	}
	return records
}

// settle says what became of taken records: acknowledged, and lost for reason.
// The worker settles all it took before it asks for the next ones, but for those
// that it parked.
func (q *queue) settle(acknowledged, lost int, reason string) {
	q.settleParked(0, acknowledged, lost, reason)
}

// settleParked is settle of records of which so many had been parked: at once, so that
// what waits outside of the disk is never more than it is.
func (q *queue) settleParked(parked, acknowledged, lost int, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.parked -= uint64(parked) // may come before they were parked: it wraps around and back
	if q.abandoned {
		return
	}
	q.moved = time.Now()
	q.account.Waiting -= uint64(acknowledged + lost)
	q.account.Acknowledged += uint64(acknowledged)
	if lost > 0 {
		q.account.Lost[reason] += uint64(lost)
	}
}

// park says that n taken records went on to wait on disk, outside the limit.
func (q *queue) park(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.parked += uint64(n)
}

// count is what the records that were taken have of their points, if it is counted.
func (q *queue) count() flows.Count {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken
}

// gathered is the number of records that next can take.
func (q *queue) gathered() (n uint64) {
	for _, w := range q.waiting {
		n += uint64(len(w.records))
	}
	return n
}

// patient is how long after their time records may wait before a state says so.
const patient = time.Second

// idle is what to say of records that wait although they were due after linger, and of
// which nothing became anything since: for whom they wait. Empty: there are none.
func (q *queue) idle(linger time.Duration, whom string) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.account.Waiting == 0 || time.Since(q.moved) < linger+patient {
		return ""
	}
	return stateWait + " since " + q.moved.UTC().Format(time.RFC3339) + " for " + whom
}

// close refuses further records and wakes the worker.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// abandon closes and counts everything that still waits, in the worker's hands
// too, as Lost["shutdown"]; whatever the worker says of it later is too late.
func (q *queue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.giveUp(0)
}

// abandonUnparked is abandon, but that what was parked goes on waiting: the next run has it.
func (q *queue) abandonUnparked() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.giveUp(min(q.account.Waiting, uint64(max(int64(q.parked), 0)))) //nolint:gosec // less than none: see settleParked
}

// giveUp counts all but so many records as lost. q.mu is held.
func (q *queue) giveUp(but uint64) {
	if lost := q.account.Waiting - but; lost > 0 {
		q.account.Lost["shutdown"] += lost
	}
	q.account.Waiting, q.waiting = but, nil
	q.closed, q.abandoned = true, true
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) snapshot() flows.SinkAccount {
	q.mu.Lock()
	defer q.mu.Unlock()
	return cloneAccount(q.account)
}

func cloneAccount(a flows.SinkAccount) flows.SinkAccount {
	a.Lost, a.LeftOut = maps.Clone(a.Lost), maps.Clone(a.LeftOut)
	return a
}
