// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	tuples  = 102_400
	packets = 1_000_000
	live    = 100_000
	liveFor = 20 * time.Second
)

// agentCost runs bin/weftd at its default settings on one end of a veth pair,
// sends UDP from the other, and prints what the agent lost, its memory and its
// CPU time.
func agentCost(w io.Writer) error {
	a, err := startAgent()
	if err != nil {
		return err
	}
	idle, err := a.settledRSS(5 * time.Second)
	if err == nil {
		err = a.report(w, idle)
	}
	return errors.Join(err, a.stop())
}

func (a *agent) report(w io.Writer, idle int) error {
	first, err := a.ledger() // the namespace's own neighbour discovery
	if err != nil {
		return err
	}
	before, start := a.cpuTime(), time.Now()
	if err := a.send(tuples, packets, 0); err != nil {
		return err
	}
	took := time.Since(start)
	l, err := a.balanced(first.flows + packets)
	if err != nil {
		return err
	}
	l.flows -= first.flows
	cpu := a.cpuTime() - before
	start, before = time.Now(), a.cpuTime()
	if err := a.send(live, 0, liveFor); err != nil {
		return err
	}
	busy, wall := a.cpuTime()-before, time.Since(start)
	after, err := a.ledger()
	if err != nil {
		return err
	}
	rate := float64(after.seen-first.seen-packets) / wall.Seconds()
	rss, err := a.rss()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "`weftd` at default settings, one veth, UDP of 60-byte frames from the other namespace\n\n")
	fmt.Fprintf(w, "| what | figure |\n|---|---|\n")
	fmt.Fprintf(w, "| resident memory, idle | %.1f MiB |\n", mib(idle))
	fmt.Fprintf(w, "| %d packets of %d tuples in %.1f s: in flows | %d |\n", packets, tuples, took.Seconds(), l.flows)
	fmt.Fprintf(w, "| skipped / unaccounted / records lost | %d / %d / %d |\n", l.skipped, l.unaccounted, l.lost)
	fmt.Fprintf(w, "| agent CPU for them | %.2f s |\n", cpu.Seconds())
	fmt.Fprintf(w, "| resident memory, %d live flows for %s | %.1f MiB |\n", live, liveFor, mib(rss))
	fmt.Fprintf(w, "| agent CPU meanwhile, at %.0f packets/s | %.0f %% of one CPU |\n", rate, 100*busy.Seconds()/wall.Seconds())
	if l.flows != packets || l.skipped+l.unaccounted+l.lost != 0 {
		return fmt.Errorf("the agent lost packets or records: %+v", l)
	}
	return nil
}

func mib(bytes int) float64 { return float64(bytes) / (1 << 20) }

type agent struct {
	dir string
	cmd *exec.Cmd      // in a namespace of its own
	ns  netns.NsHandle // the sender's
	log *os.File
}

const (
	agentDev  = "wbench0"
	senderDev = "wbench1"
)

func startAgent() (*agent, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, b := range []string{"bin/weftd", "bin/flowctl"} {
		if _, err := os.Stat(b); err != nil {
			return nil, fmt.Errorf("%w: run make build first", err)
		}
	}
	dir, err := os.MkdirTemp("", "weft-bench")
	if err != nil {
		return nil, err
	}
	a := &agent{dir: dir, ns: netns.None()}
	if err := a.start(); err != nil {
		return nil, errors.Join(err, a.stop())
	}
	return a, nil
}

func (a *agent) start() (err error) {
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	defer func() { err = errors.Join(err, netns.Set(own)) }()
	if a.ns, err = netns.New(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	agentNS, err := netns.New()
	if err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	defer agentNS.Close()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: agentDev}, PeerName: senderDev, PeerNamespace: netlink.NsFd(a.ns)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, dev := range []string{"lo", agentDev} {
		if err := up(dev); err != nil {
			return err
		}
	}
	conf := filepath.Join(a.dir, "weft.yaml")
	if err := os.WriteFile(conf, []byte("listen: {socket: "+a.socket()+"}\n"), 0o600); err != nil {
		return err
	}
	if a.log, err = os.Create(filepath.Join(a.dir, "log")); err != nil {
		return err
	}
	a.cmd = exec.Command("bin/weftd", "-config", conf) // a child of this thread: in its namespace
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	if err := a.cmd.Start(); err != nil {
		a.cmd = nil
		return err
	}
	if err := netns.Set(a.ns); err != nil {
		return err
	}
	if err := up(senderDev); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := a.ledger(); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			text, _ := os.ReadFile(a.log.Name())
			return fmt.Errorf("the agent does not answer: %w\n%s", err, text)
		}
	}
}

// up sets a device up without IPv6, whose neighbour discovery would be counted.
func up(dev string) error {
	off := "/proc/sys/net/ipv6/conf/" + dev + "/disable_ipv6"
	if err := os.WriteFile(off, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("turn IPv6 off on %s: %w", dev, err)
	}
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func (a *agent) socket() string { return filepath.Join(a.dir, "weft.sock") }

func (a *agent) stop() error {
	var errs []error
	if a.cmd != nil {
		errs = append(errs, a.cmd.Process.Signal(unix.SIGTERM), a.cmd.Wait())
	}
	if a.ns.IsOpen() {
		errs = append(errs, a.ns.Close())
	}
	if a.log != nil {
		errs = append(errs, a.log.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(a.dir))...)
}

// send sends n frames, or for that long, of so many tuples in turn.
func (a *agent) send(tuples, n int, span time.Duration) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // ends with the goroutine: it is in another namespace
		if err := netns.Set(a.ns); err != nil {
			done <- err
			return
		}
		done <- flood(tuples, n, span)
	}()
	return <-done
}

func flood(tuples, n int, span time.Duration) error {
	dev, err := net.InterfaceByName(senderDev)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: dev.Index}
	f := append([]byte(nil), frame...)
	for deadline, i := time.Now().Add(span), 0; ; i++ {
		if n > 0 && i == n || n == 0 && i%1024 == 0 && time.Now().After(deadline) {
			return nil
		}
		if n == 0 && i%200 == 0 { // at most 200,000 a second: every flow is live in every second
			time.Sleep(time.Millisecond)
		}
		binary.BigEndian.PutUint32(f[26:], 0x0a000000+uint32(i%tuples)>>6)
		binary.BigEndian.PutUint16(f[34:], 1024+uint16(i%tuples)&63)
		for {
			err := unix.Sendto(fd, f, 0, to)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("send: %w", err)
			}
		}
	}
}

// figures of the ledger that must be exact.
type figures struct{ seen, flows, skipped, unaccounted, lost int }

func (a *agent) ledger() (figures, error) {
	out, err := exec.Command("bin/flowctl", "--server", "unix://"+a.socket(), "ledger", "-o", "json").Output()
	if err != nil {
		return figures{}, fmt.Errorf("flowctl ledger: %w", err)
	}
	var l struct {
		Points []struct {
			Interface, Hook          string
			Seen, Flows, Unaccounted int
			Skipped                  map[string]int
		}
		Records struct{ Lost map[string]int }
	}
	if err := json.Unmarshal(out, &l); err != nil {
		return figures{}, fmt.Errorf("flowctl ledger: %w: %s", err, out)
	}
	var f figures
	for _, p := range l.Points {
		if p.Interface == agentDev && p.Hook == "ingress" {
			f.seen, f.flows, f.unaccounted = p.Seen, p.Flows, p.Unaccounted
			for _, n := range p.Skipped {
				f.skipped += n
			}
		}
	}
	for _, n := range l.Records.Lost {
		f.lost += n
	}
	return f, nil
}

// balanced waits until the ledger has n packets.
func (a *agent) balanced(n int) (figures, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		f, err := a.ledger()
		if err != nil || f.flows+f.skipped >= n || time.Now().After(deadline) {
			return f, err
		}
	}
}

// rss is the resident memory, in bytes.
func (a *agent) rss() (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	return kib << 10, err
}

func (a *agent) settledRSS(after time.Duration) (int, error) {
	time.Sleep(after)
	return a.rss()
}

// cpuTime is the agent's user and system time: fields 14 and 15 of its stat, in
// hundredths of a second.
func (a *agent) cpuTime() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
