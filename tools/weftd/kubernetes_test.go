// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cluster is a real Kubernetes of two nodes with an agent on each.
type cluster struct {
	dir, name string
	env       []string
}

// newCluster is one whose Services are made by that mode of kube-proxy.
func newCluster(t *testing.T, proxy string) *cluster {
	parts := os.Getenv("TESTBED_PARTS")
	if parts == "" {
		t.Fatal("TESTBED_PARTS is empty: `make test-kubernetes` sets it to the folder with the programs of Kubernetes")
	}
	c := &cluster{name: fmt.Sprintf("weft-%d", os.Getpid())}
	var err error
	if c.dir, err = os.MkdirTemp("", "weft-k8s-"); err != nil { // not the test's: its path is too long for a socket
		t.Fatal(err)
	}
	(&node{dir: c.dir}).image(t)
	c.env = append(os.Environ(), "BIN="+parts, "STATE="+c.dir, "NAME="+c.name, "PROXY="+proxy, "IMAGE="+c.dir+"/image.tar", "IMAGE_NAME="+testImage)
	t.Cleanup(func() {
		c.script(t, "down")
		unmountBelow(t, c.dir)
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	c.script(t, "up")
	return c
}

func (c *cluster) script(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) try(args ...string) (string, error) {
	s := exec.Command("../testbed/cluster.sh", args...)
	s.Env = c.env
	log, err := os.CreateTemp(c.dir, "script-*.err") // not a pipe: daemons keep it open
	if err != nil {
		return "", err
	}
	defer log.Close()
	s.Stderr = log
	out, err := s.Output()
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		return "", fmt.Errorf("cluster.sh %s: %w\n%s%s", strings.Join(args, " "), err, out, said)
	}
	return strings.TrimSpace(string(out)), nil
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.script(t, append([]string{"kubectl"}, args...)...)
}

// agent runs weftd on a node, with what the role of deploy/kubernetes.yaml allows.
func (c *cluster) agent(t *testing.T, n string) kubeAgent {
	d := filepath.Join(c.dir, n)
	conf := fmt.Sprintf(`
listen: {socket: %[1]s/w.sock}
flows: {active_timeout: 2s, idle_timeout: 1s, store: 2048}
cni: {runtimes: [%[1]s/c.sock], leases: %[1]s/ipam, node: %[2]s, kubeconfig: %[3]s/agent}
`, d, n, c.dir)
	if err := os.WriteFile(d+"/weft.yaml", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(d + "/weftd.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a := exec.Command("nsenter", "--net=/run/netns/"+c.name+"-"+n, c.dir+"/weftd", "-config", d+"/weft.yaml")
	a.Stdout, a.Stderr = log, log
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		a.Wait()                          //nolint:errcheck // its log tells
		if t.Failed() {
			said, _ := os.ReadFile(d + "/weftd.log")
			t.Logf("weftd of %s:\n%s", n, said)
		}
	})
	return kubeAgent{n, a}
}

func (c *cluster) flowctl(n string, args ...string) (string, error) {
	out, err := exec.Command(c.dir+"/flowctl", append([]string{"--server", "unix://" + c.dir + "/" + n + "/w.sock"}, args...)...).Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == 3 {
		return "", nil // nothing matched
	}
	return string(out), err
}

// workloads are two servers behind a Service and two clients, one of each on each node.
func workloads() string {
	pod := func(app string, command ...string) map[string]any {
		return map[string]any{
			"metadata": map[string]any{"labels": map[string]any{"app": app}},
			"spec": map[string]any{
				"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
				"topologySpreadConstraints": []any{map[string]any{
					"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
					"labelSelector": map[string]any{"matchLabels": map[string]any{"app": app}}, "matchLabelKeys": []string{"pod-template-hash"},
				}},
				"containers": []any{map[string]any{"name": app, "image": testImage, "imagePullPolicy": "Never", "command": command}},
			},
		}
	}
	spec := func(app string, template map[string]any) map[string]any {
		return map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": app}}, "template": template}
	}
	web := spec("web", pod("web", "/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/"))
	web["replicas"] = 2
	text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{
		map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web"}, "spec": web},
		map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "front"}, "spec": map[string]any{
			"type": "NodePort", "selector": map[string]any{"app": "web"}, "ports": []any{map[string]any{"port": 8080, "targetPort": 80}},
		}},
		json.RawMessage(spare),
		map[string]any{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": map[string]any{"name": "client"}, "spec": spec("client", pod("client", "/bin/busybox", "sleep", "1000000"))},
	}})
	if err != nil {
		panic(err) // it is made of maps and words
	}
	return string(text)
}

// kubeEnd is an end of a record, by its attributes.
type kubeEnd struct{ Addr, Namespace, Pod, Workload, Service, Node, Zone string }

// kubeRecord is a record of a connection to a Service or its backend.
type kubeRecord struct {
	id       string
	port     int
	opened   string // where it was opened to, if that is not the destination
	answered bool   // both directions of a connection are in it
	src, dst kubeEnd
}

func parseKubeRecord(t *testing.T, line string) kubeRecord {
	var all map[string]any
	if err := json.Unmarshal([]byte(line), &all); err != nil {
		t.Fatal(err)
	}
	text := func(name string) string { s, _ := all[name].(string); return s }
	end := func(side string) kubeEnd {
		e := kubeEnd{
			Addr: text(side + ".address"), Namespace: text(side + ".k8s.namespace.name"), Pod: text(side + ".k8s.pod.name"),
			Service: text(side + ".k8s.service.name"), Node: text(side + ".k8s.node.name"), Zone: text(side + ".cloud.availability_zone"),
		}
		for _, kind := range []string{"deployment", "daemonset", "replicaset"} {
			if w := text(side + ".k8s." + kind + ".name"); w != "" {
				e.Workload = kind + "/" + w
			}
		}
		return e
	}
	port, _ := all["destination.port"].(float64)
	back, _ := all["reverse.packets"].(float64)
	opened := ""
	if vip := text("weft.destination.nat.address"); vip != "" {
		opened = fmt.Sprintf("%s port %v", vip, all["weft.destination.nat.port"])
	}
	answered := back > 0 && text("weft.tcp.failure") != "refused"
	return kubeRecord{text("weft.connection.id"), int(port), opened, answered, end("source"), end("destination")}
}

// pods are what every end of one of them must say, by address.
func (c *cluster) pods(t *testing.T) (all map[string]kubeEnd, clients, servers []kubeEnd) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec   struct{ NodeName string }
			Status struct{ PodIP string }
		}
	}
	if err := json.Unmarshal([]byte(c.kubectl(t, "get", "pods", "-l", "app in (web, client)", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	all = map[string]kubeEnd{}
	for _, p := range list.Items {
		e := kubeEnd{p.Status.PodIP, "default", p.Metadata.Name, "daemonset/client", "", p.Spec.NodeName, "zone-" + strings.TrimPrefix(p.Spec.NodeName, "n")}
		if p.Metadata.Labels["app"] == "web" {
			e.Workload, e.Service = "deployment/web", "front"
			servers = append(servers, e)
		} else {
			clients = append(clients, e)
		}
		all[e.Addr] = e
	}
	if len(clients) != 2 || len(servers) != 2 || clients[0].Node == clients[1].Node || servers[0].Node == servers[1].Node {
		t.Fatalf("got clients %+v and servers %+v, want one of each on each node", clients, servers)
	}
	return all, clients, servers
}

func TestEveryFlowBetweenPodsSaysWhoseItIs(t *testing.T) {
	for _, proxy := range []string{"iptables", "nftables"} {
		t.Run(proxy, func(t *testing.T) { everyFlowBetweenPods(t, newCluster(t, proxy)) })
	}
}

// run runs the workloads.
func (c *cluster) run(t *testing.T) {
	manifest := filepath.Join(c.dir, "workloads.json")
	if err := os.WriteFile(manifest, []byte(workloads()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", manifest)
	for _, w := range []string{"deployment/web", "daemonset/client", "deployment/spare"} {
		c.kubectl(t, "rollout", "status", w, "--timeout=60s")
	}
}

// deploy runs the workloads, and an agent on each node that may ask the API server for so long.
func (c *cluster) deploy(t *testing.T, token time.Duration) (agents []kubeAgent) {
	build(t, c.dir)
	c.run(t)
	c.kubectl(t, "apply", "-f", "../../deploy/kubernetes.yaml", "-l", "app.kubernetes.io/component=access")
	c.kubectl(t, "apply", "-f", "../../deploy/kubernetes.yaml", "--dry-run=server")
	config := c.script(t, "kubeconfig", c.kubectl(t, "-n", "weft", "create", "token", "weft", "--duration", token.String()))
	if err := os.WriteFile(filepath.Join(c.dir, "agent"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		agents = append(agents, c.agent(t, n))
	}
	var w waiter
	for _, a := range agents {
		w.until(t, "the agent of "+a.node+" answers", func() error {
			_, err := c.flowctl(a.node, "status")
			return err
		})
	}
	return agents
}

func everyFlowBetweenPods(t *testing.T, c *cluster) {
	c.deploy(t, time.Hour)
	_, clients, servers := c.pods(t)
	c.kubectl(t, "get", "endpointslices")
	vip := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
	nodePort := c.kubectl(t, "get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}")
	c.everyPath(t, clients, servers, vip, nodePort)
}

// waiter is until of a node that is not one.
type waiter struct{ node }

// everyPath connects every client with every server, with the Service until it has sent
// each client to each server, and with the port of the client's node. Then every record
// of both agents must say everything of both ends.
func (c *cluster) everyPath(t *testing.T, clients, servers []kubeEnd, vip, nodePort string) {
	ends := map[string]kubeEnd{}
	for _, e := range append(clients, servers...) {
		ends[e.Addr] = e
	}
	port := func(s string) (n int) { fmt.Sscan(s, &n); return n } //nolint:errcheck // 0 fails below
	get := func(from kubeEnd, addr, port string) error {
		_, err := c.try("kubectl", "exec", from.Pod, "--", "/bin/busybox", "sh", "-c",
			fmt.Sprintf("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 %s %s", addr, port))
		return err
	}
	ask := func(from kubeEnd, addr, port string) {
		if err := get(from, addr, port); err != nil {
			t.Fatal(err)
		}
	}
	var w waiter
	for _, from := range clients { // kube-proxy may be behind
		w.until(t, "the Service has the servers, of which each answers", func() error {
			for range 6 {
				if err := get(from, vip, "8080"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	began := time.Now()
	for _, from := range clients {
		for _, to := range servers {
			ask(from, to.Addr, "80")
		}
		for range 8 {
			ask(from, vip, "8080")
		}
		ask(from, "10.240.0.1"+strings.TrimPrefix(from.Node, "n"), nodePort)
	}
	sent := 2 * (len(servers) + 8 + 1)
	w.until(t, "every connection has its records", func() error {
		views := map[string]map[string][]kubeRecord{} // by connection and node
		for _, n := range nodes {
			for _, p := range []string{"80", "8080", nodePort} {
				text, err := c.flowctl(n, "observe", "--protocol", "tcp", "--to-port", p, "--since", time.Since(began).String(), "-o", "jsonl")
				if err != nil {
					return fmt.Errorf("observe on %s: %w", n, err)
				}
				for line := range strings.Lines(text) {
					r := parseKubeRecord(t, line)
					if err := whole(n, line, r, ends); err != nil {
						t.Fatal(err) // what is told wrong stays so
					}
					if r.port != 80 {
						t.Fatalf("on %s: a record of what a connection to a Service was opened to, and not of where it went: %s", n, line)
					}
					if r.id == "" || p != "80" { // without: a drain came between the two directions, and the rest follows
						continue
					}
					if views[r.id] == nil {
						views[r.id] = map[string][]kubeRecord{}
					}
					views[r.id][n] = append(views[r.id][n], r)
				}
			}
		}
		if len(views) < sent {
			return fmt.Errorf("%d connections, want %d: %v", len(views), sent, views)
		}
		return joined(views, vip, port(nodePort))
	})
}

// joined is that every connection has one record on each node that saw it, and on the
// client's what it was opened to, if that is a Service.
func joined(views map[string]map[string][]kubeRecord, vip string, nodePort int) error {
	toService := map[string]int{}
	for id, nodes := range views {
		pod := ""
		for n, seen := range nodes {
			if len(seen) != 1 {
				return fmt.Errorf("connection %s: on %s %d records, want 1: %+v", id, n, len(seen), seen)
			}
			r := seen[0]
			if pod == "" {
				pod = r.dst.Pod
			}
			if r.dst.Pod != pod || r.opened != "" && r.src.Node != n {
				return fmt.Errorf("connection %s: got %+v, want one pod, and the Service's address on the client's node alone", id, nodes)
			}
			if r.opened != "" {
				toService[r.opened]++
			}
		}
	}
	port := fmt.Sprintf(" port %d", nodePort)
	if want := map[string]int{vip + " port 8080": 16, "10.240.0.11" + port: 1, "10.240.0.12" + port: 1}; !maps.Equal(toService, want) {
		return fmt.Errorf("through Services: got %v, want %v", toService, want)
	}
	return nil
}

// whole is that a record of a node's agent says all.
func whole(n, line string, r kubeRecord, ends map[string]kubeEnd) error {
	want := r
	own := strings.HasPrefix(r.src.Addr, "10.244."+strings.TrimPrefix(n, "n")+".")
	if e, ok := ends[r.src.Addr]; ok {
		want.src = e
	} else if node := strings.HasSuffix(r.src.Addr, ".0") || strings.HasSuffix(r.src.Addr, ".1"); !node || own && r.src.Workload != "daemonset/client" {
		// the port of a node: its own address is in the client's stead, and only it knows whose it is
		return fmt.Errorf("on %s: a flow from %s, which is no pod's: %s", n, r.src.Addr, line)
	}
	if e, ok := ends[r.dst.Addr]; ok {
		want.dst = e
	} else {
		for _, e := range ends {
			if e.Pod == r.dst.Pod && e.Service != "" {
				addr := want.dst.Addr
				want.dst = e
				want.dst.Addr = addr
			}
		}
	}
	if r != want || r.dst.Pod == "" || r.dst.Service == "" || r.answered && r.id == "" {
		return fmt.Errorf("on %s: got\n%+v, want\n%+v\n%s", n, r, want, line)
	}
	return nil
}
