// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// BenchmarkDrop drops datagrams at full sockets and reports what the tracing adds
// to a drop: the program's time as the kernel counts it, less that of an empty
// program at the same tracepoint.
func BenchmarkDrop(b *testing.B) {
	for _, n := range []int{1, 1024} {
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) { benchmarkDrop(b, n) })
	}
}

func benchmarkDrop(b *testing.B, flows int) {
	nsRequire(b)
	host := nsHost(b)
	host.up("lo")
	d, err := openDrops(dropEntries, func(uint64, uint32) uint64 { return 0 })
	if err != nil {
		b.Fatal(err)
	}
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "empty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "kfree_skb", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: empty})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Close(), empty.Close(), d.close()); err != nil {
			b.Error(err)
		}
	}()
	fd, to := fullSockets(b, flows)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	var from [2]*ebpf.ProgramStats
	for i, p := range []*ebpf.Program{d.prog, empty} {
		if from[i], err = p.Stats(); err != nil {
			b.Fatal(err)
		}
	}
	var buf [64]byte
	i := 0
	for b.Loop() {
		if err := unix.Sendto(fd, buf[:], 0, to[i%flows]); err != nil {
			b.Fatal(err)
		}
		i++
	}
	var per [2]float64
	for i, p := range []*ebpf.Program{d.prog, empty} {
		st, err := p.Stats()
		if err != nil {
			b.Fatal(err)
		}
		per[i] = float64(st.Runtime-from[i].Runtime) / float64(st.RunCount-from[i].RunCount)
	}
	b.ReportMetric(per[0]-per[1], "ns/drop")
	b.ReportMetric(per[1], "empty-ns/drop")
}

// fullSockets makes receivers that have no room, and a socket to send to them.
func fullSockets(b *testing.B, n int) (fd int, to []*unix.SockaddrInet4) {
	b.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	for range n {
		in, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { in.Close() })
		if err := in.SetReadBuffer(1); err != nil {
			b.Fatal(err)
		}
		sa := &unix.SockaddrInet4{Port: in.LocalAddr().(*net.UDPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
		for range 8 {
			if err := unix.Sendto(fd, make([]byte, 1000), 0, sa); err != nil {
				b.Fatal(err)
			}
		}
		to = append(to, sa)
	}
	return fd, to
}
