// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"weft/exporter"
	"weft/flows"
)

// collector is a running otlpreceiver.
type collector struct {
	endpoint string // host:port of gRPC
	web      string // host:port of HTTP
	parts    []component.Component
}

// startCollector starts a receiver on endpoint; empty: a free port. What it
// hands records to outlives it, so one that is started again goes on filling it.
func startCollector(t testing.TB, endpoint string, logs consumer.Logs, metrics consumer.Metrics, setup ...func(*otlpreceiver.Config)) *collector {
	t.Helper()
	if endpoint == "" {
		endpoint = freePort(t)
	}
	c := &collector{endpoint: endpoint, web: freePort(t)}
	factory := otlpreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	cfg.Protocols.GRPC.GetOrInsertDefault().NetAddr.Endpoint = endpoint
	cfg.Protocols.HTTP.GetOrInsertDefault().ServerConfig.NetAddr.Endpoint = c.web
	for _, set := range setup {
		if set != nil {
			set(cfg)
		}
	}
	settings := receivertest.NewNopSettings(factory.Type())
	l, err := factory.CreateLogs(t.Context(), settings, cfg, logs)
	if err != nil {
		t.Fatal(err)
	}
	m, err := factory.CreateMetrics(t.Context(), settings, cfg, metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []component.Component{l, m} {
		if err := part.Start(t.Context(), componenttest.NewNopHost()); err != nil {
			t.Fatalf("start %T on %s: %v", part, endpoint, err)
		}
		c.parts = append(c.parts, part)
	}
	t.Cleanup(func() { c.stop(t) })
	return c
}

// at is the receiver's URL for a protocol.
func (c *collector) at(protocol string, secure bool) string {
	scheme, address := "http://", c.endpoint
	if secure {
		scheme = "https://"
	}
	if protocol != "grpc" {
		address = c.web
	}
	return scheme + address
}

// stop ends the receiver; a second time does nothing.
func (c *collector) stop(t testing.TB) {
	t.Helper()
	for _, part := range c.parts {
		if err := part.Shutdown(context.Background()); err != nil {
			t.Errorf("stop receiver: %v", err)
		}
	}
	c.parts = nil
}

func freePort(t testing.TB) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func noEnv(string) string { return "" }

func newSink(t testing.TB, endpoint string, c exporter.OTLPConfig) *exporter.OTLP {
	t.Helper()
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	c.Endpoint, c.Version, c.Getenv = endpoint, "1.2.3", noEnv
	o, err := exporter.NewOTLP(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSink(t, o) })
	return o
}

func closeSink(t testing.TB, o *exporter.OTLP) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := o.Close(ctx); err != nil {
		t.Errorf("close sink: %v", err)
	}
}

func export(t testing.TB, o *exporter.OTLP, w flows.Window) {
	t.Helper()
	if err := o.Export(t.Context(), w); err != nil {
		t.Fatal(err)
	}
}

func checkAccount(t *testing.T, a flows.SinkAccount, acknowledged int) {
	t.Helper()
	sum := a.Acknowledged + a.Waiting
	for _, n := range a.Lost {
		sum += n
	}
	if a.Offered != sum || a.Acknowledged != uint64(acknowledged) || a.Waiting != 0 {
		t.Errorf("got %+v, want %d offered and acknowledged", a, acknowledged)
	}
}

var start = time.Date(2026, 11, 22, 20, 30, 0, 123456789, time.UTC)

// health is what may be measured of one side of a TCP connection.
func health(r *rand.Rand) flows.TCPHealth {
	h := flows.TCPHealth{
		Retransmits: r.Uint64N(5), OutOfOrder: r.Uint64N(5), Lost: r.Uint64N(5), DupAcks: r.Uint64N(9), ZeroWindows: r.Uint64N(2),
		Handshake: time.Duration(r.IntN(2) * r.IntN(1e9)), ZeroWindow: time.Duration(r.IntN(2) * r.IntN(1e9)),
		MSS: uint16(r.IntN(9000)), WindowScale: uint8(r.IntN(15)), Options: flows.TCPOptions(r.IntN(16)),
	}
	if n := r.Uint64N(9); n > 0 {
		h.RTT = flows.RTT{Count: n, Sum: time.Duration(r.IntN(1e10)), Min: time.Duration(1 + r.IntN(1e6)), Max: time.Duration(1e6 + r.IntN(1e9))}
	}
	return h
}

// measure adds to rec what a data plane with all its options may know of it.
func measure(rec *flows.Record, r *rand.Rand) {
	if rec.Key.Proto == flows.ProtoTCP {
		rec.TCP = &flows.TCPRecord{
			Source: health(r), Destination: health(r), SourceReset: r.IntN(2) == 0, DestinationReset: r.IntN(2) == 0,
			Failure: flows.Failure(r.IntN(9)),
		}
		rec.SourceProcess = &flows.Process{PID: r.Uint32(), Comm: "curl\xff", Cgroup: r.Uint64() >> 1}
	}
	if rec.Key.Proto == flows.ProtoUDP {
		rec.DNS = &flows.DNS{
			Queries: 3, Retries: 1, Answers: 2, Timeouts: 1, Latency: flows.RTT{Count: 2, Sum: 3e6, Min: 1e6, Max: 2e6},
			Rcodes: []flows.DNSRcode{{Rcode: uint16(r.IntN(30)), Count: 2}},
			Questions: []flows.DNSQuestion{
				{Name: "www.example.com", Type: uint16(r.IntN(300)), Rcode: uint16(r.IntN(30)), Records: 2, Latency: time.Millisecond},
				{Name: "gone.example.com", Type: 28, Timeout: true},
			},
		}
	}
	if r.IntN(2) == 0 {
		rec.Dropped, rec.DropReason = 1+r.Uint64N(100), "NETFILTER_DROP"
	}
}

// corpus is n records of every kind, the same for the same n: TCP, UDP and ICMP,
// IPv4 and IPv6, VLANs, fragments, one to hops hops, measured and not.
func corpus(n, hops int) []flows.Record {
	r := rand.New(rand.NewPCG(42, uint64(n)))
	all := make([]flows.Record, n)
	for i := range all {
		begin := start.Add(time.Duration(i) * time.Microsecond)
		rec := flows.Record{
			Scope:     flows.Scope{Netns: 4026531840},
			Initiator: flows.InitiatorBasis(1 + r.IntN(4)), EndReason: flows.EndReason(1 + r.IntN(5)),
			Start: begin, End: begin.Add(time.Duration(r.Int64N(int64(time.Minute)))),
			Packets: r.Uint64N(1e6), Bytes: r.Uint64N(1e9), ReversePackets: r.Uint64N(1e6), ReverseBytes: r.Uint64N(1e9),
			DSCP: uint8(r.IntN(64)),
		}
		src, dst := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		if r.IntN(3) == 0 {
			src, dst = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}), netip.MustParseAddr("2001:db8::1")
		}
		rec.Key = flows.Key{Src: netip.AddrPortFrom(src, uint16(r.IntN(65536))), Dst: netip.AddrPortFrom(dst, uint16(r.IntN(65536))), Proto: flows.ProtoTCP}
		switch r.IntN(4) {
		case 0:
			rec.Key.Proto = flows.ProtoUDP
		case 1:
			rec.Key.Proto = flows.ProtoICMP
			rec.Key.Src, rec.Key.Dst = netip.AddrPortFrom(src, 8), netip.AddrPortFrom(dst, 0)
		default:
			rec.TCPFlags, rec.ReverseTCPFlags, rec.ConnectionID = uint8(r.IntN(256)), uint8(r.IntN(256)), r.Uint64()
		}
		if r.IntN(10) == 0 {
			rec.Fragment = true
			rec.Key.Src, rec.Key.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
		}
		if r.IntN(5) == 0 {
			rec.Scope.VLAN = flows.VLAN{Outer: uint16(1 + r.IntN(4094)), Inner: uint16(r.IntN(2) * 7)}
		}
		if r.IntN(4) > 0 {
			measure(&rec, r)
		}
		for h := range 1 + r.IntN(hops) {
			rec.Hops = append(rec.Hops, flows.HopCount{
				At:  flows.Point{Netns: 4026531840, Ifindex: uint32(h + 2), Hook: flows.Hook(1 + h%3)},
				Hop: flows.Hop{Interface: fmt.Sprintf("veth%d\xff", h), Netns: []string{"", "/run/netns/blue"}[h%2]}, Reverse: h%2 == 1, Chosen: h < 2,
				Packets: rec.Packets, Bytes: rec.Bytes, First: rec.Start, Last: rec.End,
			})
		}
		all[i] = rec
	}
	return all
}

// eventually polls until done says so.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 60s in vain for: %s", what)
		}
		<-tick.C
	}
}
