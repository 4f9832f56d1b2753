// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guestROM is what a machine boots by network with; ipxe-qemu has it, which comes with Debian's QEMU.
const guestROM = "/usr/lib/ipxe/qemu/efi-virtio.rom"

// needGuest says what a machine that boots by network needs.
func needGuest(t *testing.T) {
	t.Helper()
	needRoot(t)
	_, qemu := exec.LookPath("qemu-system-x86_64")
	_, busybox := exec.LookPath("busybox")
	_, rom := os.Stat(guestROM)
	err := errors.Join(qemu, busybox, rom)
	if err != nil {
		t.Fatalf("%v; apt-get install qemu-system-x86 ipxe-qemu busybox-static", err)
	}
}

// lasting runs a program here until the test ends.
func (h *house) lasting(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + h.here}, args...)...)
	out, err := os.Create(filepath.Join(h.dir, filepath.Base(args[0])+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if text, err := os.ReadFile(out.Name()); err == nil && t.Failed() {
			t.Logf("%s said: %s", args[0], text)
		}
	})
}

// A real machine on a tap of a bridge boots by network: with nothing of ours in it, its
// flows say its name, its UUID, its hypervisor and its layer.
func TestFlowsOfAGuestSayWhichMachine(t *testing.T) {
	needGuest(t)
	h := newHouse(t)
	const name, uuid = "web 1", "8d3f9a52-6f0e-4f3c-9a55-0c6d7f5d0b11"
	for _, args := range []string{"link add br0 type bridge", "addr add 10.80.0.1/24 dev br0", "link set br0 up", "tuntap add guest0 mode tap", "link set guest0 up master br0"} {
		command(t, append([]string{"ip", "-n", h.here}, strings.Fields(args)...)...)
	}
	h.start(t, "dataplane: {interfaces: [br0, guest0], interval: 200ms}\nflows: {idle_timeout: 1s, active_timeout: 5s}\ncni: {kubernetes: off}\n")
	h.bootServers(t)
	h.lasting(t, "qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", "-m", "32", "-name", "guest="+name, "-uuid", uuid,
		"-netdev", "tap,id=n,ifname=guest0,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=n", "-boot", "order=n,reboot-timeout=1000")

	var record map[string]any
	h.within(t, time.Minute, "the guest asks for its program", func() error {
		out, said, _ := h.flowctl(t, "observe", "--last", "1", "--from-vm", name, "--to-port", "69", "-o", "jsonl")
		if out == "" {
			all, _, _ := h.flowctl(t, "observe", "-o", "wide")
			return fmt.Errorf("%s; of all there is:\n%s", said, all)
		}
		return json.Unmarshal([]byte(out), &record)
	})
	for key, want := range map[string]string{
		"source.address": "10.80.0.2", "destination.address": "10.80.0.1", "weft.source.isolation.layer": "vm",
		"weft.source.vm.name": name, "weft.source.vm.id": uuid, "weft.source.vm.hypervisor": "qemu",
	} {
		if got := record[key]; got != want {
			t.Errorf("%s: got %v, want %s", key, got, want)
		}
	}
	if got, _ := record["weft.source.confidence"].(float64); got < 50 || got > 80 {
		t.Errorf("got a confidence of %v, want 50 to 80: the guest might have passed it on", got)
	}
	if tree, _, _ := h.flowctl(t, "topology", "--no-color"); !strings.Contains(tree, "guest0  tap → vm "+name+" (qemu)") {
		t.Errorf("got the tree\n%s\nwant the machine at guest0", tree)
	}
	for filter, want := range map[string]bool{"--from-layer=vm": true, "--to-layer=vm": false, "--to-vm=" + uuid: false, "--from-vm=" + uuid: true} {
		if out, _, _ := h.flowctl(t, "observe", "--to-port", "69", filter, "-o", "jsonl"); (out != "") != want {
			t.Errorf("%s: got %q, want anything: %t", filter, out, want)
		}
	}
}

// bootServers are what a machine that boots by network asks: who it is, and a file, which
// is not there.
func (h *house) bootServers(t *testing.T) {
	t.Helper()
	file := func(name string) string { return filepath.Join(h.dir, name) }
	config := fmt.Sprintf("start 10.80.0.2\nend 10.80.0.2\ninterface br0\nmax_leases 1\nlease_file %s\npidfile %s\nsiaddr 10.80.0.1\nboot_file none\nopt subnet 255.255.255.0\n",
		file("leases"), file("udhcpd.pid"))
	for name, text := range map[string]string{"udhcpd.conf": config, "leases": ""} {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.lasting(t, "busybox", "udhcpd", "-f", file("udhcpd.conf"))
	h.in(t, h.here, func() error {
		files, err := net.ListenPacket("udp4", "10.80.0.1:69")
		if err != nil {
			return err
		}
		t.Cleanup(func() { files.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := files.ReadFrom(buf)
				if err != nil {
					return
				}
				if _, err := files.WriteTo([]byte("\x00\x05\x00\x01no such file\x00"), from); err != nil {
					return
				}
			}
		}()
		return nil
	})
}
