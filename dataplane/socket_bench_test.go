// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkSockets has sockets tell, and reports for each program how often it ran in
// an operation and what a run took, as the kernel counts it (with its own 20 ns or so).
func BenchmarkSockets(b *testing.B) {
	for _, c := range []struct {
		name string
		op   func(b *testing.B) func() error
	}{{"connection", sockConnections}, {"refused", sockRefusals}, {"full queue", sockFullQueue}} {
		b.Run(c.name, func(b *testing.B) {
			nsRequire(b)
			nsHost(b).up("lo")
			op := c.op(b)
			s, err := openSockets(socketEntries, func(c Capability) { b.Log(c) })
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := s.close(); err != nil {
					b.Error(err)
				}
			}()
			stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer stats.Close()
			nowhere := func(uint64) uint64 { return 0 }
			for n := 1; b.Loop(); n++ {
				if err := op(); err != nil {
					b.Fatal(err)
				}
				if n%4096 == 0 { // as the agent does, so that there is room
					if _, _, err := s.drain(instant{}, nowhere); err != nil {
						b.Fatal(err)
					}
				}
			}
			var total float64
			for _, p := range s.status() {
				if p.Runs > 0 {
					b.Logf("%s: %.1f runs/op, %.0f ns/run", p.Name, float64(p.Runs)/float64(b.N), float64(p.Nanos)/float64(p.Runs))
				}
				total += float64(p.Nanos)
			}
			b.ReportMetric(total/float64(b.N), "bpf-ns/op")
		})
	}
}

// sockConnections opens and closes a connection, both ends here.
func sockConnections(b *testing.B) func() error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	return func() error {
		c, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			return err
		}
		// No TIME-WAIT, so that ports do not run out.
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
		in, err := ln.Accept()
		if err != nil {
			return err
		}
		return errors.Join(in.(*net.TCPConn).CloseWrite(), c.Close(), in.Close())
	}
}

func sockRefusals(*testing.B) func() error {
	return func() error {
		c, err := net.Dial("tcp4", "127.0.0.1:1")
		if err == nil {
			c.Close()
			return errors.New("connected to a closed port")
		}
		return nil
	}
}

func sockFullQueue(b *testing.B) func() error {
	fd, to := fullSockets(b, 1)
	var buf [64]byte
	return func() error { return unix.Sendto(fd, buf[:], 0, to[0]) }
}
