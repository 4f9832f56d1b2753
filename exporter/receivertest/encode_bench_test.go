// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"weft/exporter"
	"weft/flows"
)

// benchRecords is how many records one round of a benchmark encodes: several
// requests' worth.
const benchRecords = 10_000

// served is the fixed corpus of the benchmarks: what an agent sees of 400 pods that
// ask 40 Services, two thirds of it TCP to pods, the rest UDP. Each record has 25
// attributes, the list of its two hops among them. named adds all that is known of
// both ends and of TCP: 69 attributes at most.
func served(n int, named bool) []flows.Record {
	r := rand.New(rand.NewPCG(42, 25))
	pods, services := make([]*flows.Entity, 400), make([]*flows.Entity, 40)
	for i := range pods {
		pods[i] = &flows.Entity{Namespace: fmt.Sprintf("team-%d", i%12), Pod: fmt.Sprintf("web-%d-%08x-%05x", i%60, i%60*77777777, i*2971), Node: fmt.Sprintf("node-%d", i%5)}
	}
	for i := range services {
		services[i] = &flows.Entity{Namespace: "shop", Pod: fmt.Sprintf("api-%d-%08x", i, i*99999989), Service: fmt.Sprintf("api-%d", i)}
	}
	if named {
		for i, e := range append(append([]*flows.Entity{}, pods...), services...) {
			name(e, i)
		}
	}
	all := make([]flows.Record, n)
	for i := range all {
		pod, service := r.IntN(len(pods)), r.IntN(len(services))
		begin := start.Add(time.Duration(i) * 100 * time.Microsecond).Add(time.Duration(r.IntN(1e5)))
		packets, back := 3+uint64(r.ExpFloat64()*20), 2+uint64(r.ExpFloat64()*30)
		rec := flows.Record{
			Key:       flows.Key{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(pod >> 7), byte(pod&127 + 2)}), uint16(32768+r.IntN(28232)))},
			Initiator: flows.InitiatorSYN, EndReason: flows.EndOfFlow,
			Start: begin, End: begin.Add(time.Duration(r.ExpFloat64() * 1e9)),
			Packets: packets, Bytes: packets * uint64(60+r.IntN(300)), ReversePackets: back, ReverseBytes: back * uint64(60+r.IntN(1400)),
			Source: pods[pod],
		}
		to := netip.AddrFrom4([4]byte{10, 96, 0, byte(service + 10)})
		if r.IntN(3) > 0 {
			rec.Key.Dst, rec.Key.Proto = netip.AddrPortFrom(to, 8080), flows.ProtoTCP
			rec.TCPFlags, rec.ReverseTCPFlags, rec.ConnectionID = 27, 27, r.Uint64()
		} else {
			rec.Key.Dst, rec.Key.Proto = netip.AddrPortFrom(to, 4500), flows.ProtoUDP
			rec.Initiator, rec.EndReason, rec.Destination = flows.InitiatorPort, flows.EndIdleTimeout, services[service]
		}
		veth := flows.Hop{Interface: fmt.Sprintf("veth%08x", pod*2654435)}
		rec.Hops = []flows.HopCount{
			{At: flows.Point{Ifindex: uint32(pod + 3), Hook: flows.HookIngress}, Hop: veth, Chosen: true, Packets: packets, Bytes: rec.Bytes, First: begin, Last: rec.End},
			{At: flows.Point{Ifindex: uint32(pod + 3), Hook: flows.HookEgress}, Hop: veth, Reverse: true, Chosen: true, Packets: back, Bytes: rec.ReverseBytes, First: begin, Last: rec.End},
		}
		if named {
			rec.Destination = services[service]
			if rec.Key.Proto == flows.ProtoTCP {
				rec.TCP = &flows.TCPRecord{Source: health(r), Destination: health(r)}
			}
		}
		all[i] = rec
	}
	return all
}

// name fills in all that a cluster tells of a pod.
func name(e *flows.Entity, i int) {
	e.Layer, e.PodUID, e.Workload, e.WorkloadKind = flows.LayerContainer, fmt.Sprintf("%08x-0d5c-4f1c-9c1e-%012x", i*7919, i*104729), e.Pod[:5], "deployment"
	e.Container, e.ContainerID, e.Runtime = "main", fmt.Sprintf("%064x", i*1299709), "containerd"
	e.Process, e.PID, e.Unit, e.Node, e.Zone, e.Region = "server", uint32(1000+i), "kubelet.service", fmt.Sprintf("node-%d", i%5), "eu-1a", "eu-1"
	e.Labels, e.Confidence = map[string]string{"app": e.Pod[:5], "tier": "front"}, 95
}

// An appender appends one request with all of records, or with as many as it takes.
type appender func(b []byte, records []flows.Record) (request []byte, n int)

// appenders are the encoders that are compared, each with the same attributes.
func appenders(tb testing.TB) map[string]appender {
	wire := func(community bool) appender {
		e, err := exporter.NewLogEncoder(map[string]string{"service.name": "weft"}, "1")
		if err != nil {
			tb.Fatal(err)
		}
		e.CommunityID = community
		return func(b []byte, records []flows.Record) ([]byte, int) { return e.Append(b, records, start) }
	}
	whole := func(marshal func([]byte, []flows.Record) ([]byte, error)) appender {
		return func(b []byte, records []flows.Record) ([]byte, int) {
			records = records[:min(len(records), 3000)]
			b, err := marshal(b, records)
			if err != nil {
				tb.Fatal(err)
			}
			return b, len(records)
		}
	}
	return map[string]appender{
		"wire":                   wire(false),
		"wire-with-community-id": wire(true),
		"generated":              whole(appendGenerated),
		"pdata":                  whole(appendPdata),
	}
}

// appendGenerated encodes with the generated messages.
func appendGenerated(b []byte, records []flows.Record) ([]byte, error) {
	scope := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: "weft", Version: "1"}}
	for i := range records {
		m := &logs.LogRecord{
			TimeUnixNano: uint64(records[i].End.UnixNano()), ObservedTimeUnixNano: uint64(start.UnixNano()),
			SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO", EventName: exporter.EventName,
		}
		for _, a := range flat(&records[i]) {
			m.Attributes = append(m.Attributes, generated(a))
		}
		hops := &common.ArrayValue{}
		for _, h := range records[i].Hops {
			fields := &common.KeyValueList{}
			for _, a := range hopFields(&h) {
				fields.Values = append(fields.Values, generated(a))
			}
			hops.Values = append(hops.Values, &common.AnyValue{Value: &common.AnyValue_KvlistValue{KvlistValue: fields}})
		}
		m.Attributes = append(m.Attributes, &common.KeyValue{
			Key: "weft.flow.hops", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: hops}},
		})
		scope.LogRecords = append(scope.LogRecords, m)
	}
	return proto.MarshalOptions{}.MarshalAppend(b, &collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource:  &resource.Resource{Attributes: []*common.KeyValue{generated(slog.String("service.name", "weft"))}},
		ScopeLogs: []*logs.ScopeLogs{scope},
	}}})
}

func generated(a slog.Attr) *common.KeyValue {
	v := &common.AnyValue{}
	switch a.Value.Kind() {
	case slog.KindInt64:
		v.Value = &common.AnyValue_IntValue{IntValue: a.Value.Int64()}
	case slog.KindFloat64:
		v.Value = &common.AnyValue_DoubleValue{DoubleValue: a.Value.Float64()}
	case slog.KindBool:
		v.Value = &common.AnyValue_BoolValue{BoolValue: a.Value.Bool()}
	default:
		v.Value = &common.AnyValue_StringValue{StringValue: a.Value.String()}
	}
	return &common.KeyValue{Key: a.Key, Value: v}
}

// appendPdata encodes with the Collector's own data model.
func appendPdata(b []byte, records []flows.Record) ([]byte, error) {
	ld := plog.NewLogs()
	rl := ld.ResourceLogs().AppendEmpty()
	rl.Resource().Attributes().PutStr("service.name", "weft")
	sl := rl.ScopeLogs().AppendEmpty()
	sl.Scope().SetName("weft")
	sl.Scope().SetVersion("1")
	sl.LogRecords().EnsureCapacity(len(records))
	for i := range records {
		lr := sl.LogRecords().AppendEmpty()
		lr.SetTimestamp(pcommon.NewTimestampFromTime(records[i].End))
		lr.SetObservedTimestamp(pcommon.NewTimestampFromTime(start))
		lr.SetSeverityNumber(plog.SeverityNumberInfo)
		lr.SetSeverityText("INFO")
		lr.SetEventName(exporter.EventName)
		attrs := flat(&records[i])
		lr.Attributes().EnsureCapacity(len(attrs) + 1)
		for _, a := range attrs {
			put(lr.Attributes(), a)
		}
		hops := lr.Attributes().PutEmptySlice("weft.flow.hops")
		for _, h := range records[i].Hops {
			m := hops.AppendEmpty().SetEmptyMap()
			m.EnsureCapacity(8)
			for _, a := range hopFields(&h) {
				put(m, a)
			}
		}
	}
	more, err := plogotlp.NewExportRequestFromLogs(ld).MarshalProto()
	return append(b, more...), err
}

func put(m pcommon.Map, a slog.Attr) {
	switch a.Value.Kind() {
	case slog.KindInt64:
		m.PutInt(a.Key, a.Value.Int64())
	case slog.KindFloat64:
		m.PutDouble(a.Key, a.Value.Float64())
	case slog.KindBool:
		m.PutBool(a.Key, a.Value.Bool())
	default:
		m.PutStr(a.Key, a.Value.String())
	}
}

// communityID is an attribute that OTLP leaves out unless it is asked for.
const communityID = "weft.flow.community_id"

// flat are a record's attributes but its hops, as the encoder orders them. The other
// encoders pay for a Community ID that is not written: 0.3 us a record.
func flat(r *flows.Record) []slog.Attr {
	attrs := slices.DeleteFunc(exporter.AppendAttributes(make([]slog.Attr, 0, 80), r), func(a slog.Attr) bool { return a.Key == communityID })
	return append(attrs,
		slog.Int64("weft.flow.packets", int64(r.Packets)), slog.Int64("weft.flow.bytes", int64(r.Bytes)),
		slog.Int64("weft.flow.reverse.packets", int64(r.ReversePackets)), slog.Int64("weft.flow.reverse.bytes", int64(r.ReverseBytes)),
		slog.Int64("weft.flow.start_unix_nano", r.Start.UnixNano()))
}

func hopFields(h *flows.HopCount) []slog.Attr {
	direction := "receive"
	if h.At.Hook == flows.HookEgress {
		direction = "transmit"
	}
	return []slog.Attr{
		slog.String("interface", h.Hop.Interface), slog.String("direction", direction), slog.String("hook", h.At.Hook.String()),
		slog.Int64("packets", int64(h.Packets)), slog.Int64("bytes", int64(h.Bytes)),
		slog.Bool("reverse", h.Reverse), slog.Bool("chosen", h.Chosen),
	}
}

// packers are the compressions that are compared, all with the window that the agent has.
func packers(tb testing.TB) map[string]func(dst, b []byte) []byte {
	all := map[string]func(dst, b []byte) []byte{"raw": nil}
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression} {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
		if err != nil {
			tb.Fatal(err)
		}
		all["zstd-"+level.String()] = func(dst, b []byte) []byte { return e.EncodeAll(b, dst) }
	}
	for _, level := range []int{kgzip.BestSpeed, 5} {
		w, err := kgzip.NewWriterLevel(nil, level)
		if err != nil {
			tb.Fatal(err)
		}
		all[fmt.Sprintf("gzip-%d", level)] = func(dst, b []byte) []byte { return pack(tb, dst, b, w) }
	}
	all["gzip-std"] = func(dst, b []byte) []byte { return pack(tb, dst, b, gzip.NewWriter(nil)) }
	return all
}

func pack(tb testing.TB, dst, b []byte, w interface {
	Write([]byte) (int, error)
	Close() error
}) []byte {
	out := bytes.NewBuffer(dst)
	switch w := w.(type) {
	case *kgzip.Writer:
		w.Reset(out)
	case *gzip.Writer:
		w.Reset(out)
	}
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkEncode is the table of `make bench`: records in, requests out, by encoder
// and compression. For one core: go test -cpu 1.
func BenchmarkEncode(b *testing.B) {
	for _, corpus := range []string{"25-attributes", "named"} {
		records := served(benchRecords, corpus == "named")
		for _, c := range []struct{ encoder, packers string }{
			{"generated", "raw zstd-fastest"}, {"pdata", "raw zstd-fastest"}, {"wire-with-community-id", "raw zstd-fastest"},
			{"wire", "raw zstd-fastest zstd-default zstd-better gzip-1 gzip-5 gzip-std"},
		} {
			for packer := range strings.FieldsSeq(c.packers) {
				b.Run(corpus+"/"+c.encoder+"/"+packer, func(b *testing.B) {
					benchEncode(b, appenders(b)[c.encoder], packers(b)[packer], records)
				})
			}
		}
	}
}

// The figures of BenchmarkEncode are of what they say: each encoder writes the same
// records, and those of the first corpus have 25 attributes each.
func TestEncodersThatAreComparedWriteTheSame(t *testing.T) {
	for _, named := range []bool{false, true} {
		records := served(500, named)
		for name, encode := range appenders(t) {
			b, n := encode(nil, records)
			request := plogotlp.NewExportRequest()
			if err := request.UnmarshalProto(b); err != nil || n != len(records) {
				t.Fatalf("%s: got %d records, error %v, want %d", name, n, err, len(records))
			}
			var got []plog.LogRecord
			list := request.Logs().ResourceLogs().At(0).ScopeLogs().At(0).LogRecords()
			for i := range list.Len() {
				got = append(got, list.At(i))
				if name == "wire-with-community-id" {
					v, _ := list.At(i).Attributes().Get(communityID)
					if want := flows.CommunityID(records[i].Key, 0); v.Str() != want {
						t.Fatalf("%s: record %d: got %q, want %q", name, i, v.Str(), want)
					}
					list.At(i).Attributes().Remove(communityID) // the rest is what the others write
				}
				if n := list.At(i).Attributes().Len(); !named && n != 25 {
					t.Fatalf("%s: record %d: got %d attributes, want 25: %v", name, i, n, list.At(i).Attributes().AsRaw())
				}
			}
			compare(t, got, records)
		}
	}
}

// maxBytes is what a record of 25 attributes may take with zstd, in bytes.
const maxBytes = 85

func TestRecordsStayWithinTheirBytes(t *testing.T) {
	records := served(benchRecords, false)
	encode, pack := appenders(t)["wire"], packers(t)["zstd-fastest"]
	size := 0
	for left := records; len(left) > 0; {
		request, n := encode(nil, left)
		size += len(pack(nil, request))
		left = left[n:]
	}
	if got := float64(size) / benchRecords; got > maxBytes {
		t.Errorf("got %.1f bytes a record with zstd, want at most %d", got, maxBytes)
	}
}

func benchEncode(b *testing.B, encode appender, pack func(dst, b []byte) []byte, records []flows.Record) {
	var request, packed []byte
	size := 0
	round := func() {
		size = 0
		for left := records; len(left) > 0; {
			var n int
			if request, n = encode(request[:0], left); n == 0 {
				b.Fatal("a record that no request takes")
			}
			left = left[n:]
			if pack == nil {
				size += len(request)
				continue
			}
			packed = pack(packed[:0], request)
			size += len(packed)
		}
	}
	round()
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		round()
	}
	perRecord := float64((cpu(b) - before).Nanoseconds()) / float64(b.N) / float64(len(records))
	b.ReportMetric(perRecord, "cpu-ns/record")
	b.ReportMetric(1e9/perRecord, "records/s")
	b.ReportMetric(float64(size)/float64(len(records)), "B/record")
}

// cpu is the processor time of this process so far, the collector's included: others
// on the machine do not count into it.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
