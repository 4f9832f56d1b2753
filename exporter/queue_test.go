// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueBoundCountsRecordsInTheWorkersHands(t *testing.T) {
	q := newQueue("test", 100)
	q.put(records(60))
	taken, _ := q.next(50, 0)
	q.put(records(60)) // 10 waiting + 50 taken leave room for 40
	a := q.snapshot()
	checkBalance(t, a)
	if len(taken) != 50 || a.Waiting != 100 || a.Lost["queue_full"] != 20 {
		t.Errorf("got %d taken, %+v, want 50 taken, 100 waiting, 20 lost", len(taken), a)
	}
}

func TestQueueKeepsOrderAndLosesNothing(t *testing.T) {
	q := newQueue("test", 1000)
	all := records(300)
	q.put(all[:1])
	q.put(all[1:200])
	q.put(all[200:])
	for i := 0; i < 300; {
		got, ok := q.next(77, 0)
		if !ok {
			t.Fatal("got the end of an open queue")
		}
		checkRecords(t, "next", got, all[i:min(i+77, 300)])
		i += len(got)
		q.settle(len(got), 0, "")
	}
	if a := q.snapshot(); a.Acknowledged != 300 || a.Waiting != 0 {
		t.Errorf("got %+v, want 300 acknowledged and none waiting", a)
	}
}

func TestQueueLingersForAFullBatchAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("test", 1000)
		start := time.Now()
		go func() {
			time.Sleep(5 * time.Second)
			q.put(records(10))
			time.Sleep(400 * time.Millisecond)
			q.put(records(10))
			time.Sleep(10 * time.Second)
			q.put(records(10))
			time.Sleep(100 * time.Millisecond)
			q.put(records(500))
			time.Sleep(10 * time.Second)
			q.put(records(3))
			q.close()
		}()
		for _, want := range []struct {
			after time.Duration
			n     int
		}{
			{6 * time.Second, 20},          // lingered one second from the first
			{15500 * time.Millisecond, 99}, // full, so at once
			{15500 * time.Millisecond, 99},
		} {
			got, _ := q.next(99, time.Second)
			if at := time.Since(start); len(got) != want.n || at != want.after {
				t.Errorf("got %d after %s, want %d after %s", len(got), at, want.n, want.after)
			}
			q.settle(len(got), 0, "")
		}
		var rest int
		for got, ok := q.next(1000, time.Hour); ok; got, ok = q.next(1000, time.Hour) {
			rest += len(got)
			q.settle(len(got), 0, "")
		}
		if at := time.Since(start); rest != 510-198+3 || at != 25500*time.Millisecond {
			t.Errorf("got %d when closed after %s, want %d at once after 25.5s", rest, at, 510-198+3)
		}
	})
}

func TestRecordsLingerFromWhenTheyWerePutThoughTheWorkerIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, start := newQueue("test", 1000), time.Now()
		go func() {
			q.put(records(3))
			time.Sleep(1100 * time.Millisecond)
			q.put(records(4))
			time.Sleep(1400 * time.Millisecond)
			q.put(records(5))
		}()
		for _, want := range []struct {
			at, busy time.Duration // when the worker has them, and how long
			n        int
		}{{time.Second, 700 * time.Millisecond, 3}, {2100 * time.Millisecond, 2 * time.Second, 4}, {4100 * time.Millisecond, 0, 5}} {
			got, _ := q.next(20, time.Second)
			if at := time.Since(start); len(got) != want.n || at != want.at {
				t.Errorf("got %d after %s, want %d after %s", len(got), at, want.n, want.at)
			}
			time.Sleep(want.busy)
		}
	})
}

func TestQueueBalancesAtEveryInstant(t *testing.T) {
	q := newQueue("test", 500)
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				checkBalance(t, q.snapshot())
			}
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			got, ok := q.next(64, 0)
			if !ok {
				return
			}
			lost := i % (len(got) + 1)
			q.settle(len(got)-lost, lost, "rejected")
		}
	}()
	batch := records(100)
	for range 2000 {
		q.put(batch)
	}
	q.close()
	<-done
	close(stop)
	work.Wait()
	q.put(batch)
	a := q.snapshot()
	checkBalance(t, a)
	if a.Offered != 200100 || a.Waiting != 0 || a.Lost["shutdown"] != 100 {
		t.Errorf("got %+v, want 200100 offered, none waiting, 100 lost at shutdown", a)
	}
}

func TestAbandonedRecordsAreCountedOnce(t *testing.T) {
	q := newQueue("test", 500)
	q.put(records(100))
	taken, _ := q.next(40, 0)
	q.abandon()
	q.settle(len(taken), 0, "") // too late
	a := q.snapshot()
	checkBalance(t, a)
	if a.Lost["shutdown"] != 100 || a.Acknowledged != 0 {
		t.Errorf("got %+v, want all 100 lost at shutdown", a)
	}
	if _, ok := q.next(1, 0); ok {
		t.Error("got records from an abandoned queue")
	}
}

// What was sent from disk may be settled before the encoder has said that it is there.
func TestQueueHoldsItsBoundWhileRecordsAreParked(t *testing.T) {
	q := newQueue("otlp", 10)
	q.put(records(10))
	taken, _ := q.next(10, 0)
	q.settleParked(4, 4, 0, "") // 6 are left, and none has been parked yet
	q.put(records(100))
	if got, want := q.account.Lost["queue_full"], uint64(100); got != want {
		t.Errorf("before they are parked: %d refused, want %d: the bound holds", got, want)
	}
	q.park(len(taken))
	q.put(records(100))
	if got, want := q.account.Lost["queue_full"], uint64(100+90); got != want {
		t.Errorf("with 6 parked: %d refused, want %d", got, want)
	}
	if q.account.Waiting != 16 || q.parked != 6 {
		t.Errorf("got %d waiting, %d of them parked; want 16 and 6", q.account.Waiting, q.parked)
	}
}
