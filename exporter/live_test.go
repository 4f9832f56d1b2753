// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"weft/exporter/api"
	"weft/flows"
)

func TestWireKeepsEveryFieldOfARanking(t *testing.T) {
	var want flows.Ranking
	n := new(int64)
	fill(t, reflect.ValueOf(&want.Rows).Elem(), n)
	fill(t, reflect.ValueOf(&want.Total).Elem(), n)
	want.Start, want.End, want.Of, want.Over = t0, t0.Add(time.Second), 7, 8
	encoded, err := proto.Marshal(rankingToWire(&want))
	if err != nil {
		t.Fatal(err)
	}
	var m api.TopResponse
	if err := proto.Unmarshal(encoded, &m); err != nil {
		t.Fatal(err)
	}
	if got := rankingFromWire(&m); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// activity is second n of a conversation that sends 10 packets each.
func activity(n int) *flows.Activity {
	start := t0.Add(time.Duration(n) * time.Second)
	return &flows.Activity{Start: start, End: start.Add(time.Second), Live: []flows.Live{{Record: tcpRecord(1)}}}
}

func TestTopStreamsARankingOfEachInterval(t *testing.T) {
	checkNoLeak(t)
	s := NewStore(1)
	c := dial(t, serve(t, s, nil))
	if s.Live.Watched() {
		t.Error("before anybody asks: somebody watches")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	offered := make(chan struct{})
	go func() {
		defer close(offered)
		for !s.Live.Watched() && ctx.Err() == nil {
			<-time.After(time.Millisecond)
		}
		for n := range 7 { // the third ranking is not whole
			s.Live.Offer(activity(n))
		}
	}()
	var got []flows.Ranking
	for r, err := range c.Top(ctx, TopQuery{By: "server", Every: 3 * time.Second}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, r); len(got) == 2 {
			break
		}
	}
	<-offered
	one := tcpRecord(1)
	for i, r := range got {
		if len(r.Rows) != 1 || r.Rows[0].Packets != 3*one.Packets || r.Rows[0].Key.Dst != one.Key.Dst || r.End.Sub(r.Start) != 3*time.Second {
			t.Errorf("ranking %d: got %+v, want three seconds of one server", i, r)
		}
	}
	eventually(t, "nobody to watch any more", func() bool { return !s.Live.Watched() })
}

func TestTopRefusesWhatItDoesNotKnow(t *testing.T) {
	c := dial(t, serve(t, NewStore(1), nil))
	for want, q := range map[string]TopQuery{
		`by "pods"`: {By: "pods"}, `order "size"`: {Order: "size"}, `filter ip "ten"`: {Terms: []flows.Term{{Kind: "ip", Value: "ten"}}},
	} {
		for _, err := range c.Top(t.Context(), q) {
			if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a mistake with %s", err, want)
			}
		}
	}
}

func TestWatchersAreBoundedAndNeverWaitedFor(t *testing.T) {
	var l Live
	var leave []func()
	for range maxWatchers {
		w, f := l.join()
		if w == nil {
			t.Fatalf("refused watcher %d of %d", len(leave)+1, maxWatchers)
		}
		leave = append(leave, f)
	}
	if w, _ := l.join(); w != nil {
		t.Error("got one watcher too many")
	}
	for n := range 10 * watcherQueue { // nobody reads
		l.Offer(activity(n))
	}
	for w := range l.watchers {
		if !w.behind.Load() || len(w.queue) != watcherQueue {
			t.Errorf("got %d waiting, behind %v, want %d and that it is behind", len(w.queue), w.behind.Load(), watcherQueue)
		}
	}
	for _, f := range leave {
		f()
	}
	if l.Watched() {
		t.Error("after all left: somebody watches")
	}
}
