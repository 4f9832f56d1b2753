// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The forms that runtimes and cgroup drivers write.
func TestCgroupNamesTheContainer(t *testing.T) {
	id, other := strings.Repeat("0af3", 16), strings.Repeat("1be4", 16)
	const uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/"
	for name, c := range map[string]struct {
		text string
		want Container
		sure bool // 90 percent and more
	}{
		"docker, cgroupfs, v1":            {"12:pids:/docker/" + id + "\n3:cpu:/docker/" + id, Container{ID: id, Runtime: "docker"}, true},
		"docker, systemd, v2":             {"0::/system.slice/docker-" + id + ".scope", Container{ID: id, Runtime: "docker", Unit: "docker-" + id + ".scope"}, true},
		"podman, systemd":                 {"0::/machine.slice/libpod-" + id + ".scope/container", Container{ID: id, Runtime: "podman", Unit: "libpod-" + id + ".scope"}, true},
		"podman, cgroupfs":                {"0::/libpod_parent/libpod-" + id, Container{ID: id, Runtime: "podman"}, true},
		"podman's monitor":                {"0::/machine.slice/libpod-conmon-" + id + ".scope", Container{Unit: "libpod-conmon-" + id + ".scope"}, false},
		"CRI-O":                           {"0::" + slice + "crio-" + id + ".scope", Container{ID: id, Runtime: "cri-o", PodUID: uid, Unit: "crio-" + id + ".scope"}, true},
		"containerd, kubelet, systemd":    {"0::" + slice + "cri-containerd-" + id + ".scope", Container{ID: id, Runtime: "containerd", PodUID: uid, Unit: "cri-containerd-" + id + ".scope"}, true},
		"containerd, colon form":          {"0::/system.slice/containerd.service" + slice[:len(slice)-1] + ":cri-containerd:" + id, Container{ID: id, Runtime: "containerd", Unit: "containerd.service"}, true},
		"kubelet, cgroupfs, v1":           {"4:memory:/kubepods/besteffort/pod" + uid + "/" + id, Container{ID: id, PodUID: uid}, true},
		"kubelet under a root of its own": {"0::/node1/kubepods/pod" + uid + "/" + id, Container{ID: id, PodUID: uid}, true},
		"static pod":                      {"0::/kubepods/burstable/pod" + strings.ReplaceAll(uid, "-", "") + "/" + id, Container{ID: id, PodUID: strings.ReplaceAll(uid, "-", "")}, true},
		"containerd's own":                {"0::/default/" + id, Container{ID: id}, false},
		"a node in a container":           {"0::/docker/" + other + "/kubelet/kubepods/besteffort/pod" + uid + "/" + id, Container{ID: id, PodUID: uid}, true},
		"seen from a cgroup namespace":    {"0::/../../pod" + uid + "/" + id, Container{ID: id, PodUID: uid}, true},
		"hybrid, moved in one":            {"9:name=systemd:/docker/" + id + "\n0::/docker/" + other, Container{ID: id, Runtime: "docker"}, false},
		"hybrid, silent in one":           {"9:name=systemd:/docker/" + id + "\n0::/", Container{ID: id, Runtime: "docker"}, true},
		"a service":                       {"1:name=systemd:/system.slice/ssh.service\n0::/system.slice/ssh.service", Container{Unit: "ssh.service"}, false},
		"a session":                       {"0::/user.slice/user-1000.slice/session-3.scope", Container{Unit: "session-3.scope"}, false},
		"the root":                        {"0::/", Container{}, false},
		"not a cgroup file":               {"\x00\nx:y\n:::\n0::/docker/short", Container{}, false},
	} {
		got := parseCgroups(c.text)
		sure, why := got.Confidence >= 90, got.Why
		got.Confidence, got.Why = 0, ""
		if got != c.want || sure != c.sure || (why != "") != (got.ID != "") {
			t.Errorf("%s: got %+v, sure %t, because %q; want %+v, sure %t", name, got, sure, why, c.want, c.sure)
		}
	}
}

// What the shims' command lines say, and what that adds.
func TestShimConfirmsTheRuntime(t *testing.T) {
	id := strings.Repeat("0af3", 16)
	for name, c := range map[string]struct {
		comm string
		args []string
		want shim
	}{
		"containerd": {"containerd-shim", []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", id, "-address", "/x"}, shim{runtime: "containerd", group: "k8s.io", id: id, address: "/x"}},
		"docker":     {"containerd-shim", []string{"containerd-shim-runc-v2", "-namespace", "moby", "-id", id}, shim{runtime: "docker", group: "moby", id: id}},
		"kata":       {"containerd-shim", []string{"/opt/kata/bin/containerd-shim-kata-v2", "-namespace", "k8s.io", "-id", id}, shim{runtime: "containerd", group: "k8s.io", id: id, sandbox: "kata"}},
		"gvisor":     {"containerd-shim", []string{"containerd-shim-runsc-v1", "-namespace", "k8s.io", "-id", id}, shim{runtime: "containerd", group: "k8s.io", id: id, sandbox: "gvisor"}},
		"podman":     {"conmon", []string{"conmon", "-c", id, "-n", "web", "--exit-command", "/usr/bin/podman"}, shim{runtime: "podman", id: id, name: "web"}},
		"cri-o":      {"conmon", []string{"conmon", "-b", "/run/x", "-c", id, "-n", "k8s_web", "--exit-dir", "/var/run/crio/exits"}, shim{runtime: "cri-o", id: id}},
	} {
		c.want.comm = c.comm
		if got, ok := shimArgs(c.comm, c.args); !ok || got != c.want {
			t.Errorf("%s: got %+v, %t; want %+v", name, got, ok, c.want)
		}
	}
	if got, ok := shimArgs("containerd-shim", []string{"containerd-shim-runc-v2", "--help"}); ok {
		t.Errorf("got %+v, want no container", got)
	}
	c := parseCgroups("0::/default/" + id)
	if c.confirm(shim{runtime: "containerd", group: "default", id: id, comm: "containerd-shim"}); c.Runtime != "containerd" || c.Confidence < 95 {
		t.Errorf("got %+v, want containerd's, sure", c)
	}
	c = parseCgroups("0::/")
	if c.confirm(shim{runtime: "containerd", id: "x", comm: "containerd-shim"}); c.ID != "x" || c.Confidence > 90 {
		t.Errorf("got %+v, want x, not sure", c)
	}
}

// A program in a container that is called like a shim does not give it a name.
func TestShimWithinAContainerIsNotBelieved(t *testing.T) {
	unshare := needTool(t, "unshare")
	fake := filepath.Join(t.TempDir(), "containerd-shim-runc-v2")
	copyFile(t, needTool(t, "sh"), fake)
	// The fake is the first process of a PID namespace; its child is the container's.
	cmd := exec.Command(unshare, "--pid", "--fork", "--mount-proc", fake, "-c", "sleep 60; true", "-namespace", "evil", "-id", "evil")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	var p process
	waitFor(t, "the fake has a child", func() bool {
		all, err := pids()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range all {
			one, err := readProcess(pid)
			if err != nil || one.Comm != "sleep" {
				continue
			}
			parent, err := readProcess(one.Parent)
			if err == nil && strings.HasPrefix(parent.Comm, "containerd-shim") && int(parent.Parent) == cmd.Process.Pid {
				p = one
				return true
			}
		}
		return false
	})
	t.Cleanup(func() { // it outlives unshare
		if f, err := os.FindProcess(int(p.Parent)); err == nil && p.alive() {
			_ = f.Kill()
		}
	})
	c, err := containerOf(p)
	if err != nil {
		t.Fatal(err)
	}
	if c.ID == "evil" && c.Confidence >= 90 {
		t.Errorf("got %+v, want no name of the fake's with confidence", c)
	}
}
