// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// TestSYNsThatMeetAFullAcceptQueueAreTold: a server that does not accept, and whose queue
// is of one connection (Linux takes one more).
func TestSYNsThatMeetAFullAcceptQueueAreTold(t *testing.T) {
	for _, family := range []string{nsServer4, nsServer6} {
		t.Run(family, func(t *testing.T) {
			r := nsRouted(t, Options{TCP: true, Sockets: true, Netns: nsBoth}, 1500, true)
			r.lossy()
			server := netip.AddrPortFrom(netip.MustParseAddr(family), 7000)
			af := unix.AF_INET6
			if server.Addr().Is4() {
				af = unix.AF_INET
			}
			var fds []int
			t.Cleanup(func() {
				for _, fd := range fds {
					unix.Close(fd)
				}
			})
			open := func(n *nsSpace, use func(fd int) error) {
				n.do(func() error {
					fd, err := unix.Socket(af, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					fds = append(fds, fd)
					return use(fd)
				})
			}
			open(r.server, func(fd int) error {
				if err := unix.Bind(fd, nsSockaddr(server)); err != nil {
					return err
				}
				return unix.Listen(fd, 1)
			})
			before := r.server.netCounter("TcpExt", "ListenOverflows")
			var froms []netip.AddrPort
			for i := range 4 {
				open(r.client, func(fd int) error {
					if err := unix.Connect(fd, nsSockaddr(server)); err != nil && err != unix.EINPROGRESS {
						return err
					}
					own, err := unix.Getsockname(fd)
					if err != nil {
						return err
					}
					froms = append(froms, nsAddrPort(own))
					return nil
				})
				if i < 2 { // these are taken, and the next two find no room
					nsUntil(t, fmt.Sprintf("connection %d is in the queue", i), func() bool {
						_, err := unix.Getpeername(fds[i+1])
						return err == nil
					})
				}
			}
			nsUntil(t, "the kernel drops both SYNs", func() bool { return r.server.netCounter("TcpExt", "ListenOverflows") >= before+2 })
			r.settle()
			r.a.drained()
			full := map[netip.AddrPort]bool{}
			r.a.mu.Lock()
			for f, g := range r.a.flows {
				if f.At.Netns == r.server.cookie() && f.At.Hook == flows.HookIngress {
					full[f.Key.Src] = full[f.Key.Src] || g.tcp.Options&flows.TCPQueueFull != 0
				}
			}
			r.a.mu.Unlock()
			for i, from := range froms {
				if want := i >= 2; full[from] != want {
					t.Errorf("connection %d of 4, from %s: full queue %v, want %v", i, from, full[from], want)
				}
			}
			r.a.stop()
		})
	}
}

func nsSockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func nsAddrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
