// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// testbed is a program of the folder that WEFT_TESTBED names; those who have none
// leave such tests out.
func testbed(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("WEFT_TESTBED")
	if dir == "" {
		t.Skip("left out: WEFT_TESTBED names no folder with " + name + " (make test-runtimes)")
	}
	needRoot(t)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// command runs a program to its end.
func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// bundle is an OCI bundle of busybox that sleeps in a network namespace.
func bundle(t *testing.T, ns, cgroup string) string {
	t.Helper()
	runc, busybox := needTool(t, "runc"), needTool(t, "busybox")
	dir := t.TempDir()
	bin := filepath.Join(dir, "rootfs/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, busybox, filepath.Join(bin, "sleep"))
	command(t, runc, "spec", "--bundle", dir)
	file := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	p := spec["process"].(map[string]any)
	p["terminal"], p["args"], p["oomScoreAdj"] = false, []string{"sleep", "60"}, 0
	linux := spec["linux"].(map[string]any)
	if linux["cgroupsPath"] = cgroup; cgroup == "" {
		delete(linux, "cgroupsPath")
	}
	for _, n := range linux["namespaces"].([]any) {
		if one := n.(map[string]any); one["type"] == "network" {
			one["path"] = ns
		}
	}
	if text, err = json.Marshal(spec); err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// A container that runc runs is found by its cgroup, on its own end of the pair and
// behind the host's, while it runs.
func TestContainerIsBehindItsPair(t *testing.T) {
	runc := needTool(t, "runc")
	id := strings.Repeat("5c", 32)
	host, pod := newNetns(t, "chost"), newNetns(t, "cpod")
	pairUp(t, host, "veth0", pod, "eth0")
	h, c := cookieOf(t, host), cookieOf(t, pod)
	m := openMirror(t, everything)
	root, dir := t.TempDir(), bundle(t, pod, "/docker/"+id)
	name := fmt.Sprint("weft-test-", os.Getpid())
	remove := func() { command(t, runc, "--root", root, "delete", "--force", name) }
	if err := exec.Command(runc, "--root", root, "run", "--detach", "--bundle", dir, name).Run(); err != nil { // the container keeps its output open
		t.Fatalf("runc run: %v", err)
	}
	running := true
	t.Cleanup(func() {
		if running {
			remove()
		}
	})
	now := eventually(t, m, "the container is known", func(now *Topology) error {
		if s := now.Space(c); s == nil || s.Entity.ContainerID != id {
			return fmt.Errorf("got %+v", s)
		}
		return nil
	})
	e := now.Space(c).Entity
	if e.Layer != flows.LayerContainer || e.Runtime != "docker" || e.Confidence < 90 || e.Why == "" {
		t.Errorf("got %+v, want docker's container, sure", e)
	}
	if d := now.named(h, "veth0"); d == nil || d.Behind != e {
		t.Errorf("behind the pair is %+v, want the container", d)
	}
	if d := now.named(c, "eth0"); d == nil || d.Layer != flows.LayerContainer || d.Confidence != e.Confidence {
		t.Errorf("in the container the device is %+v, want the container's layer", d)
	}
	remove()
	running = false
	eventually(t, m, "the container is gone", func(now *Topology) error {
		if s := now.Space(c); s == nil || s.Entity.ContainerID != "" {
			return fmt.Errorf("got %+v", s)
		}
		return nil
	})
}

// A gVisor sandbox is found although the host has no socket and no cgroup of it.
func TestGvisorSandboxIsFound(t *testing.T) {
	runsc := testbed(t, "runsc")
	host, pod := newNetns(t, "ghost"), newNetns(t, "gpod")
	pairUp(t, host, "veth0", pod, "eth0")
	addAddress(t, pod, "eth0", "10.79.3.2/24")
	h, c := cookieOf(t, host), cookieOf(t, pod)
	m := openMirror(t, everything)
	root, dir := t.TempDir(), bundle(t, pod, "")
	name := fmt.Sprint("weft-gvisor-", os.Getpid())
	flags := []string{runsc, "--root", root, "--platform=systrap", "--network=sandbox", "--ignore-cgroups"}
	run := exec.Command(flags[0], append(flags[1:], "run", "-detach", "-bundle", dir, name)...)
	if err := run.Run(); err != nil { // its children keep its output open
		t.Fatalf("runsc run: %v", err)
	}
	t.Cleanup(func() {
		command(t, append(flags, "delete", "-force", name)...)
		if err := unix.Unmount(filepath.Join(root, "null-netns"), unix.MNT_DETACH); err != nil { // runsc keeps it for the next one
			t.Error(err)
		}
	})
	eventually(t, m, "the sandbox is known at both ends", func(now *Topology) error {
		s, d := now.Space(c), now.named(h, "veth0")
		if s == nil || d == nil {
			return errors.New("it is not there")
		}
		e := s.Entity
		if e.Layer != flows.LayerSandbox || e.Sandbox != name || e.SandboxRuntime != "gvisor" || e.Confidence < 90 || d.Behind != e {
			return fmt.Errorf("got %+v, behind the pair %+v", e, d.Behind)
		}
		return nil
	})
}

// A container of containerd is known with its runtime, by its cgroup and by the
// shim above it, as long as it runs: also while containerd does not.
func TestContainerdContainerIsKnownByItsShim(t *testing.T) {
	containerd, ctr := testbed(t, "containerd"), testbed(t, "ctr")
	needTool(t, "runc")
	pod := newNetns(t, "ctd")
	c := cookieOf(t, pod)
	m := openMirror(t, everything)
	dir := t.TempDir()
	sock := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\"]\n[grpc]\n  address = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), sock)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(containerd, "--config", config)
	daemon.Env = append(os.Environ(), "PATH="+filepath.Dir(containerd)+":"+os.Getenv("PATH"))
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(daemon) })
	call := func(args ...string) error {
		out, err := exec.Command(ctr, append([]string{"--address", sock, "--namespace", "wefttest"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = call("image", "import", filepath.Join(os.Getenv("WEFT_TESTBED"), "img/bb.tar")); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	const id = "plain-name"
	if err := call("run", "--detach", "--with-ns", "network:"+pod, "docker.io/local/bb:1", id, "/bin/sleep", "60"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := call("task", "kill", "--signal", "KILL", id); err != nil {
			t.Error(err)
		}
		var err error
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if err = call("task", "delete", id); err == nil {
				return
			}
		}
		t.Error(err)
	})
	now := eventually(t, m, "the container is known", func(now *Topology) error {
		if s := now.Space(c); s == nil || s.Entity.ContainerID != id {
			return fmt.Errorf("got %+v", s)
		}
		return nil
	})
	if e := now.Space(c).Entity; e.Runtime != "containerd" || e.Confidence < 80 {
		t.Errorf("got %+v, want containerd's, fairly sure", e)
	}
	if got := now.Space(c).Containers; len(got) != 1 || got[0].Group != "wefttest" {
		t.Errorf("got %+v, want one container of containerd's namespace wefttest", got)
	}
}
