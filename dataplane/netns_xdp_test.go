// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"weft/flows"
)

func TestXDPIsOffByDefault(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	a := nsStart(t, Options{Interfaces: []string{"w0"}})
	if got := host.attached("w0"); got.xdp != 0 {
		t.Errorf("w0: got %+v, want no XDP program", got)
	}
	for _, p := range a.d.points.status() {
		if p.At.Hook == flows.HookXDP {
			t.Errorf("point: got %+v, want none of XDP", p)
		}
	}
}

func TestXDPCountsWhatTheInterfaceReceives(t *testing.T) {
	for _, mode := range []XDPMode{XDPGeneric, XDPNative} {
		t.Run(string(mode), func(t *testing.T) {
			host, pod := nsHost(t), nsNew(t, "pod")
			a := nsStart(t, Options{XDP: mode, Interfaces: []string{"w*"}})
			host.veth("w0", pod, "eth0", 1500)
			pod.offload("eth0", false, nsSegmentation)
			a.await(host, "w0")
			nsUntil(t, "XDP is attached", func() bool { return a.live(host, "w0", flows.HookXDP) != nil })
			host.up("w0", "10.4.0.1/24", "fd04::1/64")
			pod.up("eth0", "10.4.0.2/24", "fd04::2/64")
			host.carry("w0")
			pod.carry("eth0")
			from := pod.tcp(host, "10.4.0.1", 1<<20)
			pod.tcp(host, "fd04::1", 1<<20)
			pod.udp(host, "10.4.0.1", 20, 8000)
			pod.frames("eth0")
			host.settle("w0")
			rx := host.counters("w0").rx
			xdp, ingress := a.live(host, "w0", flows.HookXDP).at, a.live(host, "w0", flows.HookIngress).at
			a.stop()
			// native: a veth counts XDP's frames without link headers
			if got := a.accounts[xdp].After; got.Packets != rx.Packets || mode == XDPGeneric && got.Bytes != rx.Bytes {
				t.Errorf("xdp: got %+v, the interface received %+v", got, rx)
			}
			if got, want := a.accounts[xdp].After, a.accounts[ingress].After; got != want {
				t.Errorf("xdp: got %+v, want %+v as at ingress", got, want)
			}
			bulk := func(f nsFlow) bool { return f.Key.Src == from }
			if got, want := a.sum(xdp, bulk), a.sum(ingress, bulk); got != want || got.Packets < 700 {
				t.Errorf("the TCP connection at xdp: got %+v, want %+v as at ingress", got, want)
			}
			host.untouched(t, "w0")
		})
	}
}

func TestForeignXDPProgramStays(t *testing.T) {
	host, pod := nsHost(t), nsNew(t, "pod")
	host.veth("w0", pod, "eth0", 1500)
	const pass = 2 // XDP_PASS
	theirs, err := link.AttachXDP(link.XDPOptions{
		Program:   nsProgram(t, ebpf.XDP, asm.Mov.Imm(asm.R0, pass), asm.Return()),
		Interface: host.index("w0"), Flags: link.XDPGenericMode,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	id := host.link("w0").Attrs().Xdp.ProgId
	a := nsStart(t, Options{XDP: XDPGeneric, Interfaces: []string{"w0"}})
	a.await(host, "w0")
	if x := host.link("w0").Attrs().Xdp; x == nil || x.ProgId != id {
		t.Errorf("XDP of w0: got %+v, want program %d as before", x, id)
	}
	said := ""
	for _, p := range a.d.points.status() {
		if p.At.Hook == flows.HookXDP && p.Hop.Interface == "w0" && !p.Attached {
			said = p.Err
		}
	}
	if !strings.Contains(said, "xdp") {
		t.Errorf("status of XDP on w0: got %q, want why it is not attached", said)
	}
	host.up("w0")
	pod.up("eth0")
	host.carry("w0")
	pod.carry("eth0")
	a.sendMarked(pod.raw("eth0"), 10, host, "w0", flows.HookIngress)
	a.stop()
	if x := host.link("w0").Attrs().Xdp; x == nil || x.ProgId != id {
		t.Errorf("XDP of w0 after the agent: got %+v, want program %d as before", x, id)
	}
}
