// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"iter"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/exporter/api"
	"weft/flows"
)

const (
	// maxWatchers bounds those who watch at once; a further one is refused.
	maxWatchers = 8
	// watcherQueue bounds the activities that wait for a watcher. One that is
	// further behind starts its ranking anew.
	watcherQueue = 8
	// maxTopRows bounds the rows of one answer.
	maxTopRows = 10_000
)

// Live hands what happens now to those who watch. The zero Live works.
type Live struct {
	mu       sync.Mutex
	watchers map[*watcher]bool
	watched  atomic.Bool
}

type watcher struct {
	queue  chan *flows.Activity
	behind atomic.Bool // an activity was left out
}

// Watched reports whether anybody watches: if nobody does, there is no need to
// make activities.
func (l *Live) Watched() bool { return l.watched.Load() }

// Offer hands a to everybody who watches. It never waits, and nobody writes to a.
func (l *Live) Offer(a *flows.Activity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watchers {
		select {
		case w.queue <- a:
		default:
			w.behind.Store(true)
		}
	}
}

// join starts watching; nil: too many do. leave ends it.
func (l *Live) join() (w *watcher, leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.watchers) >= maxWatchers {
		return nil, nil
	}
	if l.watchers == nil {
		l.watchers = map[*watcher]bool{}
	}
	w = &watcher{queue: make(chan *flows.Activity, watcherQueue)}
	l.watchers[w] = true
	l.watched.Store(true)
	return w, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, w)
		l.watched.Store(len(l.watchers) > 0)
	}
}

// Top streams a ranking of each interval.
func (s *Server) Top(req *api.TopRequest, stream grpc.ServerStreamingServer[api.TopResponse]) error {
	by, order, err := flows.ParseTop(req.By, req.Order)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	match, err := flows.ParseFilter(termsFromWire(req.Terms))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	w, leave := s.store.Live.join()
	if w == nil {
		return status.Errorf(codes.ResourceExhausted, "%d watch already; close one", maxWatchers)
	}
	defer leave()
	rows := int(min(req.Rows, maxTopRows))
	if rows == 0 {
		rows = 20
	}
	top, from := flows.NewTop(by, match), time.Time{}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.stop:
			return nil
		case a := <-w.queue:
			if w.behind.Swap(false) {
				top, from = flows.NewTop(by, match), time.Time{}
			}
			if top.Add(a); from.IsZero() {
				from = a.Start
			}
			// Drains are not exact: an interval of four drains is over after 3.9 of them.
			if took := a.End.Sub(from); took <= 0 || took < time.Duration(req.EveryNs)/10*9 {
				continue
			}
			r := top.Take(order, rows)
			if err := stream.Send(rankingToWire(&r)); err != nil {
				return err
			}
			from = a.End
		}
	}
}

// TopQuery chooses a ranking; the zero value is conversations by bytes, a drain each.
type TopQuery struct {
	By, Order string        // see flows.ParseTop
	Rows      int           // at most; 0: 20
	Every     time.Duration // of one ranking
	Terms     []flows.Term  // which conversations
}

// Top yields a ranking of each interval until ctx ends, which is no error, also
// when the agent is restarted. An error is the last item.
func (c *Client) Top(ctx context.Context, q TopQuery) iter.Seq2[flows.Ranking, error] {
	return func(yield func(flows.Ranking, error) bool) {
		req := &api.TopRequest{By: q.By, Order: q.Order, Rows: uint32(q.Rows), EveryNs: int64(q.Every), Terms: termsToWire(q.Terms)}
		err := c.request(ctx, "watch", true, func(ctx context.Context, t *trip) error {
			stream, err := c.weft.Top(ctx, req)
			return receive(t, stream, err, func(m *api.TopResponse) bool {
				t.arrived(true) // what passed meanwhile is nobody's
				return yield(rankingFromWire(m), nil)
			})
		})
		if err != nil {
			yield(flows.Ranking{}, err)
		}
	}
}

func termsToWire(terms []flows.Term) (m []*api.Term) {
	for _, t := range terms {
		m = append(m, &api.Term{Kind: t.Kind, Value: []byte(t.Value), Negate: t.Negate})
	}
	return m
}

func termsFromWire(m []*api.Term) (terms []flows.Term) {
	for _, t := range m {
		terms = append(terms, flows.Term{Kind: t.GetKind(), Value: string(t.GetValue()), Negate: t.GetNegate()})
	}
	return terms
}

func rankingToWire(r *flows.Ranking) *api.TopResponse {
	m := &api.TopResponse{Start: nanos(r.Start), End: nanos(r.End), Of: uint64(r.Of), Over: r.Over, Total: topRowToWire(&flows.TopRow{Traffic: r.Total})}
	for i := range r.Rows {
		m.Rows = append(m.Rows, topRowToWire(&r.Rows[i]))
	}
	return m
}

func rankingFromWire(m *api.TopResponse) flows.Ranking {
	r := flows.Ranking{Start: wall(m.Start, m.Start == 0), End: wall(m.End, m.End == 0), Of: int(m.Of), Over: m.Over, Total: topRowFromWire(m.GetTotal()).Traffic}
	for _, row := range m.Rows {
		r.Rows = append(r.Rows, topRowFromWire(row))
	}
	return r
}

func topRowToWire(r *flows.TopRow) *api.TopRow {
	return &api.TopRow{
		Netns: r.Scope.Netns, Vlan: uint32(r.Scope.VLAN.Outer), InnerVlan: uint32(r.Scope.VLAN.Inner),
		SourceAddress: addrBytes(nil, r.Key.Src.Addr()), DestinationAddress: addrBytes(nil, r.Key.Dst.Addr()),
		SourcePort: uint32(r.Key.Src.Port()), DestinationPort: uint32(r.Key.Dst.Port()), Protocol: uint32(r.Key.Proto),
		Interface: []byte(r.Device.Interface), NetnsName: []byte(r.Device.Netns), Reason: []byte(r.Reason), Class: []byte(r.Class),
		Namespace: []byte(r.Namespace), Kind: []byte(r.Kind), Name: []byte(r.Name),
		Packets: r.Packets, Bytes: r.Bytes, ReversePackets: r.ReversePackets, ReverseBytes: r.ReverseBytes,
		Flows: r.Flows, Drops: r.Drops, Retransmits: r.Retransmits,
		RttCount: r.RTT.Count, RttSum: int64(r.RTT.Sum), RttMin: int64(r.RTT.Min), RttMax: int64(r.RTT.Max),
	}
}

func topRowFromWire(m *api.TopRow) flows.TopRow {
	return flows.TopRow{
		TopKey: flows.TopKey{
			Scope: flows.Scope{Netns: m.GetNetns(), VLAN: flows.VLAN{Outer: uint16(m.GetVlan()), Inner: uint16(m.GetInnerVlan())}},
			Key: flows.Key{
				Src:   netip.AddrPortFrom(bytesAddr(m.GetSourceAddress()), uint16(m.GetSourcePort())),
				Dst:   netip.AddrPortFrom(bytesAddr(m.GetDestinationAddress()), uint16(m.GetDestinationPort())),
				Proto: uint8(m.GetProtocol()),
			},
			Device: flows.Hop{Interface: string(m.GetInterface()), Netns: string(m.GetNetnsName())},
			Reason: string(m.GetReason()), Class: flows.DropClass(m.GetClass()),
			Namespace: string(m.GetNamespace()), Kind: string(m.GetKind()), Name: string(m.GetName()),
		},
		Traffic: flows.Traffic{
			Packets: m.GetPackets(), Bytes: m.GetBytes(), ReversePackets: m.GetReversePackets(), ReverseBytes: m.GetReverseBytes(),
			Flows: m.GetFlows(), Drops: m.GetDrops(), Retransmits: m.GetRetransmits(),
			RTT: flows.RTT{Count: m.GetRttCount(), Sum: time.Duration(m.GetRttSum()), Min: time.Duration(m.GetRttMin()), Max: time.Duration(m.GetRttMax())},
		},
	}
}
