// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// nsPatience bounds every transfer of a test.
const nsPatience = 20 * time.Second

// tcp sends n bytes from one namespace to another's address and waits until both
// ends have closed.
func (n *nsSpace) tcp(to *nsSpace, addr string, bytes int) (from netip.AddrPort) {
	n.t.Helper()
	var ln net.Listener
	to.do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	})
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(nsPatience)) // it fails the copy if at all
		got, err := io.Copy(io.Discard, c)
		if err == nil && got != int64(bytes) {
			err = fmt.Errorf("received %d bytes of %d", got, bytes)
		}
		served <- err
	}()
	n.do(func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), nsPatience)
		if err != nil {
			return err
		}
		from = c.LocalAddr().(*net.TCPAddr).AddrPort()
		return nsPush(c.(*net.TCPConn), bytes)
	})
	if err := <-served; err != nil {
		n.t.Fatalf("receive over TCP: %v", err)
	}
	return from
}

// nsPush writes and waits for the peer's end.
func nsPush(c *net.TCPConn, bytes int) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(nsPatience)); err != nil {
		return err
	}
	chunk := make([]byte, 1<<18)
	for left := bytes; left > 0; left -= len(chunk) {
		if _, err := c.Write(chunk[:min(left, len(chunk))]); err != nil {
			return err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// udp sends count datagrams of size bytes, never further ahead of the receiver
// than its buffer, and waits until all have come.
func (n *nsSpace) udp(to *nsSpace, addr string, count, size int) (from, at netip.AddrPort) {
	n.t.Helper()
	var in net.PacketConn
	to.do(func() (err error) {
		in, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		return err
	})
	defer in.Close()
	var got atomic.Int64
	received := make(chan error, 1)
	go func() {
		_ = in.SetDeadline(time.Now().Add(nsPatience)) // it fails the read if at all
		buf := make([]byte, 1<<16)
		for got.Load() < int64(count) {
			if _, _, err := in.ReadFrom(buf); err != nil {
				received <- fmt.Errorf("received %d of %d datagrams: %w", got.Load(), count, err)
				return
			}
			got.Add(1)
		}
		received <- nil
	}()
	at = in.LocalAddr().(*net.UDPAddr).AddrPort()
	n.do(func() error {
		c, err := net.Dial("udp", in.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		from = c.LocalAddr().(*net.UDPAddr).AddrPort()
		window := int64(max(1, 65536/(size+768)))
		buf := make([]byte, size)
		end := time.Now().Add(nsPatience)
		for i := range int64(count) {
			for i-got.Load() >= window && time.Now().Before(end) {
				time.Sleep(50 * time.Microsecond)
			}
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
		return nil
	})
	if err := <-received; err != nil {
		n.t.Fatal(err)
	}
	return from, at
}

// nsRaw sends frames as they are out of one device.
type nsRaw struct {
	fd int
	to unix.SockaddrLinklayer
}

func (n *nsSpace) raw(dev string) *nsRaw {
	n.t.Helper()
	r := &nsRaw{to: unix.SockaddrLinklayer{Ifindex: n.index(dev)}}
	n.do(func() (err error) {
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	n.t.Cleanup(r.close)
	return r
}

// close lets go of the socket, which holds its namespace; it may be called twice.
func (r *nsRaw) close() {
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
}

func (r *nsRaw) send(frame []byte) error { return unix.Sendto(r.fd, frame, 0, &r.to) }

// flood sends count small datagrams from each of two threads on two CPUs, to as
// many destination ports as asked in turn, where nobody listens.
func (n *nsSpace) flood(addr string, ports, count int) {
	n.t.Helper()
	var never atomic.Bool
	if err := <-n.pour(addr, ports, count, &never); err != nil {
		n.t.Fatal(err)
	}
}

// spray is a flood until end is called, which may be twice, or until the network
// goes away.
func (n *nsSpace) spray(addr string, ports int) (end func()) {
	var enough atomic.Bool
	done := n.pour(addr, ports, 1<<30, &enough)
	return sync.OnceFunc(func() {
		enough.Store(true)
		if err := <-done; err != nil { // the network went away
			n.t.Log(err)
		}
	})
}

func (n *nsSpace) pour(addr string, ports, count int, enough *atomic.Bool) <-chan error {
	failed, done := make(chan error, 2), make(chan error, 1)
	for cpu := range 2 {
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine: it is pinned, and elsewhere
			if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
				failed <- err
				return
			}
			failed <- nsFlood(cpu, netip.MustParseAddr(addr), ports, count, enough)
		}()
	}
	go func() { done <- errors.Join(<-failed, <-failed) }()
	return done
}

// nsFlood pins its thread.
func nsFlood(cpu int, addr netip.Addr, ports, count int, enough *atomic.Bool) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 18)
	for i := 0; i < count && !enough.Load(); i++ {
		port := 10000 + (i*2+cpu)%ports
		var to unix.Sockaddr = &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
		if addr.Is4() {
			to = &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
		}
		if err := unix.Sendto(fd, buf, 0, to); err != nil {
			return fmt.Errorf("send datagram %d: %w", i, err)
		}
	}
	return nil
}
