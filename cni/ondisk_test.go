// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// put writes a file as its owner would, with a time of its own.
func put(t *testing.T, path, text string, when time.Time) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
}

// What Docker and Podman wrote down names containers; half a file changes nothing, a
// pipe is not waited for, names and labels of any size and bytes are bounded.
func TestNamesOnDiskHoldWhateverIsWritten(t *testing.T) {
	docker, podman := filepath.Join(t.TempDir(), "containers"), filepath.Join(t.TempDir(), "storage")
	d := newOnDisk(docker, podman)
	log, now := slog.New(slog.DiscardHandler), time.Now()
	if d.list(log) || !d.status(0).Absent {
		t.Errorf("where neither is: got %+v, want absent", d.status(0))
	}
	one, two, three, four := strings.Repeat("1", 64), strings.Repeat("2", 64), strings.Repeat("3", 64), strings.Repeat("4", 64)
	config := filepath.Join(docker, one, "config.v2.json")
	put(t, config, fmt.Sprintf(`{"ID":%q,"Name":"/web","Config":{"Labels":{"app":%q}}}`, one, strings.Repeat("x", 10<<10)), now)
	list := filepath.Join(podman, "overlay-containers", "containers.json")
	put(t, list, fmt.Sprintf(`[{"id":%q,"names":["db\u001b[31m","other"]},{"id":"","names":["x"]},{"id":%q}]`, two, three), now)
	if !d.list(log) || d.status(0).Err != "" {
		t.Fatalf("got %+v, want something new and no error", d.status(0))
	}
	if n := d.find(one); n == nil || n.Name != "web" || n.Runtime != "docker" || len(n.Labels["app"]) != maxName {
		t.Errorf("docker: got %+v, want web and a label of %d bytes", n, maxName)
	}
	if n := d.find(two); n == nil || n.Name != "db\x1b[31m" || n.Runtime != "podman" || d.find(three) != nil || d.find("") != nil {
		t.Errorf("podman: got %+v, want the first name, and none for those without", n)
	}
	if d.list(log) {
		t.Error("nothing changed, and it is told")
	}
	rm := filepath.Join(podman, "overlay-containers", "volatile-containers.json") // of what goes by itself
	put(t, rm, fmt.Sprintf(`[{"id":%q,"names":["once"],"flags":{"Volatile":true}},{"id":%q,"names":["8cb1db551e98-infra"]}]`, three, four), now)
	if d.list(log); d.find(three) == nil || d.find(three).Name != "once" || d.find(two) == nil {
		t.Errorf("podman --rm: got %+v, want once beside the others", d.find(three))
	}
	if n := d.find(four); n == nil || n.Sandbox != four || d.find(three).Sandbox != "" {
		t.Errorf("podman's pod: got %+v, want that it holds the namespaces only", n)
	}
	put(t, rm, fmt.Sprintf(`[{"id":%q,"names":["twice"]}]`, three), now)
	if !d.list(log) || d.find(three).Name != "twice" {
		t.Errorf("written again in the same tick of the clock: got %+v, want the second name", d.find(three))
	}
	put(t, config, `{"ID":"1`, now.Add(time.Second))
	if d.list(log); d.find(one) == nil || !strings.Contains(d.status(0).Err, config) {
		t.Errorf("half written: got %+v and %+v, want the name as before and an error that has the path", d.find(one), d.status(0))
	}
	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(config, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if d.list(log); time.Since(began) > 5*time.Second || d.status(0).Err == "" {
		t.Errorf("a pipe: took %s and %+v, want an error at once", time.Since(began), d.status(0))
	}
	if err := os.RemoveAll(filepath.Join(docker, one)); err != nil {
		t.Fatal(err)
	}
	if !d.list(log) || d.find(one) != nil || d.find(two) == nil || d.status(0).Err != "" {
		t.Errorf("removed: got %+v, %+v; want the other alone", d.find(one), d.status(0))
	}
}

// A real Podman container, which no daemon watches over, has its name.
func TestPodmanContainerHasItsName(t *testing.T) {
	if os.Getenv("WEFT_TESTBED") == "" {
		t.Skip("left out: WEFT_TESTBED is not set (make test-runtimes)")
	}
	podman, busybox, runc := needTool(t, "podman"), needTool(t, "busybox"), needTool(t, "runc")
	host, ns, dir := newNetns(t, "phost"), newNetns(t, "pns"), t.TempDir()
	pairUp(t, host, "veth0", ns, "eth0")
	addAddress(t, ns, "eth0", "10.8.0.2/24")
	rootfs, store := filepath.Join(dir, "rootfs"), filepath.Join(dir, "storage")
	if err := os.MkdirAll(filepath.Join(rootfs, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, busybox, filepath.Join(rootfs, "bin/sleep"))
	m := openMirror(t, everything)
	c := OpenCensus(m.Topology, CensusOptions{Containers: true, Runtimes: []string{}, Results: dir + "/none", Leases: dir + "/none", Docker: dir + "/none", Podman: store})
	defer c.Close()
	name := fmt.Sprint("shop-web-", os.Getpid())
	run, err := os.MkdirTemp("", "weft") // Podman takes no long path for it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	call := func(args ...string) ([]byte, error) {
		return exec.Command(podman, append([]string{"--root", store, "--runroot", run, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", runc}, args...)...).CombinedOutput()
	}
	t.Cleanup(func() {
		if out, err := call("rm", "--force", "--time", "0", name); err != nil {
			t.Errorf("podman rm: %v: %s", err, out)
		}
	})
	// Without the limits that it sets itself, which root here may not raise.
	if out, err := call("run", "--detach", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "ns:"+ns, "--name", name, "--rootfs", rootfs, "/bin/sleep", "60"); err != nil {
		t.Fatalf("podman run: %v: %s", err, out)
	}
	scope := cookieOf(t, ns)
	waitFor(t, "the container's address has its name", func() bool {
		e := c.Resolver().Resolve(flows.Scope{Netns: scope}, addrOf("10.8.0.2"), time.Now().UnixNano())
		return e != nil && e.Container == name && e.Runtime == "podman" && len(e.ContainerID) == 64 && e.Confidence >= 90
	})
}
