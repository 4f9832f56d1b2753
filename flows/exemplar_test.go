// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// connecting is the samples of a connection from a port whose handshake took that long on
// each side, and its identifier.
func connecting(port uint16, at int64, client, server time.Duration) []Sample {
	s := []Sample{tcpSample(false, at, FlagSYN, uint32(port), 0), tcpSample(true, at+1, FlagSYN|FlagACK, 900, uint32(port)+1)}
	s[0].Key.Src = netip.AddrPortFrom(s[0].Key.Src.Addr(), port)
	s[1].Key.Dst = s[0].Key.Src
	s[0].TCP, s[1].TCP = TCPHealth{Handshake: client}, TCPHealth{Handshake: server}
	s[0].Class, s[1].Class = ClassVeth, ClassVeth
	return s
}

// whole is a histogram of a server with one time in every bucket.
func whole(m Measure, class PointClass) Latency {
	l := Latency{Key: LatencyKey{Server: netip.MustParseAddrPort("10.0.0.2:443"), Protocol: ProtoTCP, Measure: m, Class: class}, Count: buckets, Offset: lowestBucket, Counts: make([]uint64, buckets)}
	for k := range l.Counts {
		l.Counts[k] = 1
	}
	return l
}

func TestExemplarsAreConnectionsOfTheirHistograms(t *testing.T) {
	table := NewTable(TableOptions{ActiveTimeout: time.Minute, IdleTimeout: time.Minute})
	first := connecting(40000, 100, 3*time.Millisecond, 38*time.Millisecond)
	first[1].TCP.RTT = RTT{Count: 2, Sum: 30 * time.Millisecond, Min: time.Millisecond, Max: 20 * time.Millisecond}
	read := func(samples ...Sample) []Latency {
		t.Helper()
		w, _ := table.Fold(Batch{At: second(1), Flows: samples, Final: true, Latencies: []Latency{
			whole(HandshakeServer, ClassVeth), whole(HandshakeClient, ClassVeth), whole(RTTServer, ClassVeth), whole(RTTClient, ClassVeth), whole(RTTServer, ClassNIC),
		}})
		return w.Latencies
	}
	is := func(what string, got []Exemplar, want ...Exemplar) {
		t.Helper()
		slices.SortFunc(got, func(a, b Exemplar) int { return int(a.Value - b.Value) })
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	got := read(first...)
	c := table.convs.at(1)
	id := c.connectionID()
	if id == 0 {
		t.Fatal("the connection has no identifier")
	}
	slow := Exemplar{38 * time.Millisecond, 101, id}
	is("handshake, server", got[0].Exemplars, slow)
	is("handshake, client", got[1].Exemplars, Exemplar{3 * time.Millisecond, 100, id})
	is("round trip, server", got[2].Exemplars, Exemplar{20 * time.Millisecond, 101, id}) // the largest is of this period
	is("round trip, client", got[3].Exemplars)
	is("round trip at other devices", got[4].Exemplars)

	// What is known of an earlier handshake is no news; a new one in the same bucket takes the
	// place, one in another bucket its own.
	again := first[0]
	again.New, again.First, again.Last = false, 200, 200
	next := connecting(40001, 300, 3*time.Millisecond, 40*time.Millisecond)
	third := connecting(40002, 400, 3*time.Millisecond, 400*time.Millisecond)
	got = read(append(append([]Sample{again}, next...), third...)...)
	idOf := func(i uint32) uint64 { return table.convs.at(i).connectionID() }
	is("handshake, server", got[0].Exemplars, Exemplar{40 * time.Millisecond, 301, idOf(2)}, Exemplar{400 * time.Millisecond, 401, idOf(3)})
	is("handshake, client", got[1].Exemplars, Exemplar{3 * time.Millisecond, 400, idOf(3)})

	// A bucket that has nothing has no exemplar, and neither has a histogram that began later.
	empty, late := whole(HandshakeServer, ClassVeth), whole(HandshakeClient, ClassVeth)
	empty.Counts[slow.Bucket()-empty.Offset], late.Start = 0, 401
	table.examples.give([]Latency{empty, late})
	w, _ := table.Fold(Batch{At: second(2), Final: true, Latencies: []Latency{empty, late}})
	is("without its bucket", w.Latencies[0].Exemplars, Exemplar{400 * time.Millisecond, 401, idOf(3)})
	is("of before it began", w.Latencies[1].Exemplars)
	if n := len(table.examples.series); n != 2 {
		t.Errorf("exemplars of %d histograms are kept, want of the 2 that there are", n)
	}
}

// TestExemplarsAreBoundedAndTheSlowestIsOne: a flood of connections does not cost more, nor
// hide the one that is slow.
func TestExemplarsAreBoundedAndTheSlowestIsOne(t *testing.T) {
	table := NewTable(TableOptions{ActiveTimeout: time.Minute, IdleTimeout: time.Minute})
	var flood []Sample
	for port := range uint16(3000) {
		took := time.Duration(1+port%900) * 100 * time.Microsecond
		if port == 2900 {
			took = 3 * time.Second
		}
		flood = append(flood, connecting(40000+port, int64(100+port), time.Millisecond, took)...)
	}
	table.Fold(Batch{At: second(1), Flows: flood})
	if n := len(table.examples.tried); n != maxExamples {
		t.Errorf("%d are looked at, want %d", n, maxExamples)
	}
	w, _ := table.Fold(Batch{At: second(1), Final: true, Latencies: []Latency{whole(HandshakeServer, ClassVeth)}})
	all := w.Latencies[0].Exemplars
	if len(all) != maxExemplars || !slices.ContainsFunc(all, func(e Exemplar) bool { return e.Value == 3*time.Second }) {
		t.Errorf("got %+v, want %d with the one of 3 s", all, maxExemplars)
	}
}
