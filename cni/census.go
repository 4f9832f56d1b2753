// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultRuntimes are the sockets of container runtimes that are looked for.
var DefaultRuntimes = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock"}

// CensusOptions say whom to ask. The zero value asks nobody but the topology.
type CensusOptions struct {
	Log  *slog.Logger // nil: nowhere
	Node string       // what this machine is called; empty: its host name

	Containers bool     // ask the runtimes and read what CNI left
	Runtimes   []string // sockets; nil: DefaultRuntimes
	Results    string   // of libcni; empty: DefaultResults
	Leases     string   // of host-local; empty: DefaultLeases
	Docker     string   // folder with Docker's containers; empty: DefaultDocker
	Podman     string   // folder of Podman's storage; empty: DefaultPodman

	Processes  bool     // look for the owners of sockets that the kernel has not named
	Conntrack  bool     // follow which connections' addresses the kernel translates, in the agent's own namespace
	Tracked    []string // and in these: paths, names of ip netns, or "all"
	Kubernetes bool     // follow the API server, where something says how to reach one
	Kubeconfig string   // file; empty: as a pod is told
}

// Census finds out who has which address, and since when. Its goroutines ask; what
// they learn is in the resolver at once.
type Census struct {
	opts      CensusOptions
	log       *slog.Logger
	topology  func() *Topology
	resolver  *Resolver
	runtimes  []*runtimeSource
	kube      *kubernetes // nil: not to be followed
	nat       *conntrack  // nil: the same
	sockets   *sockets    // nil: not to be asked for
	files     cniFiles
	disk      *onDisk
	changed   chan struct{}
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	annotated annotated
	networks  atomic.Pointer[Networks]
	nameless  atomic.Pointer[[]Nameless]

	// The counting goroutine's.
	last     *Topology
	attached map[string][]*attachment // by container
	spaces   map[uint64]*resident     // by cookie
	asked    map[string]time.Time     // containers of which a runtime has more to say, and when they were met
}

// countEvery is how often the census looks whether the topology has changed, and
// filesEvery how often it reads what CNI left; a change of the topology reads it too.
const (
	countEvery  = 50 * time.Millisecond
	filesEvery  = 5 * time.Second
	forgetEvery = 30 * time.Second
	// backdate is how long before it was met an address may have been in use, where
	// nothing tells when it was given.
	backdate = 1500 * time.Millisecond
	// givenBefore is how long before its result was written CNI gave an address.
	givenBefore = 100 * time.Millisecond
)

// OpenCensus begins to count. topology gives the latest one, as [Mirror.Topology].
func OpenCensus(topology func() *Topology, opts CensusOptions) *Census {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Node == "" {
		opts.Node, _ = os.Hostname() // without a name it has none
	}
	if opts.Results == "" {
		opts.Results = DefaultResults
	}
	if opts.Leases == "" {
		opts.Leases = DefaultLeases
	}
	asked := len(opts.Runtimes) > 0 // else they are only looked for
	if !asked {
		opts.Runtimes = DefaultRuntimes
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Census{
		opts: opts, log: opts.Log, topology: topology, resolver: NewResolver(), changed: make(chan struct{}, 1), cancel: cancel,
		files:    cniFiles{results: opts.Results, leases: opts.Leases, health: health{name: "cni " + opts.Results}},
		disk:     newOnDisk(cmp.Or(opts.Docker, DefaultDocker), cmp.Or(opts.Podman, DefaultPodman)),
		attached: map[string][]*attachment{}, spaces: map[uint64]*resident{}, asked: map[string]time.Time{},
	}
	if opts.Containers {
		for _, socket := range opts.Runtimes {
			s := newRuntimeSource(socket, opts.Log, c.tell)
			s.asked = asked && !slices.Contains(DefaultRuntimes, socket)
			c.runtimes = append(c.runtimes, s)
			c.wg.Go(func() { s.run(ctx) })
		}
		c.readFiles()
	}
	if opts.Kubernetes {
		own := topology().Spaces[0].Netns
		c.kube = newKubernetes(opts.Log, c.resolver, func() uint64 { return own }, c.tell)
		c.wg.Go(func() { c.kube.open(ctx, opts.Kubeconfig) })
	}
	if opts.Conntrack {
		c.nat = newConntrack(opts.Log, func() []*Space { return among(topology().Spaces, opts.Tracked) })
		c.wg.Go(func() { c.nat.run(ctx) })
	}
	if opts.Processes {
		c.sockets = newSockets(opts.Log, topology)
		c.wg.Go(func() { c.sockets.run(ctx) })
	}
	c.count(true)
	c.wg.Go(func() { c.run(ctx) })
	return c
}

// Close ends the counting. The resolver still answers.
func (c *Census) Close() {
	c.cancel()
	c.wg.Wait()
}

// Resolver answers from what has been counted.
func (c *Census) Resolver() *Resolver { return c.resolver }

// Status is how every source does. Any goroutine may ask.
func (c *Census) Status() []SourceStatus {
	var all []SourceStatus
	for _, s := range c.runtimes {
		all = append(all, s.status(len(*s.known.Load())))
	}
	if c.opts.Containers {
		all = append(all, c.files.status(int(c.files.count.Load())), c.disk.status(len(*c.disk.known.Load())))
	}
	if c.sockets != nil {
		all = append(all, c.sockets.status())
	}
	if c.nat != nil {
		all = append(all, c.nat.state())
	}
	if c.kube != nil {
		all = append(all, c.kube.statuses()...)
	}
	return all
}

// tell asks for a new count. Any goroutine may call it.
func (c *Census) tell() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *Census) run(ctx context.Context) {
	look, files, forget := time.NewTicker(countEvery), time.NewTicker(filesEvery), time.NewTicker(forgetEvery)
	defer look.Stop()
	defer files.Stop()
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			select {
			case <-c.changed:
				c.count(true)
			default:
				c.count(false)
			}
		case <-files.C:
			if c.opts.Containers && c.readFiles() {
				c.count(true)
			}
			c.noteNameless(time.Now())
		case <-forget.C:
			c.resolver.forget(time.Now().UnixNano(), c.topology().domains)
		}
	}
}

// readFiles reads what CNI, Docker and Podman wrote down; false: it is as it was.
func (c *Census) readFiles() bool {
	named := c.disk.list(c.log)
	all, err := c.files.list()
	c.files.say(c.log, err)
	c.files.count.Store(int64(len(all)))
	by := map[string][]*attachment{}
	for _, a := range all {
		by[a.ContainerID] = append(by[a.ContainerID], a)
	}
	if maps.EqualFunc(by, c.attached, func(a, b []*attachment) bool { return sameAttachments(a, b) }) {
		return named
	}
	c.attached = by
	c.noteNetworks(all)
	return true
}

func sameAttachments(a, b []*attachment) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x *attachment) bool { return !slices.Contains(b, x) })
}

// count brings the resolver up to date, if the topology has changed or anyway.
func (c *Census) count(anyway bool) {
	t := c.topology()
	if t == c.last && !anyway {
		if len(c.asked) > 0 {
			c.ask()
		}
		return
	}
	first := c.last == nil
	if t != c.last && !first && c.opts.Containers {
		c.readFiles()
	}
	c.last = t
	c.resolver.joined(t.At.UnixNano(), t.domains)
	there := map[uint64]bool{}
	all := make([]telling, 0, len(t.Spaces))
	for _, s := range t.Spaces {
		there[s.Netns] = true
		all = append(all, telling{ownerOfSpace(s.Netns), c.space(s, t, first)})
	}
	for cookie := range c.spaces {
		if !there[cookie] {
			all = append(all, telling{ownerOfSpace(cookie), nil})
			delete(c.spaces, cookie)
		}
	}
	c.resolver.holdAll(t.At.UnixNano(), all)
	c.ask()
}

func ownerOfSpace(cookie uint64) owner {
	return owner{ownerNamespace, strconv.FormatUint(cookie, 16)}
}

// space is what a namespace has, and who is in it.
func (c *Census) space(s *Space, t *Topology, first bool) []claim {
	was := c.spaces[s.Netns]
	if was == nil {
		was = &resident{since: map[spot]int64{}}
		c.spaces[s.Netns] = was
	}
	who, attached := c.describe(s)
	if was.who == nil || !reflect.DeepEqual(was.who, who) {
		was.who = who
	}
	handed := was.handedOver(s, t.At)
	var claims []claim
	since := map[spot]int64{}
	add := func(a claim) {
		p := spot{a.space, a.addr}
		if i := slices.IndexFunc(claims, func(b claim) bool { return b.addr == a.addr && b.space == a.space }); i >= 0 {
			claims[i].near = append(claims[i].near, a.near...) // one address on two devices
			return
		}
		from, known := was.since[p]
		if !known && !first {
			from, a.guess = bornAt(t.At, attached, a.addr)
		} else if handed != 0 {
			from, a.anew = handed, true
		}
		since[p], a.from, a.who = from, from, was.who
		claims = append(claims, a)
	}
	for _, d := range s.Devices {
		for _, p := range d.Addrs {
			add(claim{space: d.segment, addr: p.Addr().WithZone("").Unmap(), near: nearTo(d), rank: rankSeen})
		}
	}
	for _, a := range attached {
		for _, addr := range a.Addrs {
			var near []device
			for _, d := range s.Devices {
				if !d.Loopback {
					near = append(near, nearTo(d)...)
				}
			}
			add(claim{space: s.Netns, addr: addr, near: near, rank: rankLeased})
		}
	}
	was.since = since
	return claims
}

// bornAt is since when an address that was met now is in use: since CNI gave it, else
// a guess.
func bornAt(met time.Time, attached []*attachment, addr netip.Addr) (from int64, guess bool) {
	for _, a := range attached {
		if slices.Contains(a.Addrs, addr) && a.Since.Before(met) {
			return a.Since.Add(-givenBefore).UnixNano(), false
		}
	}
	return met.Add(-backdate).UnixNano(), true
}

// nearTo is the devices that a packet of d's holder passes.
func nearTo(d *Device) []device {
	near := []device{{d.Space.Netns, d.Index}}
	for _, other := range []*Device{d.Far, d.Under} {
		if other != nil {
			near = append(near, device{other.Space.Netns, other.Index})
		}
	}
	return near
}

// askFor is how long runtimes are asked again and again for a new container's name, and
// for what runs in a new pod: that is made after the pod's own container.
const askFor = 10 * time.Second

// ask has the runtimes list again, for askFor, when a container was met that none of
// them names, or a pod that nothing runs in yet.
func (c *Census) ask() {
	now, look := map[string]time.Time{}, false
	for _, s := range c.last.Spaces {
		for _, ct := range s.Containers {
			n := c.named(ct.ID)
			if n != nil && (n.Sandbox != n.ID || len(c.within(n.ID)) > 0) {
				continue
			}
			met, asked := c.asked[ct.ID]
			if !asked {
				met = time.Now()
			}
			now[ct.ID] = met
			look = look || time.Since(met) < askFor
		}
	}
	if c.asked = now; !look {
		return
	}
	for _, r := range c.runtimes {
		r.look()
	}
}

// within is what runs in a pod's sandbox, without that.
func (c *Census) within(sandbox string) []*contained {
	for _, r := range c.runtimes {
		if all := r.within(sandbox); len(all) > 0 {
			return all
		}
	}
	return nil
}

// named is what a runtime says of a container; nil: none knows it.
func (c *Census) named(id string) *contained {
	for _, r := range c.runtimes {
		if n := r.find(id); n != nil {
			return n
		}
	}
	return c.disk.find(id)
}
