// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// TestGSOFramesCountAsTheWireHasThem sends frames larger than the MTU through the
// router, whose output device takes none: the kernel cuts them behind our hooks.
// What the hooks counted in front must be what the server's interface received.
func TestGSOFramesCountAsTheWireHasThem(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprintf("MTU %d", mtu), func(t *testing.T) {
			r := nsQuietNet(t, mtu)
			r.wire("TCP over IPv4", func() { r.client.tcp(r.server, nsServer4, 3<<20) })
			r.wire("TCP over IPv6", func() { r.client.tcp(r.server, nsServer6, 3<<20) })
			r.wire("UDP_SEGMENT over IPv4", func() { r.client.bursts(r.server, nsServer4, 20, 11000, 1200) })
			r.wire("UDP_SEGMENT over IPv6", func() { r.client.bursts(r.server, nsServer6, 20, 11000, 1200) })
		})
	}
}

// TestFramesOver64KCountAsTheWireHasThem is the same with BIG TCP, cut by the
// sender's own device: over IPv6 such frames carry a jumbo header between kernels
// that never is on the wire.
func TestFramesOver64KCountAsTheWireHasThem(t *testing.T) {
	r := nsRouted(t, Options{Netns: nsBoth[:1]}, 1500, true)
	l := r.client.link("eth0")
	if err := r.client.h.LinkSetGSOMaxSize(l, 180000); err != nil {
		t.Skipf("left out: this kernel has no BIG TCP: %v", err)
	}
	if err := r.client.h.LinkSetGSOIPv4MaxSize(l, 180000); err != nil {
		t.Logf("left out: BIG TCP over IPv4: %v", err)
	}
	for _, to := range []string{"10.1.0.1", "fd01::1"} {
		p := r.a.live(r.client, "eth0", flows.HookEgress)
		counted := r.client.settle("eth0").tx
		before, gso := r.a.seen(r.client, "eth0", flows.HookEgress), r.a.d.points.read(p.id).GSO
		r.client.tcp(r.host, to, 8<<20)
		want := minus(r.client.settle("eth0").tx, counted)
		got := minus(r.a.seen(r.client, "eth0", flows.HookEgress), before)
		if got != want {
			t.Errorf("TCP to %s: eth0 egress: got %+v, the interface sent %+v", to, got, want)
		}
		frames := got.Packets - minus(r.a.d.points.read(p.id).GSO, gso).Packets
		t.Logf("TCP to %s: %d packets in %d frames", to, got.Packets, frames)
		if frames > 8<<20/65536*2 {
			t.Logf("left out: BIG TCP to %s", to)
		}
	}
	r.settle()
	r.a.stop()
}

// wire checks that the points in front of the router's output device count of a
// transfer what the server's interface receives, and that they saw it in larger
// frames.
func (r *nsNet) wire(what string, send func()) {
	t := r.a.t
	t.Helper()
	before := r.server.settle("eth0")
	seen := map[string]flows.Count{}
	for _, x := range r.inputs() {
		seen[x.String()] = r.a.seen(x.in, x.name, x.hook)
	}
	p := r.a.live(r.host, "w0", flows.HookIngress)
	gso := r.a.d.points.read(p.id).GSO
	send()
	want := minus(r.server.settle("eth0").rx, before.rx)
	for _, x := range r.inputs() {
		if got := minus(r.a.seen(x.in, x.name, x.hook), seen[x.String()]); got != want {
			t.Errorf("%s: %s: got %+v, the server received %+v", what, x, got, want)
		}
	}
	if got := minus(r.a.d.points.read(p.id).GSO, gso); got.Packets < want.Packets/2 {
		t.Errorf("%s: %+v of %+v came in larger frames, want most: it shows nothing", what, got, want)
	}
}

// TestMergedFramesCountAsTheyCame has the receiving device merge frames (GRO)
// before our hook. A veth that does so counts bytes without link headers: the
// bytes are compared with what the sender's point counted.
func TestMergedFramesCountAsTheyCame(t *testing.T) {
	r := nsQuietNet(t, 1500)
	r.client.offload("eth0", false, nsSegmentation)
	r.host.offload("w0", true, nsMerging)
	sender, sent := r.a.still(r.client, "eth0")
	_, received := r.a.still(r.host, "w0")
	r.client.tcp(r.server, nsServer4, 3<<20)
	r.client.tcp(r.server, nsServer6, 3<<20)
	after, sentNow := r.a.still(r.client, "eth0")
	_, receivedNow := r.a.still(r.host, "w0")
	got := minus(receivedNow[flows.HookIngress].After, received[flows.HookIngress].After)
	if want := minus(sentNow[flows.HookEgress].After, sent[flows.HookEgress].After); got != want {
		t.Errorf("w0 ingress: got %+v, %+v were sent", got, want)
	}
	if n := after.tx.Packets - sender.tx.Packets; got.Packets != n {
		t.Errorf("w0 ingress: got %d packets, the interface sent %d", got.Packets, n)
	}
	if gso := minus(receivedNow[flows.HookIngress].GSO, received[flows.HookIngress].GSO); gso.Packets < got.Packets/4 {
		t.Errorf("%+v of %+v were merged, want more: the test shows nothing", gso, got)
	}
}

// nsAt is a point by names.
type nsAt struct {
	nsEnd
	hook flows.Hook
}

func (x nsAt) String() string { return x.in.name + " " + x.name + " " + x.hook.String() }

// inputs are the points in front of the router's output device.
func (r *nsNet) inputs() []nsAt {
	return []nsAt{
		{nsEnd{r.client, "eth0"}, flows.HookEgress}, {nsEnd{r.host, "w0"}, flows.HookIngress}, {nsEnd{r.host, "w1"}, flows.HookEgress},
	}
}

// nsQuietNet is a routed network in which nobody asks for neighbours and the
// router's output device takes no frame larger than the MTU. All are up and silent.
func nsQuietNet(t *testing.T, mtu int) *nsNet {
	t.Helper()
	r := nsRouted(t, Options{Netns: nsBoth[:1]}, mtu, false)
	r.a.truths = nil // of three devices that see the larger frames
	r.host.offload("w1", false, nsSegmentation)
	for _, addr := range []string{"10.1.0.1", "fd01::1"} {
		r.client.knows(addr, "eth0", r.host.mac("w0"))
	}
	for _, addr := range []string{"10.2.0.1", "fd02::1"} {
		r.server.knows(addr, "eth0", r.host.mac("w1"))
	}
	for _, addr := range []string{"10.1.0.2", "fd01::2"} {
		r.host.knows(addr, "w0", r.client.mac("eth0"))
	}
	for _, addr := range []string{nsServer4, nsServer6} {
		r.host.knows(addr, "w1", r.server.mac("eth0"))
	}
	r.settle()
	return r
}

// bursts sends writes of size bytes that the kernel cuts into datagrams of
// segment bytes, and waits until all have come.
func (n *nsSpace) bursts(to *nsSpace, addr string, writes, size, segment int) {
	n.t.Helper()
	var in net.PacketConn
	to.do(func() (err error) {
		in, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		return err
	})
	defer in.Close()
	buf := make([]byte, size)
	n.do(func() error {
		c, err := net.Dial("udp", in.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := in.SetDeadline(time.Now().Add(nsPatience)); err != nil {
			return err
		}
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var refused error
		if err := raw.Control(func(fd uintptr) {
			refused = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment)
		}); err != nil || refused != nil {
			return fmt.Errorf("set UDP_SEGMENT: %w", refused)
		}
		for range writes {
			if _, err := c.Write(buf); err != nil {
				return err
			}
			for got := 0; got < size; {
				m, _, err := in.ReadFrom(buf)
				if err != nil {
					return err
				}
				got += m
			}
		}
		return nil
	})
}

// TestGSOInsideVXLANCountsAsTheWireHasIt is the same with TCP in a tunnel whose
// underlay is the routed network.
func TestGSOInsideVXLANCountsAsTheWireHasIt(t *testing.T) {
	for _, outer := range []struct{ client, server string }{{"10.1.0.2", nsServer4}, {"fd01::2", nsServer6}} {
		t.Run("over "+outer.server, func(t *testing.T) {
			r := nsQuietNet(t, 1500)
			r.client.vxlan("vx0", "eth0", outer.client, outer.server, "10.9.0.1/24", "fd09::1/64")
			r.server.vxlan("vx0", "eth0", outer.server, outer.client, "10.9.0.2/24", "fd09::2/64")
			r.client.settle("vx0")
			r.server.settle("vx0")
			r.settle()
			r.wire("TCP over IPv4 in VXLAN", func() { r.client.tcp(r.server, "10.9.0.2", 3<<20) })
			r.wire("TCP over IPv6 in VXLAN", func() { r.client.tcp(r.server, "fd09::2", 3<<20) })
		})
	}
}

// vxlan adds a point-to-point tunnel.
func (n *nsSpace) vxlan(name, under, local, remote string, addrs ...string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, 1430
	v := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 42, VtepDevIndex: n.index(under), SrcAddr: net.ParseIP(local), Group: net.ParseIP(remote),
		Port: 4789, Learning: true, UDPCSum: true,
	}
	if !n.add(v) {
		n.t.Skip("left out: this kernel has no vxlan")
	}
	n.up(name, addrs...)
	n.carry(name)
}
