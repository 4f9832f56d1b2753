// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"weft/flows"
)

// guest is a virtual machine or a sandbox, as the process that runs it says.
type guest struct {
	hypervisor string // qemu, firecracker, cloud-hypervisor; empty: gVisor, which has none
	name, uuid string // empty: the command line does not say
	sandbox    string // id, when the guest is one
	runtime    string // gvisor, kata; empty: a plain virtual machine
	why        string
}

// held is which taps a process has open.
type held struct {
	taps     []string // by name
	macvtaps []uint32 // by ifindex
	vhost    bool     // the kernel moves its packets
}

// holder is a process that has a tap open.
type holder struct {
	pid    uint32
	ns     inode
	guest  bool // it runs a virtual machine
	entity *flows.Entity
}

// Bounds of looking at one process's descriptors.
const (
	maxFds   = 4096 // that are looked at
	maxHeld  = 256  // taps of one process
	heldHold = 5 * time.Second
)

// askGuest finds out whether a process runs a virtual machine or a sandbox, and
// which taps it has. Other processes are asked for taps when everybody is.
func (l *looker) askGuest(p *people, k *known, everybody bool) {
	if (l.opts.VMs || l.opts.Sandboxes) && k.guest == nil && time.Since(k.first) < 3*time.Second || k.asked.IsZero() {
		k.guest = l.guestOf(k) // its parent may have called it a moment ago
	}
	if k.guest == nil && k.holds == nil && !everybody || k.Parent == 2 || k.PID == 2 {
		k.asked = time.Now()
		return
	}
	taps := l.taps.Load()
	if k.asked.IsZero() || everybody || taps != k.taps || l.wants.Load() || time.Since(k.asked) > heldHold {
		k.holds, k.asked, k.taps = heldBy(k.process), time.Now(), taps
	}
	if k.holds == nil {
		return
	}
	h := &holder{pid: k.PID, ns: k.ns, guest: k.guest != nil && k.guest.hypervisor != "", entity: k.entity()}
	for _, name := range k.holds.taps {
		p.taps[name] = append(p.taps[name], h)
	}
	for _, index := range k.holds.macvtaps {
		p.macvtaps[index] = append(p.macvtaps[index], h)
	}
}

// guestOf reads the command line of what is known to run guests.
func (l *looker) guestOf(k *known) *guest {
	kind := hypervisorOf(k.exe)
	if kind == "" && k.exe != "runsc" {
		return nil
	}
	args, err := k.args()
	if err != nil || len(args) == 0 {
		return nil
	}
	if kind == "" {
		if l.opts.Sandboxes {
			return gvisorGuest(args)
		}
		return nil
	}
	g := parseGuest(kind, args)
	if l.opts.Sandboxes {
		if s, ok := shimOf(k.process, ""); ok && s.sandbox == "kata" {
			g.sandbox, g.runtime = s.id, "kata"
		} else if id, ok := strings.CutPrefix(g.name, "sandbox-"); ok && kataID.MatchString(id) {
			g.sandbox, g.runtime = id, "kata"
		}
	}
	if g.sandbox == "" && !l.opts.VMs {
		return nil
	}
	if g.name == "" { // libvirt's scope has it, for those that take no name
		if text, err := readProc(k.PID, "cgroup"); err == nil {
			g.name = libvirtName(string(text))
		}
	}
	return g
}

// hypervisorOf is what a program runs virtual machines with; empty: none that we know.
func hypervisorOf(exe string) string {
	switch {
	case strings.HasPrefix(exe, "qemu-system-"), exe == "qemu-kvm", exe == "kvm":
		return "qemu"
	case strings.HasPrefix(exe, "firecracker"):
		return "firecracker"
	case strings.HasPrefix(exe, "cloud-hypervisor"):
		return "cloud-hypervisor"
	}
	return ""
}

// parseGuest reads a hypervisor's command line.
func parseGuest(kind string, args []string) *guest {
	g := &guest{hypervisor: kind}
	switch kind {
	case "qemu":
		name := keyed(option(args, "-name", "--name"))
		g.name = name["guest"]
		if g.name == "" {
			g.name = name[""]
		}
		if g.uuid = option(args, "-uuid", "--uuid"); g.uuid == "" {
			g.uuid = keyed(option(args, "-smbios", "--smbios"))["uuid"]
		}
	case "firecracker":
		g.name = option(args, "--id")
	case "cloud-hypervisor":
		g.uuid = keyed(option(args, "--platform"))["uuid"]
	}
	g.name, g.uuid = bounded(g.name), bounded(g.uuid)
	g.why = "the command line of " + kind
	return g
}

// keyed reads "first,key=value,..." as these programs write it: two commas are one
// in a value. What has no key is under "".
func keyed(s string) map[string]string {
	all := map[string]string{}
	const comma = "\x00" // no argument has one
	for i, part := range strings.Split(strings.ReplaceAll(s, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok:
			all[key] = value
		case i == 0:
			all[""] = part
		}
	}
	return all
}

var (
	kataID     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	libvirtOne = regexp.MustCompile(`/machine-(?:qemu|lxc)\\x2d\d+\\x2d([^/]+)\.scope`)
	escapedHex = regexp.MustCompile(`\\x[0-9a-f]{2}`)
)

// libvirtName is the name of a machine in its systemd scope.
func libvirtName(cgroup string) string {
	m := libvirtOne.FindStringSubmatch(cgroup)
	if m == nil {
		return ""
	}
	return bounded(escapedHex.ReplaceAllStringFunc(m[1], func(h string) string {
		n, err := strconv.ParseUint(h[2:], 16, 8)
		if err != nil {
			return h
		}
		return string([]byte{byte(n)})
	}))
}

// heldBy looks through a process's descriptors; nil: it has no tap, or it ended.
func heldBy(p process) *held {
	dir, err := os.Open(procPath(p.PID, "fd"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxFds)
	if err != nil {
		return nil
	}
	var h held
	for _, name := range names {
		target, err := os.Readlink(filepath.Join(dir.Name(), name))
		if err != nil || len(h.taps)+len(h.macvtaps) >= maxHeld {
			continue // closed meanwhile
		}
		switch {
		case strings.HasSuffix(target, "/net/tun"):
			if tap, ok := tapOf(p.PID, name); ok {
				h.taps = append(h.taps, tap)
			}
		case strings.HasSuffix(target, "/vhost-net"):
			h.vhost = true
		case strings.HasPrefix(filepath.Base(target), "tap"):
			if n, err := strconv.ParseUint(filepath.Base(target)[3:], 10, 32); err == nil {
				h.macvtaps = append(h.macvtaps, uint32(n))
			}
		}
	}
	if len(h.taps)+len(h.macvtaps) == 0 || !p.alive() {
		return nil
	}
	return &h
}

// tapOf is the device that a descriptor of /dev/net/tun is attached to.
func tapOf(pid uint32, fd string) (string, bool) {
	text, err := readProc(pid, "fdinfo/"+fd)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "iff:"); ok {
			name = strings.TrimSpace(name)
			return name, name != ""
		}
	}
	return "", false
}

// entity is who a process is, to those that it has a tap for.
func (k *known) entity() *flows.Entity {
	e := &flows.Entity{PID: k.PID, Process: k.Comm, Layer: flows.LayerHost, Confidence: 95}
	e.Why = fmt.Sprintf("process %d has the device open", k.PID)
	g := k.guest
	if g == nil {
		return e
	}
	e.Why += ", named by " + g.why
	if k.holds != nil && k.holds.vhost {
		e.Why += ", packets through vhost-net"
	}
	e.Layer, e.VM, e.VMID, e.Hypervisor = flows.LayerVM, g.name, g.uuid, g.hypervisor
	if g.runtime != "" {
		e.Layer, e.Sandbox, e.SandboxRuntime = flows.LayerSandbox, g.sandbox, g.runtime
	}
	if g.name == "" && g.uuid == "" && g.sandbox == "" {
		e.Confidence = 80
		e.Why += ", which says neither name nor UUID"
	}
	return e
}
