// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"weft/exporter"
	"weft/flows"
)

// received is every log record a sink has, in order.
func received(sink *consumertest.LogsSink) []plog.LogRecord {
	var all []plog.LogRecord
	for _, ld := range sink.AllLogs() {
		for i := range ld.ResourceLogs().Len() {
			scopes := ld.ResourceLogs().At(i).ScopeLogs()
			for j := range scopes.Len() {
				for k := range scopes.At(j).LogRecords().Len() {
					all = append(all, scopes.At(j).LogRecords().At(k))
				}
			}
		}
	}
	return all
}

// want is r's attributes as pdata decodes them: built from the record, by the
// names of the contract and not by the encoder.
func want(r *flows.Record) map[string]any {
	m := map[string]any{}
	for _, a := range flat(r) {
		m[a.Key] = a.Value.Any()
		if a.Value.Kind() == slog.KindString {
			m[a.Key] = strings.ToValidUTF8(a.Value.String(), "\uFFFD")
		}
	}
	var hops []any
	for _, h := range r.Hops {
		hop := map[string]any{
			"interface": strings.ToValidUTF8(h.Hop.Interface, "\uFFFD"), "direction": "receive", "hook": h.At.Hook.String(),
			"packets": int64(h.Packets), "bytes": int64(h.Bytes), "reverse": h.Reverse, "chosen": h.Chosen,
		}
		if h.At.Hook == flows.HookEgress {
			hop["direction"] = "transmit"
		}
		if h.Hop.Netns != "" {
			hop["netns"] = h.Hop.Netns
		}
		hops = append(hops, hop)
	}
	m["weft.flow.hops"] = hops
	if r.DNS != nil {
		var rcodes, questions []any
		for _, c := range r.DNS.Rcodes {
			rcodes = append(rcodes, map[string]any{"rcode": flows.DNSRcodeName(c.Rcode), "count": int64(c.Count)})
		}
		for _, q := range r.DNS.Questions {
			question := map[string]any{"name": q.Name, "type": flows.DNSTypeName(q.Type)}
			if q.Timeout {
				question["timeout"] = true
			} else {
				question["rcode"], question["records"], question["latency"] = flows.DNSRcodeName(q.Rcode), int64(q.Records), q.Latency.Seconds()
			}
			questions = append(questions, question)
		}
		m["weft.dns.rcodes"], m["weft.dns.questions"] = rcodes, questions
	}
	return m
}

// compare checks every field of every log record against its flow record, and
// the totals.
func compare(t *testing.T, got []plog.LogRecord, records []flows.Record) {
	t.Helper()
	if len(got) != len(records) {
		t.Fatalf("got %d log records, want %d", len(got), len(records))
	}
	var gotBytes, wantBytes uint64
	for i, lr := range got {
		r := &records[i]
		if attrs, expected := lr.Attributes().AsRaw(), want(r); !reflect.DeepEqual(attrs, expected) {
			t.Fatalf("record %d:\n got %v\nwant %v", i, attrs, expected)
		}
		if lr.EventName() != "weft.flow" || lr.Timestamp().AsTime() != r.End || lr.SeverityNumber() != plog.SeverityNumberInfo || lr.ObservedTimestamp() == 0 {
			t.Fatalf("record %d: got event %q at %s, severity %s, observed %s, want weft.flow at %s",
				i, lr.EventName(), lr.Timestamp().AsTime(), lr.SeverityNumber(), lr.ObservedTimestamp(), r.End)
		}
		v, _ := lr.Attributes().Get("weft.flow.bytes")
		gotBytes += uint64(v.Int())
		wantBytes += r.Bytes
	}
	if gotBytes != wantBytes {
		t.Errorf("totals: got %d bytes, want %d", gotBytes, wantBytes)
	}
}

func TestCollectorDecodesEveryAttribute(t *testing.T) {
	for name, c := range map[string]struct {
		compression   string
		records, hops int
		requests      int // at least
	}{
		"plain":                  {"none", 500, 4, 1},
		"gzip":                   {"gzip", 500, 4, 1},
		"more than 4000 records": {"gzip", 9000, 2, 3},
		"more than 3.5 MiB":      {"none", 1500, 60, 2},
	} {
		t.Run(name, func(t *testing.T) {
			logs := new(consumertest.LogsSink)
			receiver := startCollector(t, "", logs, new(consumertest.MetricsSink))
			o := newSink(t, receiver.endpoint, exporter.OTLPConfig{Compression: c.compression, Flush: time.Millisecond})
			records := corpus(c.records, c.hops)
			export(t, o, flows.Window{Records: records[:100]})
			export(t, o, flows.Window{Records: records[100:]})
			closeSink(t, o)
			compare(t, received(logs), records)
			checkAccount(t, o.Account(), len(records))
			requests := logs.AllLogs() // by the Collector's default, each of at most 4 MiB
			for i, ld := range requests {
				if n := ld.LogRecordCount(); n > 4000 {
					t.Errorf("request %d: got %d records, want at most 4000", i, n)
				}
			}
			if len(requests) < c.requests {
				t.Errorf("got %d requests, want at least %d", len(requests), c.requests)
			}
			for name, value := range map[string]string{"service.name": "weft", "service.version": "1.2.3", "os.type": "linux"} {
				if v, _ := requests[0].ResourceLogs().At(0).Resource().Attributes().Get(name); v.Str() != value {
					t.Errorf("resource %s: got %q, want %q", name, v.Str(), value)
				}
			}
		})
	}
}

func TestNothingIsLostOverAnOutageOfTheCollector(t *testing.T) {
	logs, metrics := new(consumertest.LogsSink), new(consumertest.MetricsSink)
	first := startCollector(t, "", logs, metrics)
	o := newSink(t, first.endpoint, exporter.OTLPConfig{Flush: time.Millisecond})
	records := corpus(6000, 4)
	export(t, o, flows.Window{Records: records[:1000]})
	eventually(t, "the first records", func() bool { return o.Account().Acknowledged == 1000 })
	first.stop(t)
	for i := 1000; i < 5000; i += 500 {
		export(t, o, flows.Window{Records: records[i : i+500]})
	}
	eventually(t, "the sink to notice", func() bool { return strings.HasPrefix(o.Status().State, "retrying") })
	if a := o.Account(); a.Acknowledged != 1000 || a.Waiting != 4000 {
		t.Errorf("during the outage: got %+v, want 1000 acknowledged and 4000 waiting", a)
	}
	startCollector(t, first.endpoint, logs, metrics)
	export(t, o, flows.Window{Records: records[5000:]})
	eventually(t, "the rest", func() bool { return o.Account().Waiting == 0 })
	closeSink(t, o)
	compare(t, received(logs), records)
	checkAccount(t, o.Account(), len(records))
}

// refusing fails as a Collector's pipeline does, by the number of the request.
type refusing struct {
	consumertest.LogsSink
	answers []error // nil: take it; after the last: take everything
	n       int
}

func (r *refusing) ConsumeLogs(ctx context.Context, ld plog.Logs) error {
	if r.n++; r.n <= len(r.answers) && r.answers[r.n-1] != nil {
		return r.answers[r.n-1]
	}
	return r.LogsSink.ConsumeLogs(ctx, ld)
}

func TestCollectorsRefusalsAreRetriedOrCounted(t *testing.T) {
	busy := errors.New("the queue is full")
	logs := &refusing{answers: []error{busy, busy, nil, consumererror.NewPermanent(errors.New("not wanted")), busy}}
	receiver := startCollector(t, "", logs, new(consumertest.MetricsSink))
	var log lines
	o := newSink(t, receiver.endpoint, exporter.OTLPConfig{Flush: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	records := corpus(300, 2)
	for i := 0; i < 300; i += 100 { // the second hundred is what the pipeline does not want
		export(t, o, flows.Window{Records: records[i : i+100]})
		eventually(t, "an answer for good", func() bool { return o.Account().Waiting == 0 })
	}
	closeSink(t, o)
	for _, words := range []string{"receiver not reached or busy, retrying", "receiver refuses requests, not retried"} {
		if !strings.Contains(log.String(), words) {
			t.Errorf("got log %s, want %q", log.String(), words)
		}
	}
	compare(t, received(&logs.LogsSink), append(records[:100:100], records[200:]...))
	if a := o.Account(); a.Offered != 300 || a.Acknowledged != 200 || a.Lost["refused"] != 100 || len(a.Lost) != 1 || logs.n != 6 {
		t.Errorf("got %+v after %d requests, want 200 acknowledged and 100 refused after 6", a, logs.n)
	}
}

func TestCollectorDecodesTheLedger(t *testing.T) {
	metrics := new(consumertest.MetricsSink)
	receiver := startCollector(t, "", new(consumertest.LogsSink), metrics)
	o := newSink(t, receiver.endpoint, exporter.OTLPConfig{})
	p := flows.PointLedger{
		At: flows.Point{Netns: 1, Ifindex: 2, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: "eth0"},
		Seen: flows.Count{Packets: 10, Bytes: 1000}, Flows: flows.Count{Packets: 6, Bytes: 600},
		Recorded: flows.Count{Packets: 6, Bytes: 600}, InTable: flows.Count{Packets: 1, Bytes: 100},
	}
	p.Skipped[flows.SkipARP] = flows.Count{Packets: 3, Bytes: 300}
	export(t, o, flows.Window{Ledger: flows.Ledger{
		At: start, Points: []flows.PointLedger{p}, Made: 9,
		Sinks: []flows.SinkAccount{{Name: "otlp", Offered: 9, Acknowledged: 7, Lost: map[string]uint64{"refused": 2}}},
	}})
	closeSink(t, o)
	got := map[string]int64{}
	for _, md := range metrics.AllMetrics() {
		scope := md.ResourceMetrics().At(0).ScopeMetrics().At(0)
		for i := range scope.Metrics().Len() {
			m := scope.Metrics().At(i)
			if m.Type() != pmetric.MetricTypeSum || m.Sum().AggregationTemporality() != pmetric.AggregationTemporalityCumulative {
				t.Errorf("%s: got %s, want a cumulative sum", m.Name(), m.Type())
			}
			for j := range m.Sum().DataPoints().Len() {
				dp := m.Sum().DataPoints().At(j)
				if dp.Timestamp().AsTime() != start || dp.StartTimestamp() == 0 {
					t.Errorf("%s: got %s from %s, want %s from the sink's start", m.Name(), dp.Timestamp(), dp.StartTimestamp(), start)
				}
				got[m.Name()+" "+m.Unit()+attributes(dp.Attributes())] = dp.IntValue()
			}
		}
	}
	eth0 := " network.interface.name=eth0 network.io.direction=receive weft.hop.hook=ingress"
	for name, value := range map[string]int64{
		"weft.ledger.seen.packets {packet}" + eth0:                                           10,
		"weft.ledger.seen.bytes By" + eth0:                                                   1000,
		"weft.ledger.flows.bytes By" + eth0:                                                  600,
		"weft.ledger.in_table.packets {packet}" + eth0:                                       1,
		"weft.ledger.unaccounted.packets {packet}" + eth0:                                    0,
		"weft.ledger.skipped.bytes By" + eth0 + " weft.ledger.reason=not_ip_arp":             300,
		"weft.ledger.records.made {record}":                                                  9,
		"weft.ledger.records.acknowledged {record} weft.ledger.sink=otlp":                    7,
		"weft.ledger.records.lost {record} weft.ledger.reason=refused weft.ledger.sink=otlp": 2,
	} {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("%s: got %d (there: %t), want %d", name, v, ok, value)
		}
	}
	if s := o.Status(); s.MetricsSent == 0 || s.MetricsFailed != 0 {
		t.Errorf("got %d sent and %d failed, want some and 0", s.MetricsSent, s.MetricsFailed)
	}
}

func TestCollectorDecodesTheHistograms(t *testing.T) {
	metrics := new(consumertest.MetricsSink)
	receiver := startCollector(t, "", new(consumertest.LogsSink), metrics)
	o := newSink(t, receiver.endpoint, exporter.OTLPConfig{})
	since := start.Add(-time.Hour)
	server := netip.MustParseAddrPort("[2001:db8::1]:443")
	latency := func(server netip.AddrPort, protocol uint8, measure flows.Measure, offset int, counts ...uint64) flows.Latency {
		l := flows.Latency{
			Key:   flows.LatencyKey{Server: server, Protocol: protocol, Measure: measure, Class: flows.ClassVeth},
			Start: since.UnixNano(), Sum: 1_500_000_000, Offset: offset, Counts: counts,
		}
		for _, n := range counts {
			l.Count += n
		}
		return l
	}
	known := latency(server, flows.ProtoTCP, flows.RTTServer, -79, 3, 0, 4)
	known.Exemplars = []flows.Exemplar{{Value: 1250 * time.Microsecond, At: start.UnixNano() - 7, ConnectionID: 0xabcdef}}
	export(t, o, flows.Window{End: start, Ledger: flows.Ledger{At: start}, Latencies: []flows.Latency{
		known,
		latency(server, flows.ProtoTCP, flows.RTTClient, -183, 1),
		latency(netip.AddrPort{}, flows.ProtoTCP, flows.HandshakeServer, 0, 5, 6),
		latency(server, flows.ProtoUDP, flows.DNSLookup, 56, 1<<40),
	}})
	closeSink(t, o)
	got := map[string]string{}
	for _, md := range metrics.AllMetrics() {
		scope := md.ResourceMetrics().At(0).ScopeMetrics().At(0)
		for i := range scope.Metrics().Len() {
			m := scope.Metrics().At(i)
			if m.Type() != pmetric.MetricTypeExponentialHistogram {
				continue
			}
			if m.ExponentialHistogram().AggregationTemporality() != pmetric.AggregationTemporalityCumulative || m.Unit() != "s" {
				t.Errorf("%s: got %s in %q, want cumulative in s", m.Name(), m.ExponentialHistogram().AggregationTemporality(), m.Unit())
			}
			for j := range m.ExponentialHistogram().DataPoints().Len() {
				dp := m.ExponentialHistogram().DataPoints().At(j)
				if dp.Timestamp().AsTime() != start || dp.StartTimestamp().AsTime() != since || dp.Sum() != 1.5 || dp.Scale() != 3 || dp.ZeroCount() != 0 {
					t.Errorf("%s: got %s from %s, sum %v, scale %d, want %s from %s, 1.5, 3", m.Name(), dp.Timestamp(), dp.StartTimestamp(), dp.Sum(), dp.Scale(), start, since)
				}
				text := fmt.Sprint(dp.Count(), dp.Positive().Offset(), dp.Positive().BucketCounts().AsRaw())
				for k := range dp.Exemplars().Len() {
					e := dp.Exemplars().At(k)
					text += fmt.Sprint(" ", e.DoubleValue(), attributes(e.FilteredAttributes()), " ", start.Sub(e.Timestamp().AsTime()))
				}
				got[m.Name()+attributes(dp.Attributes())] = text
			}
		}
	}
	want := map[string]string{
		"weft.tcp.rtt network.transport=tcp server.address=2001:db8::1 server.port=443 weft.hop.class=veth weft.tcp.side=server": "7 -79 [3 0 4] 0.00125 weft.connection.id=0000000000abcdef 7ns",
		"weft.tcp.rtt network.transport=tcp server.address=2001:db8::1 server.port=443 weft.hop.class=veth weft.tcp.side=client": "1 -183 [1]",
		"weft.tcp.handshake.duration network.transport=tcp weft.hop.class=veth weft.tcp.side=server":                             "11 0 [5 6]",
		"dns.lookup.duration network.transport=udp server.address=2001:db8::1 server.port=443 weft.hop.class=veth":               "1099511627776 56 [1099511627776]",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A sink that gets a part of the records is not told of connections that it gets nothing of.
func TestFilteredSinksHaveNoExemplars(t *testing.T) {
	filter, err := flows.ParseFilter([]flows.Term{{Kind: "port", Value: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]exporter.Intake{"all": {}, "filter": {Filter: filter}, "sample": {Sample: exporter.Sample{Rate: .5}}} {
		sink := new(consumertest.MetricsSink)
		receiver := startCollector(t, "", new(consumertest.LogsSink), sink)
		o := newSink(t, receiver.endpoint, exporter.OTLPConfig{Intake: in})
		export(t, o, flows.Window{End: start, Ledger: flows.Ledger{At: start}, Latencies: []flows.Latency{{
			Key: flows.LatencyKey{Protocol: flows.ProtoTCP}, Start: start.Add(-time.Hour).UnixNano(), Count: 1, Sum: 1, Offset: 0, Counts: []uint64{1},
			Exemplars: []flows.Exemplar{{Value: 1050 * time.Millisecond, At: start.UnixNano(), ConnectionID: 1}},
		}}})
		closeSink(t, o)
		points, exemplars := 0, 0
		for _, md := range sink.AllMetrics() {
			list := md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
			for i := range list.Len() {
				if list.At(i).Type() == pmetric.MetricTypeExponentialHistogram {
					points++
					exemplars += list.At(i).ExponentialHistogram().DataPoints().At(0).Exemplars().Len()
				}
			}
		}
		if want := map[string]int{"all": 1}[name]; points != 1 || exemplars != want {
			t.Errorf("%s: got %d histograms with %d exemplars, want 1 with %d", name, points, exemplars, want)
		}
	}
}

// attributes is m as text, in order of name.
func attributes(m pcommon.Map) string {
	var parts []string
	for name, v := range m.All() {
		parts = append(parts, " "+name+"="+v.AsString())
	}
	slices.Sort(parts)
	return strings.Join(parts, "")
}

// The exporter's own tests compare the same encoder byte by byte with the generated
// messages; here another decoder reads it.
func TestPdataReadsEveryAttributeThatTheEncoderWrites(t *testing.T) {
	e, err := exporter.NewLogEncoder(map[string]string{"service.name": "weft"}, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	for name, records := range map[string][]flows.Record{
		"of every kind": corpus(9000, 4), "many hops": corpus(1500, 60), "named ends": served(9000, true),
	} {
		requests := 0
		for left := records; len(left) > 0; requests++ {
			b, n := e.Append(nil, left, start)
			request := plogotlp.NewExportRequest()
			if err := request.UnmarshalProto(b); err != nil || n == 0 {
				t.Fatalf("%s: %d records: %v", name, n, err)
			}
			var got []plog.LogRecord
			list := request.Logs().ResourceLogs().At(0).ScopeLogs().At(0).LogRecords()
			for i := range list.Len() {
				got = append(got, list.At(i))
			}
			compare(t, got, left[:n])
			left = left[n:]
		}
		if requests < 2 {
			t.Errorf("%s: got %d requests, want several", name, requests)
		}
	}
}
