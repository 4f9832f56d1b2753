// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

// t0 is when the records of these tests begin.
var t0 = time.Date(2026, 11, 22, 20, 30, 0, 123456789, time.UTC)

// tcpRecord is an ordinary HTTPS conversation seen at two points; i makes it
// one of many.
func tcpRecord(i int) flows.Record {
	at := t0.Add(time.Duration(i) * time.Millisecond)
	src := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	return flows.Record{
		Scope:     flows.Scope{Netns: 4026531840},
		Key:       flows.Key{Src: netip.AddrPortFrom(src, 40000), Dst: netip.MustParseAddrPort("10.0.0.2:443"), Proto: flows.ProtoTCP},
		Initiator: flows.InitiatorSYN, EndReason: flows.EndOfFlow,
		Start: at, End: at.Add(1203 * time.Millisecond),
		Packets: 12, Bytes: 3456, ReversePackets: 10, ReverseBytes: 15100,
		TCPFlags: flows.FlagSYN | flows.FlagACK | flows.FlagFIN, ReverseTCPFlags: flows.FlagSYN | flows.FlagACK,
		ConnectionID: 0x0123456789abcdef + uint64(i),
		Hops: []flows.HopCount{
			{
				At: flows.Point{Netns: 4026531840, Ifindex: 2, Hook: flows.HookEgress}, Hop: flows.Hop{Interface: "eth0"},
				Chosen: true, Packets: 12, Bytes: 3456, First: at, Last: at.Add(1203 * time.Millisecond),
			},
			{
				At: flows.Point{Netns: 4026531840, Ifindex: 2, Hook: flows.HookIngress}, Hop: flows.Hop{Interface: "eth0"},
				Reverse: true, Chosen: true, Packets: 10, Bytes: 15100,
				First: at.Add(5 * time.Millisecond), Last: at.Add(1200 * time.Millisecond),
			},
		},
	}
}

// bridgedRecord is a conversation of two pods over a bridge: four hops with
// long names, IPv6.
func bridgedRecord(i int) flows.Record {
	r := tcpRecord(i)
	r.Key.Src = netip.MustParseAddrPort("[fd00:10:244:1::1234]:40000")
	r.Key.Dst = netip.MustParseAddrPort("[fd00:10:244:2::5678]:8443")
	r.Hops = append(r.Hops, r.Hops...)
	for j := range r.Hops {
		r.Hops[j].Hop = flows.Hop{Interface: fmt.Sprintf("veth%08x", i+j), Netns: "/run/netns/tenant-blue"}
		r.Hops[j].At.Ifindex = uint32(1000 + j)
	}
	return r
}

// healthyRecord is a tcpRecord as a data plane that measures TCP makes it, of
// which there is nothing bad to say.
func healthyRecord(i int) flows.Record {
	r := tcpRecord(i)
	r.TCP = &flows.TCPRecord{
		Source: flows.TCPHealth{
			RTT:       flows.RTT{Count: 4, Sum: 1_000_004 * time.Nanosecond, Min: 200_001, Max: 400_003},
			Handshake: 250_000, MSS: 1460, WindowScale: 7,
			Options: flows.TCPSYNSeen | flows.TCPTimestamps | flows.TCPSACK | flows.TCPWindowScale,
		},
		Destination: flows.TCPHealth{
			RTT:       flows.RTT{Count: 3, Sum: 36 * time.Millisecond, Min: 11_500_000, Max: 12_500_000},
			Handshake: 12 * time.Millisecond, MSS: 1460, WindowScale: 9, Options: flows.TCPSYNSeen | flows.TCPWindowScale,
		},
	}
	return r
}

// sickRecord is a connection with everything wrong with it.
func sickRecord(i int) flows.Record {
	r := healthyRecord(i)
	s, d := &r.TCP.Source, &r.TCP.Destination
	s.Retransmits, s.OutOfOrder, s.Lost, s.DupAcks = 5, 2, 3, 7
	d.Retransmits, d.ZeroWindows, d.ZeroWindow = 1, 2, 1500*time.Millisecond
	r.TCP.DestinationReset, r.TCP.Failure = true, flows.FailReset
	r.ReverseTCPFlags |= flows.FlagRST
	r.Dropped, r.DropReason = 4, "NETFILTER_DROP"
	r.SourceProcess = &flows.Process{PID: 4711, Comm: "curl", Cgroup: 8765}
	r.DestinationProcess = &flows.Process{Comm: "ngi\x1b[2Jnx"}
	return r
}

// dnsRecord is a resolver's client: two answers and one that never came.
func dnsRecord(i int) flows.Record {
	r := tcpRecord(i)
	r.Key.Proto, r.Key.Dst, r.TCPFlags, r.ReverseTCPFlags, r.ConnectionID = flows.ProtoUDP, netip.MustParseAddrPort("10.0.0.2:53"), 0, 0, 0
	r.DNS = &flows.DNS{
		Queries: 4, Retries: 1, Answers: 3, Timeouts: 1,
		Latency: flows.RTT{Count: 3, Sum: 9 * time.Millisecond, Min: time.Millisecond, Max: 5 * time.Millisecond},
		Rcodes:  []flows.DNSRcode{{Rcode: 3, Count: 1}, {Rcode: 0, Count: 2}},
		Questions: []flows.DNSQuestion{
			{Name: "gone.example.com", Type: 28, Timeout: true},
			{Name: "nowhere.example.com", Type: 1, Rcode: 3, Latency: 5 * time.Millisecond},
			{Name: "www.example.com", Type: 65, Records: 2},
		},
	}
	return r
}

// icmpRecord is an echo request and its reply; type 8 code 0 are in the ports.
func icmpRecord() flows.Record {
	return flows.Record{
		Key: flows.Key{
			Src: netip.AddrPortFrom(netip.MustParseAddr("fd00::1"), 128), Dst: netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), 0),
			Proto: flows.ProtoICMPv6,
		},
		Initiator: flows.InitiatorICMP, EndReason: flows.EndIdleTimeout,
		Start: t0, End: t0.Add(time.Second), Packets: 1, Bytes: 118,
	}
}

func records(n int) []flows.Record {
	all := make([]flows.Record, n)
	for i := range all {
		all[i] = tcpRecord(i)
	}
	return all
}

func window(records []flows.Record) flows.Window {
	return flows.Window{End: t0, Records: records}
}

// checkBalance fails unless every offered record is somewhere.
func checkBalance(t *testing.T, a flows.SinkAccount) {
	t.Helper()
	sum := a.Acknowledged + a.Waiting
	for _, n := range a.Lost {
		sum += n
	}
	if sum != a.Offered {
		t.Fatalf("account of %s: got %d acknowledged + %d waiting + lost %v = %d, want %d offered",
			a.Name, a.Acknowledged, a.Waiting, a.Lost, sum, a.Offered)
	}
}

// checkNoLeak fails if goroutines that the test did not find are left over.
func checkNoLeak(t *testing.T) {
	t.Helper()
	before := stacks()
	t.Cleanup(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
			left := ""
			for id, stack := range stacks() {
				if _, ok := before[id]; !ok {
					left += stack + "\n\n"
				}
			}
			if left == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("goroutines left behind, want none:\n%s", left)
				return
			}
		}
	})
}

// stacks is every goroutine's stack by its number, but not the caller's.
func stacks() map[string]string {
	buf := make([]byte, 1<<20)
	all := map[string]string{}
	for i, s := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if id, _, ok := strings.Cut(s, " ["); ok && i > 0 && !strings.Contains(s, "testing.(*T).Run") {
			all[id] = s
		}
	}
	return all
}

// eventually polls until done says so.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20s in vain for: %s", what)
		}
	}
}

func portless(r flows.Record) netip.AddrPort { return netip.AddrPortFrom(r.Key.Src.Addr(), 0) }
