// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// dropAgent is a data plane that traces drops, and what it said of them. When it
// stops, the account of drops must balance.
type dropAgent struct {
	t      testing.TB
	d      *Dataplane
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex
	samples map[dropOf]flows.DropSample // sums
	account flows.DropAccount
	before  uint64 // of the drain before
	drained uint64 // summed here
	devices []flows.DeviceDrops
	drains  int
	wrong   []string
	stopped bool
}

// dropOf is what makes a drop.
type dropOf struct {
	key              flows.Key
	at               flows.Point
	reason, location string
	overflow         bool
}

func dropStart(t testing.TB, o Options) *dropAgent {
	t.Helper()
	nsRequire(t)
	o.Drops, o.Interval, o.Slots = true, 10*time.Millisecond, 4096
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if d.drops == nil {
		_ = d.Close() // what matters is why
		t.Fatalf("drops are not traced: %+v", d.off["drop tracing"])
	}
	a := &dropAgent{t: t, d: d, done: make(chan error, 1), samples: map[dropOf]flows.DropSample{}}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	out := make(chan flows.Batch)
	go func() { a.done <- d.Run(ctx, out) }()
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for b := range out {
			a.take(b)
		}
	}()
	t.Cleanup(a.stop)
	return a
}

func (a *dropAgent) take(b flows.Batch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range b.Drops {
		a.drained += s.Packets
		if s.First > s.Last || s.Packets == 0 {
			a.wrong = append(a.wrong, fmt.Sprintf("%+v: first is after last, or there is no packet", s))
		}
		k := dropOf{s.Key, s.At, s.Reason, s.Location, s.Overflow}
		sum, known := a.samples[k]
		if !known {
			a.samples[k] = s
			continue
		}
		sum.Packets += s.Packets
		sum.Bytes += s.Bytes
		sum.Last = s.Last
		a.samples[k] = sum
	}
	if !b.Final {
		return
	}
	a.drains++
	a.devices = slices.Clone(b.Seen.Devices)
	acct := b.Seen.Drops
	if acct.Drained != a.drained || acct.Drained+acct.Lost > acct.Seen || acct.Drained+acct.Lost < a.before {
		a.wrong = append(a.wrong, fmt.Sprintf("the samples add up to %d, the last Before was %d: %+v", a.drained, a.before, acct))
	}
	a.account, a.before = acct, acct.Before
}

// stop ends the agent and checks the account. It may be called twice.
func (a *dropAgent) stop() {
	a.t.Helper()
	if a.stopped {
		return
	}
	a.stopped = true
	a.cancel()
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("run: %v", err)
		}
	case <-time.After(nsPatience):
		a.t.Fatal("Run does not end within 20 s of its context")
	}
	if err := a.d.Close(); err != nil {
		a.t.Errorf("close: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if acct := a.account; acct.Seen != acct.Drained+acct.Lost {
		a.wrong = append(a.wrong, fmt.Sprintf("seen %d, drained %d + lost %d", acct.Seen, acct.Drained, acct.Lost))
	}
	for _, w := range a.wrong {
		a.t.Error(w)
	}
	a.t.Logf("%d drains, %+v", a.drains, a.account)
}

// in lists the drops in a namespace that match.
func (a *dropAgent) in(n *nsSpace, match func(flows.DropSample) bool) []flows.DropSample {
	cookie := n.cookie()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []flows.DropSample
	for s := range maps.Values(a.samples) {
		if s.At.Netns == cookie && match(s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b flows.DropSample) int { return strings.Compare(a.Reason, b.Reason) })
	return out
}

func dropPackets(drops []flows.DropSample) (sum uint64) {
	for _, s := range drops {
		sum += s.Packets
	}
	return sum
}

// passed waits until everything dropped until now has been drained.
func (a *dropAgent) passed() {
	a.t.Helper()
	a.mu.Lock()
	from := a.drains
	a.mu.Unlock()
	nsUntil(a.t, "two drains", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.drains >= from+2
	})
}

// dropNet is client -- router -- server, all in namespaces of their own.
type dropNet struct {
	client, router, server *nsSpace
	a                      *dropAgent
}

const (
	dropServer4 = "10.2.0.2"
	dropServer6 = "fd02::2"
)

// dropRouted makes the network first and starts the agent when it is quiet.
func dropRouted(t *testing.T, o Options) *dropNet {
	t.Helper()
	r := &dropNet{client: nsNew(t, "client"), router: nsNew(t, "router"), server: nsNew(t, "server")}
	r.router.veth("w0", r.client, "eth0", 1500)
	r.router.veth("w1", r.server, "eth0", 1500)
	r.router.up("lo")
	r.client.up("lo")
	r.server.up("lo")
	r.router.up("w0", "10.1.0.1/24", "fd01::1/64")
	r.router.up("w1", "10.2.0.1/24", "fd02::1/64")
	r.client.up("eth0", "10.1.0.2/24", "fd01::2/64")
	r.server.up("eth0", "10.2.0.2/24", "fd02::2/64")
	for _, n := range []*nsSpace{r.client, r.server} {
		n.carry("eth0")
	}
	r.router.carry("w0")
	r.router.carry("w1")
	for _, f := range [][2]string{{"10.1.0.2", "w0"}, {"fd01::2", "w0"}} {
		r.router.knows(f[0], f[1], r.client.mac("eth0"))
	}
	for _, f := range [][2]string{{"10.2.0.2", "w1"}, {"fd02::2", "w1"}} {
		r.router.knows(f[0], f[1], r.server.mac("eth0"))
	}
	r.client.route("0.0.0.0/0", "10.1.0.1")
	r.client.route("::/0", "fd01::1")
	r.server.route("10.1.0.0/24", "10.2.0.1")
	r.server.route("fd01::/64", "fd02::1")
	for _, x := range []struct {
		n         *nsSpace
		addr, dev string
		mac       net.HardwareAddr
	}{
		{r.client, "10.1.0.1", "eth0", r.router.mac("w0")}, {r.client, "fd01::1", "eth0", r.router.mac("w0")},
		{r.server, "10.2.0.1", "eth0", r.router.mac("w1")}, {r.server, "fd02::1", "eth0", r.router.mac("w1")},
	} {
		x.n.knows(x.addr, x.dev, x.mac)
	}
	o.Netns = []string{"client"} // whose device counters are read; drops come from everywhere
	r.a = dropStart(t, o)
	return r
}

// sysctl sets a key of net/ in the namespace.
func (n *nsSpace) sysctl(key, value string) {
	n.t.Helper()
	n.do(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0) })
}

// datagrams sends count datagrams of size bytes to an address, from one socket. It
// does not mind what comes back.
func (n *nsSpace) datagrams(to unix.Sockaddr, count, size int, options ...[3]int) {
	n.t.Helper()
	n.do(func() error {
		family := unix.AF_INET
		if _, ok := to.(*unix.SockaddrInet6); ok {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, o := range options {
			if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
				return fmt.Errorf("set socket option %v: %w", o, err)
			}
		}
		buf := make([]byte, size)
		for i := range count {
			if err := unix.Sendto(fd, buf, 0, to); err != nil {
				return fmt.Errorf("send datagram %d of %d: %w", i, count, err)
			}
		}
		return nil
	})
}
