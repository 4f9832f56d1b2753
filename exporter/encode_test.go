// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// anyRecord is a record whose every field is, as often as not, there: strings of
// every kind, numbers of every size.
func anyRecord(r *rand.Rand) flows.Record {
	var rec flows.Record
	fillAny(r, reflect.ValueOf(&rec).Elem(), 0)
	rec.Key.Src, rec.Key.Dst = anyEnd(r), anyEnd(r)
	if rec.Key.Src.Addr().BitLen() != rec.Key.Dst.Addr().BitLen() {
		rec.Key.Dst = rec.Key.Src
	}
	rec.Key.Proto = []uint8{flows.ProtoTCP, flows.ProtoUDP, flows.ProtoICMP, flows.ProtoICMPv6, uint8(r.Uint32())}[r.IntN(5)]
	return rec
}

func anyEnd(r *rand.Rand) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{10, byte(r.Uint32()), 0, byte(r.Uint32())})
	if r.IntN(2) == 0 {
		a = netip.AddrFrom16([16]byte{0xfd, 7: byte(r.Uint32()), 15: byte(r.Uint32())})
	}
	return netip.AddrPortFrom(a, uint16(r.Uint32()))
}

var texts = []string{"", "eth0", "kube-system", "a\xffb", "\xf0\x9f\x92\xa9", strings.Repeat("x", 63), strings.Repeat("long", 60), "a\x00b"}

// fillAny sets v by its type, one half of all to something.
func fillAny(r *rand.Rand, v reflect.Value, depth int) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		if r.IntN(8) > 0 {
			v.Set(reflect.ValueOf(t0.Add(time.Duration(r.Int64N(1e15)))))
		}
		return
	}
	if v.Kind() != reflect.Struct && r.IntN(2) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(r.Int64() >> r.IntN(63))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> r.IntN(64) & (1<<v.Type().Bits() - 1))
	case reflect.Float64: // a rate
		v.SetFloat(r.Float64())
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))])
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillAny(r, v.Elem(), depth+1)
	case reflect.Slice:
		n := r.IntN(4)
		if depth == 0 && r.IntN(50) == 0 {
			n = 120 // a list of more than 16,383 bytes
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fillAny(r, v.Index(i), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"app": "web", "k8s.io/x": texts[r.IntN(len(texts))], "no good\"": "x"}))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fillAny(r, v.Field(i), depth+1)
			}
		}
	default:
		panic(fmt.Sprintf("a record has a %s now: say here what may be in it", v.Type()))
	}
}

func newTestEncoder(t testing.TB) *LogEncoder {
	t.Helper()
	e, err := NewLogEncoder(map[string]string{"service.name": "weft", "os.type": "linux"}, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	e.CommunityID = true // all that there is
	return e
}

// encodeAll is every request that all makes, and how many records are in each.
func encodeAll(t testing.TB, e *LogEncoder, all []flows.Record) (requests [][]byte, counts []int) {
	t.Helper()
	for len(all) > 0 {
		b, n := e.Append(nil, all, t0)
		if n == 0 {
			t.Fatalf("a record that no request takes: %.200v", all[0])
		}
		requests, counts, all = append(requests, b), append(counts, n), all[n:]
	}
	return requests, counts
}

// Byte by byte, since both write fields in the order of their numbers and lengths in
// as few bytes as they take; only the two lengths around all records are wider.
func TestEncoderWritesWhatTheGeneratedMessagesWrite(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(7, seed))
		all := make([]flows.Record, 50)
		for i := range all {
			all[i] = anyRecord(r)
			if i > 0 && r.IntN(2) == 0 { // from the cache
				all[i].Source, all[i].Destination = all[r.IntN(i)].Source, all[r.IntN(i)].Destination
			}
		}
		e := newTestEncoder(t)
		requests, _ := encodeAll(t, e, all)
		oracle := newEncoder(map[string]string{"service.name": "weft", "os.type": "linux"}, "1.2.3", t0)
		batches := oracle.logBatches(all, t0)
		if len(requests) != len(batches) {
			t.Fatalf("seed %d: got %d requests, want %d", seed, len(requests), len(batches))
		}
		for i, b := range requests {
			var got collogs.ExportLogsServiceRequest
			if err := proto.Unmarshal(b, &got); err != nil {
				t.Fatalf("seed %d: decode: %v", seed, err)
			}
			for j, m := range got.ResourceLogs[0].ScopeLogs[0].LogRecords {
				if w := batches[i].ResourceLogs[0].ScopeLogs[0].LogRecords[j]; !proto.Equal(m, w) {
					t.Fatalf("seed %d, record %d:\n got %v\nwant %v", seed, j, m, w)
				}
				for _, a := range m.Attributes {
					seen[a.Key] = true
				}
			}
			if !proto.Equal(&got, batches[i]) {
				t.Fatalf("seed %d: resource or scope: got %v %v", seed, got.ResourceLogs[0].Resource, got.ResourceLogs[0].ScopeLogs[0].Scope)
			}
			want, err := proto.Marshal(batches[i])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b[bytes.Index(b, e.scope):], want[bytes.Index(want, e.scope):]) {
				t.Errorf("seed %d: equal when decoded, but not byte by byte", seed)
			}
		}
	}
	if len(seen) < 120 {
		t.Errorf("the records had %d attributes in all, want every one that there is, more than 120", len(seen))
	}
}

func TestRequestsHoldWhatAReceiverTakes(t *testing.T) {
	small := make([]flows.Record, 9000)
	for i := range small {
		small[i] = icmpRecord()
	}
	large := make([]flows.Record, 600)
	for i := range large {
		large[i] = withHops(bridgedRecord(i), 64)
	}
	for name, c := range map[string]struct {
		records []flows.Record
		least   int // bytes of a request that is not the last
		counts  []int
	}{
		"small": {small, 0, []int{4000, 4000, 1000}},
		"large": {large, maxBatchBytes - 16<<10, nil},
	} {
		requests, counts := encodeAll(t, newTestEncoder(t), c.records)
		if c.counts != nil && !slices.Equal(counts, c.counts) {
			t.Errorf("%s: got requests of %v records, want %v", name, counts, c.counts)
		}
		for i, b := range requests {
			if len(b) > maxBatchBytes || i < len(requests)-1 && len(b) < c.least {
				t.Errorf("%s: request %d has %d bytes, want %d to %d", name, i, len(b), c.least, maxBatchBytes)
			}
			var m collogs.ExportLogsServiceRequest
			if err := proto.Unmarshal(b, &m); err != nil || logCount(&m) != counts[i] {
				t.Errorf("%s: request %d: got error %v, want %d records", name, i, err, counts[i])
			}
		}
	}
}

// withHops is r with n hops.
func withHops(r flows.Record, n int) flows.Record {
	hops := make([]flows.HopCount, n)
	for i := range hops {
		hops[i] = r.Hops[i%len(r.Hops)]
	}
	r.Hops = hops
	return r
}

func TestRecordThatNoRequestTakesIsLeftOut(t *testing.T) {
	e := newTestEncoder(t)
	all := []flows.Record{tcpRecord(1), withHops(bridgedRecord(2), 40_000), tcpRecord(3)}
	before := []byte("what is there already")
	b, n := e.Append(before, all, t0)
	if n != 1 || !bytes.HasPrefix(b, before) {
		t.Fatalf("in front of it: got %d records, want the first, behind what was there", n)
	}
	if b, n = e.Append(before, all[1:], t0); n != 0 || !bytes.Equal(b, before) {
		t.Errorf("got %d records in %d bytes, want none, and the buffer as it was", n, len(b))
	}
	if _, n = e.Append(nil, all[2:], t0); n != 1 {
		t.Errorf("behind it: got %d records, want 1", n)
	}
	if b, n = e.Append(before, nil, t0); n != 0 || !bytes.Equal(b, before) {
		t.Errorf("of no records: got %d in %d bytes, want none", n, len(b))
	}
}

// pods is n ends, each another one.
func pods(n int) []*flows.Entity {
	all := make([]*flows.Entity, n)
	for i := range all {
		all[i] = &flows.Entity{Namespace: "shop", Pod: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web", "tier": "front"}, Confidence: 95}
	}
	return all
}

func TestEncodingAllocatesNothing(t *testing.T) {
	ends := pods(50)
	var all []flows.Record
	for i := range 400 {
		for _, r := range []flows.Record{tcpRecord(i), bridgedRecord(i), healthyRecord(i), sickRecord(i), dnsRecord(i), icmpRecord()} {
			r.Source, r.Destination = ends[i%len(ends)], ends[i*7%len(ends)]
			r.SourceSocket = &flows.SocketFigures{Retransmits: 3, Errno: 110}
			all = append(all, r)
		}
	}
	e := newTestEncoder(t)
	b, n := e.Append(nil, all, t0)
	if n < 1000 {
		t.Fatalf("got %d records, want more for a measurement", n)
	}
	if got := testing.AllocsPerRun(5, func() { b, _ = e.Append(b[:0], all, t0) }); got != 0 {
		t.Errorf("got %v allocations for %d records, want none", got, n)
	}
}

func TestCacheOfEndsIsBoundedAndKeepsWhoIsAskedFor(t *testing.T) {
	var c whoCache
	ends := pods(3*maxWho + 1)
	first := ends[0]
	var want []byte
	for i, end := range ends {
		c.append(nil, &sourceWho, end, false)
		if got := c.append(nil, &sourceWho, first, false); i == 0 {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Fatalf("after %d others: got %q, want %q", i, got, want)
		}
		if len(c.now) > maxWho || len(c.before) > maxWho {
			t.Fatalf("after %d ends: got %d and %d kept, want at most %d each", i, len(c.now), len(c.before), maxWho)
		}
	}
	key := whoKey{first, &sourceWho, false}
	if c.now[key] == nil && c.before[key] == nil {
		t.Error("the end that is asked for all the time is not kept")
	}
	large := pods(40)
	for _, end := range large {
		end.Pod = strings.Repeat("x", maxWhoBytes/10)
		c.append(nil, &sourceWho, end, false)
		if c.bytes > maxWhoBytes {
			t.Fatalf("got %d bytes, want at most %d", c.bytes, maxWhoBytes)
		}
	}
}

func TestEndReadsAsTheRecordWantsIt(t *testing.T) {
	e := newTestEncoder(t)
	who := &flows.Entity{Pod: "web", PID: 7, Process: "nginx"}
	r := tcpRecord(1)
	r.Source, r.Destination = who, who
	told := r
	told.SourceProcess = &flows.Process{PID: 7, Comm: "nginx"}
	for _, rec := range []flows.Record{r, told, r} { // the second of each time from the cache
		for range 2 {
			b, _ := e.Append(nil, []flows.Record{rec}, t0)
			for name, n := range map[string]int{"source.k8s.pod.name": 1, "destination.k8s.pod.name": 1, "source.process.pid": 1, "destination.process.pid": 1} {
				if got := bytes.Count(b, []byte(name)); got != n {
					t.Errorf("got %s %d times, want once", name, got)
				}
			}
		}
	}
}
