// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// infoTransfer sends bytes and returns what `ss -ti` would print of the sender's
// socket when the peer has acknowledged and closed.
func (n *nsSpace) infoTransfer(to *nsSpace, addr string, bytes int) (from netip.AddrPort, info *unix.TCPInfo) {
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
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(nsPatience)) // it fails the read if at all
			b := make([]byte, 1<<18)
			for got := 0; got < bytes && err == nil; {
				var m int
				m, err = c.Read(b)
				got += m
			}
			if err == nil {
				_, err = c.Write(b[:1]) // all has come
			}
			if err == nil {
				_, _ = c.Read(b) // the client's end
			}
		}
		served <- err
	}()
	n.do(func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), nsPatience)
		if err != nil {
			return err
		}
		defer c.Close()
		from = c.LocalAddr().(*net.TCPAddr).AddrPort()
		if err := c.SetDeadline(time.Now().Add(nsPatience)); err != nil {
			return err
		}
		b := make([]byte, 1<<18)
		for left := bytes; left > 0; left -= len(b) {
			if _, err := c.Write(b[:min(left, len(b))]); err != nil {
				return err
			}
		}
		if _, err := c.Read(b[:1]); err != nil {
			return err
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); cerr != nil {
			return cerr
		}
		return err
	})
	if err := <-served; err != nil {
		n.t.Fatalf("receive over TCP: %v", err)
	}
	return from, info
}

// healthOf sums up a client's connection at the client's device: what it sent, and
// what came back, whose round trips are those to the server.
func (r *nsNet) healthOf(from netip.AddrPort) (sent, back flows.TCPHealth) {
	out, in := r.a.at(r.client, "eth0", flows.HookEgress), r.a.at(r.client, "eth0", flows.HookIngress)
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	for f, g := range r.a.flows {
		switch {
		case f.At == out && f.Key.Src == from:
			gainTCP(&sent, &g.tcp)
		case f.At == in && f.Key.Dst == from:
			gainTCP(&back, &g.tcp)
		}
	}
	return sent, back
}

// TestHealthAgreesWithTCPInfo compares the point at the sender's device with TCP_INFO
// of the sender's socket (`ss -ti`) and the sender's TcpRetransSegs (nstat).
// Bounds: retransmitted segments are equal, of the sockets together and of nstat;
// our least round trip, which is taken below the socket and of one segment at a time,
// is at least half of the socket's least less 100 us (2 ms on an emulated CPU, where that
// is the way from the socket to the device), and no more than 5 ms over its
// smoothed one. Of a short connection we may have no
// other than the FIN's, which comes after TCP_INFO was read and is answered when the
// peer closes, or by the timer of delayed acknowledgements: 200 ms (TCP_DELACK_MAX). So
// that bound is 200 ms there, and half of them are within 1 ms of twice what half of the
// sockets have. One CPU sends: of two, one that stands still lets segments pass each other.
func TestHealthAgreesWithTCPInfo(t *testing.T) {
	size, short := 4<<20, 300
	if nsEmulated {
		size, short = 1<<20, 30
	}
	for _, k := range []struct {
		name         string
		oneIn, burst int32
		rule         string // of nftables
		conns, bytes int
	}{
		{"bulk", 0, 0, "", 1, size}, {"random loss", 50, 0, "", 1, size}, {"burst loss", 0, 6, "", 1, size},
		{"random loss, nftables", 0, 0, "numgen random mod 100 < 2", 1, size}, {"burst loss, nftables", 0, 0, "numgen inc mod 256 < 6", 1, size},
		{"short connections", 0, 0, "", short, 2000},
	} {
		t.Run(k.name, func(t *testing.T) {
			slack := 5 * time.Millisecond
			if k.conns > 1 {
				slack = 200 * time.Millisecond // the longest that Linux delays an acknowledgement: one probe may meet it
			}
			oneCPU(t)
			r := nsRouted(t, Options{TCP: true, Netns: nsBoth[:1]}, 1500, true)
			r.lossy()
			if k.oneIn+k.burst > 0 {
				r.server.drops("eth0", k.oneIn, k.burst)
			} else if k.rule != "" {
				r.server.discards(k.rule)
			}
			before := r.client.snmp("RetransSegs")
			var froms []netip.AddrPort
			var infos []*unix.TCPInfo
			for range k.conns {
				from, info := r.client.infoTransfer(r.server, nsServer4, k.bytes)
				froms, infos = append(froms, from), append(infos, info)
			}
			r.settle()
			r.a.drained()
			again := r.client.snmp("RetransSegs") - before
			var got, socks uint64
			var least, smooth []time.Duration
			for i, from := range froms {
				sent, back := r.healthOf(from)
				got, socks = got+sent.Retransmits, socks+uint64(infos[i].Total_retrans)
				checkRTT(t, infos[i], back.RTT, slack)
				least, smooth = append(least, back.RTT.Min), append(smooth, time.Duration(infos[i].Rtt)*time.Microsecond)
				if sent.Lost != 0 {
					t.Errorf("nothing is lost before the sender's device: got %+v", sent)
				}
				if i == 0 {
					t.Logf("ss: retrans %d, srtt %d us, min_rtt %d us, reordering %d, dsack_dups %d; we: %+v, back %+v",
						infos[i].Total_retrans, infos[i].Rtt, infos[i].Min_rtt, infos[i].Reordering, infos[i].Dsack_dups, sent, back)
				}
			}
			slices.Sort(least)
			slices.Sort(smooth)
			if got, want := least[len(least)/2], smooth[len(smooth)/2]; k.conns > 1 && !nsEmulated && got > 2*want+time.Millisecond {
				t.Errorf("median of %d least round trips: got %s, the sockets' smoothed ones are %s", k.conns, got, want)
			}
			if got != again || socks != again {
				t.Errorf("sent again: got %d, nstat says %d, the sockets %d", got, again, socks)
			}
			if (k.oneIn+k.burst > 0 || k.rule != "") && again == 0 {
				t.Error("nothing was lost: the test shows nothing")
			}
			r.a.stop()
		})
	}
}

func checkRTT(t *testing.T, info *unix.TCPInfo, rtt flows.RTT, slack time.Duration) {
	t.Helper()
	if rtt.Count == 0 {
		t.Errorf("no round trip was measured; the socket has %d us", info.Rtt)
		return
	}
	least, smooth := time.Duration(info.Min_rtt)*time.Microsecond, time.Duration(info.Rtt)*time.Microsecond
	above := 100 * time.Microsecond // which a segment and its answer spend between socket and device
	if nsEmulated {
		above = 10 * time.Millisecond // an emulated CPU is some 20 times slower, and stands still between the two
	}
	within(t, "least round trip", rtt.Min, max(1, least/2-above), smooth+slack)
}

// TestBIGTCPIsHealthy: frames over 64 KiB are neither sent again nor reordered, and
// the points count the packets that the sender's interface counts.
func TestBIGTCPIsHealthy(t *testing.T) {
	size := 16 << 20
	if nsEmulated {
		size = 4 << 20
	}
	oneCPU(t) // with two that send, one may stand still and segments pass in another order
	r := nsRouted(t, Options{TCP: true, Netns: nsBoth[:1]}, 1500, true)
	l := r.client.link("eth0")
	set := func(what string, f func(netlink.Link, int) error) {
		if err := f(l, 180000); err != nil {
			t.Skipf("left out: this kernel cannot set %s: %v", what, err)
		}
	}
	set("gso_max_size", r.client.h.LinkSetGSOMaxSize)
	set("gro_max_size", r.client.h.LinkSetGROMaxSize)
	set("gso_ipv4_max_size", r.client.h.LinkSetGSOIPv4MaxSize)
	set("gro_ipv4_max_size", r.client.h.LinkSetGROIPv4MaxSize)
	v4 := r.client.link("eth0").Attrs().GSOIPv4MaxSize != 0 // before 6.3 the kernel passes over what it does not know
	over64K := r.client.over64K("eth0")
	for _, to := range []string{"10.1.0.1", "fd01::1"} {
		t.Run(fmt.Sprint("to ", to), func(t *testing.T) {
			if !v4 && to == "10.1.0.1" {
				t.Skip("left out: this kernel has no BIG TCP for IPv4 (6.3)")
			}
			big := over64K()
			counted, again := r.client.settle("eth0").tx, r.client.snmp("RetransSegs")
			before := r.a.seen(r.client, "eth0", flows.HookEgress)
			from, info := r.client.infoTransfer(r.host, to, size)
			want := minus(r.client.settle("eth0").tx, counted)
			got := minus(r.a.seen(r.client, "eth0", flows.HookEgress), before)
			if got != want {
				t.Errorf("eth0 egress: got %+v, the interface sent %+v", got, want)
			}
			r.a.drained()
			sent, _ := r.healthOf(from)
			if n := r.client.snmp("RetransSegs") - again; sent.Retransmits != n || n != uint64(info.Total_retrans) || sent.Lost+sent.OutOfOrder != 0 {
				t.Errorf("nothing is reordered or lost, nstat says %d sent again, the socket %d: got %+v", n, info.Total_retrans, sent)
			}
			if big = over64K() - big; big == 0 {
				t.Error("no frame was over 64 KiB: the test shows nothing")
			}
			t.Logf("%d packets, %d frames over 64 KiB: %+v", got.Packets, big, sent)
		})
	}
	r.settle()
	r.a.stop()
}

// over64K counts the frames over 64 KiB that a device is about to send.
func (n *nsSpace) over64K(dev string) func() uint64 {
	n.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { m.Close() })
	p, err := nsLoad(ebpf.SchedCLS,
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // its length
		asm.JLE.Imm(asm.R7, 65536+100, "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()), asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"), asm.Return(), // TC_ACT_UNSPEC
	)
	if err != nil {
		n.t.Fatal(err)
	}
	n.judge(dev, p, netlink.HANDLE_MIN_EGRESS)
	return func() (frames uint64) {
		if err := m.Lookup(uint32(0), &frames); err != nil {
			n.t.Fatal(err)
		}
		return frames
	}
}
