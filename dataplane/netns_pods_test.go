// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// nsPods is two pods on a bridge of the host, whose ends of the pairs are watched,
// as are the bridge and the pods' own ends. Nothing is larger than the MTU, so that
// interfaces count what the wire has.
type nsPods struct {
	host, one, two *nsSpace
	a              *nsAgent
}

func nsBridged(t *testing.T, o Options, mtu int) *nsPods {
	t.Helper()
	return nsBridgedFolding(t, o, mtu, flows.TableOptions{})
}

func nsBridgedFolding(t *testing.T, o Options, mtu int, fold flows.TableOptions) *nsPods {
	t.Helper()
	p := &nsPods{host: nsHost(t), one: nsNew(t, "one"), two: nsNew(t, "two")}
	o.Netns = []string{"one", "two"}
	p.a = nsStartFolding(t, o, flows.NewTable(fold))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "br0", mtu
	if !p.host.add(&netlink.Bridge{LinkAttrs: attrs}) {
		t.Fatal("this kernel has no bridge")
	}
	for name, pod := range map[string]*nsSpace{"pod1": p.one, "pod2": p.two} {
		p.host.veth(name, pod, "eth0", mtu)
		for _, x := range []nsEnd{{p.host, name}, {pod, "eth0"}} {
			x.in.offload(x.name, false, nsSegmentation)
			x.in.offload(x.name, false, nsTagging)
		}
		if err := p.host.h.LinkSetMaster(p.host.link(name), p.host.link("br0")); err != nil {
			t.Fatal(err)
		}
	}
	p.host.up("br0", "10.3.0.1/24", "fd03::1/64")
	p.host.up("pod1")
	p.host.up("pod2")
	p.one.up("eth0", "10.3.0.11/24", "fd03::11/64")
	p.two.up("eth0", "10.3.0.12/24", "fd03::12/64")
	ends := []nsEnd{{p.host, "br0"}, {p.host, "pod1"}, {p.host, "pod2"}, {p.one, "eth0"}, {p.two, "eth0"}}
	for _, x := range ends {
		x.in.carry(x.name)
		p.a.await(x.in, x.name)
	}
	for _, x := range ends[1:] {
		p.a.expect(x.in, x.name, true)
	}
	return p
}

// path is the points that a packet from pod one to pod two passes.
func (p *nsPods) path() []nsAt {
	return []nsAt{
		{nsEnd{p.one, "eth0"}, flows.HookEgress}, {nsEnd{p.host, "pod1"}, flows.HookIngress},
		{nsEnd{p.host, "pod2"}, flows.HookEgress}, {nsEnd{p.two, "eth0"}, flows.HookIngress},
	}
}

// TestPodToPodIsCountedOnceWithEachHopsOwnFigures sends known datagrams and a TCP
// connection between two pods. Every point's samples must be what was sent, and
// the folded conversation, one in the three namespaces that the veth pairs join,
// must count it once.
func TestPodToPodIsCountedOnceWithEachHopsOwnFigures(t *testing.T) {
	for i, kind := range nsAllKinds(t) {
		mtu := []int{1500, 9000, 9000, 1500}[i]
		t.Run(fmt.Sprintf("%s/MTU %d", kind, mtu), func(t *testing.T) {
			p := nsBridged(t, Options{Hooks: kind.hooks, Backend: kind.backend}, mtu)
			const count, size = 300, 700
			from4, to4 := p.one.udp(p.two, "10.3.0.12", count, size)
			from6, to6 := p.one.udp(p.two, "fd03::12", count, size)
			tcp := p.one.tcp(p.two, "10.3.0.12", 2<<20)
			for _, x := range p.path() {
				x.in.settle(x.name)
			}
			p.a.stop()
			sent4 := flows.Count{Packets: count, Bytes: count * (14 + 20 + 8 + size)}
			sent6 := flows.Count{Packets: count, Bytes: count * (14 + 40 + 8 + size)}
			p.conversation(t, flows.Key{Src: from4, Dst: to4, Proto: flows.ProtoUDP}, sent4)
			p.conversation(t, flows.Key{Src: from6, Dst: to6, Proto: flows.ProtoUDP}, sent6)
			p.connection(t, tcp, 2<<20)
		})
	}
}

// conversation checks every point of the path, and the folded records.
func (p *nsPods) conversation(t *testing.T, key flows.Key, want flows.Count) {
	t.Helper()
	for _, x := range p.path() {
		at := p.a.at(x.in, x.name, x.hook)
		if got := p.a.sum(at, func(f nsFlow) bool { return f.Key == key }); got != want {
			t.Errorf("%s: %s: got %+v, sent %+v", key, x, got, want)
		}
	}
	totals, hops := flows.Count{}, map[flows.Point]flows.Count{}
	for _, r := range p.folded() {
		if r.Key != key {
			continue
		}
		totals.Add(flows.Count{Packets: r.Packets, Bytes: r.Bytes})
		if r.ReversePackets != 0 {
			t.Errorf("%s: %d packets came back, want none", key, r.ReversePackets)
		}
		for _, h := range r.Hops {
			add(hops, h.At, flows.Count{Packets: h.Packets, Bytes: h.Bytes})
		}
	}
	if totals != want {
		t.Errorf("%s: the conversation's total: got %+v, want %+v = 1.000 x what was sent", key, totals, want)
	}
	for _, x := range p.path() {
		if h := hops[p.a.at(x.in, x.name, x.hook)]; h != want {
			t.Errorf("%s: hop %s: got %+v, want %+v", key, x, h, want)
		}
	}
	if len(hops) != len(p.path()) {
		t.Errorf("%s: got %d hops, want %d", key, len(hops), len(p.path()))
	}
}

func add[K comparable](to map[K]flows.Count, k K, n flows.Count) { to[k] = to[k].Plus(n) }

// connection checks that all points agree about a TCP connection of n bytes from
// an address, in both directions, and that the conversation's totals are theirs.
func (p *nsPods) connection(t *testing.T, from netip.AddrPort, n int) {
	t.Helper()
	var want, back flows.Count
	for i, x := range p.path() {
		there := p.a.sum(p.a.at(x.in, x.name, x.hook), func(f nsFlow) bool { return f.Key.Src == from })
		opposite := map[flows.Hook]flows.Hook{flows.HookIngress: flows.HookEgress, flows.HookEgress: flows.HookIngress}[x.hook]
		here := p.a.sum(p.a.at(x.in, x.name, opposite), func(f nsFlow) bool { return f.Key.Dst == from })
		if i == 0 {
			want, back = there, here
		}
		if there != want || here != back {
			t.Errorf("TCP from %s: %s: got %+v and back %+v, want %+v and back %+v as at the source", from, x, there, here, want, back)
		}
	}
	// Ethernet, IPv4, TCP with timestamps; SYN has 8 bytes of options more
	if payload := int(want.Bytes) - int(want.Packets)*(14+20+32) - 8; payload < n || payload > n+n/10 {
		t.Errorf("TCP from %s: %+v carry %d bytes, want %d and no more than a few retransmitted", from, want, payload, n)
	}
	var got, gotBack flows.Count
	for _, r := range p.folded() {
		if r.Key.Src == from && r.Key.Proto == flows.ProtoTCP {
			got.Add(flows.Count{Packets: r.Packets, Bytes: r.Bytes})
			gotBack.Add(flows.Count{Packets: r.ReversePackets, Bytes: r.ReverseBytes})
			if r.Initiator != flows.InitiatorSYN || r.ConnectionID == 0 {
				t.Errorf("TCP from %s: initiator %s, connection %x: want syn and an id, as the handshake was seen", from, r.Initiator, r.ConnectionID)
			}
		}
	}
	if got != want || gotBack != back {
		t.Errorf("TCP from %s: the conversation's totals: got %+v and back %+v, want %+v and back %+v", from, got, gotBack, want, back)
	}
}

// folded is every record of the agent, which has stopped, and checks the ledger.
func (p *nsPods) folded() []flows.Record {
	p.a.t.Helper()
	p.a.records = append(p.a.records, p.a.table.Close(time.Now()).Records...)
	if err := p.a.ledger.Check(); err != nil {
		p.a.t.Error(err)
	}
	return p.a.records
}

// TestBridgeCountsWhatItsOwnPortCounts compares the bridge's own point; a bridge
// counts what it passes up without the link header.
func TestBridgeCountsWhatItsOwnPortCounts(t *testing.T) {
	p := nsBridged(t, Options{}, 1500)
	began, seen := p.a.still(p.host, "br0")
	p.one.tcp(p.host, "10.3.0.1", 1<<20)
	p.one.udp(p.host, "fd03::1", 100, 8000)
	p.host.tcp(p.two, "10.3.0.12", 1<<20)
	c, now := p.a.still(p.host, "br0")
	rx, tx := minus(c.rx, began.rx), minus(c.tx, began.tx)
	rx.Bytes += 14 * rx.Packets
	for hook, want := range map[flows.Hook]flows.Count{flows.HookIngress: rx, flows.HookEgress: tx} {
		if got := minus(minus(now[hook].After, seen[hook].After), minus(now[hook].GSO, seen[hook].GSO)); got != want {
			t.Errorf("br0 %s: got %+v, the interface counted %+v", hook, got, want)
		}
	}
	p.a.stop()
}
