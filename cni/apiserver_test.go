// SPDX-License-Identifier: Apache-2.0

//go:build testbed

package cni

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"weft/flows"
)

// controlPlane is a real etcd and a real kube-apiserver on the loopback, that end
// with the test. Their binaries are in the folder that TESTBED_PARTS names.
type controlPlane struct {
	dir, url, kubeconfig string
	args                 []string // of the API server
	server               *exec.Cmd
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func newControlPlane(t testing.TB) *controlPlane {
	parts := os.Getenv("TESTBED_PARTS")
	if parts == "" {
		t.Fatal("TESTBED_PARTS is empty: `make test-kubernetes` sets it to the folder with kube-apiserver")
	}
	p := &controlPlane{dir: t.TempDir()}
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	store := fmt.Sprintf("http://127.0.0.1:%d", etcd)
	spawn(t, p.dir, "etcd", "--data-dir", p.dir+"/etcd", "--unsafe-no-fsync", "--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer))
	key := filepath.Join(p.dir, "sa.key")
	if out, err := exec.Command("openssl", "genrsa", "-out", key, "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	p.write(t, "tokens.csv", "admin,admin,1,system:masters\nwatcher,watcher,2\n")
	p.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	p.args = []string{filepath.Join(parts, "kube-apiserver"), "--etcd-servers=" + store, "--cert-dir=" + p.dir + "/pki",
		"--service-account-issuer=https://weft.test", "--service-account-signing-key-file=" + key, "--service-account-key-file=" + key,
		"--token-auth-file=" + p.dir + "/tokens.csv", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--advertise-address=127.0.0.1", "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"}
	p.kubeconfig = p.write(t, "kubeconfig", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x",
"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":"watcher"}}],
"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}]}`, p.url))
	return p
}

func (p *controlPlane) write(t testing.TB, name, text string) string {
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// spawn starts a program that ends with the test.
func spawn(t testing.TB, dir string, args ...string) *exec.Cmd {
	out, err := os.Create(filepath.Join(dir, filepath.Base(args[0])+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // the thread that starts it must outlive it
		runtime.LockOSThread()
		started <- c.Start()
		c.Wait() //nolint:errcheck // it is killed
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() }) //nolint:errcheck // it may have ended
	return c
}

func (p *controlPlane) start(t testing.TB) {
	p.server = spawn(t, p.dir, p.args...)
	admin := p.client(t, "/api", corev1.SchemeGroupVersion)
	var err error
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = admin.Get().AbsPath("/readyz").Do(t.Context()).Error(); err == nil {
			return
		}
	}
	said, _ := os.ReadFile(filepath.Join(p.dir, "kube-apiserver.log"))
	t.Fatalf("kube-apiserver is not ready after 40 s: %v\n%s", err, said[max(0, len(said)-4000):])
}

func (p *controlPlane) stop(t testing.TB) {
	if err := p.server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

func (p *controlPlane) client(t testing.TB, path string, gv schema.GroupVersion) *rest.RESTClient {
	c, err := client(&rest.Config{Host: p.url, BearerToken: "admin", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 5000, Burst: 5000}, path, gv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// allow lets the agent's user do what deploy's role says, and nothing else.
func (p *controlPlane) allow(t testing.TB) {
	c := p.client(t, "/api", corev1.SchemeGroupVersion)
	for path, body := range map[string]string{
		"clusterroles": `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"weft"},"rules":[
{"apiGroups":[""],"resources":["pods","nodes","services"],"verbs":["get","list","watch"]},
{"apiGroups":["discovery.k8s.io"],"resources":["endpointslices"],"verbs":["get","list","watch"]},
{"apiGroups":["apps"],"resources":["replicasets"],"verbs":["get","list","watch"]},{"apiGroups":["batch"],"resources":["jobs"],"verbs":["get","list","watch"]}]}`,
		"clusterrolebindings": `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"weft"},
"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"weft"},"subjects":[{"kind":"User","name":"watcher","apiGroup":"rbac.authorization.k8s.io"}]}`,
	} {
		if err := c.Post().AbsPath("/apis/rbac.authorization.k8s.io/v1/"+path).SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error(); err != nil {
			t.Fatalf("create %s: %v", path, err)
		}
	}
}

const (
	manyPods     = 5000
	manyServices = 500
)

// podAddr is the address of the n-th pod.
func podAddr(n int) string { return fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255) }

// fill creates nodes, pods with their addresses, Services and EndpointSlices.
func (p *controlPlane) fill(t testing.TB, pods, services int) (vips []string) {
	core, discovery := p.client(t, "/api", corev1.SchemeGroupVersion), p.client(t, "/apis", discoveryv1.SchemeGroupVersion)
	make1 := func(c *rest.RESTClient, ns, resource string, o, into object) {
		if err := c.Post().NamespaceIfScoped(ns, ns != "").Resource(resource).Body(o).Do(t.Context()).Into(into); err != nil {
			t.Fatalf("create %s %s: %v", resource, o.GetName(), err)
		}
	}
	make1(core, "", "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, &corev1.Namespace{})
	for i := range 50 {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{labelZone: fmt.Sprintf("zone-%d", i%3), labelRegion: "here"}}}
		make1(core, "", "nodes", n, n)
	}
	each := func(n int, f func(i int)) {
		work, done := make(chan int), make(chan struct{})
		for range 16 {
			go func() {
				for i := range work {
					f(i)
				}
				done <- struct{}{}
			}()
		}
		for i := range n {
			work <- i
		}
		close(work)
		for range 16 {
			<-done
		}
	}
	each(pods, func(i int) { p.pod(t, core, i) })
	vips = make([]string, services)
	each(services, func(i int) {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("svc-%d", i), Namespace: "shop"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		make1(core, "shop", "services", s, s)
		vips[i] = s.Spec.ClusterIP
		e := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: s.Name + "-a", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		}
		for j := i; j < pods; j += services {
			e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{podAddr(j)}})
		}
		make1(discovery, "shop", "endpointslices", e, e)
	})
	return vips
}

func (p *controlPlane) pod(t testing.TB, core *rest.RESTClient, i int) {
	hash := fmt.Sprintf("%08x", i/10)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%s-%05d", hash, i), Namespace: "shop", Labels: map[string]string{"app": fmt.Sprintf("web-%d", i%100), "pod-template-hash": hash},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-" + hash, UID: types.UID("rs-" + hash), Controller: new(true)}}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node-%d", i%50), Containers: []corev1.Container{{
			Name: "web", Image: "registry.invalid/web:1", Command: []string{"/bin/web"}, Env: []corev1.EnvVar{{Name: "A", Value: strings.Repeat("x", 200)}},
		}}},
	}
	if err := core.Post().Namespace("shop").Resource("pods").Body(pod).Do(t.Context()).Into(pod); err != nil {
		t.Fatalf("create pod %d: %v", i, err)
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, podAddr(i), []corev1.PodIP{{IP: podAddr(i)}}
	pod.Status.StartTime = &metav1.Time{Time: time.Now()}
	if err := core.Put().Namespace("shop").Resource("pods").Name(pod.Name).SubResource("status").Body(pod).Do(t.Context()).Error(); err != nil {
		t.Fatalf("status of pod %d: %v", i, err)
	}
}

// follow begins to follow the server, until end.
func (p *controlPlane) follow(t testing.TB, log *slog.Logger) (r *Resolver, k *kubernetes, end func()) {
	r = NewResolver()
	k = newKubernetes(log, r, func() uint64 { return 1 }, func() {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { k.open(ctx, p.kubeconfig); close(done) }()
	return r, k, func() { cancel(); <-done }
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestThousandsOfPodsResolveAndTheServerMayGoAway(t *testing.T) {
	p := newControlPlane(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	_, early, end := p.follow(t, log)
	soonEnough(t, 20*time.Second, "told that the server is away", func() bool {
		s := early.statuses()
		return len(s) == 6 && s[3].Err != "" && s[3].Last.IsZero()
	})
	p.start(t)
	p.allow(t)
	vips := p.fill(t, manyPods, manyServices)
	end() // what is measured is a start with everything there
	before, began := heap(), time.Now()
	r, k, end := p.follow(t, log)
	defer end()
	all := func() bool {
		now := time.Now().UnixNano()
		for i := range manyPods {
			if e := r.Resolve(flows.Scope{Netns: 1}, addrOf(podAddr(i)), now); e == nil || !strings.HasSuffix(e.Pod, fmt.Sprintf("-%05d", i)) || e.Zone == "" || e.Workload == "" {
				return false
			}
			if k.serviceOf(backend{addrOf(podAddr(i)), 8080, flows.ProtoTCP}) == nil {
				return false
			}
		}
		for i, v := range vips {
			if e := r.Resolve(flows.Scope{Netns: 1}, addrOf(v), now); e == nil || e.Service != fmt.Sprintf("svc-%d", i) {
				return false
			}
		}
		return true
	}
	soonEnough(t, 60*time.Second, "every pod and Service known", all)
	took := time.Since(began)
	used := heap() - before
	t.Logf("%d pods, %d Services: known after %s, %d bytes of heap a pod, Services and their endpoints included", manyPods, manyServices, took.Round(time.Millisecond), used/manyPods)
	if per := used / manyPods; per > 4096 {
		t.Errorf("%d bytes a pod, want at most 4096", per)
	}

	p.stop(t)
	soonEnough(t, 30*time.Second, "told that the server is away", func() bool {
		for _, s := range k.statuses() {
			if s.Err != "" && !s.Last.IsZero() {
				return true
			}
		}
		return false
	})
	if !all() {
		t.Error("while the server is away: not every pod and Service is known any more")
	}
	p.start(t)
	core := p.client(t, "/api", corev1.SchemeGroupVersion)
	p.pod(t, core, manyPods) // a new one
	if err := core.Delete().Namespace("shop").Resource("pods").Name("web-00000000-00000").Body(&metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	soonEnough(t, 60*time.Second, "up to date after the server came back", func() bool {
		now := time.Now().UnixNano()
		return r.Resolve(flows.Scope{Netns: 1}, addrOf(podAddr(manyPods)), now) != nil && r.Resolve(flows.Scope{Netns: 1}, addrOf(podAddr(0)), now) == nil
	})
}
