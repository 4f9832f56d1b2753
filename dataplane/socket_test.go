// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

// TestRetransmitsEqualTheKernelsCount loses packets at random and compares with
// TcpRetransSegs of each namespace.
func TestRetransmitsEqualTheKernelsCount(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(*testing.T, *sockNet)
	}{
		{"lost on the way, nftables", func(t *testing.T, p *sockNet) {
			sockFirewall(t, p.server, "prerouting", 16)
			sockFirewall(t, p.client, "prerouting", 16)
		}},
		{"lost, and refused to the sender, nftables", func(t *testing.T, p *sockNet) {
			sockFirewall(t, p.server, "prerouting", 16)
			sockFirewall(t, p.client, "output", 6)
		}},
		{"lost on the way", func(_ *testing.T, p *sockNet) {
			p.server.lose("eth0", false, 16)
			p.client.lose("eth0", false, 16)
		}},
		{"lost, and refused to the sender", func(_ *testing.T, p *sockNet) {
			p.server.lose("eth0", false, 16)
			p.client.lose("eth0", true, 6)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.name, "nftables") {
				nsProgramOf(t, "nft", "nftables")
			} else if testing.Short() {
				t.Skip("left out: the loss that nftables makes is enough")
			}
			p := sockPair(t)
			failed := strings.Contains(c.name, "refused")
			var older *net.TCPConn // than the agent: of such it knows no failed attempts
			if !failed {
				older = p.open(t)
			}
			a := sockStart(t, Options{Netns: []string{"client", "server"}})
			before := [2]uint64{p.client.netCounter("Tcp", "RetransSegs"), p.server.netCounter("Tcp", "RetransSegs")}
			c.lose(t, p)
			if older != nil {
				if err := nsPush(older, 1<<18); err != nil {
					t.Fatal(err)
				}
			}
			// Until enough was sent again, and of that some refused where it is to be.
			for i := 0; i < 6 || i < 60 && failed && p.client.netCounter("TcpExt", "TCPRetransFail") == 0; i++ {
				p.client.tcp(p.server, sockServer4, 1<<18)
				p.client.tcp(p.server, sockServer6, 1<<18)
			}
			for i, n := range []*nsSpace{p.client, p.server} {
				a.wantRetransmits(n, before[i])
			}
			if got := a.in(p.client, sockAny).Retransmits; got < 5 {
				t.Errorf("got %d segments sent again, want many: nothing was lost", got)
			}
			if got := p.client.netCounter("TcpExt", "TCPRetransFail"); failed && got == 0 {
				t.Error("no segment sent again was refused to the sender")
			}
			a.stop()
		})
	}
}

// open makes a connection whose other end reads to its end.
func (p *sockNet) open(t *testing.T) *net.TCPConn {
	t.Helper()
	var ln net.Listener
	p.server.do(func() (err error) {
		ln, err = net.Listen("tcp", sockServer4+":0")
		return err
	})
	defer ln.Close()
	var c net.Conn
	p.client.do(func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), nsPatience)
		return err
	})
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		defer in.Close()
		_, _ = in.(*net.TCPConn).WriteTo(discard{}) // the other end says how it went
	}()
	return c.(*net.TCPConn)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// wantRetransmits compares at a moment at which the kernel's counter rests. The kernel
// counts first and tells then: on a busy machine the next drain may come in between.
func (a *sockAgent) wantRetransmits(n *nsSpace, before uint64) {
	a.t.Helper()
	var got, want uint64
	defer func() {
		a.t.Logf("%s: sockets told of %d segments sent again, TcpRetransSegs gained %d", n.name, got, want)
	}()
	nsUntil(a.t, "the sockets of "+n.name+" tell of as many segments sent again as TcpRetransSegs gained", func() bool {
		want = n.netCounter("Tcp", "RetransSegs") - before
		a.passed()
		got = a.in(n, sockAny).Retransmits
		return got == want && n.netCounter("Tcp", "RetransSegs")-before == want
	})
}

// sockFirewall drops one packet in every so many at random.
func sockFirewall(t *testing.T, n *nsSpace, hook string, every int) {
	n.do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table inet lossy { chain c { type filter hook " + hook +
			" priority 0; meta l4proto tcp numgen random mod " + strconv.Itoa(every) + " < 1 counter drop; }; }")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("nft: %s", out)
		}
		return err
	})
}

// TestProcessesOfBothEndsAreNamed has one process accept and another connect.
func TestProcessesOfBothEndsAreNamed(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	for _, host := range []string{sockServer4, sockServer6} {
		server := p.server.process("weft-server", "accept", net.JoinHostPort(host, "0"))
		addr := server.line(t)
		client := p.client.process("weft-client", "connect", addr)
		from := client.line(t)
		client.end(t)
		server.end(t)
		key := flows.Key{Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(addr), Proto: flows.ProtoTCP}
		r := a.record(key)
		cgroup := cgroupOf(t)
		for _, c := range []struct {
			side string
			got  *flows.Process
			want *sockProcess
		}{{"source", r.SourceProcess, client}, {"destination", r.DestinationProcess, server}} {
			want := flows.Process{PID: c.want.pid, Comm: c.want.comm, Cgroup: cgroup}
			if c.got == nil || *c.got != want {
				t.Errorf("%v: %s process: got %+v, want %+v", key, c.side, c.got, want)
			}
		}
	}
	a.stop()
}

// record waits for the first record of a conversation.
func (a *sockAgent) record(key flows.Key) (r flows.Record) {
	a.t.Helper()
	nsUntil(a.t, "a record of "+key.String(), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, r = range a.records {
			if r.Key == key {
				return true
			}
		}
		return false
	})
	return r
}

// TestProcessStaysForTheLifeOfAConnection: also where the socket tells nothing more.
func TestProcessStaysForTheLifeOfAConnection(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	a.mu.Lock()
	a.table = flows.NewTable(flows.TableOptions{ActiveTimeout: 50 * time.Millisecond, Places: a.d})
	a.mu.Unlock()
	c := p.open(t)
	var records []flows.Record
	ends := 1
	if sockAccepts(t) {
		ends = 2 // else the other end is known when it closes
	}
	nsUntil(t, "five records of one connection", func() bool {
		if _, err := c.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		records = nil
		for _, r := range a.records {
			if r.Key.Proto == flows.ProtoTCP { // devices say hello by ICMPv6
				records = append(records, r)
			}
		}
		return len(records) >= 5
	})
	want, err := initialPID()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		for _, got := range []*flows.Process{r.SourceProcess, r.DestinationProcess}[:ends] {
			if got == nil || got.PID != want {
				t.Errorf("%v: got processes %+v and %+v, want pid %d", r.Key, r.SourceProcess, r.DestinationProcess, want)
			}
		}
	}
	a.stop()
}

// TestFailedConnectsSayWhy: each cause, as the socket that connected has it.
func TestFailedConnectsSayWhy(t *testing.T) {
	p := sockPair(t)
	p.client.route("203.0.113.0/24", sockServer4) // where nobody has a route on
	p.client.knows("10.3.0.9", "eth0", p.server.mac("eth0"))
	p.client.sysctl("ipv4/tcp_syn_retries", "1")
	p.server.sysctl("ipv4/ip_forward", "1")
	// What is for 10.3.0.9 is lost at the server, without a word.
	p.server.loseTo("eth0", [4]byte{10, 3, 0, 9})
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	own, err := initialPID()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, addr string
		patience   time.Duration
		errnos     []unix.Errno
		want       flows.Failure
	}{
		{"closed port", sockServer4 + ":6001", nsPatience, []unix.Errno{unix.ECONNREFUSED}, flows.FailRefused},
		{"closed port, IPv6", "[" + sockServer6 + "]:6002", nsPatience, []unix.Errno{unix.ECONNREFUSED}, flows.FailRefused},
		{"silence", "10.3.0.9:6003", nsPatience, []unix.Errno{unix.ETIMEDOUT}, flows.FailUnanswered},
		{"no route", "203.0.113.5:6004", nsPatience, []unix.Errno{unix.EHOSTUNREACH, unix.ENETUNREACH}, flows.FailUnreachable},
		{"given up by its owner", "10.3.0.9:6005", 100 * time.Millisecond, []unix.Errno{0}, flows.FailUnanswered},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.client.do(func() error {
				// Blocking, so that nothing but the kernel ends it, but for the last.
				if c.patience == nsPatience {
					return sockRefused(t, c.addr)
				}
				conn, err := net.DialTimeout("tcp", c.addr, c.patience)
				if err == nil {
					conn.Close()
					return errors.New("connected")
				}
				t.Log(err)
				return nil
			})
			addr := netip.MustParseAddrPort(c.addr)
			a.passed()
			s := a.in(p.client, sockPort(addr.Port()))
			known := false
			for _, e := range c.errnos {
				known = known || uint16(e) == s.Errno
			}
			if !known || !s.Failed || s.Failure() != c.want {
				t.Errorf("got errno %d (%v), failed %v, failure %q; want %v, true, %q", s.Errno, unix.Errno(s.Errno), s.Failed, s.Failure(), c.errnos, c.want)
			}
			if s.Process.PID != own || s.Key.Dst != addr || s.Key.Src.Port() == 0 {
				t.Errorf("got %v of process %+v, want to %s of pid %d", s.Key, s.Process, addr, own)
			}
		})
	}
	a.stop()
	for _, r := range a.records {
		if r.SourceSocket == nil || r.SourceSocket.Failure() == flows.FailNone || r.SourceProcess == nil {
			if r.Key.Proto == flows.ProtoTCP {
				t.Errorf("record of %v: got %+v of %+v, want a failure and a process", r.Key, r.SourceSocket, r.SourceProcess)
			}
		}
	}
}

// sockRefused connects and expects to fail.
func sockRefused(t *testing.T, addr string) error {
	to := dropTo(addr)
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = unix.Connect(fd, to); err == nil {
		return errors.New("connected to " + addr)
	}
	t.Log(err)
	return nil
}

// TestResetsEqualTheKernelsCount: of closed ports, of sockets, and as they came in.
func TestResetsEqualTheKernelsCount(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	const refused, aborted = 7, 5
	for range refused {
		p.client.do(func() error {
			if c, err := net.DialTimeout("tcp", sockServer4+":6010", nsPatience); err == nil {
				c.Close()
				return errors.New("connected to a closed port")
			}
			return nil
		})
	}
	for range aborted {
		c := p.open(t)
		if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	a.passed()
	closed := a.in(p.server, sockPort(6010)).ResetsSent
	if tellsClosedPorts(t) {
		if want := p.server.netCounter("Tcp", "OutRsts"); closed != refused || want != refused {
			t.Errorf("server: sockets told of %d resets sent, TcpOutRsts says %d, want %d", closed, want, refused)
		}
	} else if closed != 0 {
		t.Errorf("server: got %d resets of closed ports, want none told before 6.10", closed)
	}
	sent, received := a.in(p.client, sockAny), a.in(p.server, sockAny)
	if want := p.client.netCounter("Tcp", "OutRsts"); sent.ResetsSent != want || want != aborted {
		t.Errorf("client: sockets told of %d resets sent, TcpOutRsts says %d, want %d", sent.ResetsSent, want, aborted)
	}
	if sent.ResetsReceived != refused || received.ResetsReceived != aborted {
		t.Errorf("resets received: got %d at the client and %d at the server, want %d and %d",
			sent.ResetsReceived, received.ResetsReceived, refused, aborted)
	}
	if received.Errno != uint16(unix.ECONNRESET) || received.Failed || received.Failure() != flows.FailReset {
		t.Errorf("server: got %+v, want ECONNRESET of connections that stood", received.SocketFigures)
	}
	a.stop()
}

// tellsClosedPorts: the tracepoint is reached without a socket since it tells why.
func tellsClosedPorts(t *testing.T) bool {
	t.Helper()
	for _, p := range socketProbes() {
		if p.at == "tcp_send_reset" {
			has, err := p.arguments(sockKernel(t))
			if err != nil {
				t.Fatal(err)
			}
			return len(has) > 2
		}
	}
	t.Fatal("no such probe")
	return false
}

// TestStandingConnectionThatTimesOutSaysSo: its peer falls silent, or the peer's link or its own goes down
// while data waits.
func TestStandingConnectionThatTimesOutSaysSo(t *testing.T) {
	for name, cut := range map[string]func(*sockNet){
		"packets are lost":          func(p *sockNet) { p.server.lose("eth0", false, 1) },
		"the peer's link goes down": func(p *sockNet) { p.server.down("eth0") },
		"its own link goes down":    func(p *sockNet) { p.client.down("eth0") },
	} {
		t.Run(name, func(t *testing.T) { timesOut(t, cut) })
	}
}

// timesOut wants what the kernel tells of a time-out. 6.18 tells nothing of about one in 250: then no program
// at the tracepoint is run, and another connection has to show it.
func timesOut(t *testing.T, cut func(*sockNet)) {
	closings := sockClosings(t)
	for try := range 3 {
		told := false
		t.Run(strconv.Itoa(try), func(t *testing.T) { told = timesOutOnce(t, cut, closings) })
		if told || t.Failed() {
			return
		}
		t.Log("the kernel told of no closing")
	}
	t.Error("three time-outs of which the kernel did not tell")
}

// timesOutOnce is false when the kernel told of no closing.
func timesOutOnce(t *testing.T, cut func(*sockNet), closings func(port uint16) uint64) bool {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	c := p.open(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := errors.Join(raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300)
	}), set); err != nil {
		t.Fatal(err)
	}
	cut(p)
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	before := p.client.netCounter("Tcp", "RetransSegs")
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(nsPatience)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	if !errors.Is(err, unix.ETIMEDOUT) {
		t.Fatalf("read: got %v, want ETIMEDOUT", err)
	}
	a.passed()
	s := a.in(p.client, sockPort(port))
	told := closings(port) > 0
	if told && (s.Errno != uint16(unix.ETIMEDOUT) || s.Failed || s.Failure() != flows.FailTimedOut) {
		t.Errorf("port %d: got %+v, want ETIMEDOUT of a connection that stood", port, s.SocketFigures)
	}
	a.wantRetransmits(p.client, before)
	a.stop()
	return told
}

// TestFullReceiveQueuesEqualTheKernelsCount: UDP by UdpRcvbufErrors.
func TestFullReceiveQueuesEqualTheKernelsCount(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	for _, host := range []string{sockServer4, sockServer6} {
		group := "Udp"
		var in *net.UDPConn
		p.server.do(func() (err error) {
			in, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
			return errors.Join(err, in.SetReadBuffer(4096))
		})
		to := in.LocalAddr().(*net.UDPAddr).AddrPort()
		if to.Addr().Is6() {
			group = "Udp6"
			if !tellsDatagram(t) {
				in.Close()
				break // IPv6 came to the tracepoint when it learned to tell the datagram
			}
		}
		p.client.datagrams(dropTo(to.String()), 50, 1000)
		a.passed()
		s := a.in(p.server, sockPort(to.Port()))
		var want uint64
		if group == "Udp" {
			want = p.server.netCounter(group, "RcvbufErrors")
		} else {
			want = p.server.netCounter6("Udp6RcvbufErrors")
		}
		if s.RcvQueueFull != want || want < 30 {
			t.Errorf("%s: sockets told of %d datagrams, RcvbufErrors says %d, want the same and most of 50", to, s.RcvQueueFull, want)
		}
		if s.Key.Src != to || s.Key.Proto != flows.ProtoUDP {
			t.Errorf("got %v, want from %s", s.Key, to)
		}
		if known := s.Key.Dst.Port() != 0; known != tellsDatagram(t) {
			t.Errorf("%v: the sender is known: %v", s.Key, known)
		}
		in.Close()
	}
	a.stop()
	for _, r := range a.records {
		if r.Key.Proto == flows.ProtoUDP && tellsDatagram(t) && (r.DestinationSocket == nil || r.DestinationSocket.RcvQueueFull < 30) {
			t.Errorf("record of %v: got %+v, want the full queue at its destination", r.Key, r.DestinationSocket)
		}
	}
}

func tellsDatagram(t *testing.T) bool {
	t.Helper()
	return findSocketProbes(sockKernel(t), func(Capability) {}).config.UdpTellsPacket == 1
}

// TestPingSocketsTellOfFullQueues: what is neither TCP nor UDP has a tracepoint of its
// own.
func TestPingSocketsTellOfFullQueues(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}})
	p.client.sysctl("ipv4/ping_group_range", "0 0")
	const pings = 40
	p.client.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			return err
		}
		for i := range pings {
			echo := make([]byte, 1000)
			echo[0], echo[7] = 8, byte(i)
			if err := unix.Sendto(fd, echo, 0, dropTo(sockServer4+":0")); err != nil {
				return err
			}
		}
		nsUntil(t, "the echoes have come", func() bool { return p.client.netCounter("Icmp", "InEchoReps") == pings })
		return nil
	})
	a.passed()
	s := a.in(p.client, func(k flows.Key) bool { return k.Proto == flows.ProtoICMP })
	if s.RcvQueueFull < pings-10 || s.RcvQueueFull >= pings {
		t.Errorf("got %d packets of %v, want most of %d", s.RcvQueueFull, s.Key, pings)
	}
	a.stop()
	for _, r := range a.records {
		if r.Key.Proto == flows.ProtoICMP && (r.SourceSocket == nil || r.SourceSocket.RcvQueueFull != s.RcvQueueFull || r.DestinationSocket != nil) {
			t.Errorf("record of %v: got %+v and %+v, want %d at the source", r.Key, r.SourceSocket, r.DestinationSocket, s.RcvQueueFull)
		}
	}
}

// TestUnwatchedNamespacesTellToo: but their sockets belong to no conversation of a
// watched one.
func TestUnwatchedNamespacesTellToo(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client"}})
	from := p.client.tcp(p.server, sockServer4, 1000)
	a.passed()
	client, server := a.in(p.client, sockPort(from.Port())), a.in(p.server, sockPort(from.Port()))
	if client.Domain != p.client.cookie() || server.Domain != 0 {
		t.Errorf("domains: got %d and %d, want %d and 0", client.Domain, server.Domain, p.client.cookie())
	}
	if client.Process.PID == 0 || server.Process.PID == 0 {
		t.Errorf("processes: got %+v and %+v, want both known", client.Process, server.Process)
	}
	a.stop()
	for _, r := range a.records {
		if r.Key.Src == from && (r.SourceProcess == nil || r.DestinationProcess != nil) {
			t.Errorf("%v: got processes %+v and %+v, want only the source's", r.Key, r.SourceProcess, r.DestinationProcess)
		}
	}
}

// TestSocketsLoseNothingWhenTheirTablesAreFull: figures without addresses remain.
func TestSocketsLoseNothingWhenTheirTablesAreFull(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client", "server"}, MaxMemory: minMemory, Interval: maxInterval})
	entries := a.d.objs.size.sockets
	if entries == 0 || entries > 256 {
		t.Fatalf("got sets of %d entries, want few with %d bytes of memory", entries, minMemory)
	}
	n := entries + 100
	p.server.do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), nsPatience)
		defer cancel()
		for i := range n {
			var d net.Dialer
			if c, err := d.DialContext(ctx, "tcp", "127.0.0.1:6030"); err == nil {
				c.Close()
				return fmt.Errorf("connection %d to a closed port stands", i)
			}
		}
		return ctx.Err()
	})
	a.stop()
	sum := a.in(p.server, sockAny)
	if sum.ResetsReceived != uint64(n) {
		t.Errorf("got %d resets received, want %d", sum.ResetsReceived, n)
	}
	if a.account.Overflowed == 0 || a.account.Lost != 0 {
		t.Errorf("got %+v, want some without addresses and none lost", a.account)
	}
}

// TestMissingTracepointTurnsOffItsOwnFigure: by its name, by its arguments, and no
// other.
func TestMissingTracepointTurnsOffItsOwnFigure(t *testing.T) {
	sock, skb := &btf.Struct{Name: "sock", Size: 8}, &btf.Struct{Name: "sk_buff", Size: 8}
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	trace := func(name string, args ...btf.Type) btf.Type {
		proto := &btf.FuncProto{Return: (*btf.Void)(nil), Params: []btf.FuncParam{{Type: &btf.Pointer{Target: (*btf.Void)(nil)}}}}
		for _, a := range args {
			proto.Params = append(proto.Params, btf.FuncParam{Type: a})
		}
		return &btf.Typedef{Name: "btf_trace_" + name, Type: &btf.Pointer{Target: proto}}
	}
	of := func(s btf.Type) btf.Type { return &btf.Pointer{Target: &btf.Const{Type: s}} }
	b, err := btf.NewBuilder([]btf.Type{
		trace("tcp_retransmit_skb", of(sock), of(skb), number),
		trace("tcp_send_reset", of(skb), of(sock)), // the other way round
		trace("udp_fail_queue_rcv_skb", number, of(sock)),
		&btf.Func{Name: "inet_csk_accept", Type: &btf.FuncProto{Return: of(sock), Params: []btf.FuncParam{
			{Name: "sk", Type: of(sock)}, {Name: "flags", Type: number}, {Name: "err", Type: of(number)}, {Name: "kern", Type: number},
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	off := map[string]Capability{}
	found := findSocketProbes(kernel, func(c Capability) { off[c.Name] = c })
	want := bpf.SocketSocketConfig{RetransmitTellsError: 1, AcceptArguments: 4}
	if len(found.probes) != 3 || len(off) != len(socketProbes())-3 || found.config != want {
		t.Errorf("got %d probes, %d off, %+v; want 3, the others off, %+v", len(found.probes), len(off), found.config, want)
	}
	if err := off["sockets: resets sent"].Err; err != "find tcp_send_reset: its arguments are (sk_buff*, sock*), not (sock*, sk_buff*)" {
		t.Errorf("resets sent: got %q", err)
	}
	if err := off["sockets: resets received"].Err; !strings.Contains(err, "tcp_receive_reset") {
		t.Errorf("resets received: got %q, want the tracepoint named", err)
	}
}

// TestSocketsLeaveNothingBehind: no program, map or link after Close.
func TestSocketsLeaveNothingBehind(t *testing.T) {
	p := sockPair(t)
	a := sockStart(t, Options{Netns: []string{"client"}})
	p.client.tcp(p.server, sockServer4, 1000)
	var progs []ebpf.ProgramID
	var maps []ebpf.MapID
	for _, probe := range a.d.socks.probes {
		info, err := probe.prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		progs = append(progs, id)
		used, _ := info.MapIDs()
		maps = append(maps, used...)
	}
	if len(progs) < 7 || len(maps) < len(progs) {
		t.Fatalf("got %d programs and %d maps before", len(progs), len(maps))
	}
	a.stop()
	nsUntil(t, "programs and maps are gone", func() bool { // the kernel frees them a grace period later
		for _, id := range progs {
			if p, err := ebpf.NewProgramFromID(id); err == nil {
				p.Close()
				return false
			}
		}
		for _, id := range maps {
			if m, err := ebpf.NewMapFromID(id); err == nil {
				m.Close()
				return false
			}
		}
		return true
	})
}
