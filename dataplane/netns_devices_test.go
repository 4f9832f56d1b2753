// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// TestTimesLieWithinTheTraffic brackets traffic with the wall clock.
func TestTimesLieWithinTheTraffic(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			r := nsRouted(t, Options{Backend: backend, Netns: nsBoth, Interval: 50 * time.Millisecond}, 1500, false)
			slack := 2 * r.a.d.clock.tick
			if nsEmulated {
				slack *= 5 // ticks come late, several at once
			}
			type span struct{ from, to int64 }
			spans := map[netip.AddrPort]span{}
			for range 3 {
				from := time.Now().UnixNano()
				port, _ := r.client.udp(r.server, nsServer4, 400, 1000)
				spans[port] = span{from, time.Now().UnixNano()}
				r.a.drained()
			}
			r.a.stop()
			seen := 0
			for f, g := range r.a.flows {
				s, ok := spans[f.Key.Src]
				if !ok {
					continue
				}
				seen++
				if g.first < s.from-slack || g.last > s.to+slack || g.first > g.last {
					t.Errorf("%s at %s: first %d ns after the start, last %d ns before the end; want neither below -%d",
						f.Key, f.At.Hook, g.first-s.from, s.to-g.last, slack)
				}
				// the last datagram was received when the traffic ended: not long before, at any point
				if d := s.to - g.last; d > slack+int64(100*time.Millisecond) {
					t.Errorf("%s at %s: last is %s before the end", f.Key, f.At.Hook, time.Duration(d))
				}
			}
			if want := 3 * 4; seen != want {
				t.Errorf("flows: got %d, want %d at four points each", seen, want)
			}
		})
	}
}

// TestTunDeviceHasNoLinkHeader sends and receives bare IP packets.
func TestTunDeviceHasNoLinkHeader(t *testing.T) {
	for _, kind := range nsKinds(t) {
		t.Run(kind.String(), func(t *testing.T) {
			host := nsHost(t)
			a := nsStart(t, Options{Hooks: kind.hooks, Backend: kind.backend, Interfaces: []string{"tun*"}})
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "tun0"
			tun := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1}
			if _, err := os.Stat("/dev/net/tun"); err != nil || !host.add(tun) {
				t.Skip("left out: this kernel has no tun devices")
			}
			other := nsOtherSide(t, tun)
			a.await(host, "tun0")
			host.up("tun0", "10.5.0.1/24", "fd05::1/64")
			host.carry("tun0")
			a.expect(host, "tun0", false)
			bare := [][]byte{ // as if from the other side
				frame(ip4(17, 8), udp()), frame(ip4(6, 20), tcp(2)), frame(ip6(17, 8), udp()), frame(ip6(58, 8), []byte{128, 0, 0, 0, 0, 1, 0, 1}),
			}
			for _, p := range bare {
				if _, err := other.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			host.do(func() error { // to the other side
				for _, to := range []unix.Sockaddr{
					&unix.SockaddrInet4{Port: 53, Addr: [4]byte{10, 5, 0, 2}}, &unix.SockaddrInet6{Port: 53, Addr: netip.MustParseAddr("fd05::2").As16()},
				} {
					family := unix.AF_INET
					if _, ok := to.(*unix.SockaddrInet6); ok {
						family = unix.AF_INET6
					}
					fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					if err := unix.Sendto(fd, make([]byte, 100), 0, to); err != nil {
						return err
					}
				}
				return nil
			})
			host.settle("tun0")
			in, out := a.live(host, "tun0", flows.HookIngress).at, a.live(host, "tun0", flows.HookEgress).at
			a.stop()
			for _, want := range []struct {
				at  flows.Point
				key flows.Key
				n   flows.Count
			}{
				{in, key4(17, 40000, 53), flows.Count{Packets: 1, Bytes: 28}},
				{in, key4(6, 40000, 443), flows.Count{Packets: 1, Bytes: 40}},
				{in, key6(17, 40000, 53), flows.Count{Packets: 1, Bytes: 48}},
				{in, key6(58, 128, 0), flows.Count{Packets: 1, Bytes: 48}},
			} {
				if got := a.sum(want.at, func(f nsFlow) bool { return f.Key == want.key }); got != want.n {
					t.Errorf("%s from tun0: got %+v, want %+v", want.key, got, want.n)
				}
			}
			sent := a.sum(out, func(f nsFlow) bool { return f.Key.Dst.Port() == 53 })
			if want := (flows.Count{Packets: 2, Bytes: 20 + 40 + 2*108}); sent != want {
				t.Errorf("datagrams to tun0: got %+v, want %+v", sent, want)
			}
		})
	}
}

// nsOtherSide is the user's end of a tun device. It takes in what comes.
func nsOtherSide(t *testing.T, tun *netlink.Tuntap) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(tun.Fds[0].Fd()))
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), tun.Fds[0].Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tun")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, f) // until it is closed
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
	})
	return f
}

// TestLoopbackIsWatchedWhenAsked compares lo, which counts without link headers,
// and cuts what is too large for it between the two hooks.
func TestLoopbackIsWatchedWhenAsked(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			host, own := nsHost(t), nsNew(t, "own") // whose lo is down, and has counted nothing
			a := nsStart(t, Options{Backend: backend, Netns: []string{"own"}, Interfaces: []string{"lo"}})
			a.wantWatched(host, "lo")
			a.await(own, "lo")
			own.up("lo")
			own.tcp(own, "127.0.0.1", 1<<20)
			own.tcp(own, "::1", 1<<20)
			own.udp(own, "127.0.0.1", 100, 900)
			c := own.settle("lo")
			a.stop()
			in, out := a.last(own, "lo", flows.HookIngress), a.last(own, "lo", flows.HookEgress)
			c.rx.Bytes += 14 * c.rx.Packets
			if got := minus(in.After, in.GSO); got != c.rx {
				t.Errorf("lo ingress: got %+v (GSO %+v), the interface counted %+v with headers", got, in.GSO, c.rx)
			}
			if out.After != in.After {
				t.Errorf("lo egress: got %+v, want %+v as at ingress", out.After, in.After)
			}
		})
	}
}
