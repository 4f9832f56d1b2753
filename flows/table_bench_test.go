// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"
)

var bench0 = time.Unix(1_800_000_000, 0)

// udpSamples is one sample for each of n one-direction UDP conversations at
// each point, in random order as a hash table yields them.
func udpSamples(n int, points ...Point) []Sample {
	var all []Sample
	for i := range n {
		var src [4]byte
		binary.BigEndian.PutUint32(src[:], 0x0a000000|uint32(i))
		for _, p := range points {
			all = append(all, Sample{
				Key: Key{
					Src: netip.AddrPortFrom(netip.AddrFrom4(src), 40000), Proto: ProtoUDP,
					Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 255, 0, 1}), 9999),
				},
				At: p, Packets: 10, Bytes: 640, New: true,
				First: bench0.UnixNano(), Last: bench0.UnixNano(),
			})
		}
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

var veth = Point{Netns: 1, Ifindex: 7, Hook: HookIngress}
var bridge = Point{Netns: 1, Ifindex: 3, Hook: HookIngress}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkFold is the cost of one sample of a conversation that is known,
// drain included, and what a conversation costs.
func BenchmarkFold(b *testing.B) {
	for _, c := range []struct {
		name   string
		convs  int
		points []Point
	}{
		{"1k/1hop", 1000, []Point{veth}},
		{"100k/1hop", 100_000, []Point{veth}},
		{"100k/2hops", 100_000, []Point{veth, bridge}},
		{"500k/2hops", 500_000, []Point{veth, bridge}},
	} {
		b.Run(c.name, func(b *testing.B) {
			samples := udpSamples(c.convs, c.points...)
			before := heap()
			t := NewTable(TableOptions{MaxConversations: max(c.convs, 1<<17)})
			at := bench0
			t.Fold(Batch{At: at, Flows: samples, Final: true})
			cost := heap() - before
			b.ReportAllocs()
			b.ResetTimer()
			var drains int
			for n := 0; n < b.N; n += len(samples) {
				at = at.Add(time.Millisecond)
				t.Fold(Batch{At: at, Flows: samples, Final: true})
				drains++
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(drains*len(samples)), "ns/sample")
			b.ReportMetric(float64(cost)/float64(c.convs), "B/conversation")
			b.ReportMetric(float64(cost)/(1<<20), "MiB")
			runtime.KeepAlive(t)
		})
	}
}

// BenchmarkSweep is what a drain costs that brings nothing, with 100,000 live
// conversations.
func BenchmarkSweep(b *testing.B) {
	t := NewTable(TableOptions{})
	t.Fold(Batch{At: bench0, Flows: udpSamples(100_000, veth), Final: true})
	at := bench0
	for b.Loop() {
		at = at.Add(time.Nanosecond)
		t.Fold(Batch{At: at, Final: true})
	}
}

// BenchmarkConversation is what a conversation costs from its first sample to
// its record: 10,000 that nobody knew, then silence.
func BenchmarkConversation(b *testing.B) {
	const n = 10_000
	for _, points := range [][]Point{{veth}, {veth, bridge}} {
		b.Run(strconv.Itoa(len(points))+"hops", func(b *testing.B) {
			samples := udpSamples(n, points...)
			t := NewTable(TableOptions{})
			at, records := bench0, 0
			b.ReportAllocs()
			for b.Loop() {
				at = at.Add(20 * time.Second)
				t.Fold(Batch{At: at, Flows: samples, Final: true})
				at = at.Add(20 * time.Second)
				w, _ := t.Fold(Batch{At: at, Final: true})
				records += len(w.Records)
			}
			if records < n*b.N {
				b.Fatalf("got %d records of %d conversations", records, n*b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/conversation")
		})
	}
}

// BenchmarkOverload is a sample of a new conversation when the table is full.
func BenchmarkOverload(b *testing.B) {
	samples := udpSamples(1_000_000, veth)
	t := NewTable(TableOptions{})
	at := bench0
	i := 0
	const batch = 50_000
	b.ReportAllocs()
	var drains int
	for b.Loop() {
		at = at.Add(time.Second)
		t.Fold(Batch{At: at, Flows: samples[i : i+batch], Final: true})
		i = (i + batch) % len(samples)
		drains++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(drains*batch), "ns/sample")
}

func BenchmarkMatch(b *testing.B) {
	f, err := ParseFilter(terms("ip=10.0.0.0/8 port=80 port=443 protocol=tcp !interface=lo"))
	if err != nil {
		b.Fatal(err)
	}
	r := &Record{Key: tcp("10.0.0.9:40000", "192.0.2.7:443"), Hops: []HopCount{{Hop: Hop{Interface: "veth1"}}, {Hop: Hop{Interface: "eth0"}}}}
	for b.Loop() {
		f.Match(r)
	}
}

func BenchmarkCommunityID(b *testing.B) {
	k := tcp("10.0.0.9:40000", "192.0.2.7:443")
	b.ReportAllocs()
	for b.Loop() {
		CommunityID(k, 0)
	}
}

func BenchmarkLedger4096Points(b *testing.B) {
	t := NewTable(TableOptions{})
	var seen Account
	for i := range 4096 {
		seen.Points = append(seen.Points, PointAccount{At: Point{1, uint32(i), HookIngress}})
	}
	at := bench0
	b.ReportAllocs()
	for b.Loop() {
		at = at.Add(time.Second)
		t.Fold(Batch{At: at, Final: true, Seen: seen})
	}
}

// tracked10k is a translation by where it was opened and sent, as one connection in two views.
type tracked10k map[Key]Translation

func (m tracked10k) Translation(_ Scope, k Key, _, _ int64, _ bool) (Translation, bool) {
	t, ok := m[k]
	if !ok {
		t, ok = m[k.Reverse()]
	}
	return t, ok
}

func (tracked10k) Late(int64) bool { return false }

// BenchmarkTranslated is what a connection to a Service costs from its first sample to
// its record: 8,000 of two views, one hop each; joined by tracking, not joined, and not
// translated but asked for.
func BenchmarkTranslated(b *testing.B) {
	const n = 8_000
	samples := udpSamples(n, veth)
	all := tracked10k{}
	for i := range samples[:n] {
		s := samples[i]
		to := Translation{Opened: s.Key, Sent: s.Key}
		to.Sent.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 254, 0, byte(i)}), 8080)
		all[to.Opened], all[to.Sent] = to, to
		s.Key, s.At = to.Sent, bridge
		s.First++
		samples = append(samples, s)
	}
	for _, c := range []struct {
		name string
		o    TableOptions
		want int
	}{{"joined", TableOptions{Translations: all}, n}, {"apart", TableOptions{Apart: true}, 2 * n}, {"none", TableOptions{Translations: tracked10k{}}, 2 * n}} {
		b.Run(c.name, func(b *testing.B) {
			t := NewTable(c.o)
			at, records := bench0, 0
			b.ReportAllocs()
			for b.Loop() {
				at = at.Add(20 * time.Second)
				t.Fold(Batch{At: at, Flows: samples, Final: true})
				at = at.Add(20 * time.Second)
				w, _ := t.Fold(Batch{At: at, Final: true})
				records += len(w.Records)
			}
			if records != c.want*b.N {
				b.Fatalf("got %d records, want %d", records, c.want*b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*b.N), "ns/connection")
		})
	}
}
