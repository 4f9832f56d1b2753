// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"math"
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"weft/bpf"
	"weft/flows"
)

// histograms is a map as the flow object has it, and its reader. The test writes
// in the programs' place.
type histograms struct {
	t   testing.TB
	m   *ebpf.Map
	l   *latencies
	now instant
}

func newHistograms(t testing.TB, entries uint32) *histograms {
	t.Helper()
	requireBPF(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "latencies", Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(bpf.FlowLatencyKey{})), ValueSize: uint32(unsafe.Sizeof(bpf.FlowLatency{})), MaxEntries: entries,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &histograms{t: t, m: m, l: newLatencies(m), now: instant{wall: time.Now(), mono: int64(time.Hour)}}
}

func serverKey(server string, measure flows.Measure, class flows.PointClass) bpf.FlowLatencyKey {
	a := netip.MustParseAddrPort(server)
	k := bpf.FlowLatencyKey{Server: a.Addr().As16(), Proto: flows.ProtoTCP, Measure: uint8(measure), Class: uint8(class)}
	k.Port = swap16(a.Port())
	return k
}

// nth is the i-th of many servers.
func nth(i int) bpf.FlowLatencyKey {
	k := serverKey("10.0.0.0:443", flows.RTTServer, flows.ClassNIC)
	k.Server[14], k.Server[15] = byte(i>>8), byte(i)
	return k
}

// add counts n times into bucket i, as a program does.
func (h *histograms) add(k bpf.FlowLatencyKey, i int, n uint32) {
	h.t.Helper()
	var v bpf.FlowLatency
	if err := h.m.Lookup(k, &v); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		h.t.Fatal(err)
	}
	v.Bucket[i-latencyLowest] += n // wraps
	v.Sum += uint64(n) * 1000
	if err := h.m.Put(k, v); err != nil {
		h.t.Fatal(err)
	}
}

// read is what is reported after d.
func (h *histograms) read(d time.Duration) map[flows.LatencyKey]flows.Latency {
	h.t.Helper()
	h.now.wall, h.now.mono = h.now.wall.Add(d), h.now.mono+int64(d)
	all, err := h.l.read(h.now)
	if err != nil {
		h.t.Fatal(err)
	}
	got := map[flows.LatencyKey]flows.Latency{}
	for _, l := range all {
		if _, twice := got[l.Key]; twice {
			h.t.Errorf("%v: reported twice", l.Key)
		}
		sum := uint64(0)
		for _, n := range l.Counts {
			sum += n
		}
		if sum != l.Count {
			h.t.Errorf("%v: got count %d and %d in buckets, want the same", l.Key, l.Count, sum)
		}
		got[l.Key] = l
	}
	return got
}

// keyed is how a server's key is reported.
func keyed(k bpf.FlowLatencyKey) flows.LatencyKey {
	h := histogram{inMap: bpf.FlowLatency{}}
	return h.latency(&k).Key
}

func total(all map[flows.LatencyKey]flows.Latency) (count, sum uint64) {
	for _, l := range all {
		count += l.Count
		sum += l.Sum
	}
	return count, sum
}

func TestHistogramsOfTheKernelAreRead(t *testing.T) {
	h := newHistograms(t, 1024)
	h.read(0)
	since := h.now.wall.UnixNano()
	h.add(serverKey("192.0.2.1:443", flows.RTTServer, flows.ClassVeth), -80, 3)
	h.add(serverKey("192.0.2.1:443", flows.RTTServer, flows.ClassVeth), -77, 4)
	h.add(serverKey("[2001:db8::1]:22", flows.HandshakeClient, flows.ClassNIC), -184, 1)
	h.add(serverKey("[2001:db8::1]:22", flows.HandshakeServer, flows.ClassNIC), 55, 2)
	h.add(bpf.FlowLatencyKey{Proto: flows.ProtoTCP, Measure: uint8(flows.RTTClient)}, -140, 5)
	web, six := netip.MustParseAddrPort("192.0.2.1:443"), netip.MustParseAddrPort("[2001:db8::1]:22")
	want := map[flows.LatencyKey]flows.Latency{}
	for _, l := range []flows.Latency{
		{Key: flows.LatencyKey{Server: web, Protocol: 6, Class: flows.ClassVeth}, Count: 7, Sum: 7000, Offset: -80, Counts: []uint64{3, 0, 0, 4}},
		{Key: flows.LatencyKey{Server: six, Protocol: 6, Measure: flows.HandshakeClient, Class: flows.ClassNIC}, Count: 1, Sum: 1000, Offset: -184, Counts: []uint64{1}},
		{Key: flows.LatencyKey{Server: six, Protocol: 6, Measure: flows.HandshakeServer, Class: flows.ClassNIC}, Count: 2, Sum: 2000, Offset: 55, Counts: []uint64{2}},
		{Key: flows.LatencyKey{Protocol: 6, Measure: flows.RTTClient}, Count: 5, Sum: 5000, Offset: -140, Counts: []uint64{5}},
	} {
		l.Start = since
		want[l.Key] = l
	}
	if got := h.read(5 * time.Second); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	h.add(serverKey("192.0.2.1:443", flows.RTTServer, flows.ClassVeth), -80, 1)
	got := h.read(5 * time.Second)[flows.LatencyKey{Server: web, Protocol: 6, Class: flows.ClassVeth}]
	if got.Start != since || got.Count != 8 || got.Counts[0] != 4 {
		t.Errorf("later: got %+v, want one more from the same start %d", got, since)
	}
}

func TestStartsGoBackWithTheClock(t *testing.T) {
	h := newHistograms(t, 64)
	h.read(0)
	since := h.now.wall.UnixNano()
	h.add(serverKey("192.0.2.1:443", flows.RTTServer, flows.ClassVeth), -80, 3)
	h.read(5 * time.Second)
	for _, c := range []struct{ back, want time.Duration }{{6 * time.Second, 0}, {time.Hour, -time.Hour}, {0, -time.Hour}} {
		h.now.wall = h.now.wall.Add(-c.back)
		for key, l := range h.read(5 * time.Second) {
			if got := time.Duration(l.Start - since); got != c.want || l.Start >= h.now.wall.UnixNano() || l.Count != 3 {
				t.Errorf("%v, clock set back by %s: got %d times and a start moved by %s, want 3 and %s", key, c.back, l.Count, got, c.want)
			}
		}
	}
}

func TestReadsAreDueEveryFiveSeconds(t *testing.T) {
	h := newHistograms(t, 64)
	h.read(0)
	for after, want := range map[time.Duration]bool{0: false, 4999 * time.Millisecond: false, 5 * time.Second: true} {
		if got := h.l.due(instant{mono: h.now.mono + int64(after)}); got != want {
			t.Errorf("%s after a read: got due %v, want %v", after, got, want)
		}
	}
}

func TestCountersThatWrapLoseNothing(t *testing.T) {
	h := newHistograms(t, 64)
	k := nth(1)
	h.add(k, -140, math.MaxUint32-1)
	h.add(k, -139, 7)
	h.read(5 * time.Second)
	h.add(k, -140, 5) // wraps to 3
	for range 2 {
		got := h.read(5 * time.Second)[keyed(k)]
		if want := []uint64{1<<32 + 3, 7}; got.Offset != -140 || !reflect.DeepEqual(got.Counts, want) || got.Sum != (1<<32+10)*1000 {
			t.Errorf("got %+v, want %v from bucket -140 and sum %d", got, want, uint64(1<<32+10)*1000)
		}
	}
}

func TestSilentServersMakeRoomAndNothingIsLost(t *testing.T) {
	const entries, silent, busy = 64, 30, 20
	h := newHistograms(t, entries)
	for i := range silent + busy {
		h.add(nth(i), i-160, 2)
	}
	overflow := bpf.FlowLatencyKey{Proto: flows.ProtoTCP, Measure: uint8(flows.HandshakeServer)}
	if err := h.m.Put(overflow, bpf.FlowLatency{}); err != nil {
		t.Fatal(err)
	}
	first := h.read(5 * time.Second)
	for range 11 { // minutes
		for i := silent; i < silent+busy; i++ {
			h.add(nth(i), i-160, 1)
		}
		if n := len(h.read(time.Minute)); n != silent+busy {
			t.Fatalf("got %d servers, want all of %d", n, silent+busy)
		}
	}
	count, sum := total(h.read(0)) // as long as they linger they are reported
	if want := uint64(2*(silent+busy) + 11*busy); count != want || sum != want*1000 {
		t.Errorf("after the silent were removed: got %d times of %d ns, want %d of %d", count, sum, want, want*1000)
	}
	var v bpf.FlowLatency
	for i := range silent {
		if err := h.m.Lookup(nth(i), &v); err == nil {
			t.Fatalf("server %d is in the map still, silent for 11 minutes; want room", i)
		}
	}
	if err := h.m.Lookup(overflow, &v); err != nil {
		t.Errorf("the key of servers without room: %v, want it there", err)
	}
	// One comes back while it lingers and goes on; another comes back later and begins anew.
	h.add(nth(0), -160, 3)
	got := h.read(5 * time.Second)[keyed(nth(0))]
	if got.Start != first[keyed(nth(0))].Start || got.Count != 5 || got.Counts[0] != 5 {
		t.Errorf("came back at once: got %+v, want 5 times since %d", got, first[keyed(nth(0))].Start)
	}
	rest := h.read(2 * time.Minute)
	if _, there := rest[keyed(nth(1))]; there || len(rest) != busy+1 {
		t.Errorf("two minutes later: got %d servers, want the %d that are in the map", len(rest), busy+1)
	}
	since := h.now.wall.UnixNano()
	h.add(nth(1), -159, 4)
	if got := h.read(5 * time.Second)[keyed(nth(1))]; got.Start != since || got.Count != 4 {
		t.Errorf("came back after it was forgotten: got %+v, want 4 times since %d", got, since)
	}
	if len(h.l.known) > 2*entries {
		t.Errorf("got %d histograms known, want at most %d", len(h.l.known), 2*entries)
	}
}

func TestSilentServersStayWhileThereIsRoom(t *testing.T) {
	h := newHistograms(t, 64)
	for i := range 10 {
		h.add(nth(i), -140, 1)
	}
	h.read(5 * time.Second)
	h.read(time.Hour)
	if got := h.read(time.Hour); len(got) != 10 {
		t.Errorf("got %d servers after two hours, want all of 10", len(got))
	}
}

func TestFullMapIsReadWhole(t *testing.T) {
	h := newHistograms(t, 1024)
	const n = 1024
	for i := range n {
		h.add(nth(i), i%240-184, 1)
	}
	if got := h.read(5 * time.Second); len(got) != n {
		t.Errorf("got %d servers, want %d", len(got), n)
	}
	if err := h.m.Put(nth(5000), bpf.FlowLatency{}); err == nil {
		t.Error("one more server found room, want the map full")
	}
}

func BenchmarkReadFullMap(b *testing.B) {
	h := newHistograms(b, 1024)
	for i := range 1024 {
		for k := range 40 {
			h.add(nth(i), k-110, 1)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		h.read(0)
	}
}
