// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"weft/flows"
)

// encodeLogs is the worker that makes requests of records, and sends them too
// when there is no spool.
func (o *OTLP) encodeLogs() {
	if o.spool != nil {
		defer o.spool.finish()
	}
	for {
		records, ok := o.queue.next(maxBatchRecords, o.flush)
		if !ok {
			return
		}
		for len(records) > 0 {
			if o.spool != nil {
				o.logEncoder.Batch(o.spool.id())
			} else {
				o.logEncoder.Batch(batchID(o.batches, o.run))
				o.batches++
			}
			began := time.Now()
			o.logEncoder.limit = int(o.logs.limit.Load())
			body, n := o.logEncoder.Append(o.body[:0], records, began)
			o.body = body
			o.queue.stages.Load().Done(StageEncode, began, len(body))
			switch {
			case n == 0:
				n = 1
				o.queue.settle(0, 1, "too_large")
				o.giant.Do(func() {
					o.logs.log.Warn("record is larger than a request may be, lost as every one like it", "flow", records[0].Key, "hops", len(records[0].Hops), "limit", maxBatchBytes)
				})
			case o.spool != nil:
				o.keep(body, records[:n])
			default:
				o.sendBatch(batch{body: body, records: n})
			}
			records = records[n:]
		}
	}
}

// keep puts a request into the spool; while neither disk nor memory has room
// for it, records wait in the queue.
func (o *OTLP) keep(body []byte, records []flows.Record) {
	n, count := len(records), flows.Count{}
	for i := range records {
		count.Add(hopCount(&records[i]))
	}
	all, _ := o.held()
	o.spool.learn(all) // no request is safe before it was had
	for {
		ok, kept, lost := o.spool.put(body, n, count)
		o.lose(lost)
		if kept {
			o.queue.park(n)
		}
		if ok {
			return
		}
		select {
		case <-o.ctx.Done():
			o.queue.settle(0, n, "shutdown")
			return
		case <-time.After(time.Second):
		}
	}
}

// spoolAgain is how long the worker waits before it looks into the spool unasked.
const spoolAgain = time.Second

// sendSpooled is the worker that sends what waits in the spool, the oldest first.
func (o *OTLP) sendSpooled() {
	for {
		began := time.Now()
		e, body, lost, closed := o.spool.take()
		if e != nil {
			o.queue.stages.Load().Done(StageUnspool, began, len(body))
		}
		o.lose(lost)
		switch {
		case e != nil && (o.ctx.Err() != nil || !o.sendBatch(batch{body: body, records: e.records, from: e})):
			return // it waits for the next start
		case e != nil:
			o.spool.done(e)
			continue
		case closed:
			return
		}
		select {
		case <-o.spool.wake:
		case <-time.After(spoolAgain): // what could not be read, or grew too old
		case <-o.ctx.Done():
			return
		}
	}
}

// lose accounts for requests that left the spool otherwise than by being sent.
func (o *OTLP) lose(lost []evicted) {
	for _, e := range lost {
		o.settle(batch{records: e.records, from: &e.spooled}, 0, e.records, e.reason)
	}
}

// settle accounts for records of b; those of an earlier run are in its account.
func (o *OTLP) settle(b batch, acknowledged, lost int, reason string) {
	if b.from != nil {
		b.from.records -= acknowledged + lost
	}
	if b.from != nil && b.from.recovered {
		o.recovered[0].Add(uint64(acknowledged))
		o.recovered[1].Add(uint64(lost))
		return
	}
	parked := 0
	if b.from != nil && b.from.held == nil {
		parked = acknowledged + lost
	}
	o.queue.settleParked(parked, acknowledged, lost, reason)
}

// sendBatch delivers b, in parts if the receiver wants smaller requests, and says
// of each part what became of it. False: the sink closed before all were answered,
// and what waits on disk goes on waiting.
func (o *OTLP) sendBatch(b batch) bool {
	whole := b.from // on disk, of which no part was sent yet
	for parts := []batch{b}; len(parts) > 0; {
		b, parts = parts[0], parts[1:]
		a := answer{state: stateRetry} // so that a sink that is closed sends nothing
		if o.ctx.Err() == nil {
			if b.splits() && o.logs.tooLarge(len(b.body)) {
				if halves, err := b.halves(); err == nil {
					if whole != nil && o.spool.split(whole, halves) {
						return true // they wait in its place
					}
					whole, parts = nil, append(halves, parts...)
					continue
				}
			}
			a = o.logs.deliver(o.ctx, b.body)
		}
		switch a.state {
		case stateOK:
			o.settle(b, b.records, 0, "")
		case statePartial:
			lost := int(min(a.rejected, int64(b.records)))
			o.settle(b, b.records-lost, lost, "rejected")
		case stateTooLarge:
			if b.splits() {
				o.logs.shrink(len(b.body))
				parts = append([]batch{b}, parts...)
				continue
			}
			o.settle(b, 0, b.records, "too_large")
		case stateRefused:
			o.settle(b, 0, b.records, "refused")
		default:
			if b.from != nil {
				return false
			}
			o.settle(b, 0, b.records, "shutdown")
			continue
		}
		if impatient := o.closing.Load(); impatient != nil {
			impatient.Reset(o.finish) // it answers, so waiting on is worth it
		}
	}
	return true
}
