// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weft/flows"
)

// TestMain makes the test binary an agent with a sink that panics, for the test
// that needs one.
func TestMain(m *testing.M) {
	if os.Getenv("E2E_PANIC") != "" {
		os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr, panicSink{}))
	}
	os.Exit(m.Run())
}

// panicSink is what a bug in a later stage looks like.
type panicSink struct{}

func (panicSink) Name() string               { return "panic" }
func (panicSink) Account() flows.SinkAccount { return flows.SinkAccount{Name: "panic"} }
func (panicSink) Export(_ context.Context, w flows.Window) error {
	if len(w.Records) > 0 {
		panic("a sink with a bug")
	}
	return nil
}

// needRoot skips a laptop's test run and fails CI's.
func needRoot(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root for network namespaces and BPF"
	}
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			why = "needs " + tool
		}
	}
	switch {
	case why == "":
	case os.Getenv("WEFT_REQUIRE_BPF") == "1":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// house is a network of two namespaces, with a veth pair between them, and the
// binaries under test.
type house struct {
	here, there string // namespaces; the agent is here
	dir         string
	socket      string
}

const (
	hereAddr, thereAddr = "10.78.0.1", "10.78.0.2"
	device              = "wire0" // here; its peer is wire1
)

func newHouse(t *testing.T) *house {
	t.Helper()
	needRoot(t)
	h := &house{dir: t.TempDir()}
	h.here, h.there = fmt.Sprintf("weft-e2e-%d-a", os.Getpid()), fmt.Sprintf("weft-e2e-%d-b", os.Getpid())
	h.socket = filepath.Join(h.dir, "weft.sock")
	build(t, h.dir)
	for _, ns := range []string{h.here, h.there} {
		command(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { command(t, "ip", "netns", "del", ns) })
		h.in(t, ns, func() error { // silence: only the test's own packets
			return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
		})
		command(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	command(t, "ip", "link", "add", device, "netns", h.here, "type", "veth", "peer", "name", "wire1", "netns", h.there)
	command(t, "ip", "-n", h.here, "addr", "add", hereAddr+"/24", "dev", device)
	command(t, "ip", "-n", h.there, "addr", "add", thereAddr+"/24", "dev", "wire1")
	command(t, "ip", "-n", h.here, "link", "set", device, "up")
	command(t, "ip", "-n", h.there, "link", "set", "wire1", "up")
	return h
}

// build puts the two binaries into dir, as the user who called sudo if any, so
// that no file of root's lands in that user's cache. Where nothing can be built,
// TESTBED_BUILT is the folder that has them.
func build(t *testing.T, dir string) {
	t.Helper()
	if built := os.Getenv("TESTBED_BUILT"); built != "" {
		for _, p := range []string{"weftd", "flowctl"} {
			if err := os.Symlink(filepath.Join(built, p), filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	cmd := exec.Command("go", "build", "-o", dir, "weft/tools/weftd", "weft/tools/flowctl")
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
		gid, err := strconv.Atoi(os.Getenv("SUDO_GID"))
		if err != nil {
			t.Fatalf("SUDO_GID: %v", err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chown(d, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// in runs f on a thread of a namespace; sockets made in it stay there.
func (h *house) in(t *testing.T, ns string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := netns.GetFromName(ns)
		if err == nil {
			err = errors.Join(netns.Set(fd), fd.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", ns, err)
	}
}

// weftd is a running agent.
type weftd struct {
	cmd *exec.Cmd
	log bytes.Buffer // read it after wait only
	out bytes.Buffer
}

// start runs an agent here and waits until it is ready.
func (h *house) start(t *testing.T, config string, env ...string) *weftd {
	t.Helper()
	w := h.launch(t, filepath.Join(h.dir, "weftd"), config, env...)
	h.eventually(t, "the agent is ready", func() error {
		text, err := h.get(t, "/readyz")
		if err != nil {
			return err
		}
		if text != "ok\n" {
			return errors.New(text)
		}
		return nil
	})
	return w
}

// launch runs program here as an agent.
func (h *house) launch(t *testing.T, program, config string, env ...string) *weftd {
	t.Helper()
	path := filepath.Join(h.dir, "weft.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &weftd{cmd: exec.Command("nsenter", "--net=/run/netns/"+h.here, program, "-config", path)}
	ours := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "WEFT_EMULATED=") || strings.HasPrefix(v, "WEFT_TESTBED=")
	}) // no keys of the agent's
	w.cmd.Env = append(ours, append(env, "WEFT_LISTEN_SOCKET="+h.socket)...)
	w.cmd.Stderr, w.cmd.Stdout = &w.log, &w.out
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			_ = w.cmd.Process.Kill() // it may have ended
			_ = w.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("weftd's log:\n%s", w.log.String())
		}
	})
	return w
}

// wait is the exit code of an agent that is ending.
func (w *weftd) wait(t *testing.T) int {
	t.Helper()
	timeout := time.AfterFunc(15*time.Second, func() { _ = w.cmd.Process.Kill() })
	defer timeout.Stop()
	var exit *exec.ExitError
	if err := w.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return w.cmd.ProcessState.ExitCode()
}

func (w *weftd) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until check is content, for at most 20 seconds.
func (h *house) eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	h.within(t, 20*time.Second, what, check)
}

// within is eventually with another limit.
func (h *house) within(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	var err error
	if os.Getenv("WEFT_EMULATED") == "1" {
		limit *= 3 // loading the programs alone may take ten seconds there
	}
	deadline := time.Now().Add(limit)
	for tick := time.NewTicker(50 * time.Millisecond); time.Now().Before(deadline); <-tick.C {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %s: %v", what, limit, err)
}

// get fetches a page of the agent's, whose loopback is here.
func (h *house) get(t *testing.T, page string, headers ...string) (text string, err error) {
	h.in(t, h.here, func() error {
		conn, dialErr := net.Dial("tcp", "127.0.0.1:9470")
		if dialErr != nil {
			err = dialErr
			return nil
		}
		defer conn.Close()
		if _, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n%s\r\n", page, strings.Join(append(headers, ""), "\r\n")); err != nil {
			return nil
		}
		var all []byte
		all, err = io.ReadAll(conn)
		_, text, _ = strings.Cut(string(all), "\r\n\r\n")
		return nil
	})
	return text, err
}

// flowctl runs the command line against the agent.
func (h *house) flowctl(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "flowctl"), append([]string{"--server", "unix://" + h.socket}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), complaint.String(), cmd.ProcessState.ExitCode()
}

// talk sends n bytes over one TCP connection from here to port there, and gets
// half of them back.
func (h *house) talk(t *testing.T, port, n int) {
	t.Helper()
	var lis net.Listener
	h.in(t, h.there, func() (err error) {
		lis, err = net.Listen("tcp", net.JoinHostPort(thereAddr, strconv.Itoa(port)))
		return err
	})
	served := make(chan error, 1)
	go func() {
		defer lis.Close()
		conn, err := lis.Accept()
		if err != nil {
			served <- err
			return
		}
		_, err = io.CopyN(io.Discard, conn, int64(n))
		if err == nil {
			_, err = conn.Write(make([]byte, n/2))
		}
		served <- errors.Join(err, conn.Close())
	}()
	h.in(t, h.here, func() error {
		conn, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			return err
		}
		if _, err = conn.Write(make([]byte, n)); err == nil {
			_, err = io.CopyN(io.Discard, conn, int64(n/2))
		}
		return errors.Join(err, <-served, conn.Close())
	})
}

// counters are the device's own: packets received and sent.
func (h *house) counters(t *testing.T) (rx, tx uint64) {
	t.Helper()
	h.in(t, h.here, func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			rx, tx = l.Attrs().Statistics.RxPackets, l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return rx, tx
}

// leftovers is what hangs on the device: tcx programs, clsact filters, qdisc.
func (h *house) leftovers(t *testing.T) (left []string) {
	t.Helper()
	h.in(t, h.here, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		left, err = hanging(l)
		return err
	})
	return left
}

// hanging is what hangs on a device of the thread's namespace.
func hanging(l netlink.Link) (left []string, err error) {
	for name, at := range map[string]ebpf.AttachType{"tcx ingress": ebpf.AttachTCXIngress, "tcx egress": ebpf.AttachTCXEgress} {
		got, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
		if errors.Is(err, ebpf.ErrNotSupported) {
			continue // a kernel without tcx
		}
		if err != nil {
			return nil, err
		}
		for range got.Programs {
			left = append(left, name)
		}
	}
	for name, parent := range map[string]uint32{"clsact ingress": netlink.HANDLE_MIN_INGRESS, "clsact egress": netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(l, parent)
		if err != nil {
			return nil, err
		}
		for range filters {
			left = append(left, name)
		}
	}
	qdiscs, err := netlink.QdiscList(l)
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			left = append(left, "clsact qdisc")
		}
	}
	return left, err
}
