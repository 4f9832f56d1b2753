// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

func byteCount(n int) string { return fmt.Sprintf("live=%d", n) }

// benchmarkDrain fills slots directly, so that every one is live in every drain,
// and reports the CPU time that a live slot costs: scan, difference and decoding.
func benchmarkDrain(b *testing.B, live int) {
	requireBPF(b)
	o := Options{Slots: 2 * live, MaxMemory: 1 << 30}
	h := newHarness(&testing.T{}, o, 14)
	defer h.d.Close()
	t := h.d.table.(*slotTable)
	w, err := mapArray[bpf.FlowFlowSlot](h.d.objs.maps[bpf.FlowMapSlots], unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		b.Fatal(err)
	}
	defer w.close()
	slot := func(i int) *bpf.FlowFlowSlot { return &w.v[2*i] } // every second one: a load of one half
	for i := range live {
		s := slot(i)
		s.Tag = uint64(i+1)<<24 | 1<<24
		s.Key.Src[12], s.Key.Src[13], s.Key.Kind = byte(i>>8), byte(i), 1
		s.Key.Point, s.Key.Proto = h.points[flows.HookIngress].id, 17
	}
	out := make(chan flows.Batch)
	go func() {
		for range out {
		}
	}()
	defer close(out)
	now, err := h.d.clock.read()
	if err != nil {
		b.Fatal(err)
	}
	var cpu time.Duration
	for b.Loop() {
		for i := range live {
			s := slot(i)
			s.Packets++
			s.Bytes += 100
		}
		from := threadTime(b)
		e := h.d.emitter(now, out)
		res, err := t.drain(e)
		e.flush()
		if err != nil || res.live != live {
			b.Fatalf("drained %d of %d: %v", res.live, live, err)
		}
		cpu += threadTime(b) - from
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/float64(live), "cpu-ns/slot")
}

func threadTime(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
