// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weft/flows"
)

// needTool skips a laptop's test run and fails CI's, but for the guests of other
// kernels, which have no such programs.
func needTool(t *testing.T, name string) string {
	t.Helper()
	needRoot(t)
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("WEFT_REQUIRE_BPF") == "1" && os.Getenv("WEFT_EMULATED") == "" {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

// startIn starts a program in a namespace; it ends with the test at the latest.
func startIn(t *testing.T, ns string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	onThread(t, func() error {
		fd, err := netns.GetFromPath(ns)
		if err != nil {
			return err
		}
		return errors.Join(netns.Set(fd), fd.Close(), cmd.Start())
	})
	t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
}

// startVM starts a machine that never runs an instruction, on a tap.
func startVM(t *testing.T, ns, tap string, args ...string) *exec.Cmd {
	t.Helper()
	qemu := needTool(t, "qemu-system-x86_64")
	return startIn(t, ns, append([]string{
		qemu, "-S", "-accel", "tcg", "-display", "none", "-nodefaults", "-m", "16",
		"-netdev", "tap,id=n,ifname=" + tap + ",script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=n,romfile=",
	}, args...)...)
}

// A tap leads to the machine that has it open, whatever its process is called, for
// as long as it has.
func TestTapLeadsToItsMachine(t *testing.T) {
	ns := newNetns(t, "vm")
	cookie := cookieOf(t, ns)
	m := openMirror(t, everything)
	const uuid = "8d3f9a52-6f0e-4f3c-9a55-0c6d7f5d0b11"
	vm := startVM(t, ns, "vnet0", "-name", "guest=web,,1,process=qemu:web", "-uuid", uuid)
	now := eventually(t, m, "the machine is known", func(now *Topology) error {
		d := now.named(cookie, "vnet0")
		if d == nil || d.Layer != flows.LayerVM || d.Behind == nil {
			return fmt.Errorf("got %+v", d)
		}
		return nil
	})
	d := now.named(cookie, "vnet0")
	e := d.Behind
	if e.VM != "web,1" || e.VMID != uuid || e.Hypervisor != "qemu" || int(e.PID) != vm.Process.Pid || e.Layer != flows.LayerVM || e.Confidence < 90 {
		t.Errorf("got %+v, want qemu's web,1 with UUID %s and PID %d", e, uuid, vm.Process.Pid)
	}
	if d.Kind != "tap" || d.Why == "" {
		t.Errorf("got a %s because %q, want a tap with a reason", d.Kind, d.Why)
	}
	kill(vm)
	eventually(t, m, "the machine is gone", func(now *Topology) error {
		if d := now.named(cookie, "vnet0"); d != nil && d.Behind != nil {
			return fmt.Errorf("%+v is still behind %s", d.Behind, d.Name)
		}
		return nil
	})
}

// Taps of one name in two namespaces lead each to the machine of its own.
func TestTapsOfOneNameAreNotConfused(t *testing.T) {
	left, right := newNetns(t, "vml"), newNetns(t, "vmr")
	l, r := cookieOf(t, left), cookieOf(t, right)
	m := openMirror(t, everything)
	startVM(t, left, "vnet0", "-name", "left")
	startVM(t, right, "vnet0", "-name", "right")
	eventually(t, m, "each machine is at its tap", func(now *Topology) error {
		for cookie, want := range map[uint64]string{l: "left", r: "right"} {
			d := now.named(cookie, "vnet0")
			if d == nil || d.Behind == nil || d.Behind.VM != want || d.Confidence < 90 {
				return fmt.Errorf("%s: got %+v", want, d)
			}
		}
		return nil
	})
}

// A tap that was moved away from its machine's namespace is named by the name of
// the tap alone, which is said; where two have that name, nobody is named.
func TestTapMovedAwayIsNotSure(t *testing.T) {
	host, pod, other := newNetns(t, "vmhost"), newNetns(t, "vmpod"), newNetns(t, "vmother")
	cookie := cookieOf(t, pod)
	m := openMirror(t, everything)
	name := fmt.Sprint("mv", os.Getpid()) // of this test alone on this machine
	startVM(t, host, name, "-name", "far")
	eventually(t, m, "the tap is there", func(now *Topology) error {
		if now.named(cookieOf(t, host), name) == nil {
			return errors.New("no")
		}
		return nil
	})
	in(t, host, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := netns.GetFromPath(pod)
		if err != nil {
			return err
		}
		defer fd.Close()
		return h.LinkSetNsFd(l, int(fd))
	})
	eventually(t, m, "the machine is named with doubt", func(now *Topology) error {
		d := now.named(cookie, name)
		if d == nil || d.Behind == nil || d.Behind.VM != "far" || d.Confidence > 75 || d.Behind.Confidence > 75 {
			return fmt.Errorf("got %+v", d)
		}
		return nil
	})
	in(t, other, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Tuntap{LinkAttrs: named(name), Mode: netlink.TUNTAP_MODE_TAP})
	})
	eventually(t, m, "nobody is named", func(now *Topology) error {
		for _, c := range []uint64{cookie, cookieOf(t, other)} {
			if d := now.named(c, name); d == nil || d.Behind != nil {
				return fmt.Errorf("got %+v", d)
			}
		}
		return nil
	})
}

// A tun device leads to the process that has it open, and stays in its namespace's layer.
func TestTunLeadsToItsProcess(t *testing.T) {
	ns := newNetns(t, "vpn")
	cookie := cookieOf(t, ns)
	m := openMirror(t, everything)
	in(t, ns, func(h *netlink.Handle) error {
		tun := &netlink.Tuntap{LinkAttrs: named("vpn0"), Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, NonPersist: true}
		err := h.LinkAdd(tun)
		t.Cleanup(func() {
			for _, f := range tun.Fds {
				_ = f.Close() // only so that it ends with the test
			}
		})
		return err
	})
	eventually(t, m, "this process has it", func(now *Topology) error {
		d := now.named(cookie, "vpn0")
		if d == nil || d.Behind == nil || int(d.Behind.PID) != os.Getpid() || d.Layer != flows.LayerContainer || d.Behind.VM != "" {
			return fmt.Errorf("got %+v", d)
		}
		return nil
	})
}

// What the command line of each hypervisor says.
func TestCommandLinesNameTheMachine(t *testing.T) {
	for want, args := range map[guest][]string{
		{hypervisor: "qemu", name: "web", uuid: "u1"}:               {"qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-uuid", "u1"},
		{hypervisor: "qemu", name: "old"}:                           {"qemu-system-x86_64", "-name", "old"},
		{hypervisor: "qemu", name: "a,b"}:                           {"qemu-system-x86_64", "-name", "a,,b,process=x"},
		{hypervisor: "qemu", uuid: "u2"}:                            {"qemu-kvm", "-smbios", "type=1,manufacturer=x,uuid=u2"},
		{hypervisor: "firecracker", name: "551e7604"}:               {"firecracker", "--id", "551e7604", "--api-sock", "/x"},
		{hypervisor: "firecracker", name: "b"}:                      {"firecracker-v1.7.0-x86_64", "--id=b"},
		{hypervisor: "cloud-hypervisor", uuid: "u3"}:                {"cloud-hypervisor", "--platform", "num_pci_segments=1,uuid=u3"},
		{hypervisor: "qemu", name: "\x1b[2Jcontrol\xff characters"}: {"qemu-system-x86_64", "-name", "\x1b[2Jcontrol\xff characters"},
	} {
		got := parseGuest(hypervisorOf(args[0]), args)
		if got.why = ""; *got != want {
			t.Errorf("%q: got %+v, want %+v", args, *got, want)
		}
	}
	if got := libvirtName(`0::/machine.slice/machine-qemu\x2d3\x2dweb\x2done.scope/libvirt/emulator`); got != "web-one" {
		t.Errorf("got %q, want web-one", got)
	}
}
