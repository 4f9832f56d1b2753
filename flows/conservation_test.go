// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// wire plays a kernel under traffic: packets are counted as seen, and a moment
// later put into a flow or skipped; a drain reads before, the table and after
// while that goes on.
type wire struct {
	t       *testing.T
	rnd     *rand.Rand
	table   *Table
	now     float64
	devices int
	points  map[Point]*wirePoint
	flight  []wirePacket         // seen, in no table yet
	flows   map[wireFlow]*Sample // what the next drain reads
	born    map[wireFlow]bool    // flows the kernel knows
	fed     map[Point]Count      // handed to the table, ever
	made    map[Point]Count      // of those, in records
	truth   map[Key]Count        // per conversation that only eth0In sees
	told    map[Key]Count        // the same, from records
	ends    map[EndReason]int    // of records
	made64  uint64
	joined  int // records of more than one view
}

type wirePoint struct {
	before, seen Count
	skipped      [NumSkip]Count
}

type wireFlow struct {
	key      Key
	at       Point
	vlan     uint16
	fragment bool
}

type wirePacket struct {
	f     wireFlow
	n     Count
	flags uint8
	skip  bool
}

func newWire(t *testing.T, seed uint64) *wire {
	rnd := rand.New(rand.NewPCG(seed, 1))
	devices, bound := 8, 5000 // every second run has room for everything
	if seed%2 == 0 {
		devices, bound = 40, 20+rnd.IntN(200)
	}
	var nat Translations
	if seed%3 == 0 {
		nat = oneForTwo{}
	}
	return &wire{
		t: t, rnd: rnd, devices: devices,
		table: NewTable(TableOptions{
			MaxConversations: bound, ActiveTimeout: time.Duration(2+rnd.IntN(20)) * time.Second,
			IdleTimeout: time.Duration(1+rnd.IntN(8)) * time.Second, Translations: nat,
		}),
		points: map[Point]*wirePoint{}, flows: map[wireFlow]*Sample{}, born: map[wireFlow]bool{},
		fed: map[Point]Count{}, made: map[Point]Count{}, truth: map[Key]Count{}, told: map[Key]Count{}, ends: map[EndReason]int{},
	}
}

// oneForTwo says that what is opened to server 1 is sent to server 2, but for the client
// that one point alone sees; of some times it does not know.
type oneForTwo struct{}

func (oneForTwo) Translation(_ Scope, k Key, first, _ int64, _ bool) (to Translation, ok bool) {
	if k.Dst.Port() != 80 {
		k = k.Reverse()
	}
	if server := k.Dst.Addr().As4()[3]; alone(k) || server != 1 && server != 2 || first/1e9%7 == 0 {
		return to, false
	}
	at := func(server byte) Key {
		k.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, server}), 80)
		return k
	}
	return Translation{Opened: at(1), Sent: at(2)}, true
}

// Late is so every other second, whatever was sent on.
func (oneForTwo) Late(at int64) bool { return at/1e9%2 == 0 }

// key is a random direction of one of some 300 conversations, some of them odd.
func (w *wire) key() Key {
	a := netip.AddrFrom4([4]byte{10, 0, 0, byte(w.rnd.IntN(6))})
	b := netip.AddrFrom4([4]byte{10, 0, 1, byte(w.rnd.IntN(6))})
	k := Key{
		Src: netip.AddrPortFrom(a, uint16(40000+w.rnd.IntN(4))), Dst: netip.AddrPortFrom(b, 80),
		Proto: []uint8{ProtoTCP, ProtoTCP, ProtoUDP, ProtoICMP, 47}[w.rnd.IntN(5)],
	}
	switch k.Proto {
	case ProtoICMP:
		k.Src, k.Dst = netip.AddrPortFrom(a, []uint16{8, 0, 3, 11}[w.rnd.IntN(4)]), netip.AddrPortFrom(b, 0)
	case 47:
		k.Src, k.Dst = netip.AddrPortFrom(a, 0), netip.AddrPortFrom(b, 0)
	}
	if w.rnd.IntN(2) == 0 && !k.ICMP() {
		return k.Reverse()
	}
	return k
}

// alone reports whether k is of a conversation that only eth0In sees.
func alone(k Key) bool {
	return k.Src.Addr().As4()[3] == 5 || k.Dst.Addr().As4()[3] == 5
}

// point is a random point; half of all traffic is seen at the first two.
func (w *wire) point() Point {
	if w.rnd.IntN(2) == 0 {
		return []Point{eth0In, eth0Out}[w.rnd.IntN(2)]
	}
	return Point{Netns: uint64(1 + w.rnd.IntN(2)), Ifindex: uint32(10 + w.rnd.IntN(w.devices)), Hook: Hook(1 + w.rnd.IntN(3))}
}

// traffic sends n packets; each is seen now and lands somewhere a little later.
func (w *wire) traffic(n int) {
	for range n {
		k := w.key()
		f := wireFlow{key: k, at: w.point(), vlan: uint16(w.rnd.IntN(8) / 7), fragment: w.rnd.IntN(50) == 0}
		if alone(k) {
			f.at, f.vlan, f.fragment = eth0In, 0, false
		}
		p := w.points[f.at]
		if p == nil {
			p = &wirePoint{}
			w.points[f.at] = p
		}
		c := Count{uint64(1 + w.rnd.IntN(3)), uint64(60 + w.rnd.IntN(1400))}
		p.seen.Add(c)
		x := wirePacket{f: f, n: c, skip: w.rnd.IntN(30) == 0}
		if k.Proto == ProtoTCP {
			x.flags = []uint8{FlagSYN, FlagACK, FlagACK, FlagACK | FlagPSH, FlagFIN | FlagACK, FlagRST}[w.rnd.IntN(6)]
		}
		w.flight = append(w.flight, x)
		if w.rnd.IntN(4) == 0 {
			w.land()
		}
	}
}

// land puts what is in flight where it belongs.
func (w *wire) land() {
	for _, x := range w.flight {
		if x.skip {
			w.points[x.f.at].skipped[SkipMalformed].Add(x.n)
			continue
		}
		w.add(w.truth, x.f.key, x.n)
		s := w.flows[x.f]
		if s == nil {
			s = &Sample{Key: x.f.key, At: x.f.at, VLAN: VLAN{Outer: x.f.vlan}, Fragment: x.f.fragment, First: second(w.now).UnixNano(), New: !w.born[x.f]}
			if s.New {
				s.FirstFlags, s.SeqNumber, s.AckNumber = x.flags, w.rnd.Uint32N(4), w.rnd.Uint32N(4)
				if alone(x.f.key) { // no other conversation's: those are taken for views of one connection
					own := uint32(x.f.key.Src.Port()+x.f.key.Dst.Port())<<8 | uint32(x.f.key.Src.Addr().As4()[3]+x.f.key.Dst.Addr().As4()[3])
					s.SeqNumber, s.AckNumber = s.SeqNumber+own<<4, s.AckNumber+own<<4
				}
			}
			w.flows[x.f], w.born[x.f] = s, true
		}
		s.Packets += x.n.Packets
		s.Bytes += x.n.Bytes
		s.TCPFlags |= x.flags
		s.Last = second(w.now).UnixNano()
		if w.rnd.IntN(20) == 0 {
			delete(w.born, x.f) // evicted: it begins anew
		}
	}
	w.flight = w.flight[:0]
}

// add adds n to what k sent, if one point alone sees it.
func (w *wire) add(m map[Key]Count, k Key, n Count) {
	if alone(k) && n != (Count{}) {
		m[k] = m[k].Plus(n)
	}
}

// read is the table as a drain finds it, in random order and batches.
func (w *wire) read() []Sample {
	var all []Sample
	for _, s := range w.flows {
		all = append(all, *s)
		n := w.fed[s.At]
		n.Add(Count{s.Packets, s.Bytes})
		w.fed[s.At] = n
	}
	clear(w.flows)
	w.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// drain reads what there is while traffic goes on, and detaches some points.
func (w *wire) drain() Window {
	for _, p := range w.points {
		p.before = p.seen
	}
	w.land() // what before counted is in the table by now, or the next drain finds it
	w.traffic(w.rnd.IntN(60))
	all := w.read()
	for len(all) > 0 && w.rnd.IntN(3) == 0 {
		n := w.rnd.IntN(len(all) + 1)
		if _, done := w.table.Fold(Batch{At: second(w.now), Flows: all[:n]}); done {
			w.t.Fatal("part of a drain: got done=true, want false")
		}
		all = all[n:]
	}
	w.traffic(w.rnd.IntN(60))
	seen := Account{At: second(w.now)}
	for at, p := range w.points {
		gone := at.Ifindex >= 10 && w.rnd.IntN(30) == 0
		if gone { // nothing moves any more: everything is where it belongs
			w.land()
			all = append(all, w.read()...)
		}
		seen.Points = append(seen.Points, PointAccount{At: at, Before: p.before, After: p.seen, Skipped: p.skipped, Gone: gone})
		if gone {
			delete(w.points, at)
		}
	}
	// Accounts taken before another point's last read are behind it by now.
	for i := range seen.Points {
		if p := w.points[seen.Points[i].At]; p != nil {
			seen.Points[i].After, seen.Points[i].Skipped = p.seen, p.skipped
		}
	}
	win, done := w.table.Fold(Batch{At: second(w.now), Flows: all, Final: true, Seen: seen})
	if !done {
		w.t.Fatal("the end of a drain: got done=false, want true")
	}
	return win
}

// check holds a window against what was sent.
func (w *wire) check(win Window) {
	w.t.Helper()
	for i := range win.Records {
		w.record(&win.Records[i])
		if r := &win.Records[i]; r.NAT != nil && len(r.Hops) > 0 && r.Hops[0].NAT == NATBefore && r.Hops[len(r.Hops)-1].NAT != r.Hops[0].NAT {
			w.joined++
		}
	}
	w.made64 += uint64(len(win.Records))
	if win.Ledger.Made != w.made64 {
		w.t.Fatalf("made: got %d, want %d", win.Ledger.Made, w.made64)
	}
	if err := win.Ledger.Check(); err != nil {
		w.t.Fatalf("at %v s: %v", w.now, err)
	}
	audit(w.t, w.table)
	// Every packet handed over is in a record, open, or skipped here.
	var flows, recorded, skipped, fed, made Count
	for _, p := range append(win.Ledger.Points, win.Ledger.Gone) {
		flows.Add(p.Flows)
		recorded.Add(p.Recorded)
		skipped.Add(p.Skipped[SkipConversationLimit].Plus(p.Skipped[SkipHopLimit]))
	}
	for _, p := range win.Ledger.Points {
		if p.At.Ifindex < 10 && (p.Flows.Plus(p.Skipped[SkipConversationLimit]).Plus(p.Skipped[SkipHopLimit]) != w.fed[p.At] || p.Recorded != w.made[p.At]) {
			w.t.Fatalf("%v: got flows %v + skipped here %v, recorded %v, want %v and %v", p.At, p.Flows, p.Skipped, p.Recorded, w.fed[p.At], w.made[p.At])
		}
	}
	for at := range w.fed {
		fed.Add(w.fed[at])
		made.Add(w.made[at])
	}
	if flows.Plus(skipped) != fed || recorded != made {
		w.t.Fatalf("at %v s: got flows %v + skipped here %v, recorded %v, want %v fed, %v in records", w.now, flows, skipped, recorded, fed, made)
	}
}

// record checks one record by itself and adds its hops up.
func (w *wire) record(r *Record) {
	w.t.Helper()
	w.ends[r.EndReason]++
	var there, back, chosen Count
	for i := range r.Hops {
		h := &r.Hops[i]
		n := Count{h.Packets, h.Bytes}
		w.made[h.At] = w.made[h.At].Plus(n)
		if n == (Count{}) || h.At.Netns != r.Scope.Netns || h.First.After(h.Last) || h.First.Before(r.Start) || h.Last.After(r.End) {
			w.t.Fatalf("hop %+v of %v in %v to %v", h, r.Scope, r.Start, r.End)
		}
		if h.Reverse {
			back.Add(n)
		} else {
			there.Add(n)
		}
		if h.Chosen {
			chosen.Add(n)
		}
	}
	total := Count{r.Packets, r.Bytes}
	reverse := Count{r.ReversePackets, r.ReverseBytes}
	if chosen != total.Plus(reverse) || (total == Count{}) != (there == Count{}) || (reverse == Count{}) != (back == Count{}) {
		w.t.Fatalf("%v: totals %v and %v, chosen hops %v, all hops %v and %v", r.Key, total, reverse, chosen, there, back)
	}
	w.add(w.told, r.Key, total)
	w.add(w.told, opposite(r.Key), reverse)
}

// opposite is the key of the packets that answer those of k.
func opposite(k Key) Key {
	if peer, _, ok := icmpPeer(k.Proto, k.Src.Port()); ok && k.ICMP() {
		return Key{Src: netip.AddrPortFrom(k.Dst.Addr(), peer), Dst: netip.AddrPortFrom(k.Src.Addr(), 0), Proto: k.Proto}
	}
	return k.Reverse()
}

// TestEveryPacketIsInOneRecordOrSkipped sends random traffic over random points
// and keeps the books itself. A failure names its seed.
func TestEveryPacketIsInOneRecordOrSkipped(t *testing.T) {
	const runs = 24
	ends, joined := map[EndReason]int{}, 0
	var skipped Count
	exact := 0
	for seed := range runs {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			w := newWire(t, uint64(seed))
			for range 60 {
				w.now += []float64{0.2, 1, 1, 1, 9}[w.rnd.IntN(5)]
				w.traffic(w.rnd.IntN(400))
				w.check(w.drain())
			}
			w.now++
			w.check(w.table.Close(second(w.now)))
			l := w.table.points.ledger(second(w.now), 0)
			here := Count{}
			for _, p := range append(l.Points, l.Gone) {
				here.Add(p.Skipped[SkipConversationLimit].Plus(p.Skipped[SkipHopLimit]))
				if p.Open != (Count{}) {
					t.Errorf("%v, closed: got open %v, want none", p.At, p.Open)
				}
			}
			skipped.Add(here)
			if here == (Count{}) { // nothing was refused: what one point saw is told exactly
				w.land()
				for _, s := range w.flows {
					w.add(w.told, s.Key, Count{s.Packets, s.Bytes})
				}
				exact++
				for k, n := range w.truth {
					if w.told[k] != n {
						t.Errorf("%s: got %v in records, want %v", k, w.told[k], n)
					}
				}
			}
			joined += w.joined
			for r, n := range w.ends {
				ends[r] += n
			}
		})
	}
	if joined < 100 {
		t.Errorf("%d records of more than one view: the runs prove nothing about them", joined)
	}
	for _, r := range []EndReason{EndIdleTimeout, EndActiveTimeout, EndOfFlow, EndForced, EndLackOfResources} {
		if ends[r] == 0 {
			t.Errorf("no record ended by %v: the runs prove nothing about it", r)
		}
	}
	if skipped == (Count{}) || exact < runs/2 {
		t.Errorf("got %v skipped for a limit, %d of %d runs without: the runs prove too little", skipped, exact, runs)
	}
}
