// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/bpf"
	"weft/flows"
)

// relay moves packets between TUN devices of two namespaces and holds each for a
// while: a forwarder whose delay is known, since it measures how long it held them.
type relay struct {
	t     testing.TB
	delay time.Duration

	mu   sync.Mutex
	held [2][]time.Duration // towards the far end, and back
}

type heldPacket struct {
	b  []byte
	at time.Time
}

// tun makes a TUN device in a namespace.
func (n *nsSpace) tun(name string) *os.File {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	dev := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, Queues: 1, NonPersist: true}
	n.do(func() error { return netlink.LinkAdd(dev) })
	n.t.Cleanup(func() { dev.Fds[0].Close() })
	return dev.Fds[0]
}

// newRelay joins near to far.
func newRelay(t testing.TB, near, far *os.File) *relay {
	r := &relay{t: t}
	go r.pump(0, near, far)
	go r.pump(1, far, near)
	return r
}

func (r *relay) pump(way int, from, to *os.File) {
	held := make(chan heldPacket, 1024)
	go func() {
		for p := range held {
			r.mu.Lock()
			d := r.delay
			r.mu.Unlock()
			time.Sleep(d - time.Since(p.at))
			_, err := to.Write(p.b)
			r.mu.Lock()
			r.held[way] = append(r.held[way], time.Since(p.at))
			r.mu.Unlock()
			if err != nil && !errors.Is(err, unix.EIO) { // not up yet; else closed: the test is over
				return
			}
		}
	}()
	for {
		b := make([]byte, 2048)
		n, err := from.Read(b)
		if err != nil {
			close(held)
			return
		}
		held <- heldPacket{b[:n], time.Now()}
	}
}

// set begins anew with another delay.
func (r *relay) set(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay, r.held = d, [2][]time.Duration{}
}

// truth is the median of what a packet and its answer were held together.
func (r *relay) truth() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return median(r.held[0]) + median(r.held[1])
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// delayed is client - relay - host - relay - server, and the agent on the host.
type delayed struct {
	host, client, server *nsSpace
	toClient, toServer   *relay
	a                    *nsAgent
	ln                   net.Listener
}

func newDelayed(t *testing.T) *delayed {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Fatalf("this kernel has no TUN devices: %v", err)
	}
	n := &delayed{host: nsHost(t), client: nsNew(t, "client"), server: nsNew(t, "server")}
	n.toClient = newRelay(t, n.host.tun("tc0"), n.client.tun("eth0"))
	n.toServer = newRelay(t, n.host.tun("ts0"), n.server.tun("eth0"))
	n.host.up("tc0", "10.1.0.1/24")
	n.host.up("ts0", "10.2.0.1/24")
	n.client.up("eth0", "10.1.0.2/24")
	n.server.up("eth0", "10.2.0.2/24")
	n.client.route("10.2.0.0/24", "10.1.0.1")
	n.server.route("10.1.0.0/24", "10.2.0.1")
	n.a = nsStart(t, Options{TCP: true, Interfaces: []string{"tc0", "ts0"}})
	n.a.await(n.host, "tc0", "ts0")
	n.server.do(func() (err error) {
		n.ln, err = net.Listen("tcp", "10.2.0.2:0")
		return err
	})
	t.Cleanup(func() { n.ln.Close() })
	return n
}

// pingPong sends count messages, each when the one before was answered, and returns
// the client's port and the least round trip of its kernel.
func (n *delayed) pingPong(t *testing.T, count int) (port uint16, rtt time.Duration) {
	served := make(chan error, 1)
	go func() {
		c, err := n.ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(nsPatience))
		b := make([]byte, 100)
		for range count {
			if _, err = c.Read(b); err == nil {
				_, err = c.Write(b)
			}
			if err != nil {
				break
			}
		}
		served <- err
	}()
	n.client.do(func() error {
		c, err := net.DialTimeout("tcp", n.ln.Addr().String(), nsPatience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(nsPatience)); err != nil {
			return err
		}
		port = c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
		b := make([]byte, 100)
		for range count {
			if _, err := c.Write(b); err != nil {
				return err
			}
			if _, err := c.Read(b); err != nil {
				return err
			}
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		var info *unix.TCPInfo
		if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); cerr != nil {
			return cerr
		}
		if err == nil {
			rtt = time.Duration(info.Min_rtt) * time.Microsecond
		}
		return err
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return port, rtt
}

// histogram is the kernel's, of one measure, all servers and devices together.
func (a *nsAgent) histogram(m flows.Measure) (buckets [bpf.FlowWeftLatencyWEFT_LATENCY_BUCKETS]uint64) {
	a.t.Helper()
	var k bpf.FlowLatencyKey
	var v bpf.FlowLatency
	for it := a.d.objs.maps[bpf.HealthMapLatencies].Iterate(); it.Next(&k, &v); {
		if flows.Measure(k.Measure) != m {
			continue
		}
		for i, n := range v.Bucket {
			buckets[i] += uint64(n)
		}
	}
	return buckets
}

// bucketIndex is the definition: the i of (2^(i/8), 2^((i+1)/8)] seconds that holds d.
func bucketIndex(d time.Duration) int {
	return int(math.Ceil(8*math.Log2(d.Seconds()))) - 1
}

// medianBucket is the index of the bucket that holds the median of what came.
func medianBucket(before, after [bpf.FlowWeftLatencyWEFT_LATENCY_BUCKETS]uint64) (index int, n uint64) {
	for i := range after {
		n += after[i] - before[i]
	}
	var below uint64
	for i := range after {
		if below += after[i] - before[i]; 2*below > n {
			return i + int(bpf.FlowWeftLatencyWEFT_LATENCY_LOWEST), n
		}
	}
	return -1, n
}

// TestRoundTripsAndHandshakesAreTheForwardersDelay: what a relay adds on either side
// of the host is what the host's histograms say, to the bucket.
func TestRoundTripsAndHandshakesAreTheForwardersDelay(t *testing.T) {
	n := newDelayed(t)
	delays := []int{1, 5, 20, 100}
	if nsEmulated {
		delays = delays[2:] // its own path takes longer than a millisecond's bucket
	}
	for _, stamps := range []string{"1", "0"} {
		n.client.sysctl("ipv4/tcp_timestamps", stamps)
		n.server.sysctl("ipv4/tcp_timestamps", stamps)
		for _, ms := range delays {
			d := time.Duration(ms) * time.Millisecond
			t.Run(fmt.Sprintf("%s each way, timestamps %s", d, stamps), func(t *testing.T) { n.check(t, d) })
		}
	}
}

func (n *delayed) check(t *testing.T, d time.Duration) {
	n.toServer.set(d)
	n.toClient.set(d / 2)
	measures := []flows.Measure{flows.RTTServer, flows.RTTClient, flows.HandshakeServer, flows.HandshakeClient}
	var before [flows.NumMeasures][bpf.FlowWeftLatencyWEFT_LATENCY_BUCKETS]uint64
	for _, m := range measures {
		before[m] = n.a.histogram(m)
	}
	n.a.drained()
	sent, seen := n.client.snmp("RetransSegs")+n.server.snmp("RetransSegs"), n.sentAgain()
	count := int(min(60, max(8, time.Second/(3*d))))
	opened := uint64(31) // a median that a few late ones do not move
	if d > 20*time.Millisecond || nsEmulated {
		opened = 5 // of longer buckets
	}
	for range opened - 1 {
		n.pingPong(t, 1)
	}
	port, rtt := n.pingPong(t, count)
	n.a.drained()
	truth := [...]time.Duration{n.toServer.truth(), n.toClient.truth()}
	for i, m := range measures {
		got, samples := medianBucket(before[m], n.a.histogram(m))
		least := uint64(count) / 2
		if i > 1 {
			least = opened - 1 // one may be sent again, on a busy machine
		}
		more := 1
		if nsEmulated {
			more = 4 // a packet waits for its relay before the relay's clock runs
		}
		if want := bucketIndex(truth[i%2]); got < want-1 || got > want+more {
			t.Errorf("%s: median in bucket %d, the relay's %s is in %d", m, got, truth[i%2], want)
		}
		if samples < least {
			t.Errorf("%s: got %d samples, want %d", m, samples, least)
		}
	}
	key := flows.Key{Src: netip.AddrPortFrom(netip.MustParseAddr("10.1.0.2"), port), Dst: n.ln.Addr().(*net.TCPAddr).AddrPort(), Proto: 6}
	back := flows.Key{Src: key.Dst, Dst: key.Src, Proto: 6}
	client := n.a.healthAt(t, n.a.at(n.host, "ts0", flows.HookEgress), key)
	server := n.a.healthAt(t, n.a.at(n.host, "ts0", flows.HookIngress), back)
	if got := client.RTT.Min + server.RTT.Min; !nsEmulated && (got-rtt).Abs() > rtt/8+500*time.Microsecond {
		t.Errorf("least round trips to both sides: got %s, the client's kernel has %s", got, rtt)
	}
	// a late relay makes them send again, in any of the connections; the host sees every copy
	if again, got := n.client.snmp("RetransSegs")+n.server.snmp("RetransSegs")-sent, n.sentAgain()-seen; got != again || client.Lost+server.Lost > 0 {
		t.Errorf("sent again: the two kernels say %d, got %d, and %+v and %+v", again, got, client, server)
	}
}

// sentAgain is how many segments of all connections the host saw twice on its way to the server.
func (n *delayed) sentAgain() (segments uint64) {
	out, in := n.a.at(n.host, "ts0", flows.HookEgress), n.a.at(n.host, "ts0", flows.HookIngress)
	n.a.mu.Lock()
	defer n.a.mu.Unlock()
	for f, g := range n.a.flows {
		if f.At == out || f.At == in {
			segments += g.tcp.Retransmits
		}
	}
	return segments
}

// healthAt is what was measured of a flow at a point.
func (a *nsAgent) healthAt(t *testing.T, at flows.Point, key flows.Key) flows.TCPHealth {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for f, g := range a.flows {
		if f.At == at && f.Key == key {
			return g.tcp
		}
	}
	t.Fatalf("no flow %v at %v", key, at)
	return flows.TCPHealth{}
}

// snmp is a counter of the namespace's own TCP, as nstat shows it.
func (n *nsSpace) snmp(name string) uint64 { return n.proto("snmp", "Tcp:", name) }

// proto is a counter of a section of a file of /proc/net.
func (n *nsSpace) proto(file, section, name string) (value uint64) {
	n.t.Helper()
	n.do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if f[0] != section {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			i := slices.Index(names, name)
			if i < 0 {
				break
			}
			value, err = strconv.ParseUint(f[i], 10, 64)
			return err
		}
		return fmt.Errorf("no %s in %s", name, file)
	})
	return value
}

// drops makes a device throw away received frames of TCP with data: at random, one of
// oneIn, or, with burst, so many of each 256 in a row.
func (n *nsSpace) drops(dev string, oneIn, burst int32) {
	n.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { m.Close() })
	const pass, shot = -1, 2
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // its length
		asm.JLT.Imm(asm.R7, 200, "pass"),
	}
	if burst > 0 {
		code = append(code,
			asm.StoreImm(asm.RFP, -4, 0, asm.Word), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()), asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			asm.And.Imm(asm.R1, 255), asm.JGE.Imm(asm.R1, burst, "pass"),
		)
	} else {
		code = append(code, asm.FnGetPrandomU32.Call(), asm.Mod.Imm32(asm.R0, oneIn), asm.JNE.Imm(asm.R0, 0, "pass"))
	}
	code = append(code, asm.Mov.Imm(asm.R0, shot), asm.Return(), asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"), asm.Return())
	p := nsProgram(n.t, ebpf.SchedCLS, code...)
	i := n.index(dev)
	if err := n.h.QdiscAdd(nsClsact(i)); err != nil {
		n.t.Fatal(err)
	}
	if err := n.h.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: i, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:          p.FD(), Name: "loss", DirectAction: true,
	}); err != nil {
		n.t.Fatal(err)
	}
}

// discards has nftables drop received packets with data that a rule chooses.
func (n *nsSpace) discards(rule string) {
	n.t.Helper()
	nft := nsProgramOf(n.t, "nft", "nftables")
	n.do(func() error {
		cmd := exec.Command(nft, "-f", "-")
		cmd.Stdin = strings.NewReader("table inet loss { chain c { type filter hook prerouting priority -300; meta l4proto tcp meta length > 200 " + rule + " counter drop; }; }")
		out, err := cmd.CombinedOutput()
		if err != nil {
			n.t.Logf("nft: %s", out)
		}
		return err
	})
}

// TestRetransmitsAreWhatTheSenderCounts: every segment that the client's kernel sent
// again passed the host again. With one CPU nothing else leaves its order. Of two that send, one
// that stands still lets the other's segments pass; what is sent again while such a gap is open
// may be told as lost before the host.
func TestRetransmitsAreWhatTheSenderCounts(t *testing.T) {
	size := 4 << 20
	if nsEmulated {
		size = 2 << 20
	}
	for name, loss := range map[string][2]int32{"none": {}, "random": {50, 0}, "bursts": {0, 6}} {
		for _, cpus := range []string{"one CPU", "all CPUs"} {
			t.Run(name+" "+cpus, func(t *testing.T) {
				if cpus == "one CPU" {
					oneCPU(t)
				}
				r := nsRouted(t, Options{TCP: true}, 1500, true)
				r.lossy()
				if loss != [2]int32{} {
					r.server.drops("eth0", loss[0], loss[1])
				}
				before := r.client.snmp("RetransSegs")
				from := r.client.tcp(r.server, nsServer4, size)
				r.settle()
				r.a.drained()
				sent := r.client.snmp("RetransSegs") - before
				var got flows.TCPHealth
				r.a.mu.Lock()
				at := r.a.flowsOf(r.host.index("w0"), from)
				r.a.mu.Unlock()
				for _, g := range at {
					gainTCP(&got, &g.tcp)
				}
				r.a.stop()
				if got.Retransmits > sent || got.Retransmits+got.Lost < sent {
					t.Errorf("retransmitted: got %d and %d lost, the sender counted %d", got.Retransmits, got.Lost, sent)
				}
				if cpus == "one CPU" && got.Lost+got.OutOfOrder != 0 {
					t.Errorf("nothing is lost before the host, or reordered: got %+v", got)
				}
				if loss != [2]int32{} && sent == 0 {
					t.Error("nothing was lost: the test shows nothing")
				}
				t.Logf("%d sent again: %+v", sent, got)
			})
		}
	}
}

// oneCPU keeps all threads of this process on one CPU for the rest of the test. What they send
// stays on it, through all devices of this machine, and so do the acknowledgements.
func oneCPU(t *testing.T) {
	t.Helper()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	onCPUs(t, &one)
	t.Cleanup(func() { onCPUs(t, &all) })
}

// onCPUs allows these CPUs to every thread; new ones have what their maker has, so it asks
// until there is none that it has not told.
func onCPUs(t *testing.T, set *unix.CPUSet) {
	t.Helper()
	told := map[string]bool{}
	for more := true; more; {
		more = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if told[thread.Name()] {
				continue
			}
			id, err := strconv.Atoi(thread.Name())
			if err == nil {
				err = unix.SchedSetaffinity(id, set)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatalf("thread %s: %v", thread.Name(), err)
			}
			told[thread.Name()], more = true, true
		}
	}
}

// flowsOf are the flows from an endpoint at a device's ingress.
func (a *nsAgent) flowsOf(ifindex int, from netip.AddrPort) (out []*nsGain) {
	for f, g := range a.flows {
		if f.At.Ifindex == uint32(ifindex) && f.At.Hook == flows.HookIngress && f.Key.Src == from {
			out = append(out, g)
		}
	}
	return out
}

// TestClosedWindowsAreTimed: a server that does not read for a while.
func TestClosedWindowsAreTimed(t *testing.T) {
	r := nsRouted(t, Options{TCP: true}, 1500, true)
	var ln net.Listener
	r.server.do(func() (err error) {
		ln, err = net.Listen("tcp", nsServer4+":0")
		return err
	})
	defer ln.Close()
	const pause = 300 * time.Millisecond
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(nsPatience))
			time.Sleep(pause)
			_, err = io.Copy(io.Discard, c)
		}
		served <- err
	}()
	var from netip.AddrPort
	r.client.do(func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), nsPatience)
		if err != nil {
			return err
		}
		from = c.LocalAddr().(*net.TCPAddr).AddrPort()
		return nsPush(c.(*net.TCPConn), 16<<20)
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.a.drained()
	key := flows.Key{Src: ln.Addr().(*net.TCPAddr).AddrPort(), Dst: from, Proto: flows.ProtoTCP}
	got := r.a.healthAt(t, r.a.at(r.host, "w1", flows.HookIngress), key)
	if want := r.server.proto("netstat", "TcpExt:", "TCPToZeroWindowAdv"); got.ZeroWindows != want || want == 0 {
		t.Errorf("the window closed: got %d times, the receiver's kernel says %d", got.ZeroWindows, want)
	}
	within(t, "closed for", got.ZeroWindow, pause/4, 8*pause)
	r.a.stop()
}
