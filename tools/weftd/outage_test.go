// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// vitals are what must not grow in an agent; fds are without those of namespaces.
type vitals struct {
	rss, fds, goroutines, threads int // rss in KiB
	heap                          int // KiB at which the next collection begins: twice what is alive
	cpu                           time.Duration
}

// kubeAgent is an agent on a node.
type kubeAgent struct {
	node string
	cmd  *exec.Cmd
}

// vitals are the agent's now.
func (c *cluster) vitals(t *testing.T, a kubeAgent) (v vitals) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", a.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatalf("the agent of %s has ended: %v", a.node, err)
	}
	field := func(text, name string) int {
		_, rest, _ := strings.Cut(text, name)
		f := strings.Fields(rest)
		if len(f) == 0 {
			t.Fatalf("no %q in\n%s", name, text)
		}
		n, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	v.rss, v.threads = field(string(status), "VmRSS:"), field(string(status), "Threads:")
	open, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	v.fds = len(open)
	for _, fd := range open {
		// A namespace has a handle and a socket. Other tests on this machine make some, too.
		if to, err := os.Readlink(proc + "fd/" + fd.Name()); err == nil && (strings.HasPrefix(to, "/run/netns/") || strings.HasPrefix(to, "net:[")) {
			v.fds -= 2
		}
	}
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	v.cpu = time.Duration(field(f[11], "")+field(f[12], "")) * 10 * time.Millisecond
	metrics, err := exec.Command("nsenter", "--net=/run/netns/"+c.name+"-"+a.node, "curl", "-sSf", "http://127.0.0.1:9470/metrics").Output()
	if err != nil {
		t.Fatalf("metrics of %s: %v", a.node, err)
	}
	v.goroutines, v.heap = field(string(metrics), "\ngo_goroutines "), field(string(metrics), "\ngo_memstats_next_gc_bytes ")>>10
	return v
}

// container is the id of the running container of a pod, or of its sandbox.
func (c *cluster) container(t *testing.T, node, pod, kind string) string {
	t.Helper()
	for id := range strings.FieldsSeq(c.ctr(t, node, "container", "ls", "-q", fmt.Sprintf("labels.\"io.kubernetes.pod.name\"==%s,labels.\"io.cri-containerd.kind\"==%s", pod, kind))) {
		if strings.Contains(c.ctr(t, node, "task", "ls"), id) {
			return id
		}
	}
	t.Fatalf("no %s of %s runs on %s", kind, pod, node)
	return ""
}

func (c *cluster) ctr(t *testing.T, node string, args ...string) string {
	t.Helper()
	cmd := exec.Command(os.Getenv("TESTBED_PARTS")+"/ctr", append([]string{"-a", c.dir + "/" + node + "/c.sock", "-n", "k8s.io"}, args...)...)
	var complaint strings.Builder // kept apart: it warns of cgroup v1
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s%s", strings.Join(args, " "), err, out, &complaint)
	}
	return string(out)
}

// keepTalking makes a client connect, until its container ends, with each of those every three seconds.
func (c *cluster) keepTalking(t *testing.T, from kubeEnd, ends ...string) {
	loop := "while :; do "
	for _, e := range ends {
		loop += fmt.Sprintf("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 %s >/dev/null 2>&1; ", e)
	}
	id := c.container(t, from.Node, from.Pod, "container")
	c.ctr(t, from.Node, "task", "exec", "--detach", "--exec-id", "talk", id, "/bin/busybox", "sh", "-c", loop+"/bin/busybox sleep 3; done")
}

// address is what the bridge plugin gave a pod of a node, other than not.
func (c *cluster) address(pod, not string) (string, error) {
	files, err := filepath.Glob("/var/lib/cni/results/podnet-" + c.name + "-*")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has gone
		}
		var r struct {
			CNIArgs [][2]string
			Result  struct{ IPs []struct{ Address string } }
		}
		if err := json.Unmarshal(text, &r); err != nil {
			return "", fmt.Errorf("%s: %w", f, err)
		}
		for _, a := range r.CNIArgs {
			if a != [2]string{"K8S_POD_NAME", pod} || len(r.Result.IPs) == 0 {
				continue
			}
			if addr, _, _ := strings.Cut(r.Result.IPs[0].Address, "/"); addr != not {
				return addr, nil
			}
		}
	}
	return "", fmt.Errorf("pod %s has no address but %q", pod, not)
}

// namesHold is that every record of the pods' and the Service's traffic since then, on both
// nodes, says everything, and that there are such.
func (c *cluster) namesHold(t *testing.T, agents []kubeAgent, since time.Time, ends map[string]kubeEnd) {
	t.Helper()
	for _, a := range agents {
		seen := 0
		for _, port := range []string{"80", "8080"} {
			text, err := c.flowctl(a.node, "observe", "--protocol", "tcp", "--to-port", port, "--since", time.Since(since).String(), "-o", "jsonl")
			if err != nil {
				t.Fatalf("observe on %s: %v", a.node, err)
			}
			for line := range strings.Lines(text) {
				r := parseKubeRecord(t, line)
				r.answered = false // its id is what everyPath is about
				if err := whole(a.node, line, r, ends); err != nil {
					t.Error(err) // and go on: what comes later is worth knowing
				}
				seen++
			}
		}
		if seen == 0 {
			t.Errorf("on %s: no records since %s", a.node, since.Format(time.TimeOnly))
		}
	}
}

// named is that the agent of a node has a record to an address that says that it is that pod.
func (c *cluster) named(node, addr string, want kubeEnd) error {
	text, err := c.flowctl(node, "observe", "--protocol", "tcp", "--to-ip", addr, "--last", "1", "-o", "jsonl")
	if err != nil {
		return err
	}
	if text == "" {
		return fmt.Errorf("no record to %s", addr)
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return err
	}
	got := kubeEnd{Addr: addr}
	for name, into := range map[string]*string{
		"namespace.name": &got.Namespace, "pod.name": &got.Pod, "deployment.name": &got.Workload, "node.name": &got.Node,
	} {
		*into, _ = all["destination.k8s."+name].(string)
	}
	if want.Addr = addr; got != want {
		return fmt.Errorf("got %+v, want %+v: %s", got, want, text)
	}
	return nil
}

// spare is a deployment of one pod that no Service has, on node 2.
const spare = `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "spare"}, "spec": {
"selector": {"matchLabels": {"app": "spare"}}, "template": {"metadata": {"labels": {"app": "spare"}}, "spec": {
"nodeSelector": {"kubernetes.io/hostname": "n2"}, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
"containers": [{"name": "spare", "image": "` + testImage + `", "imagePullPolicy": "Never", "command": ["/bin/busybox", "httpd", "-f", "-p", "7000", "-h", "/"]}]}}}}`

// static is a pod that a kubelet runs by itself.
const static = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "namespace": "default"}, "spec": {"terminationGracePeriodSeconds": 1,
"containers": [{"name": "alone", "image": "` + testImage + `", "imagePullPolicy": "Never", "command": ["/bin/busybox", "httpd", "-f", "-p", "7000", "-h", "/"]}]}}`

// The API server stays away for the time that TESTBED_OUTAGE says, 20 s without it.
func TestAgentsOutliveAnAPIServerThatIsAway(t *testing.T) {
	outage := 20 * time.Second
	if s := os.Getenv("TESTBED_OUTAGE"); s != "" {
		var err error
		if outage, err = time.ParseDuration(s); err != nil {
			t.Fatalf("TESTBED_OUTAGE: %v", err)
		}
	}
	every := min(max(outage/10, 2*time.Second), time.Minute)
	c := newCluster(t, "iptables")
	agents := c.deploy(t, 2*outage+time.Hour)
	_, clients, servers := c.pods(t)
	ends := map[string]kubeEnd{}
	for _, e := range append(clients, servers...) {
		ends[e.Addr] = e
	}
	vip := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
	nodePort := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}")
	c.everyPath(t, clients, servers, vip, nodePort) // every name is there
	for _, from := range clients {
		c.keepTalking(t, from, servers[0].Addr+" 80", servers[1].Addr+" 80", vip+" 8080")
	}
	spares := c.kubectl(t, "get", "pods", "-l", "app=spare", "-o", "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}")
	spareName, spareAddr, _ := strings.Cut(spares, " ")

	before := c.watch(t, "before", agents, 2*time.Second, 4, nil)
	c.script(t, "kill-api")
	gone := time.Now()
	c.saysAway(t, agents, gone)
	c.replaceWithoutAPI(t, clients, servers, spareName, spareAddr)
	during := c.watch(t, "away", agents, every, max(int((outage-time.Since(gone))/every), 4), func() {
		c.saysAway(t, agents, gone)
		c.namesHold(t, agents, time.Now().Add(-2*every-10*time.Second), ends)
	})
	away := time.Since(gone)
	c.script(t, "start-api")
	back := time.Now()
	c.saysBack(t, agents)
	t.Logf("away for %s; every kind is told anew %s after the API server was ready", away.Round(time.Second), time.Since(back).Round(100*time.Millisecond))
	if took := time.Since(back); took > 15*time.Second { // kubeBackoff, and a little
		t.Errorf("got %s until everything was told anew, want at most 15 s", took)
	}
	for _, from := range clients { // they would go on to talk to the former pods
		c.ctr(t, from.Node, "task", "kill", "--exec-id", "talk", "-s", "KILL", c.container(t, from.Node, from.Pod, "container"))
	}
	c.kubectl(t, "rollout", "restart", "deployment/web")
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=180s") // kubelets and controllers take a minute to come back
	var w waiter
	w.until(t, "the former pods have gone", func() error {
		if n := strings.Count(c.kubectl(t, "get", "pods", "-l", "app=web", "-o", "name"), "pod/"); n != 2 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	_, clients, servers = c.pods(t)
	c.everyPath(t, clients, servers, vip, nodePort)
	after := c.watch(t, "after", agents, 2*time.Second, 4, nil)
	for i, a := range agents {
		steady(t, a.node, before[i], during[i], after[i])
	}
}

// steady is that nothing grew. Each agent tries some thirty times in 20 s to reach the
// API server: what each try leaves behind would be more than what is allowed here.
func steady(t *testing.T, node string, before, during, after watchedVitals) {
	t.Helper()
	t.Logf("on %s:\nbefore %+v\naway   %+v\nafter  %+v", node, before, during, after)
	// A connection to the API server comes back, and two devices that were new get links of their own after 5 s.
	if n := during.first.fds + 8; during.last.fds > n || after.last.fds > n {
		t.Errorf("on %s: got %d descriptors at the end of the outage and %d after it, want at most %d", node, during.last.fds, after.last.fds, n)
	}
	if n := before.most.goroutines + 4; during.most.goroutines > n || after.last.goroutines > n {
		t.Errorf("on %s: got %d goroutines in the outage and %d after it, want at most %d", node, during.most.goroutines, after.last.goroutines, n)
	}
	if n := during.half.heap*9/8 + 2<<10; during.last.heap > n || after.last.heap > n {
		t.Errorf("on %s: got a heap of %d KiB at the end of the outage and %d after it, want at most %d", node, during.last.heap, after.last.heap, n)
	}
	if n := during.half.rss + 8<<10; during.last.rss > n || after.last.rss > n { // the collector's garbage comes and goes
		t.Errorf("on %s: got %d KiB resident at the end of the outage and %d after it, want at most %d", node, during.last.rss, after.last.rss, n)
	}
	if most := before.load*1.5 + .02; during.load > most {
		t.Errorf("on %s: got %.4f of a CPU in the outage, want at most %.4f", node, during.load, most)
	}
}

// watchedVitals are what samples of an agent's vitals came to.
type watchedVitals struct {
	first, last, most vitals
	half              vitals  // the most of the first half: caches and the store fill, and then stay
	load              float64 // CPUs
}

// watch samples every agent n times and calls check after each time.
func (c *cluster) watch(t *testing.T, what string, agents []kubeAgent, every time.Duration, n int, check func()) []watchedVitals {
	t.Helper()
	all := make([]watchedVitals, len(agents))
	began := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n + 1 {
		for j, a := range agents {
			v, w := c.vitals(t, a), &all[j]
			if i == 0 {
				w.first = v
			} else {
				w.load = (v.cpu - w.first.cpu).Seconds() / time.Since(began).Seconds()
			}
			w.last = v
			if i <= n/2 {
				w.half = vitals{rss: max(w.half.rss, v.rss), heap: max(w.half.heap, v.heap)}
			}
			w.most = vitals{max(w.most.rss, v.rss), max(w.most.fds, v.fds), max(w.most.goroutines, v.goroutines), max(w.most.threads, v.threads), max(w.most.heap, v.heap), v.cpu}
			t.Logf("%s %s %4.0f s: RSS %d KiB, heap %d KiB, %d descriptors, %d goroutines, %d threads, %.4f CPU", what, a.node, time.Since(began).Seconds(), v.rss, v.heap, v.fds, v.goroutines, v.threads, w.load)
		}
		if i == n {
			break
		}
		<-tick.C
		if check != nil {
			check()
		}
	}
	return all
}

// saysAway is that `flowctl status` of each agent tells since when the API server is away.
func (c *cluster) saysAway(t *testing.T, agents []kubeAgent, gone time.Time) {
	t.Helper()
	var w waiter
	for _, a := range agents {
		w.until(t, "the status of "+a.node+" says since when the API server is away", func() error {
			text, err := c.flowctl(a.node, "status")
			if err != nil {
				return err
			}
			for _, kind := range []string{"replicasets", "jobs", "nodes", "pods", "services", "endpointslices"} {
				_, line, there := strings.Cut(text, "names by kubernetes "+kind+" ")
				line, _, _ = strings.Cut(line, "\n")
				_, since, _ := strings.Cut(line, "away since ")
				at, err := time.ParseInLocation(time.DateTime, since[:min(len(since), len(time.DateTime))], time.Local)
				if !there || err != nil || !strings.Contains(line, "still hold") || at.Before(gone.Add(-2*time.Second)) || at.After(gone.Add(10*time.Second)) {
					return fmt.Errorf("%s away since %s: %w in\n%s", kind, gone.Format(time.DateTime), err, text)
				}
			}
			return nil
		})
	}
}

func (c *cluster) saysBack(t *testing.T, agents []kubeAgent) {
	t.Helper()
	var w waiter
	for _, a := range agents {
		w.until(t, "the status of "+a.node+" says nothing of the API server any more", func() error {
			text, err := c.flowctl(a.node, "status")
			if err == nil && strings.Contains(text, "names by kubernetes") {
				err = fmt.Errorf("in\n%s", text)
			}
			return err
		})
	}
}

// replaceWithoutAPI does what a node does by itself: it restarts a container, makes a pod
// anew with another address, and runs a pod of its own that it is told of by a file.
func (c *cluster) replaceWithoutAPI(t *testing.T, clients, servers []kubeEnd, spareName, spareAddr string) {
	t.Helper()
	first, second := clients[0], clients[1]
	if first.Node != "n1" {
		first, second = second, first
	}
	for _, s := range servers {
		if s.Node == "n1" {
			c.ctr(t, "n1", "task", "kill", "-s", "KILL", c.container(t, "n1", s.Pod, "container"))
		}
	}
	c.ctr(t, "n2", "task", "kill", "-s", "KILL", c.container(t, "n2", spareName, "sandbox"))
	if err := os.WriteFile(c.dir+"/n1/static/alone.json", []byte(static), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		from kubeEnd
		was  string
		want kubeEnd
	}{
		{first, "", kubeEnd{Namespace: "default", Pod: "alone-n1", Node: "n1"}},
		{second, spareAddr, kubeEnd{Namespace: "default", Pod: spareName, Workload: "spare", Node: "n2"}},
	} {
		var w waiter
		var addr string
		w.until(t, "pod "+p.want.Pod+" has an address", func() (err error) { addr, err = c.address(p.want.Pod, p.was); return err })
		client := c.container(t, p.from.Node, p.from.Pod, "container")
		try := 0
		w.until(t, p.want.Pod+" is named while the API server is away", func() error {
			try++
			c.ctr(t, p.from.Node, "task", "exec", "--exec-id", fmt.Sprintf("try%d", try), client, "/bin/busybox", "sh", "-c", "/bin/busybox nc -w 1 "+addr+" 7000 </dev/null >/dev/null 2>&1; true")
			return c.named(p.from.Node, addr, p.want)
		})
	}
}
