// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"weft/exporter/api"
	"weft/flows"
)

// fill sets every field that v reaches to something that is not its zero value,
// a different one each time, so that a field the wire form forgets is seen.
func fill(t *testing.T, v reflect.Value, n *int64) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = t0.Add(time.Duration(*n) * 1_000_003)
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(*n)}).WithZone("eth0"), uint16(*n))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(t, v.Index(i), n)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(t, value, n)
		v.SetMapIndex(reflect.ValueOf("queue_full"), value)
	case reflect.String:
		v.SetString("name\xff" + string(rune('a'+*n%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 250))
	case reflect.Int64:
		v.SetInt(-*n)
	case reflect.Float64:
		v.SetFloat(0.5)
	default:
		t.Fatalf("a field of kind %s: teach fill about it", v.Kind())
	}
}

func TestWireKeepsEveryFieldOfARecord(t *testing.T) {
	var full flows.Record
	fill(t, reflect.ValueOf(&full).Elem(), new(int64))
	withoutTimes := tcpRecord(7)
	withoutTimes.Start, withoutTimes.End = time.Time{}, time.Time{}
	withoutTimes.Hops[0].First, withoutTimes.Hops[0].Last = time.Time{}, time.Time{}

	var m api.Record // reused, as the store does
	for name, want := range map[string]flows.Record{
		"every field set": full, "zero": {}, "tcp": tcpRecord(1), "icmp": icmpRecord(), "bridged": bridgedRecord(2),
		"without times": withoutTimes, "health": healthyRecord(3), "lookup": dnsRecord(4),
		"known, and all zero": {TCP: &flows.TCPRecord{}, DNS: &flows.DNS{}, SourceProcess: &flows.Process{}, DestinationProcess: &flows.Process{},
			Source: &flows.Entity{}, Destination: &flows.Entity{}},
		"mapped": {Key: flows.Key{Src: netip.MustParseAddrPort("[::ffff:10.0.0.1]:5")}},
	} {
		toWire(&m, &want)
		encoded, err := proto.Marshal(&m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var back api.Record
		if err := proto.Unmarshal(encoded, &back); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := fromWire(&back); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

// randomly sets every field that v reaches to anything it may hold, or leaves it.
func randomly(t *testing.T, v reflect.Value, r *rand.Rand) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = []time.Time{{}, t0.Add(time.Duration(r.Int64() >> 16)), t0}[r.IntN(3)]
		return
	case *netip.AddrPort:
		four, six := netip.AddrFrom4([4]byte{10, byte(r.Uint32())}), netip.AddrFrom16([16]byte{0xfd, 15: byte(r.Uint32())})
		*x = netip.AddrPortFrom([]netip.Addr{{}, four, six, six.WithZone("eth0")}[r.IntN(4)], uint16(r.Uint32()))
		return
	}
	switch n := r.Uint64() >> r.IntN(64); v.Kind() {
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			randomly(t, v.Elem(), r)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			randomly(t, v.Field(i), r)
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
		}
		for i := range v.Len() {
			randomly(t, v.Index(i), r)
		}
	case reflect.Map:
		for _, name := range []string{"", "app", "\xff"}[:r.IntN(4)] {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			value := reflect.New(v.Type().Elem()).Elem()
			randomly(t, value, r)
			v.SetMapIndex(reflect.ValueOf(name), value)
		}
	case reflect.String:
		v.SetString([]string{"", "a", "\xff\x00", "a rather long name"}[r.IntN(4)])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(n & (1<<v.Type().Bits() - 1))
	case reflect.Int64:
		v.SetInt(int64(n))
	case reflect.Float64:
		v.SetFloat(r.Float64())
	default:
		t.Fatalf("a field of kind %s: teach randomly about it", v.Kind())
	}
}

func TestWireKeepsAnyRecord(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	var m api.Record // reused, as the store does
	for i := range 2000 {
		var want flows.Record
		randomly(t, reflect.ValueOf(&want).Elem(), r)
		toWire(&m, &want)
		encoded, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		var back api.Record
		if err := proto.Unmarshal(encoded, &back); err != nil {
			t.Fatal(err)
		}
		if got := fromWire(&back); !reflect.DeepEqual(got, want) {
			t.Fatalf("record %d:\n got %+v\nwant %+v", i, got, want)
		}
	}
}

func TestWhatWasNotMeasuredTakesNoRoomOnTheWire(t *testing.T) {
	size := func(r flows.Record) int {
		var m api.Record
		toWire(&m, &r)
		return proto.Size(&m)
	}
	for _, c := range []struct {
		name   string
		record flows.Record
		most   int // bytes more than tcpRecord
	}{
		{"not measured", tcpRecord(1), 0},
		{"measured, and fine", healthyRecord(1), 64},
	} {
		if got := size(c.record) - size(tcpRecord(1)); got > c.most {
			t.Errorf("%s: got %d bytes more, want at most %d", c.name, got, c.most)
		}
	}
}

func TestWireKeepsEveryFieldOfALedger(t *testing.T) {
	var full flows.Ledger
	fill(t, reflect.ValueOf(&full).Elem(), new(int64))
	for i := range full.Sinks {
		full.Sinks[i].Name = "otlp" // ours, so always UTF-8
	}
	for i := range full.Sources {
		full.Sources[i].Name = "drops"
	}
	for name, want := range map[string]flows.Ledger{"every field set": full, "zero": {}} {
		encoded, err := proto.Marshal(ledgerToWire(&want))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var back api.Ledger
		if err := proto.Unmarshal(encoded, &back); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := ledgerFromWire(&back); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

func FuzzWireNeverPanics(f *testing.F) {
	for _, r := range []flows.Record{bridgedRecord(3), sickRecord(3), dnsRecord(3)} {
		var m api.Record
		toWire(&m, &r)
		seed, err := proto.Marshal(&m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m api.Record
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		r := fromWire(&m)
		if line := AppendJSON(nil, &r); len(line) == 0 {
			t.Fatalf("no JSON for %+v", r)
		}
	})
}

func TestReasonsOfANewerAgentStayInTheSum(t *testing.T) {
	m := ledgerToWire(&flows.Ledger{At: t0, Points: []flows.PointLedger{{Seen: flows.Count{Packets: 10, Bytes: 100}, InTable: flows.Count{Packets: 7, Bytes: 70}}}})
	m.Points[0].Skipped = append(m.Points[0].Skipped,
		&api.Skipped{Reason: "truncated", Count: &api.Count{Packets: 2, Bytes: 20}},
		&api.Skipped{Reason: "quantum_foam", Count: &api.Count{Packets: 1, Bytes: 10}})
	l := ledgerFromWire(m)
	if err := l.Check(); err != nil {
		t.Errorf("got %v, want a ledger that balances with a reason this version has no name for", err)
	}
	p := l.Points[0]
	if p.Foreign["quantum_foam"].Packets != 1 || p.Skipped[flows.SkipTruncated].Packets != 2 || p.TotalSkipped() != (flows.Count{Packets: 3, Bytes: 30}) {
		t.Errorf("got %+v, want both reasons under their own names", p)
	}
	if again := ledgerToWire(&l); !proto.Equal(again, m) {
		t.Errorf("passed on: got %v, want %v", again, m)
	}
}
