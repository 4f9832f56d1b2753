// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

const dropCount = 40 // injected drops

// address is where datagrams go.
func dropTo(s string) unix.Sockaddr {
	a := netip.MustParseAddrPort(s)
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// expect is told how many datagrams of size bytes for an address were dropped in a
// namespace and why, and that no other of them was.
func (r *dropNet) expect(t *testing.T, at *nsSpace, dev, to, reason string, count, size uint64) {
	t.Helper()
	dst := netip.MustParseAddrPort(to)
	dropped := func() (all []flows.DropSample) {
		for _, n := range []*nsSpace{r.client, r.router, r.server} {
			all = append(all, r.a.in(n, func(s flows.DropSample) bool { return s.Key.Dst == dst && s.Key.Proto == flows.ProtoUDP })...)
		}
		return all
	}
	nsUntil(t, "as many are dropped", func() bool { return dropPackets(dropped()) >= count }) // what was sent may still be under way
	r.a.passed()
	all := dropped()
	header := uint64(20 + 8)
	if dst.Addr().Is6() {
		header += 20
	}
	var bytes uint64
	for _, s := range all {
		bytes += s.Bytes
		if s.Reason != reason || s.Class != flows.DropLoss || s.At != (flows.Point{Netns: at.cookie(), Ifindex: uint32(at.index(dev))}) {
			t.Errorf("got %d packets %s (%s) in %s at %+v, want %s at %s (ifindex %d, netns %d)",
				s.Packets, s.Reason, s.Class, s.Location, s.At, reason, dev, at.index(dev), at.cookie())
		}
		if strings.HasPrefix(s.Location, "0x") || s.Location == "" {
			t.Errorf("location: got %q, want a function", s.Location)
		}
		t.Logf("%s in %s: %d packets", s.Reason, s.Location, s.Packets)
	}
	if got := dropPackets(all); got != count || bytes != count*(header+size) {
		t.Errorf("to %s: got %d packets of %d bytes dropped, want %d of %d", to, got, bytes, count, count*(header+size))
	}
}

// TestDropsAreReportedWithTheirReason injects drops, each kind with a port of its own.
func TestDropsAreReportedWithTheirReason(t *testing.T) {
	r := dropRouted(t, Options{})
	for _, c := range []struct {
		name string
		run  func(*testing.T, *dropNet)
	}{
		{"closed port", dropClosedPort}, {"segments of a GSO frame", dropSegments}, {"full receive buffer", dropReceiveBuffer},
		{"expired TTL", dropTTL}, {"missing route", dropRoute}, {"reverse path filter", dropReversePath},
		{"firewall", dropFirewall}, {"exceeded MTU", dropMTU}, {"queue overflow", dropQueue},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, r) })
	}
	st := r.a.d.Status()
	if !slices.ContainsFunc(st.Programs, func(p ProgramStatus) bool { return p.Name == "trace_drop" && p.Instrs > 0 }) {
		t.Errorf("programs: got %+v, want trace_drop among them", st.Programs)
	}
	var total uint64
	for _, m := range st.Memory {
		total += m.Bytes
	}
	if bound := uint64(defaultMaxMemory); total == 0 || total > bound {
		t.Errorf("memory: got %d bytes, want at most %d: %+v", total, bound, st.Memory)
	}
	r.a.stop()
}

func dropClosedPort(t *testing.T, r *dropNet) {
	for _, to := range []string{dropServer4 + ":5001", "[" + dropServer6 + "]:5001"} {
		r.client.datagrams(dropTo(to), dropCount, 100)
		r.expect(t, r.server, "eth0", to, "NO_SOCKET", dropCount, 100)
	}
}

// dropSegments sends one GSO frame of ten datagrams.
func dropSegments(t *testing.T, r *dropNet) {
	const udpSegment = 103 // UDP_SEGMENT
	to := dropServer4 + ":5002"
	r.client.datagrams(dropTo(to), 1, 10000, [3]int{unix.SOL_UDP, udpSegment, 1000})
	r.a.passed()
	drops := r.a.in(r.server, func(s flows.DropSample) bool { return s.Key.Dst.String() == to })
	if got := dropPackets(drops); got != 10 {
		t.Errorf("got %d packets dropped, want 10: %+v", got, drops)
	}
}

func dropReceiveBuffer(t *testing.T, r *dropNet) {
	var in *net.UDPConn
	r.server.do(func() (err error) {
		in, err = net.ListenUDP("udp4", nil)
		return errors.Join(err, in.SetReadBuffer(4096))
	})
	defer in.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr(dropServer4), uint16(in.LocalAddr().(*net.UDPAddr).Port)).String()
	r.client.datagrams(dropTo(to), dropCount, 1000)
	r.a.passed()
	raw, err := in.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	received := uint64(0)
	buf := make([]byte, 2000)
	if err := raw.Control(func(fd uintptr) {
		for {
			if _, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != nil {
				return // nothing is left
			}
			received++
		}
	}); err != nil {
		t.Fatal(err)
	}
	if received == 0 || received == dropCount {
		t.Fatalf("got %d of %d datagrams: the buffer was not filled, or took none", received, dropCount)
	}
	r.expect(t, r.server, "eth0", to, "SOCKET_RCVBUFF", dropCount-received, 1000)
}

func dropTTL(t *testing.T, r *dropNet) {
	for to, option := range map[string][3]int{
		dropServer4 + ":5003":        {unix.SOL_IP, unix.IP_TTL, 1},
		"[" + dropServer6 + "]:5003": {unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, 1},
	} {
		r.client.datagrams(dropTo(to), dropCount, 100, option)
		r.expect(t, r.router, "w0", to, "IP_INHDR", dropCount, 100)
	}
}

func dropRoute(t *testing.T, r *dropNet) {
	to := "203.0.113.1:5004"
	r.client.datagrams(dropTo(to), dropCount, 100)
	r.expect(t, r.router, "w0", to, "IP_INNOROUTES", dropCount, 100)
}

// dropMTU sends what the next device cannot take and nobody may cut.
func dropMTU(t *testing.T, r *dropNet) {
	out := r.router.link("w1")
	if err := r.router.h.LinkSetMTU(out, 1300); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to, at string // IPv6 has given the packet to the next device by then
		option [3]int
	}{
		{dropServer4 + ":5009", "w0", [3]int{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}},
		{"[" + dropServer6 + "]:5009", "w1", [3]int{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}},
	} {
		r.client.datagrams(dropTo(c.to), dropCount, 1400, c.option)
		r.expect(t, r.router, c.at, c.to, "PKT_TOO_BIG", dropCount, 1400)
	}
	if err := r.router.h.LinkSetMTU(out, 1500); err != nil {
		t.Fatal(err)
	}
}

func dropReversePath(t *testing.T, r *dropNet) {
	r.router.sysctl("ipv4/conf/all/rp_filter", "1")
	to := dropServer4 + ":5005"
	r.client.up("lo", "10.2.0.50/32") // an address of the server's side
	r.client.do(func() error {
		from := &net.UDPAddr{IP: net.IPv4(10, 2, 0, 50)}
		c, err := net.DialUDP("udp4", from, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		if err != nil {
			return err
		}
		defer c.Close()
		for range dropCount {
			if _, err := c.Write(make([]byte, 100)); err != nil {
				return err
			}
		}
		return nil
	})
	r.expect(t, r.router, "w0", to, "IP_RPFILTER", dropCount, 100)
}

func dropFirewall(t *testing.T, r *dropNet) {
	nft := nsProgramOf(t, "nft", "nftables")
	r.router.do(func() error {
		cmd := exec.Command(nft, "-f", "-")
		cmd.Stdin = strings.NewReader("table inet drops { chain f { type filter hook forward priority 0; udp dport 5006 counter drop; }; }")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("nft: %s", out)
		}
		return err
	})
	to := dropServer4 + ":5006"
	r.client.datagrams(dropTo(to), dropCount, 100)
	r.expect(t, r.router, "w0", to, "NETFILTER_DROP", dropCount, 100) // the way out is not chosen yet
}

// dropQueue: by the tracepoint and by the device's own counters.
func dropQueue(t *testing.T, r *dropNet) {
	dev := r.client.link("eth0")
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       1000, Limit: 3000,
		Buffer: 31_250_000, // 2 s in ticks of 64 ns: a burst of 2,000 bytes
	}
	if err := r.client.h.QdiscReplace(tbf); errors.Is(err, unix.ENOENT) {
		t.Skip("left out: this kernel has no tbf, the queue that the test overflows")
	} else if err != nil {
		t.Fatal(err)
	}
	to := dropServer4 + ":5007"
	r.client.datagrams(dropTo(to), dropCount, 1000)
	dropped := func() uint64 {
		r.a.mu.Lock()
		defer r.a.mu.Unlock()
		for _, d := range r.a.devices {
			if d.At == (flows.Point{Netns: r.client.cookie(), Ifindex: uint32(dev.Attrs().Index)}) && d.Hop.Interface == "eth0" {
				return d.Qdisc
			}
		}
		return 0
	}
	// a few get through; after the last one was sent no more are dropped
	nsUntil(t, "the queue's drops are read", func() bool { return dropped() > dropCount-6 })
	got := dropped()
	if got >= dropCount {
		t.Errorf("the queue dropped %d of %d, want most and not all", got, dropCount)
	}
	r.a.passed()
	reason := "QDISC_DROP"
	if s := r.a.in(r.client, func(s flows.DropSample) bool { return s.Reason == "QDISC_OVERLIMIT" }); s != nil {
		reason = "QDISC_OVERLIMIT" // newer kernels tell it apart
	}
	// the receiver has no such port: what came through is dropped there
	client := r.a.in(r.client, func(s flows.DropSample) bool { return s.Key.Dst.String() == to && s.Reason == reason })
	if n := dropPackets(client); n != got {
		t.Errorf("traced: got %d packets %s, want %d: %+v", n, reason, got, r.a.in(r.client, func(flows.DropSample) bool { return true }))
	}
}

// TestFloodOfFlowsOverflowsWithoutLoss drops more flows than the set has room for.
func TestFloodOfFlowsOverflowsWithoutLoss(t *testing.T) {
	const count = 20000
	r := dropRouted(t, Options{MaxMemory: minMemory})
	r.client.flood(dropServer4, 5000, count)
	r.a.passed()
	drops := r.a.in(r.server, func(s flows.DropSample) bool { return s.Reason == "NO_SOCKET" })
	var over []flows.DropSample
	for _, s := range drops {
		if s.Overflow {
			over = append(over, s)
		}
		if s.Overflow != (s.Key == flows.Key{}) {
			t.Errorf("overflow %v with key %v", s.Overflow, s.Key)
		}
	}
	if got := dropPackets(drops); got != 2*count {
		t.Errorf("got %d packets, want %d", got, 2*count)
	}
	r.a.stop()
	if got := dropPackets(over); got == 0 || r.a.account.Overflowed < got {
		t.Errorf("got %d packets without addresses, and %d counted: want some, and no fewer counted", got, r.a.account.Overflowed)
	}
}

// TestReasonsAreNamedByTheKernel checks the names of numbers that it does not know too.
func TestReasonsAreNamedByTheKernel(t *testing.T) {
	requireBPF(t)
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newDropReasons(kernel)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, n := range r.names {
		named[n] = true
	}
	for _, want := range []string{"NOT_SPECIFIED", "NO_SOCKET", "SOCKET_RCVBUFF", "NETFILTER_DROP", "TCP_OLD_DATA"} {
		if !named[want] {
			t.Errorf("no reason is named %s", want)
		}
	}
	for reason, want := range map[uint32]string{60000: "REASON_60000", 250<<16 | 7: "SUBSYSTEM_250_7"} {
		if got := r.name(reason); got != want {
			t.Errorf("reason %#x: got %q, want %q", reason, got, want)
		}
	}
	for reason, want := range map[string]flows.DropClass{
		"NO_SOCKET": flows.DropLoss, "TCP_OLD_DATA": flows.DropNoise, "NOT_SPECIFIED": flows.DropUnspecified, "REASON_60000": flows.DropLoss,
	} {
		if got := flows.DropClassOf(reason); got != want {
			t.Errorf("class of %s: got %s, want %s", reason, got, want)
		}
	}
}
