// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// start starts a program that is killed when the test ends.
func start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd
}

// reuse starts a program under a PID that has just become free.
func reuse(t *testing.T, pid int, args ...string) {
	t.Helper()
	for range 1000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			t.Cleanup(func() { kill(cmd) })
			return
		}
		kill(cmd) // somebody else was quicker
	}
	t.Fatalf("PID %d could not be had again", pid)
}

// What was known of a process is not said of another that has its PID now.
func TestReusedPIDIsAnotherProcess(t *testing.T) {
	needRoot(t)
	sleep := needTool(t, "sleep")
	first := start(t, sleep, "60")
	p, err := readProcess(uint32(first.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() || p.Comm != "sleep" || int(p.Parent) != os.Getpid() {
		t.Fatalf("got %+v, alive %t; want a living sleep of this process", p, p.alive())
	}
	waitFor(t, "its arguments are sleep 60", func() bool {
		args, err := p.args()
		return err == nil && len(args) == 2 && args[1] == "60"
	})
	kill(first)
	if _, err := readProcess(p.PID); !errors.Is(err, errGone) {
		t.Errorf("reading it after its end: %v, want %v", err, errGone)
	}
	for began := time.Now(); time.Since(began) < 20*time.Millisecond; { // a start time has 10 ms
		time.Sleep(time.Millisecond)
	}
	reuse(t, int(p.PID), sleep, "61")
	if p.alive() {
		t.Error("the process is taken for alive, and its PID is another's")
	}
	if args, err := p.args(); !errors.Is(err, errGone) {
		t.Errorf("arguments are %q (%v), want %v", args, err, errGone)
	}
	if c, err := containerOf(p); !errors.Is(err, errGone) {
		t.Errorf("container is %+v (%v), want %v", c, err, errGone)
	}
	if h := heldBy(p); h != nil {
		t.Errorf("holds %+v, want nothing", h)
	}
}

// A machine's name goes with it, although another program has its PID at once.
func TestMachineIsNotNamedByAReusedPID(t *testing.T) {
	ns := newNetns(t, "reuse")
	cookie := cookieOf(t, ns)
	m := openMirror(t, everything)
	vm := startVM(t, ns, "vnet0", "-name", "gone")
	eventually(t, m, "the machine is known", func(now *Topology) error {
		if d := now.named(cookie, "vnet0"); d == nil || d.Behind == nil || d.Behind.VM != "gone" {
			return errors.New("no")
		}
		return nil
	})
	kill(vm)
	reuse(t, vm.Process.Pid, needTool(t, "sleep"), "60")
	startVM(t, ns, "vnet0", "-name", "new")
	eventually(t, m, "the new machine is known", func(now *Topology) error {
		if d := now.named(cookie, "vnet0"); d == nil || d.Behind == nil || d.Behind.VM != "new" || int(d.Behind.PID) == vm.Process.Pid {
			return errors.New("no")
		}
		return nil
	})
}

// A process whose name has parentheses and spaces is read like any other.
func TestProcessNameMayHoldAnything(t *testing.T) {
	name := ") R 1 (x\n)"
	p, err := parseStat([]byte("77 (" + name + ") S 12 " + strings.Repeat("0 ", 17) + "4242 0"))
	if err != nil || p.Comm != name || p.Parent != 12 || p.Start != 4242 {
		t.Errorf("got %+v, %v; want name %q, parent 12, start 4242", p, err, name)
	}
	for _, bad := range []string{"", "1", "1 (x", "1 (x) S", "1 (x) S y " + strings.Repeat("0 ", 18), ")("} {
		if p, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, p)
		}
	}
}
