// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// The nodes of the testbed share one root file system, and each has its containerd's
// socket in a folder of its own: that alone is changed of deploy/kubernetes.yaml, and
// records are made sooner.
const daemonPatch = `
resources: [kubernetes.yaml]
images: [{name: weft, newTag: test}]
patches:
- patch: |-
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: weft, namespace: weft}
    spec:
      template:
        spec:
          containers:
          - name: weftd
            env:
            - {name: WEFT_CNI_RUNTIMES, value: /run/containerd/c.sock}
            - {name: WEFT_FLOWS_ACTIVE_TIMEOUT, value: 2s}
            - {name: WEFT_FLOWS_IDLE_TIMEOUT, value: 1s}
            volumeMounts:
            - {name: socket, mountPath: /run/weft, subPathExpr: $(WEFT_CNI_NODE)/api}
            - {name: containerd, mountPath: /run/containerd, subPathExpr: $(WEFT_CNI_NODE)}
          volumes:
          - {name: socket, hostPath: {path: %[1]q}}
          - {name: containerd, hostPath: {path: %[1]q}}
`

// daemonSet makes the image, hands it to the nodes, and applies the manifest.
func (c *cluster) daemonSet(t *testing.T) {
	t.Helper()
	programs := filepath.Join(c.dir, "static")
	for _, args := range [][]string{
		{"go", "build", "-o", programs + "/", "weft/tools/weftd", "weft/tools/flowctl"},
		{"go", "run", "weft/tools/image", "-o", c.dir + "/weft.tar", "-tag", "weft:test", programs + "/weftd", programs + "/flowctl"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	for _, n := range nodes {
		c.ctr(t, n, "image", "import", c.dir+"/weft.tar")
		if err := os.Symlink("api/weft.sock", filepath.Join(c.dir, n, "w.sock")); err != nil {
			t.Fatal(err)
		}
	}
	manifest, err := os.ReadFile("../../deploy/kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(c.dir, "daemonset")
	err = errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(folder+"/kubernetes.yaml", manifest, 0o600),
		os.WriteFile(folder+"/kustomization.yaml", fmt.Appendf(nil, daemonPatch, c.dir), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.kubectl(t, "-n", "weft", "get", "events,pods", "-o", "wide"))
			t.Log(c.kubectl(t, "-n", "weft", "logs", "daemonset/weft", "--all-pods"))
		}
	})
	c.kubectl(t, "apply", "-k", folder)
}

var nodes = []string{"n1", "n2"}

func TestDaemonSetIsAWholeAgentAndLeavesNothingBehind(t *testing.T) {
	c := newCluster(t, "nftables")
	c.run(t)
	for _, n := range nodes { // older than the agent, and nobody's that it runs as
		server := exec.Command("nsenter", "--net=/run/netns/"+c.name+"-"+n, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
			"/bin/busybox", "httpd", "-f", "-p", "7100", "-h", "/tmp")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			server.Process.Kill() //nolint:errcheck // it may have ended
			server.Wait()         //nolint:errcheck // killed
		})
	}
	c.daemonSet(t)
	c.kubectl(t, "-n", "weft", "rollout", "status", "daemonset/weft", "--timeout=60s") // Ready is what /readyz says
	build(t, c.dir)
	_, clients, servers := c.pods(t)
	vip := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
	nodePort := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}")
	c.everyPath(t, clients, servers, vip, nodePort)
	known := c.offOnThisHost(t)
	for _, from := range clients {
		c.saysAllWell(t, from.Node, known)
		pid := c.pidOf(t, from.Node)
		c.mayOnly(t, pid)
		c.talksOnlyToTheAPI(t, pid)
		c.namesTheServerOfSomebodyElse(t, from)
	}
	c.kubectl(t, "delete", "-k", filepath.Join(c.dir, "daemonset"), "--timeout=60s")
	for _, n := range nodes {
		var w waiter
		w.until(t, "nothing is left on "+n, func() error { return c.nothingLeft(t, n) })
	}
}

// offOnThisHost is what no agent can do here.
func (c *cluster) offOnThisHost(t *testing.T) (names []string) {
	t.Helper()
	out, err := exec.Command("nsenter", "--net=/run/netns/"+c.name+"-n1", c.dir+"/weftd", "-check").Output()
	if err != nil {
		t.Fatalf("weftd -check: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if rest, is := strings.CutPrefix(line, "off "); is {
			name, _, _ := strings.Cut(strings.TrimSpace(rest), ": needs")
			names = append(names, name)
		}
	}
	return names
}

// saysAllWell is that a node's agent can do all that one that may do everything can.
func (c *cluster) saysAllWell(t *testing.T, n string, known []string) {
	t.Helper()
	text, err := c.flowctl(n, "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Off []struct{ Name, Needs, Err string }
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	for _, o := range status.Off {
		if o.Name == "names of some containers" && !strings.Contains(o.Err, c.dir) {
			continue // of another cluster on this machine: its shims tell of other sockets
		}
		if !slices.Contains(known, o.Name) {
			t.Errorf("on %s: %s is off in the pod and not outside: it needs %s: %s", n, o.Name, o.Needs, o.Err)
		}
	}
}

// pidOf is the agent's process on a node.
func (c *cluster) pidOf(t *testing.T, n string) int {
	t.Helper()
	pod := c.kubectl(t, "-n", "weft", "get", "pods", "--field-selector", "spec.nodeName="+n, "-o", "jsonpath={.items[0].metadata.name}")
	id := c.container(t, n, pod, "container")
	for line := range strings.Lines(c.ctr(t, n, "task", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("container %s of %s has no process", id, pod)
	return 0
}

// mayOnly is that the agent has the capabilities that the manifest states and no other:
// by their numbers, NET_ADMIN 12, SYS_PTRACE 19, SYS_ADMIN 21, PERFMON 38, BPF 39, and DAC_READ_SEARCH 2.
func (c *cluster) mayOnly(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("CapEff:\t%016x\n", 1<<2|1<<12|1<<19|1<<21|1<<38|1<<39)
	if !strings.Contains(string(text), want) {
		t.Errorf("got\n%s, want %s", text, want)
	}
}

// talksOnlyToTheAPI is that every socket of the agent is its own /metrics, its own API
// or a connection to the API server.
func (c *cluster) talksOnlyToTheAPI(t *testing.T, pid int) {
	t.Helper()
	own := map[string]bool{} // inodes
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(open) == 0 {
		t.Fatalf("descriptors of %d: %v", pid, err)
	}
	for _, fd := range open {
		to, err := os.Readlink(fd)
		if inode, is := strings.CutPrefix(to, "socket:["); err == nil && is {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	allowed := map[string]bool{"tcp 0A:00000000:0000": true, "tcp 01:0100600A:01BB": true} // it listens, and is connected with 10.96.0.1:443
	connected := false
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) < 10 || !own[f[9]] {
				continue
			}
			what := kind + " " + f[3] + ":" + f[2]
			connected = connected || strings.HasPrefix(what, "tcp 01")
			if !allowed[what] {
				t.Errorf("the agent has a socket of its own: %s from %s", what, f[1])
			}
		}
	}
	if !connected {
		t.Error("the agent has no connection to the API server among its sockets: they were not found")
	}
}

// namesTheServerOfSomebodyElse is that a server on the node's network that runs as
// another user, and was there before the agent, is named.
func (c *cluster) namesTheServerOfSomebodyElse(t *testing.T, from kubeEnd) {
	t.Helper()
	addr := "10.240.0.1" + strings.TrimPrefix(from.Node, "n")
	var w waiter
	w.until(t, "the server of "+from.Node+" is named", func() error {
		c.kubectl(t, "exec", from.Pod, "--", "/bin/busybox", "sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 "+addr+" 7100 || true")
		text, err := c.flowctl(from.Node, "observe", "--to-ip", addr, "--to-port", "7100", "--last", "1", "-o", "jsonl")
		if err == nil && !strings.Contains(text, `"destination.process.executable.name":"busybox"`) {
			err = fmt.Errorf("got %s, want the process busybox as its destination", text)
		}
		return err
	})
}

// nothingLeft is that neither a program, a filter, a queue nor a file of the agent is there.
func (c *cluster) nothingLeft(t *testing.T, n string) error {
	files, err := os.ReadDir(filepath.Join(c.dir, n, "api"))
	if err != nil || len(files) > 0 {
		return fmt.Errorf("files %v: %w", files, err)
	}
	var h house
	h.in(t, c.name+"-"+n, func() error {
		links, listed := netlink.LinkList()
		if listed != nil {
			return listed
		}
		for _, l := range links {
			left, asked := hanging(l)
			if asked != nil {
				return asked
			}
			if len(left) > 0 {
				err = fmt.Errorf("on %s: %v", l.Attrs().Name, left)
			}
		}
		return nil
	})
	return err
}
