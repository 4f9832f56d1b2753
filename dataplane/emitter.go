// SPDX-License-Identifier: Apache-2.0

package dataplane

import "weft/flows"

// emitter collects samples and sends them in batches of batchSamples.
type emitter struct {
	d   *Dataplane
	now instant
	out chan<- flows.Batch
	buf []flows.Sample
}

func (d *Dataplane) emitter(now instant, out chan<- flows.Batch) *emitter {
	return &emitter{d: d, now: now, out: out, buf: d.buffer()}
}

// buffer is the one whose turn it is: the consumer is done with it, as it has
// received the batch after it.
func (d *Dataplane) buffer() []flows.Sample {
	if d.buffers[d.turn] == nil {
		d.buffers[d.turn] = make([]flows.Sample, 0, batchSamples)
	}
	return d.buffers[d.turn][:0]
}

// next is a sample to fill.
func (e *emitter) next() *flows.Sample {
	if len(e.buf) == cap(e.buf) {
		e.flush()
	}
	e.buf = e.buf[:len(e.buf)+1]
	return &e.buf[len(e.buf)-1]
}

func (e *emitter) flush() {
	if len(e.buf) > 0 {
		e.out <- flows.Batch{At: e.now.wall, Flows: e.buf}
		e.d.turn ^= 1
		e.buf = e.d.buffer()
	}
}
