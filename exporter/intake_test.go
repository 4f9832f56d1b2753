// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"weft/flows"
)

// faultless is a record without any fault, of conversation i.
func faultless(i int) flows.Record {
	return flows.Record{Key: flows.Key{
		Src:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(1024+i%50000)),
		Dst:   netip.MustParseAddrPort("192.0.2.7:443"),
		Proto: flows.ProtoTCP,
	}, Start: t0, End: t0, Packets: 1, Bytes: 60, TCP: &flows.TCPRecord{}}
}

func TestFilteredRecordsAreCountedAndNotLost(t *testing.T) {
	f, err := flows.ParseFilter([]flows.Term{{Kind: "from-ip", Value: "10.0.0.0/30"}})
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue("a", 100)
	q.intake.Filter = f
	records := make([]flows.Record, 20)
	for i := range records {
		records[i] = faultless(i)
	}
	q.put(records)
	got, _ := q.next(100, 0)
	a := q.snapshot()
	if len(got) != 4 || a.Offered != 20 || a.Waiting != 4 || a.LeftOut["filtered"] != 16 || a.TotalLost() != 0 {
		t.Errorf("got %d records and %+v, want 4 of 20 and 16 filtered", len(got), a)
	}
	if err := (flows.Ledger{Made: 20, Sinks: []flows.SinkAccount{a}}).Check(); err != nil {
		t.Error(err)
	}
}

func TestIntakeOfEverythingCopiesNothing(t *testing.T) {
	all, err := flows.ParseFilter([]flows.Term{{Kind: "protocol", Value: "tcp"}})
	if err != nil {
		t.Fatal(err)
	}
	records := []flows.Record{faultless(1), faultless(2)}
	for _, in := range []Intake{{}, {Filter: all}, {Sample: Sample{Rate: 1}}} {
		taken, _, _ := in.choose(records)
		if len(taken) != 2 || &taken[0] != &records[0] {
			t.Errorf("%+v: got %d records in another slice, want the same", in, len(taken))
		}
	}
}

func TestSampledSumsAreUnbiasedAndAccountedExactly(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, rate := range []float64{0.01, 0.1, 0.5} {
		const n = 200000
		q := newQueue("a", n)
		q.intake.Sample.Rate = rate
		records := make([]flows.Record, n)
		faults := uint64(0)
		for i := range records {
			records[i] = faultless(i)
			if r.IntN(50) == 0 {
				records[i].Dropped = 1
				faults++
			}
		}
		q.put(records)
		a := q.snapshot()
		if a.Waiting+a.LeftOut["sampled_out"] != n || a.Offered != n || a.TotalLost() != 0 {
			t.Fatalf("rate %g: got %+v, want kept + sampled out = offered", rate, a)
		}
		taken, _ := q.next(n, 0)
		sum, always := 0.0, uint64(0)
		for i := range taken {
			switch {
			case taken[i].Dropped > 0 && taken[i].SamplingRate == 0:
				always++
				sum++
			case taken[i].SamplingRate == rate:
				sum += 1 / rate
			default:
				t.Fatalf("rate %g: got a record with rate %g and %d dropped", rate, taken[i].SamplingRate, taken[i].Dropped)
			}
		}
		// Of m plain records a binomial number is kept, and each counts 1/rate times.
		m := float64(n - faults)
		if bound := 5 * math.Sqrt(m*(1-rate)/rate); always != faults || math.Abs(sum-n) > bound {
			t.Errorf("rate %g: got a weighted sum of %.0f and %d of %d faults, want %d within %.0f (5 sigma) and all", rate, sum, always, faults, n, bound)
		}
	}
}

func TestSumsSampledTwiceAreUnbiased(t *testing.T) {
	const n = 100000
	slow := Sample{Rate: 0.9, Slow: time.Millisecond} // all records are slow for the second
	for name, c := range map[string]struct{ first, second Sample }{
		"first lower":  {Sample{Rate: 0.1}, Sample{Rate: 0.5}},
		"second lower": {Sample{Rate: 0.5}, Sample{Rate: 0.1}},
		"equal":        {Sample{Rate: 0.3}, Sample{Rate: 0.3}},
		"slow for one": {Sample{Rate: 0.2}, slow},
	} {
		all := records(n)
		for i := range all {
			all[i].TCP = nil
			all[i].ConnectionID = uint64(i)*0x9e3779b97f4a7c15 + 1
			all[i].DNS = &flows.DNS{Latency: flows.RTT{Count: 1, Max: time.Second}}
		}
		first, second := Intake{Sample: c.first}, Intake{Sample: c.second}
		once, _, _ := first.choose(all)
		twice, _, _ := second.choose(once)
		var sum, variance float64
		for i := range twice {
			rate := twice[i].SamplingRate
			sum += 1 / rate
			variance = n * (1 - rate) / rate
		}
		if off := math.Abs(sum - n); off > 5*math.Sqrt(variance) {
			t.Errorf("%s: got %d records that stand for %.0f, want about %d", name, len(twice), sum, n)
		}
	}
}

func TestConversationIsSampledAsAWhole(t *testing.T) {
	s := Sample{Rate: 0.3}
	kept := 0
	for i := range 2000 {
		r := faultless(i)
		want, _ := s.keeps(&r)
		if want {
			kept++
		}
		later := r
		later.Key, later.Packets, later.Scope.Netns = r.Key.Reverse(), 7, 99 // another period, point and side
		if got, _ := s.keeps(&later); got != want {
			t.Fatalf("conversation %d: got one record kept %t and the other %t", i, want, got)
		}
		translated := faultless(i + 100000)
		r.ConnectionID, translated.ConnectionID = uint64(i+1), uint64(i+1)
		a, _ := s.keeps(&r)
		if b, _ := s.keeps(&translated); a != b {
			t.Fatalf("connection %d: got %t before and %t behind NAT", i, a, b)
		}
	}
	if kept < 500 || kept > 700 {
		t.Errorf("got %d of 2000 kept, want about 600", kept)
	}
}

func TestFaultsAndSlowAnswersAreAlwaysTaken(t *testing.T) {
	s := Sample{Rate: 1e-9, Slow: 100 * time.Millisecond}
	for name, change := range map[string]func(*flows.Record){
		"dropped":       func(r *flows.Record) { r.Dropped = 1 },
		"reset flag":    func(r *flows.Record) { r.ReverseTCPFlags = flows.FlagRST },
		"reset":         func(r *flows.Record) { r.TCP.SourceReset = true },
		"failed":        func(r *flows.Record) { r.TCP.Failure = flows.FailUnanswered },
		"socket error":  func(r *flows.Record) { r.SourceSocket = &flows.SocketFigures{Errno: 111} },
		"full queue":    func(r *flows.Record) { r.DestinationSocket = &flows.SocketFigures{RcvQueueFull: 1} },
		"slow":          func(r *flows.Record) { r.TCP.Destination.RTT = flows.RTT{Count: 2, Sum: time.Second} },
		"slow hello":    func(r *flows.Record) { r.TCP.Source.Handshake = time.Second },
		"slow DNS":      func(r *flows.Record) { r.DNS = &flows.DNS{Latency: flows.RTT{Count: 1, Max: time.Second}} },
		"DNS error":     func(r *flows.Record) { r.DNS = &flows.DNS{Rcodes: []flows.DNSRcode{{Rcode: 3, Count: 1}}} },
		"DNS silence":   func(r *flows.Record) { r.DNS = &flows.DNS{Timeouts: 1} },
		"unreachable":   func(r *flows.Record) { r.Key.Proto, r.Key.Src = flows.ProtoICMP, netip.MustParseAddrPort("10.0.0.1:3") },
		"time exceeded": func(r *flows.Record) { r.Key.Proto, r.Key.Src = flows.ProtoICMPv6, netip.MustParseAddrPort("[::1]:3") },
	} {
		r := faultless(1)
		if keep, _ := s.keeps(&r); keep {
			t.Fatal("a record without a fault is taken, want it left out at this rate")
		}
		change(&r)
		if keep, rate := s.keeps(&r); !keep || rate != 0 {
			t.Errorf("%s: got kept %t at rate %g, want always", name, keep, rate)
		}
	}
}
