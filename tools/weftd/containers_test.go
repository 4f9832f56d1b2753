// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const testImage = "docker.io/weft/test:1"

// node is a network namespace with a real containerd, runc and CNI plugins in it.
type node struct {
	dir, ns, socket string
	containerd      *exec.Cmd
	runtime         cri.RuntimeServiceClient
}

// box is a container with an address.
type box struct {
	id, name, pod, addr string
	pid                 int
}

func newNode(t *testing.T) *node {
	parts := os.Getenv("TESTBED_PARTS")
	if parts == "" {
		t.Fatal("TESTBED_PARTS is empty: `make test-kubernetes` sets it to the folder with containerd")
	}
	t.Setenv("PATH", parts+":"+os.Getenv("PATH"))
	n := &node{ns: fmt.Sprintf("weft-node-%d", os.Getpid())}
	var err error
	if n.dir, err = os.MkdirTemp("", "weft-node-"); err != nil { // not the test's: its path is too long for a socket
		t.Fatal(err)
	}
	n.socket = n.dir + "/c.sock"
	t.Cleanup(func() {
		unmountBelow(t, n.dir)
		if err := os.RemoveAll(n.dir); err != nil {
			t.Error(err)
		}
	})
	command(t, "ip", "netns", "add", n.ns)
	t.Cleanup(func() { command(t, "ip", "netns", "del", n.ns) })
	command(t, "ip", "-n", n.ns, "link", "set", "lo", "up")
	n.write(t, "net.d/10.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"weftnet-%d","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
"ipam":{"type":"host-local","dataDir":"%s/ipam","ranges":[[{"subnet":"10.99.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, os.Getpid(), n.dir))
	n.write(t, "containerd.toml", fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "%[1]s/net.d"
`, n.dir, testImage))
	n.image(t)
	t.Cleanup(func() { n.kill(n.containerd); dropCgroups(t, n.ns) })
	conn, err := grpc.NewClient("unix:"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.runtime = cri.NewRuntimeServiceClient(conn)
	n.start(t)
	for _, group := range []string{"k8s.io", "default"} {
		n.ctr(t, group, "image", "import", n.dir+"/image.tar")
	}
	return n
}

func (n *node) write(t *testing.T, name, text string) {
	file := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// image writes an image of busybox alone, which waits, as docker save does.
func (n *node) image(t *testing.T) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	pack := func(files map[string][]byte, folders ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range folders {
			if err := w.WriteHeader(&tar.Header{Name: f, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := pack(map[string][]byte{"bin/busybox": busybox}, "bin/", "proc/", "sys/", "dev/", "etc/", "tmp/")
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Entrypoint":["/bin/busybox","sleep","1000000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		runtime.GOARCH, sha256.Sum256(layer))
	n.write(t, "image.tar", string(pack(map[string][]byte{
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["` + testImage + `"],"Layers":["layer.tar"]}]`),
		"config.json":   []byte(config), "layer.tar": layer,
	})))
}

// start starts containerd in the node's namespace.
func (n *node) start(t *testing.T) {
	out, err := os.OpenFile(n.dir+"/containerd.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	n.containerd = exec.Command("nsenter", "--net=/run/netns/"+n.ns, "containerd", "-c", n.dir+"/containerd.toml")
	n.containerd.Stdout, n.containerd.Stderr = out, out
	if err := n.containerd.Start(); err != nil {
		t.Fatal(err)
	}
	n.until(t, "containerd answers", func() error {
		said, err := exec.Command("ctr", "-a", n.socket, "version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = n.runtime.Status(ctx, &cri.StatusRequest{}) // which comes later
		return err
	})
}

func (n *node) kill(c *exec.Cmd) {
	c.Process.Kill() //nolint:errcheck // it may have ended
	c.Wait()         //nolint:errcheck // killed
}

func (n *node) ctr(t *testing.T, group string, args ...string) string {
	t.Helper()
	out, err := exec.Command("ctr", append([]string{"-a", n.socket, "-n", group}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *node) until(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("not within 30 s: %s: %v", what, err)
}

// pod runs a pod with one container, as the kubelet does.
func (n *node) pod(t *testing.T, name string) box {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: fmt.Sprintf("00000000-0000-4000-8000-%012x", sha256.Sum256([]byte(name)))[:36]},
		Labels:   map[string]string{"app": name}, LogDirectory: n.dir + "/logs", DnsConfig: &cri.DNSConfig{}, Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.ns},
	}
	s, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run pod %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.PodSandboxId}); err != nil {
			t.Errorf("stop pod %s: %v", name, err)
		}
		if _, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.PodSandboxId}); err != nil {
			t.Errorf("remove pod %s: %v", name, err)
		}
	})
	c, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main-" + name}, Image: &cri.ImageSpec{Image: testImage}, LogPath: name + ".log", Linux: &cri.LinuxContainerConfig{},
	}})
	if err != nil {
		t.Fatalf("create a container in %s: %v", name, err)
	}
	if _, err := n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatalf("start the container of %s: %v", name, err)
	}
	status, err := n.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	details, err := n.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ContainerId, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(details.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return box{id: c.ContainerId, name: "main-" + name, pod: name, addr: status.Status.Network.Ip, pid: info.Pid}
}

// plain runs a container without Kubernetes, with an address by a CNI plugin called
// by hand.
func (n *node) plain(t *testing.T, name string) box {
	t.Helper()
	name = n.ns + "-" + name // runc keeps one list for all
	ns := name
	command(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { command(t, "ip", "netns", "del", ns) })
	list, err := os.ReadFile(n.dir + "/net.d/10.conflist")
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Name    string
		Plugins []map[string]any
	}
	if err := json.Unmarshal(list, &conf); err != nil {
		t.Fatal(err)
	}
	conf.Plugins[0]["cniVersion"], conf.Plugins[0]["name"] = "1.0.0", conf.Name
	text, err := json.Marshal(conf.Plugins[0])
	if err != nil {
		t.Fatal(err)
	}
	plugin := exec.Command("nsenter", "--net=/run/netns/"+n.ns, "/usr/lib/cni/bridge")
	plugin.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+name, "CNI_NETNS=/run/netns/"+ns, "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni")
	plugin.Stdin = bytes.NewReader(text)
	said, err := plugin.Output()
	if err != nil {
		t.Fatalf("bridge plugin: %v\n%s", err, said)
	}
	var result struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(said, &result); err != nil || len(result.IPs) == 0 {
		t.Fatalf("bridge plugin: %v\n%s", err, said)
	}
	n.ctr(t, "default", "run", "-d", "--cgroup", "/"+n.ns+"/plain", "--with-ns", "network:/run/netns/"+ns, testImage, name)
	t.Cleanup(func() { n.ctr(t, "default", "task", "rm", "-f", name); n.ctr(t, "default", "container", "rm", name) })
	addr, _, _ := strings.Cut(result.IPs[0].Address, "/")
	b := box{id: name, name: name, addr: addr}
	for line := range strings.Lines(n.ctr(t, "default", "task", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			if b.pid, err = strconv.Atoi(f[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if b.pid == 0 {
		t.Fatalf("container %s has no process", name)
	}
	return b
}

// inside runs f on a thread in the namespace of b; sockets made in it stay there.
func (b box) inside(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := netns.GetFromPid(b.pid)
		if err == nil {
			err = netns.Set(fd)
			fd.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", b.name, err)
	}
}

// talk makes one connection from a to b.
func talk(t *testing.T, a, b box, port int) {
	t.Helper()
	var l net.Listener
	at := net.JoinHostPort(b.addr, strconv.Itoa(port))
	b.inside(t, func() (err error) { l, err = net.Listen("tcp4", at); return err })
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = bufio.NewReader(c).ReadString('\n')
			c.Close()
		}
		got <- err
	}()
	a.inside(t, func() error {
		c, err := net.DialTimeout("tcp4", at, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = fmt.Fprintln(c, "hello")
		return err
	})
	if err := <-got; err != nil {
		t.Fatalf("%s to %s: %v", a.name, at, err)
	}
}

// dropCgroups removes the cgroups that containerd makes for pods and leaves behind.
func dropCgroups(t *testing.T, name string) {
	left, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		t.Error(err)
	}
	for _, dir := range append(left, "/sys/fs/cgroup/"+name) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

type namedRecord struct {
	From    string `json:"source.container.name"`
	FromID  string `json:"source.container.id"`
	FromPod string `json:"source.k8s.pod.name"`
	To      string `json:"destination.container.name"`
	ToID    string `json:"destination.container.id"`
	ToPod   string `json:"destination.k8s.pod.name"`
	Layer   string `json:"weft.destination.isolation.layer"`
	Node    string `json:"source.k8s.node.name"`
}

func unmountBelow(t *testing.T, dir string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := syscall.Unmount(f[4], syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", f[4], err)
			}
		}
	}
}

func TestEveryFlowBetweenContainersSaysWhichOnes(t *testing.T) {
	n := newNode(t)
	build(t, n.dir)
	n.write(t, "weft.yaml", fmt.Sprintf(`
listen: {socket: %[1]s/weft.sock, http: "off"}
flows: {active_timeout: 2s, idle_timeout: 1s}
cni: {runtimes: [%[1]s/c.sock], leases: %[1]s/ipam, node: node-1}
`, n.dir))
	log, err := os.Create(n.dir + "/weftd.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	agent := exec.Command("nsenter", "--net=/run/netns/"+n.ns, n.dir+"/weftd", "-config", n.dir+"/weft.yaml")
	agent.Stdout, agent.Stderr = log, log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		agent.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		agent.Wait()                          //nolint:errcheck // its log tells
		if t.Failed() {
			said, _ := os.ReadFile(n.dir + "/weftd.log")
			t.Logf("weftd:\n%s", said)
		}
	})
	flowctl := func(args ...string) (string, error) {
		out, err := exec.Command(n.dir+"/flowctl", append([]string{"--server", "unix://" + n.dir + "/weft.sock"}, args...)...).Output()
		return string(out), err
	}
	n.until(t, "the agent answers", func() error { _, err := flowctl("status"); return err })

	port := 7000
	between := func(a, b box) {
		t.Helper()
		port++
		talk(t, a, b, port)
		want := namedRecord{a.name, a.id, a.pod, b.name, b.id, b.pod, "container", "node-1"}
		n.until(t, fmt.Sprintf("the flow from %s to %s has both names", a.name, b.name), func() error {
			text, err := flowctl("observe", "--protocol", "tcp", "--to-port", fmt.Sprint(port), "-o", "jsonl")
			if err != nil {
				return fmt.Errorf("observe: %w", err)
			}
			for line := range strings.Lines(text) {
				var got namedRecord
				if err := json.Unmarshal([]byte(line), &got); err != nil {
					t.Fatal(err)
				}
				if got != want { // every record, at once: what is told wrong stays so
					t.Fatalf("flow from %s to %s: got %+v, want %+v", a.name, b.name, got, want)
				}
			}
			return nil
		})
	}
	a, b, c := n.pod(t, "a"), n.pod(t, "b"), n.plain(t, "c")
	between(a, b)
	between(b, a)
	between(a, c)
	between(c, b)
	if text, err := flowctl("observe", "--from-pod", "shop/a", "--to-container", c.name, "-o", "jsonl"); err != nil || strings.Count(text, "\n") != 1 {
		t.Errorf("--from-pod shop/a --to-container %s: got error %v and\n%s, want one flow", c.name, err, text)
	}

	if text, err := flowctl("topology", "-o", "json"); err != nil || !strings.Contains(text, `"network": "weftnet-`) || !strings.Contains(text, `"network_plugin": "bridge"`) {
		t.Errorf("topology: got error %v and no device of a network of the bridge plugin in\n%s", err, text)
	}

	n.kill(n.containerd)
	between(a, b)
	between(c, a)
	n.until(t, "the status says that containerd is away", func() error {
		text, err := flowctl("status")
		if err == nil && !strings.Contains(text, "c.sock") {
			err = fmt.Errorf("in\n%s", text)
		}
		return err
	})
	n.start(t)
	d := n.pod(t, "d")
	between(a, d)
	between(d, c)
	between(b, a)
}
