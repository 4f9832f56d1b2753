// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

// pointTable gives every watched interface a place, which the programs find by
// ifindex, and reads what they counted there. A point's number is
// place * hooks + hook: the programs put it into keys. Place 0 is for frames of
// interfaces already let go. Bounded by the size of the places map.
type pointTable struct {
	places mapping[bpf.FlowLinkPlace] // [cpu][place]
	rare   mapping[bpf.FlowPointRare] // [shard][point]
	size   sizes

	byID []atomic.Pointer[point] // read by the drain without the lock

	mu   sync.Mutex
	byAt map[flows.Point]*point
	// domains has a namespace for as long as points are in it.
	domains map[uint64]*namespaceDomain
	told    Domains // what was last taken of Options.Domains; nil: nothing
	fresh   bool    // points came since
	used    []bool  // by place: its points are live or leaving
	free    int
}

type namespaceDomain struct {
	points int
	domain *atomic.Uint64 // nil: no device had one
}

type point struct {
	id       uint16
	at       flows.Point
	domain   *atomic.Uint64 // of its namespace; nil: the namespace alone
	told     atomic.Uint64  // of the device, by Options.Domains; 0: not known, its namespace's
	class    atomic.Uint32  // flows.PointClass
	hop      flows.Hop      // guarded by pointTable.mu, as is what follows
	err      string
	attached bool
	leaving  int  // drains begun since it was detached, plus one; 0: live
	gone     bool // its last account was made

	base   flows.PointAccount // what the counters held when the place was given out
	before flows.Count
}

// goneAfter drains the last packets of a detached point have been read.
const goneAfter = 3

// watchedHooks are those that a place counts.
var watchedHooks = []flows.Hook{flows.HookIngress, flows.HookEgress, flows.HookXDP}

func (t *pointTable) open(o *objects) error {
	t.size = o.size
	t.byID = make([]atomic.Pointer[point], o.size.places*hooks)
	t.byAt = map[flows.Point]*point{}
	t.domains = map[uint64]*namespaceDomain{}
	t.used = make([]bool, o.size.places)
	t.used[0] = true
	t.free = o.size.places/2 - 1
	for _, h := range watchedHooks {
		p := &point{id: uint16(h), at: flows.Point{Hook: h}, attached: true}
		t.byID[p.id].Store(p)
	}
	var err error
	if t.places, err = mapArray[bpf.FlowLinkPlace](o.maps[bpf.FlowMapPlaces], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	t.rare, err = mapArray[bpf.FlowPointRare](o.maps[bpf.FlowMapRare], unix.PROT_READ)
	return err
}

func (t *pointTable) close() error { return errors.Join(t.places.close(), t.rare.close()) }

// firstPlace is where the programs of a namespace begin to look.
func firstPlace(netns uint32) uint32 { return netns * 40503 }

var errNoPlace = errors.New("no place for a further interface: raise dataplane.max_interfaces, or watch fewer")

// add gives an interface a place and a point for each hook. The caller attaches
// programs when it returns.
func (t *pointTable) add(netns uint32, l2Len uint8, at flows.Point, hop flows.Hop, domain *atomic.Uint64, on []flows.Hook) ([]*point, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if points := t.revive(netns, l2Len, at, hop, on); points != nil {
		return points, nil
	}
	place := 0
	for i := range maxProbes {
		c := int(firstPlace(netns)+at.Ifindex+uint32(i)) & (t.size.places - 1)
		if !t.used[c] {
			place = c
			break
		}
	}
	if place == 0 || t.free == 0 {
		return nil, errNoPlace
	}
	t.used[place] = true
	t.free--
	var points []*point
	for _, h := range on {
		at.Hook = h
		p := &point{id: uint16(place*hooks + int(h)), at: at, hop: hop, domain: domain}
		p.base = t.read(p.id)
		t.byID[p.id].Store(p)
		t.byAt[at] = p
		points = append(points, p)
	}
	t.identify(place, at.Ifindex, netns, l2Len)
	d := t.domains[at.Netns]
	if d == nil {
		d = &namespaceDomain{}
		t.domains[at.Netns] = d
	}
	t.fresh = true
	d.points += len(points)
	d.domain = cmp.Or(domain, d.domain)
	return points, nil
}

// revive goes on with the points of an interface that is back before their last
// account: a second account of the same point beside it could not add up.
func (t *pointTable) revive(netns uint32, l2Len uint8, at flows.Point, hop flows.Hop, on []flows.Hook) []*point {
	var points []*point
	for _, h := range on {
		at.Hook = h
		p := t.byAt[at]
		if p == nil || p.leaving == 0 || p.gone {
			return nil
		}
		points = append(points, p)
	}
	for _, p := range points {
		p.hop, p.err, p.leaving = hop, "", 0
	}
	t.identify(int(points[0].id)/hooks, at.Ifindex, netns, l2Len)
	return points
}

// identify writes whose place it is, for every CPU; ifindex 0: nobody's.
func (t *pointTable) identify(place int, ifindex, netns uint32, l2Len uint8) {
	for cpu := range t.size.cpus {
		l := &t.places.v[cpu*t.size.places+place]
		l.L2Len = l2Len
		atomic.StoreUint32(&l.Netns, netns)
		atomic.StoreUint32(&l.Ifindex, ifindex)
	}
}

func (t *pointTable) set(p *point, attached bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.attached, p.err = attached, ""
	if err != nil {
		p.err = err.Error()
	}
}

// tried notes how often a point was refused and when it is tried again.
func (t *pointTable) tried(p *point, times int, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.err != "" {
		p.err = fmt.Sprintf("%s (tried %d times, next at %s)", p.err, times, next.UTC().Format(time.TimeOnly+"Z"))
	}
}

func (t *pointTable) rename(p *point, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.hop.Interface = name
}

// retire is told that the interface's programs are detached: frames of it that
// are still under way count as unplaced.
func (t *pointTable) retire(points []*point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range points {
		t.identify(int(p.id)/hooks, 0, 0, 0)
		p.attached, p.leaving = false, 1
	}
}

func (t *pointTable) hop(at flows.Point) (flows.Hop, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byAt[at]; p != nil {
		return p.hop, true
	}
	return flows.Hop{}, false
}

// tell takes what Options.Domains knows now. A device that it does not know keeps
// what was known before: it may be gone, with packets that are still to be read.
func (t *pointTable) tell(now Domains) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now == nil || now == t.told && !t.fresh {
		return
	}
	t.told, t.fresh = now, false
	for _, p := range t.byAt {
		if d := now.Domain(p.at.Netns, p.at.Ifindex); d != 0 {
			p.told.Store(d)
		}
	}
}

// domainOf is the domain of a device; of another place, or none, in a namespace that
// of the namespace. 0: it was never watched.
func (t *pointTable) domainOf(netns uint64, ifindex uint32) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range watchedHooks {
		if p := t.byAt[flows.Point{Netns: netns, Ifindex: ifindex, Hook: h}]; p != nil && p.domain != nil {
			return p.domainNow()
		}
	}
	if t.told != nil && t.domains[netns] != nil {
		if d := t.told.Domain(netns, 0); d != 0 {
			return d
		}
	}
	if d := t.domains[netns]; d != nil && d.domain != nil {
		return d.domain.Load()
	}
	return 0
}

// classify writes the kind of device at the points of an interface.
func (t *pointTable) classify(points []*point, class flows.PointClass) {
	for _, p := range points {
		p.class.Store(uint32(class))
	}
	for cpu := range t.size.cpus {
		t.places.v[cpu*t.size.places+int(points[0].id)/hooks].Class = uint8(class)
	}
}

// place fills where a sample was seen, from the number that the kernel put into
// its key.
func (t *pointTable) place(s *flows.Sample, id uint16) {
	s.At, s.Domain, s.Class = flows.Point{}, 0, 0
	if int(id) >= len(t.byID) {
		return
	}
	if p := t.byID[id].Load(); p != nil {
		s.At, s.Class = p.at, flows.PointClass(p.class.Load())
		s.Domain = p.domainNow()
	}
}

func (p *point) domainNow() uint64 {
	if p.domain == nil {
		return 0
	}
	return cmp.Or(p.told.Load(), p.domain.Load())
}

// read is what the kernel counted under a number since the maps were made.
// Skipped is read before After, so that flows + skipped never exceed it.
func (t *pointTable) read(id uint16) flows.PointAccount {
	var a flows.PointAccount
	for shard := range t.size.shards {
		r := &t.rare.v[shard*t.size.places*hooks+int(id)]
		for i := range int(flows.SkipConversationLimit) {
			a.Skipped[i].Add(load(&r.Skipped[i].Packets, &r.Skipped[i].Bytes))
		}
		a.GSO.Add(load(&r.Gso.Packets, &r.Gso.Bytes))
	}
	a.After = t.seen(id)
	return a
}

// seen sums the CPUs' counters.
func (t *pointTable) seen(id uint16) (c flows.Count) {
	place, hook := int(id)/hooks, int(id)%hooks
	for cpu := range t.size.cpus {
		s := &t.places.v[cpu*t.size.places+place].Seen[hook-1]
		c.Add(load(&s.Packets, &s.Bytes))
	}
	return c
}

func load(packets, bytes *uint64) flows.Count {
	return flows.Count{Packets: atomic.LoadUint64(packets), Bytes: atomic.LoadUint64(bytes)}
}

// status lists the points by namespace, device and hook.
func (t *pointTable) status() []PointStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []PointStatus
	for i := hooks; i < len(t.byID); i++ {
		if p := t.byID[i].Load(); p != nil && p.leaving == 0 {
			out = append(out, PointStatus{At: p.at, Hop: p.hop, Attached: p.attached, Err: p.err})
		}
	}
	slices.SortFunc(out, func(a, b PointStatus) int {
		if c := strings.Compare(a.Hop.Netns, b.Hop.Netns); c != 0 {
			return c
		}
		if a.At.Ifindex != b.At.Ifindex {
			return int(a.At.Ifindex) - int(b.At.Ifindex)
		}
		return int(a.At.Hook) - int(b.At.Hook)
	})
	return out
}
