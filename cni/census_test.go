// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openCensusOf counts what a mirror sees until the test ends.
func openCensusOf(t *testing.T, opts CensusOptions) *Census {
	m := openMirror(t, everything)
	c := OpenCensus(m.Topology, opts)
	t.Cleanup(c.Close)
	return c
}

func changeAddress(t *testing.T, ns, dev, prefix string, change func(h *netlink.Handle, l netlink.Link, a *netlink.Addr) error) {
	t.Helper()
	in(t, ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(dev)
		a, err2 := netlink.ParseAddr(prefix)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		return change(h, l, a)
	})
}

// isOf reports whether e is who is in a namespace that nothing but its name tells of.
func isOf(e *flows.Entity, path string) bool {
	return e != nil && strings.HasSuffix(e.Why, path[strings.LastIndexByte(path, '/')+1:])
}

func TestAddressReusedWithinASecondResolvesByTime(t *testing.T) {
	hub, a, b := newNetns(t, "hub"), newNetns(t, "a"), newNetns(t, "b")
	pairUp(t, hub, "to-a", a, "eth0")
	pairUp(t, hub, "to-b", b, "eth0")
	c := openCensusOf(t, CensusOptions{Log: quiet()})
	const prefix = "10.79.88.5/24"
	scope := flows.Scope{Netns: min(cookieOf(t, hub), cookieOf(t, a), cookieOf(t, b))}
	at := func(when time.Time) *flows.Entity {
		return c.Resolver().Resolve(scope, addrOf("10.79.88.5"), when.UnixNano())
	}
	del := func(h *netlink.Handle, l netlink.Link, a *netlink.Addr) error { return h.AddrDel(l, a) }
	addAddress(t, a, "eth0", prefix)
	given := time.Now()
	soonEnough(t, 5*time.Second, "a has the address", func() bool { return isOf(at(time.Now()), a) })
	if !isOf(at(given), a) {
		t.Errorf("when it was given: got %+v, want a", at(given))
	}
	for _, move := range []struct{ from, to string }{{a, b}, {b, a}, {a, b}} {
		last := time.Now()
		changeAddress(t, move.from, "eth0", prefix, del)
		addAddress(t, move.to, "eth0", prefix)
		moved := time.Now()
		soonEnough(t, 5*time.Second, "the other has the address", func() bool { return isOf(at(time.Now()), move.to) })
		if took := moved.Sub(last); took > time.Second {
			t.Fatalf("moving took %s, want less than a second", took)
		}
		if !isOf(at(last), move.from) {
			t.Errorf("before it moved from %s: got %+v", move.from, at(last))
		}
		if late := moved.Add(200 * time.Millisecond); !isOf(at(late), move.to) {
			t.Errorf("200 ms after it moved to %s: got %+v", move.to, at(late))
		}
	}
}

func TestTenantsOnTwoBridgesAreToldByTheHops(t *testing.T) {
	hub, red, blue := newNetns(t, "hub"), newNetns(t, "red"), newNetns(t, "blue")
	pairUp(t, hub, "to-red", red, "eth0")
	pairUp(t, hub, "to-blue", blue, "eth0")
	for _, ns := range []string{red, blue} {
		addAddress(t, ns, "eth0", "192.168.88.5/24")
	}
	c := openCensusOf(t, CensusOptions{Log: quiet()})
	device := func(name string) (at flows.Point) {
		in(t, hub, func(h *netlink.Handle) error {
			l, err := h.LinkByName(name)
			if err == nil {
				at = flows.Point{Netns: cookieOf(t, hub), Ifindex: uint32(l.Attrs().Index), Hook: flows.HookIngress}
			}
			return err
		})
		return at
	}
	record := func(by ...string) flows.Record {
		r := flows.Record{Scope: flows.Scope{Netns: cookieOf(t, hub)}, Start: time.Now(), End: time.Now()}
		r.Key = flows.Key{Src: addrPort("192.168.88.5:4000"), Dst: addrPort("192.168.88.9:80"), Proto: flows.ProtoTCP}
		for _, name := range by {
			r.Hops = append(r.Hops, flows.HopCount{At: device(name)})
		}
		c.Annotate(&r)
		return r
	}
	if r := record("to-red"); !isOf(r.Source, red) {
		t.Errorf("by red's device: got %+v", r.Source)
	}
	if r := record("to-blue"); !isOf(r.Source, blue) {
		t.Errorf("by blue's device: got %+v", r.Source)
	}
	if r := record("to-red", "to-blue"); r.Source != nil || r.Destination != nil {
		t.Errorf("by both devices: got %+v, want nobody", r.Source)
	}
	if n := c.Disputed(); n != 1 {
		t.Errorf("disputed: got %d ends, want 1", n)
	}
}

func TestOwnerOfASocketIsTold(t *testing.T) {
	needRoot(t)
	c := openCensusOf(t, CensusOptions{Log: quiet(), Node: "here"})
	self, err := readProcess(selfPID())
	if err != nil {
		t.Fatal(err)
	}
	r := flows.Record{Start: time.Now(), End: time.Now(), SourceProcess: &flows.Process{PID: selfPID(), Comm: self.Comm}}
	r.Key = flows.Key{Src: addrPort("203.0.113.1:4000"), Dst: addrPort("203.0.113.2:80"), Proto: flows.ProtoTCP}
	old := r
	old.End = startOf(self).Add(-time.Minute)
	c.Annotate(&r)
	if e := r.Source; e == nil || e.Process != self.Comm || e.PID != selfPID() || e.Node != "here" {
		t.Errorf("got %+v, want process %s on here", r.Source, self.Comm)
	}
	again := flows.Record{Key: r.Key, Start: r.Start, End: r.End, SourceProcess: r.SourceProcess}
	n := math.Inf(1)
	for range 10 { // those of the whole process are counted: the census may count meanwhile
		n = min(n, testing.AllocsPerRun(100, func() { again.Source = nil; c.Annotate(&again) }))
	}
	if n != 0 {
		t.Errorf("%v allocations for an owner that is known, want none", n)
	}
	old.Source, old.SourceProcess = nil, &flows.Process{PID: selfPID(), Comm: "before"}
	c.Annotate(&old)
	if e := old.Source; e == nil || e.Process != "before" || !strings.Contains(e.Why, "ended before") {
		t.Errorf("of a process that had this PID before: got %+v, want that it ended", old.Source)
	}
}

func TestASocketOfTheConfigurationIsMissed(t *testing.T) {
	s := newRuntimeSource(filepath.Join(t.TempDir(), "nowhere.sock"), slog.New(slog.DiscardHandler), func() {})
	if err := s.list(t.Context(), nil); !errors.Is(err, errAbsent) {
		t.Errorf("a socket that is looked for: got %v, want that it is not here", err)
	}
	s.asked = true
	if err := s.list(t.Context(), nil); err == nil || errors.Is(err, errAbsent) || !strings.Contains(err.Error(), "nowhere.sock") {
		t.Errorf("a socket of the configuration: got %v, want an error that names it", err)
	}
}

func TestGuestIsKnownByTheDeviceThatItsPacketsComeOutOf(t *testing.T) {
	vm, box, pod := &flows.Entity{Layer: flows.LayerVM, VM: "db", Confidence: 97}, &flows.Entity{Layer: flows.LayerSandbox, Sandbox: "s1", Confidence: 97}, &flows.Entity{Layer: flows.LayerContainer}
	bridge := &Device{Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}}
	top := &Topology{Spaces: []*Space{{Netns: 1, Entity: &flows.Entity{}}}, devices: map[place]*Device{
		{1, 2}: {Behind: vm, Master: bridge, Layer: flows.LayerParavirtual}, {1, 3}: {Behind: box}, {1, 4}: {Behind: pod}, {1, 5}: {Layer: flows.LayerHardware},
		{1, 6}: {Master: bridge}, {1, 7}: bridge,
	}}
	c := &Census{topology: func() *Topology { return top }, resolver: NewResolver(), opts: CensusOptions{Node: "n"}}
	hop := func(ifindex uint32, hook flows.Hook, reverse bool) flows.HopCount {
		return flows.HopCount{At: flows.Point{Netns: 1, Ifindex: ifindex, Hook: hook}, Reverse: reverse}
	}
	many := func(h flows.HopCount, packets uint64) flows.HopCount {
		h.Packets = packets
		return h
	}
	const in, out = flows.HookIngress, flows.HookEgress
	for _, c2 := range []struct {
		what     string
		hops     []flows.HopCount
		src, dst *flows.Entity
	}{
		{"machine to the world", []flows.HopCount{hop(2, in, false), hop(5, out, false)}, vm, nil},
		{"machine to sandbox", []flows.HopCount{hop(2, in, false), hop(3, out, false)}, vm, box},
		{"the answer alone", []flows.HopCount{hop(3, in, true), hop(2, out, true)}, vm, box},
		{"out of two machines", []flows.HopCount{hop(2, in, false), hop(3, in, false)}, nil, nil},
		{"flooded into both", []flows.HopCount{hop(5, in, false), hop(2, out, false), hop(3, out, false)}, nil, nil},
		{"container, whose addresses are seen", []flows.HopCount{hop(4, in, false)}, nil, nil},
		{"flooded into a machine and another port", []flows.HopCount{hop(7, in, false), many(hop(2, out, false), 3), many(hop(6, out, false), 3)}, nil, nil},
		{"the first packet flooded", []flows.HopCount{hop(2, out, false), many(hop(6, out, false), 9)}, nil, nil},
		{"the first packet flooded elsewhere", []flows.HopCount{many(hop(2, out, false), 9), hop(6, out, false)}, nil, vm},
		{"routed to the machine's bridge", []flows.HopCount{hop(5, in, false), hop(7, out, false), hop(2, out, false)}, nil, vm},
		{"to 224.0.0.22", []flows.HopCount{hop(2, out, false)}, nil, nil},
		{"to ff02::2", []flows.HopCount{hop(2, out, false)}, nil, nil},
		{"to 255.255.255.255", []flows.HopCount{hop(2, out, false)}, nil, nil},
		{"to 10.1.0.255", []flows.HopCount{hop(2, out, false)}, nil, nil},
		{"to 10.1.0.254", []flows.HopCount{hop(2, out, false)}, nil, vm},
	} {
		r := flows.Record{Hops: c2.hops, Start: time.Now(), End: time.Now()}
		r.Key = flows.Key{Src: addrPort("10.0.0.1:1"), Dst: addrPort("10.0.0.2:2"), Proto: flows.ProtoUDP}
		if to, ok := strings.CutPrefix(c2.what, "to "); ok {
			if a, err := netip.ParseAddr(to); err == nil {
				r.Key.Dst = netip.AddrPortFrom(a, 2)
			}
		}
		c.Annotate(&r)
		for _, h := range r.Hops {
			if want := top.Device(1, h.At.Ifindex).Layer; h.Layer != want {
				t.Errorf("%s: hop at %d: got layer %q, want the device's, %q", c2.what, h.At.Ifindex, h.Layer, want)
			}
		}
		for side, e := range map[string][2]*flows.Entity{"source": {r.Source, c2.src}, "destination": {r.Destination, c2.dst}} {
			got, want := e[0], e[1]
			if (got == nil) != (want == nil) || got != nil && (got.VM != want.VM || got.Sandbox != want.Sandbox || got.Confidence > 80 || got.Node != "n") {
				t.Errorf("%s, %s: got %+v, want %+v with at most 80 percent", c2.what, side, got, want)
			}
			if into := "go into"; got != nil && strings.HasPrefix(c2.what, "routed") && !strings.Contains(got.Why, into) {
				t.Errorf("%s, %s: got the reason %q, want that packets %s the device", c2.what, side, got.Why, into)
			}
		}
	}
}
