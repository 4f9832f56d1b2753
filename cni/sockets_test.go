// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// TestSocketsProgram is no test by itself: it is the program whose sockets the others
// look for. Its lines: name, then what to open; it says the addresses and waits.
func TestSocketsProgram(t *testing.T) {
	plan := os.Getenv("WEFT_TEST_SOCKETS")
	if plan == "" {
		return
	}
	name, rest, _ := strings.Cut(plan, " ")
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		t.Fatal(err)
	}
	for what := range strings.FieldsSeq(rest) {
		how, addr, _ := strings.Cut(what, "=")
		var at net.Addr
		switch how {
		case "tcp", "tcp4", "tcp6":
			l, err := net.Listen(how, addr)
			if err != nil {
				t.Fatal(err)
			}
			at = l.Addr()
			go func() {
				for {
					if _, err := l.Accept(); err != nil {
						return
					}
				}
			}()
		case "udp":
			c, err := net.ListenPacket(how, addr)
			if err != nil {
				t.Fatal(err)
			}
			at = c.LocalAddr()
		default: // dial-tcp, dial-udp
			c, err := net.Dial(strings.TrimPrefix(how, "dial-"), addr)
			if err != nil {
				t.Fatal(err)
			}
			at = c.LocalAddr()
		}
		fmt.Println("at", at)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
}

// opens starts TestSocketsProgram in a namespace and returns the addresses that it has.
func opens(t *testing.T, ns, plan string) (pid uint32, at []netip.AddrPort) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSocketsProgram$")
	cmd.Env = append(os.Environ(), "WEFT_TEST_SOCKETS="+plan)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, ns, func(*netlink.Handle) error { return cmd.Start() })
	t.Cleanup(func() { _ = stdin.Close(); kill(cmd) })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "ready" {
			return uint32(cmd.Process.Pid), at
		}
		if text, ok := strings.CutPrefix(lines.Text(), "at "); ok {
			at = append(at, netip.MustParseAddrPort(text))
		}
	}
	t.Fatalf("%s: the program ended before it was ready", plan)
	return 0, nil
}

// counted is a census that looks for the owners of sockets.
func counted(t *testing.T) *Census {
	t.Helper()
	m := openMirror(t, everything)
	c := OpenCensus(m.Topology, CensusOptions{Node: "node", Processes: true})
	t.Cleanup(c.Close)
	return c
}

// ends annotates a record of a conversation that went on until now.
func ends(c *Census, scope uint64, proto uint8, src, dst netip.AddrPort, by flows.InitiatorBasis) flows.Record {
	now := time.Now()
	r := flows.Record{
		Scope: flows.Scope{Netns: scope}, Key: flows.Key{Src: src, Dst: dst, Proto: proto}, Initiator: by,
		Start: now.Add(-time.Second), End: now,
	}
	c.Annotate(&r)
	return r
}

// isProcess is an error unless e names a process with no more than that confidence.
func isProcess(e *flows.Entity, pid uint32, comm string, atMost uint8) error {
	if e == nil || e.PID != pid || e.Process != comm || e.Confidence > atMost || e.Confidence == 0 {
		return fmt.Errorf("got %+v, want process %d %s, at most %d %% sure", e, pid, comm, atMost)
	}
	return nil
}

// Who listens, who was connected before the agent began, and who has a UDP socket has
// a name, less sure than that which the kernel gives; a connection's very socket
// comes before the one that listens.
func TestSocketsHaveTheProcessThatOpenedThem(t *testing.T) {
	server, client := newNetns(t, "server"), newNetns(t, "client")
	pairUp(t, server, "veth0", client, "veth1")
	addAddress(t, server, "veth0", "10.77.0.1/24")
	addAddress(t, client, "veth1", "10.77.0.2/24")
	waitFor(t, "the server's address is usable", func() bool { return ping(t, client, "10.77.0.1") })
	sp, sAt := opens(t, server, "webserver tcp=:0 tcp4=10.77.0.1:0 udp=10.77.0.1:0 tcp6=[::]:0")
	cp, cAt := opens(t, client, fmt.Sprintf("browser dial-tcp=10.77.0.1:%d dial-udp=%s", sAt[0].Port(), sAt[2]))
	c := counted(t)
	scope := min(cookieOf(t, server), cookieOf(t, client))
	to := func(i int) netip.AddrPort { return netip.AddrPortFrom(addrOf("10.77.0.1"), sAt[i].Port()) }
	other := netip.MustParseAddrPort("10.77.0.2:9") // nobody's socket
	var last error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		older := ends(c, scope, flows.ProtoTCP, cAt[0], to(0), flows.InitiatorPort)
		short := ends(c, scope, flows.ProtoTCP, other, to(1), flows.InitiatorSYN)
		udp := ends(c, scope, flows.ProtoUDP, cAt[1], sAt[2], flows.InitiatorPort)
		v6only := ends(c, scope, flows.ProtoTCP, other, to(3), flows.InitiatorSYN)
		last = errors.Join(
			isProcess(older.Source, cp, "browser", 85), isProcess(older.Destination, sp, "webserver", 85),
			isProcess(short.Destination, sp, "webserver", 75),
			isProcess(udp.Source, cp, "browser", 85), isProcess(udp.Destination, sp, "webserver", 75))
		if last == nil && older.Destination.Confidence <= short.Destination.Confidence && older.Destination.Confidence > 50 {
			last = fmt.Errorf("the very socket makes it no surer: %d %%, listening %d %%", older.Destination.Confidence, short.Destination.Confidence)
		}
		if short.Source == nil || short.Source.PID != 0 || v6only.Destination == nil || v6only.Destination.PID != 0 {
			last = errors.Join(last, fmt.Errorf("without a socket: got %+v and, of IPv6 only, %+v; want no process", short.Source, v6only.Destination))
		}
		if last == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(last)
		}
	}
	back := ends(c, scope, flows.ProtoTCP, to(1), other, flows.InitiatorSYN)
	if back.Source == nil || back.Source.PID != 0 {
		t.Errorf("a connection from a port where somebody listens: got %+v, want no process", back.Source)
	}
	told := flows.Record{Scope: flows.Scope{Netns: scope}, Key: flows.Key{Src: cAt[0], Dst: to(0), Proto: flows.ProtoTCP}, Start: time.Now(), End: time.Now(),
		DestinationProcess: &flows.Process{PID: 1, Comm: "kernel's word"}}
	c.Annotate(&told)
	if got := told.Destination; got == nil || got.PID != 1 {
		t.Errorf("what the kernel named: got %+v, want process 1", got)
	}
}

// Who had a socket that is closed is still told of the time before, and of no later
// one; a PID that is another's by now is told of nothing new.
func TestClosedSocketsAreRememberedForTheirTime(t *testing.T) {
	ns := newNetns(t, "ns")
	in(t, ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		return errors.Join(err, h.LinkSetUp(lo))
	})
	pid, at := opens(t, ns, "brief tcp=127.0.0.1:0")
	c := counted(t)
	scope, from := cookieOf(t, ns), netip.MustParseAddrPort("127.0.0.1:9")
	named := func() *flows.Entity {
		return ends(c, scope, flows.ProtoTCP, from, at[0], flows.InitiatorSYN).Destination
	}
	waitFor(t, "the process has a name", func() bool { e := named(); return e != nil && e.PID == pid })
	during := time.Now()
	process, err := os.FindProcess(int(pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "conversations after it ended have none", func() bool { e := later(c, scope, from, at[0], time.Now()); return e != nil && e.PID == 0 })
	if e := later(c, scope, from, at[0], during); e == nil || e.PID != pid {
		t.Errorf("a conversation before it ended: got %+v, want process %d", e, pid)
	}
}

func later(c *Census, scope uint64, src, dst netip.AddrPort, when time.Time) *flows.Entity {
	r := flows.Record{Scope: flows.Scope{Netns: scope}, Key: flows.Key{Src: src, Dst: dst, Proto: flows.ProtoTCP}, Initiator: flows.InitiatorSYN, Start: when, End: when}
	c.Annotate(&r)
	return r.Destination
}

// A socket that several have is its opener's, and less sure; one that systemd opened
// for a service is the service's; under one PID another process is another opener.
func TestOpenerIsTheOldestHolder(t *testing.T) {
	p := func(pid uint32, start uint64, comm string) process {
		return process{PID: pid, Start: start, Comm: comm}
	}
	for _, c := range []struct {
		why     string
		holders []process
		want    opener
		sure    uint8
	}{
		{"one", []process{p(7, 5, "web")}, opener{p(7, 5, "web"), 1, false}, 85},
		{"workers", []process{p(9, 6, "web"), p(7, 5, "web"), p(8, 6, "web")}, opener{p(7, 5, "web"), 3, false}, 75},
		{"called differently", []process{p(7, 5, "web"), p(9, 6, "cgi")}, opener{p(7, 5, "web"), 2, true}, 50},
		{"socket activation", []process{p(1, 1, "systemd"), p(9, 6, "web")}, opener{p(9, 6, "web"), 1, false}, 85},
		{"not started yet", []process{p(1, 1, "systemd")}, opener{p(1, 1, "systemd"), 1, false}, 85},
	} {
		var got opener
		for _, h := range c.holders {
			got = got.with(h)
		}
		sure, _ := sighting{&got, true}.evidence()
		if got != c.want || sure != c.sure {
			t.Errorf("%s: got %+v, %d %% sure; want %+v, %d", c.why, got, sure, c.want, c.sure)
		}
	}
}

// ping reports whether a UDP datagram can be sent, which needs the devices up.
func ping(t *testing.T, ns, to string) (ok bool) {
	t.Helper()
	in(t, ns, func(*netlink.Handle) error {
		c, err := net.Dial("tcp", to+":1")
		if err == nil {
			_ = c.Close()
		}
		ok = err == nil || strings.Contains(err.Error(), "refused")
		return nil
	})
	return ok
}

// What one round costs with 2,000 sockets of one process beside the machine's own.
func BenchmarkSocketsRound(b *testing.B) {
	needRoot(b)
	for range 2000 {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
	}
	m := openMirror(b, everything)
	s := newSockets(slog.New(slog.DiscardHandler), m.Topology)
	if err := s.look(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.fullAt = time.Time{}
		if err := s.look(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(*s.now.Load())), "sockets")
}

func TestDescriptorsThatMayNotBeReadAreToldAsLongAsASocketHasNobody(t *testing.T) {
	sleep := needTool(t, "sleep")
	cmd := exec.Command(sleep, "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	s := newSockets(quiet(), nil)
	nobodys := map[socketKey][]socketID{{}: {{inode: 1}}}
	onThread(t, func() error { // as the agent of deploy/weft.service: root, without these two
		head, caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capget(&head, &caps[0]); err != nil {
			return err
		}
		for _, c := range []int{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_PTRACE} {
			caps[c/32].Effective &^= 1 << (c % 32)
		}
		if err := unix.Capset(&head, &caps[0]); err != nil {
			return err
		}
		for range 3 * maxUnfound { // it is looked for maxUnfound times
			if err := s.findNew(nobodys); err == nil || !strings.Contains(err.Error(), "CAP_DAC_READ_SEARCH") {
				t.Errorf("while a socket has nobody: got %v, want what is needed", err)
			}
		}
		if err := s.findNew(nil); err != nil {
			t.Errorf("once the socket is gone: got %v, want nothing to tell", err)
		}
		return nil
	})
}
