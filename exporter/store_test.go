// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"weft/flows"
)

func export(t testing.TB, s flows.Sink, records ...flows.Record) {
	t.Helper()
	if err := s.Export(context.Background(), window(records)); err != nil {
		t.Fatalf("export to %s: %v", s.Name(), err)
	}
}

// observe is everything a query without follow yields.
func observe(t *testing.T, s *Store, q Query) (all []flows.Record, lost uint64) {
	t.Helper()
	err := s.Observe(t.Context(), q, func(records []flows.Record, n uint64, _ Cursor) error {
		all = append(all, records...)
		lost += n
		return nil
	})
	if err != nil {
		t.Fatalf("observe %+v: %v", q, err)
	}
	return all, lost
}

func checkRecords(t *testing.T, what string, got, want []flows.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: got %d records, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("%s: record %d:\n got %+v\nwant %+v", what, i, got[i], want[i])
		}
	}
}

func TestStoreKeepsTheNewestOfEverySize(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 7, 400, 1000} { // the larger ones run out of bytes first
		s := NewStore(size)
		var all []flows.Record
		for i := range 3000 {
			r := tcpRecord(i)
			if random.IntN(4) > 0 {
				r = bridgedRecord(i)
			}
			for range random.IntN(3) {
				r.Hops = append(r.Hops, r.Hops...)
			}
			export(t, s, r)
			all = append(all, r)
			if i%23 != 0 {
				continue
			}
			got, lost := observe(t, s, Query{})
			if len(got) == 0 || len(got) > size || lost != 0 {
				t.Fatalf("size %d after %d: got %d records and %d lost, want 1 to %d and 0", size, i+1, len(got), lost, size)
			}
			checkRecords(t, fmt.Sprintf("size %d after %d", size, i+1), got, all[len(all)-len(got):])
		}
		checkBalance(t, s.Account())
		if a := s.Account(); a.Acknowledged != 3000 {
			t.Errorf("size %d: got %d acknowledged, want 3000", size, a.Acknowledged)
		}
	}
}

func TestStoreIsFullBeforeItEvicts(t *testing.T) {
	s := NewStore(1000)
	all := records(2500)
	export(t, s, all...)
	got, _ := observe(t, s, Query{})
	checkRecords(t, "records of ordinary size", got, all[1500:])
}

func TestStoreCountsWhatCannotFit(t *testing.T) {
	s := NewStore(2)
	huge := tcpRecord(1)
	for range 2000 {
		huge.Hops = append(huge.Hops, huge.Hops[0], huge.Hops[1])
	}
	export(t, s, tcpRecord(0), huge)
	a := s.Account()
	checkBalance(t, a)
	if a.Lost["too_large"] != 1 || a.Acknowledged != 1 {
		t.Errorf("got %+v, want one lost as too_large and one acknowledged", a)
	}
	got, _ := observe(t, s, Query{})
	checkRecords(t, "after a record too large", got, []flows.Record{tcpRecord(0)})
}

func TestStoreQueriesChooseLastSinceAndFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(5000)
		var all, udp []flows.Record
		start := time.Now().UTC()
		for i := range 3000 {
			r := tcpRecord(i)
			r.Start, r.End = start.Add(time.Duration(i)*time.Second), start.Add(time.Duration(i)*time.Second)
			for j := range r.Hops {
				r.Hops[j].First, r.Hops[j].Last = r.Start, r.End
			}
			if i%700 == 5 {
				r.Key.Proto = flows.ProtoUDP
				udp = append(udp, r)
			}
			all = append(all, r)
		}
		export(t, s, all...)
		time.Sleep(3000 * time.Second)
		terms := []flows.Term{{Kind: "protocol", Value: "udp"}}
		for name, c := range map[string]struct {
			q    Query
			want []flows.Record
		}{
			"all":                       {Query{}, all},
			"last":                      {Query{Last: 3}, all[2997:]},
			"last beyond what there is": {Query{Last: 9999}, all},
			"since":                     {Query{Since: 10 * time.Second}, all[2990:]},
			"last and since":            {Query{Since: 10 * time.Second, Last: 4}, all[2996:]},
			"filter":                    {Query{Terms: terms}, udp},
			"last with filter":          {Query{Terms: terms, Last: 2}, udp[len(udp)-2:]},
			"since with filter":         {Query{Terms: terms, Since: 1000 * time.Second}, udp[len(udp)-2:]},
			"nothing":                   {Query{Terms: []flows.Term{{Kind: "port", Value: "1"}}, Last: 2}, nil},
		} {
			got, _ := observe(t, s, c.q)
			checkRecords(t, name, got, c.want)
		}
	})
}

func TestStoreRefusesABadFilter(t *testing.T) {
	err := NewStore(1).Observe(t.Context(), Query{Terms: []flows.Term{{Kind: "color", Value: "red"}}}, nil)
	if err == nil {
		t.Error("got no error for an unknown kind of filter, want one")
	}
}

func TestFollowerSeesEveryNewRecordOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(5000)
		all := records(3000)
		export(t, s, all[:1000]...)
		ctx, cancel := context.WithCancel(t.Context())
		var backlog, fresh []flows.Record
		follow := func(q Query, into *[]flows.Record) {
			if err := s.Observe(ctx, q, func(records []flows.Record, lost uint64, _ Cursor) error {
				*into = append(*into, records...)
				if lost > 0 {
					t.Errorf("got %d lost, want 0", lost)
				}
				return nil
			}); err != nil {
				t.Errorf("follow %+v: got %v, want nil after cancel", q, err)
			}
		}
		go follow(Query{Follow: true, Last: 10}, &backlog)
		go follow(Query{Follow: true}, &fresh)
		synctest.Wait()
		for i := 1000; i < 3000; i += 50 {
			export(t, s, all[i:i+50]...)
			if i%400 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		checkRecords(t, "follow with a backlog", backlog, all[990:])
		checkRecords(t, "follow alone", fresh, all[1000:])
	})
}

func TestFollowShowsNewRecordsThatEndedBeforeSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(10)
		ctx, cancel := context.WithCancel(t.Context())
		var got []flows.Record
		go func() {
			_ = s.Observe(ctx, Query{Follow: true, Since: time.Second}, func(r []flows.Record, _ uint64, _ Cursor) error {
				got = append(got, r...)
				return nil
			})
		}()
		synctest.Wait()
		idle := tcpRecord(1)
		idle.End = time.Now().Add(-15 * time.Second)
		export(t, s, idle)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(got) != 1 {
			t.Errorf("got %d records, want the one that timed out after 15 s", len(got))
		}
	})
}

func TestSlowFollowerIsToldWhatItLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(100)
		ctx, cancel := context.WithCancel(t.Context())
		var seen, lost uint64
		proceed := make(chan struct{})
		go func() {
			_ = s.Observe(ctx, Query{Follow: true}, func(r []flows.Record, n uint64, _ Cursor) error {
				if seen, lost = seen+uint64(len(r)), lost+n; seen > 0 { // not stuck with its place alone
					<-proceed
				}
				return nil
			})
		}()
		synctest.Wait()
		all := records(1000)
		export(t, s, all[:10]...)
		synctest.Wait() // the follower is stuck with the first 10
		before := time.Now()
		export(t, s, all[10:]...)
		if time.Since(before) != 0 {
			t.Error("a stuck follower held up Export")
		}
		close(proceed)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if seen != 110 || lost != 890 {
			t.Errorf("got %d records and %d lost, want 110 and 890", seen, lost)
		}
	})
}

func TestObserveStopsWithItsReader(t *testing.T) {
	s := NewStore(10)
	export(t, s, records(5)...)
	gone := errors.New("reader gone")
	err := s.Observe(t.Context(), Query{}, func([]flows.Record, uint64, Cursor) error { return gone })
	if !errors.Is(err, gone) {
		t.Errorf("got %v, want %v", err, gone)
	}
}

func TestStoreHoldsTheLatestLedger(t *testing.T) {
	s := NewStore(1)
	if l, _ := s.Ledger(); !l.At.IsZero() {
		t.Errorf("got %+v, want no ledger yet", l)
	}
	_, changed := s.Ledger()
	want := flows.Ledger{At: t0, Made: 7}
	for _, w := range []flows.Window{{Ledger: want}, {Records: records(1)}} { // the second has none
		if err := s.Export(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-changed:
	default:
		t.Error("the channel is open, want it closed by Export")
	}
	if got, _ := s.Ledger(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFullStoreCostsLessThan16MiB(t *testing.T) {
	before := heap()
	s := NewStore(0)
	batch := make([]flows.Record, 1000)
	for i := range DefaultStore/1000 + 1 {
		for j := range batch {
			batch[j] = tcpRecord(i*1000 + j)
		}
		export(t, s, batch...)
	}
	cost := heap() - before
	first, next, _ := s.state()
	t.Logf("%d records in %d bytes of heap, %d a record encoded", next-first, cost, len(s.encoded))
	if next-first != DefaultStore {
		t.Errorf("got %d records, want %d", next-first, DefaultStore)
	}
	if cost >= 16<<20 {
		t.Errorf("got %d bytes of heap, want less than %d", cost, 16<<20)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkStorePut(b *testing.B) {
	s := NewStore(0)
	r := records(1000)
	b.ReportAllocs()
	for b.Loop() {
		export(b, s, r...)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
}

func BenchmarkStoreScan(b *testing.B) {
	s := NewStore(0)
	for range 66 {
		export(b, s, records(1000)...)
	}
	b.ReportAllocs()
	q := Query{Terms: []flows.Term{{Kind: "port", Value: "1"}}}
	for b.Loop() {
		if err := s.Observe(context.Background(), q, func([]flows.Record, uint64, Cursor) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/DefaultStore, "ns/record")
}
