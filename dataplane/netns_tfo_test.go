// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// TestFastOpenIsTimedAndNothingSentAgain: the first connection asks for a cookie, the
// following ones carry their data in the SYN. Nothing of that is a retransmit, and the
// handshake to either side has a time.
func TestFastOpenIsTimedAndNothingSentAgain(t *testing.T) {
	r := nsRouted(t, Options{TCP: true}, 1500, true)
	r.client.sysctl("ipv4/tcp_fastopen", "1")
	r.server.sysctl("ipv4/tcp_fastopen", "2")
	var ln net.Listener
	r.server.do(func() (err error) {
		c := net.ListenConfig{Control: fastOpen}
		c.SetMultipathTCP(false)
		ln, err = c.Listen(t.Context(), "tcp4", nsServer4+":0")
		return err
	})
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(nsPatience))
				_, _ = c.(*net.TCPConn).WriteTo(c) // the other end says how it went
			}()
		}
	}()
	const connections, request = 8, 700
	before := r.client.snmp("RetransSegs") + r.server.snmp("RetransSegs")
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	var ports []netip.AddrPort
	for range connections {
		r.client.do(func() error {
			from, err := fastRequest(to, make([]byte, request))
			ports = append(ports, from)
			return err
		})
	}
	active := r.client.proto("netstat", "TcpExt:", "TCPFastOpenActive")
	passive := r.server.proto("netstat", "TcpExt:", "TCPFastOpenPassive")
	if active != connections-1 || passive != connections-1 {
		t.Errorf("with data in the SYN: got %d and %d connections, want %d", active, passive, connections-1)
	}
	r.settle()
	r.a.drained()
	again := r.client.snmp("RetransSegs") + r.server.snmp("RetransSegs") - before
	var got uint64
	for _, from := range ports {
		request := r.a.healthAt(t, r.a.at(r.host, "w0", flows.HookIngress), flows.Key{Src: from, Dst: to, Proto: flows.ProtoTCP})
		answer := r.a.healthAt(t, r.a.at(r.host, "w1", flows.HookIngress), flows.Key{Src: to, Dst: from, Proto: flows.ProtoTCP})
		got += request.Retransmits + answer.Retransmits
		if again == 0 && (answer.Handshake == 0 || request.OutOfOrder+request.Lost+answer.OutOfOrder+answer.Lost != 0) {
			t.Errorf("%s: got %+v and %+v, want a handshake time and nothing lost", from, request, answer)
		}
	}
	if got != again {
		t.Errorf("sent again: got %d, the two kernels say %d", got, again)
	}
	r.a.stop()
}

// fastOpen lets a listening socket take data in a SYN.
func fastOpen(_, _ string, raw syscall.RawConn) (err error) {
	failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
	})
	return errors.Join(failed, err)
}

// fastRequest sends b in the SYN if there is a cookie, reads as much, and says from where.
func fastRequest(to netip.AddrPort, b []byte) (from netip.AddrPort, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return from, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(nsPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return from, err
	}
	if err := unix.Sendto(fd, b, unix.MSG_FASTOPEN, dropTo(to.String())); err != nil {
		return from, err
	}
	for left := len(b); left > 0; {
		n, err := unix.Read(fd, b[:left])
		if err != nil || n == 0 {
			return from, errors.Join(errors.New("the answer ended early"), err)
		}
		left -= n
	}
	name, err := unix.Getsockname(fd)
	if v4, ok := name.(*unix.SockaddrInet4); ok {
		from = netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
	}
	return from, err
}
