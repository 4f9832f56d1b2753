// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// maxKube bounds the objects of one kind that are kept: what comes beyond has no name,
// and the status says that there is such.
const maxKube = 200_000

// kubernetes follows what an API server says of pods, Services and nodes, with get,
// list and watch alone. What it has learned stays while the server is away.
type kubernetes struct {
	log      *slog.Logger
	resolver *Resolver
	told     func() // called after each change that concerns this machine's namespaces
	space    func() uint64

	mu       sync.Mutex
	pods     map[string]*kubePod // by uid
	names    map[podName]string  // uids
	nodes    map[string]*kubeNode
	owners   map[string]kubeOwner // of replica sets and jobs, by uid
	services map[string]*kubeService
	slices   map[string]*kubeSlice // by namespace/name
	strings  interner

	backends atomic.Pointer[map[backend][]*flowsService]
	stale    chan struct{} // backends are to be made anew
	kinds    []*kubeKind
	podKind  atomic.Pointer[kubeKind]
	health
}

// kubeKind is one kind of object that is followed.
type kubeKind struct {
	health
	count atomic.Int64
	full  atomic.Bool // there are more than maxKube
}

// kubeConfig is how to reach the API server; errAbsent: nothing says so.
func kubeConfig(file string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	switch {
	case file != "":
		config, err = clientcmd.BuildConfigFromFlags("", file)
	case os.Getenv("KUBERNETES_SERVICE_HOST") != "":
		config, err = rest.InClusterConfig()
	default:
		return nil, errAbsent
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = "weftd"
	config.QPS, config.Burst = 20, 40
	return config, nil
}

// newKubernetes follows nothing yet. space is where addresses of the cluster are
// reached from: the agent's own namespace.
func newKubernetes(log *slog.Logger, r *Resolver, space func() uint64, told func()) *kubernetes {
	k := &kubernetes{
		log: log, resolver: r, told: told, space: space,
		pods: map[string]*kubePod{}, names: map[podName]string{}, nodes: map[string]*kubeNode{}, owners: map[string]kubeOwner{},
		services: map[string]*kubeService{}, slices: map[string]*kubeSlice{}, strings: interner{},
		stale: make(chan struct{}, 1), health: health{name: "kubernetes"},
	}
	k.backends.Store(&map[backend][]*flowsService{})
	return k
}

// open follows the API server that file or the environment name, until ctx ends.
func (k *kubernetes) open(ctx context.Context, file string) {
	for {
		config, err := kubeConfig(file)
		if err == nil {
			err = k.run(ctx, config)
		}
		if ctx.Err() != nil {
			return
		}
		k.say(k.log, err)
		if errors.Is(err, errAbsent) {
			return
		}
		if !pause(ctx, kubeAgain) { // a token or a file that is not there yet
			return
		}
	}
}

// pause waits; false: ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// kubeAgain is how long to wait before what says where the API server is is read again.
const kubeAgain = 10 * time.Second

// run follows until ctx ends.
func (k *kubernetes) run(ctx context.Context, config *rest.Config) error {
	ctx = klog.NewContext(ctx, logr.Discard()) // what goes wrong is in the health of the kind
	core, err := client(config, "/api", corev1.SchemeGroupVersion)
	if err != nil {
		return err
	}
	discovery, err := client(config, "/apis", discoveryv1.SchemeGroupVersion)
	if err != nil {
		return err
	}
	meta, err := metadata.NewForConfig(metadata.ConfigFor(config))
	if err != nil {
		return fmt.Errorf("make a client for metadata: %w", err)
	}
	var wg sync.WaitGroup
	// Owners and nodes first: what pods are told with. They may as well come later.
	for _, o := range []struct{ group, version, resource string }{{"apps", "v1", "replicasets"}, {"batch", "v1", "jobs"}} {
		of := meta.Resource(schema.GroupVersionResource{Group: o.group, Version: o.version, Resource: o.resource})
		follow(ctx, &wg, k, o.resource, metadataOf(of), &metav1.PartialObjectMetadata{}, stripMeta, k.keepOwner, k.dropOwner)
	}
	follow(ctx, &wg, k, "nodes", typed(core, "nodes"), &corev1.Node{}, stripNode, k.keepNode, k.dropNode)
	follow(ctx, &wg, k, "pods", typed(core, "pods"), &corev1.Pod{}, stripPod, k.keepPod, k.dropPod)
	follow(ctx, &wg, k, "services", typed(core, "services"), &corev1.Service{}, stripService, k.keepService, k.dropService)
	follow(ctx, &wg, k, "endpointslices", typed(discovery, "endpointslices"), &discoveryv1.EndpointSlice{}, stripSlice, k.keepSlice, k.dropSlice)
	wg.Go(func() { k.makeBackends(ctx) })
	wg.Wait()
	return nil
}

// client speaks protobuf to one group of the API.
func client(config *rest.Config, path string, gv schema.GroupVersion) (*rest.RESTClient, error) {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), discoveryv1.AddToScheme(s)); err != nil {
		return nil, fmt.Errorf("register %s: %w", gv, err)
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = path, &gv
	c.NegotiatedSerializer = serializer.NewCodecFactory(s).WithoutConversion()
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	r, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", gv, err)
	}
	return r, nil
}

func typed(c *rest.RESTClient, resource string) *cache.ListWatch {
	return cache.NewListWatchFromClient(c, resource, metav1.NamespaceAll, fields.Everything())
}

func metadataOf(c metadata.Getter) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, o)
		},
	}
}

// object is what every kind has.
type object interface {
	runtime.Object
	metav1.Object
}

// follow keeps one kind up to date until ctx ends.
func follow[T object](ctx context.Context, wg *sync.WaitGroup, k *kubernetes, name string, lw *cache.ListWatch, example T,
	strip func(T) T, keep func(T), drop func(uid string, name podName),
) {
	kind := &kubeKind{health: health{name: "kubernetes " + name}}
	k.mu.Lock()
	k.kinds = append(k.kinds, kind)
	k.mu.Unlock()
	if name == "pods" {
		k.podKind.Store(kind)
	}
	s := &kubeStore[T]{kind: kind, strip: strip, keep: keep, drop: drop, known: map[string]podName{}, names: interner{}}
	discard := logr.Discard()
	r := cache.NewReflectorWithOptions(watched(lw, kind, k.log), example, s, cache.ReflectorOptions{Name: name, Logger: &discard, Backoff: &kubeBackoff})
	wg.Go(func() { r.RunWithContext(ctx) })
}

// kubeBackoff is how soon one kind is asked for again: after 0.8 to 1.6 s, and after 5 to
// 10 s of a server that stays away. client-go's own 30 to 60 s would leave every name
// that changed meanwhile untold for so long after it came back.
var kubeBackoff = wait.Backoff{Duration: 800 * time.Millisecond, Cap: 5 * time.Second, Steps: 10, Factor: 2, Jitter: 1}

// watched notes how list and watch go.
func watched(lw *cache.ListWatch, kind *kubeKind, log *slog.Logger) *cache.ListWatch {
	say := func(ctx context.Context, err error) {
		if of := new(url.Error); errors.As(err, &of) {
			err = of.Err // without the address, which is another each time
		}
		if ctx.Err() == nil {
			kind.say(log, err)
		}
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := lw.ListWithContextFunc(ctx, o)
			say(ctx, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchFuncWithContext(ctx, o)
			say(ctx, err)
			return w, err
		},
	}
}

// kubeStore hands objects on, stripped of what is not used, and keeps of each only
// what tells that it is gone when the server lists anew.
type kubeStore[T object] struct {
	kind  *kubeKind
	strip func(T) T
	keep  func(T)
	drop  func(uid string, name podName)
	known map[string]podName // by uid; at most maxKube
	names interner
}

// Add implements cache.ReflectorStore.
func (s *kubeStore[T]) Add(o any) error {
	t, ok := o.(T)
	if !ok {
		return fmt.Errorf("keep %T: it is not what was asked for", o)
	}
	uid := strings.Clone(string(t.GetUID()))
	if _, there := s.known[uid]; !there && len(s.known) >= maxKube {
		s.kind.full.Store(true)
		return nil
	}
	t = s.strip(t)
	s.keep(t)
	s.known[uid] = podName{s.names.one(t.GetNamespace()), strings.Clone(t.GetName())}
	s.kind.count.Store(int64(len(s.known)))
	return nil
}

// Update implements cache.ReflectorStore.
func (s *kubeStore[T]) Update(o any) error { return s.Add(o) }

// Delete implements cache.ReflectorStore.
func (s *kubeStore[T]) Delete(o any) error {
	t, ok := o.(T)
	if !ok {
		return fmt.Errorf("forget %T: it is not what was asked for", o)
	}
	s.forget(string(t.GetUID()))
	return nil
}

func (s *kubeStore[T]) forget(uid string) {
	if name, there := s.known[uid]; there {
		s.drop(uid, name)
		delete(s.known, uid)
	}
	s.kind.count.Store(int64(len(s.known)))
}

// Replace implements cache.ReflectorStore: those that are not among all are gone,
// since when nobody knows.
func (s *kubeStore[T]) Replace(all []any, _ string) error {
	there := make(map[string]bool, len(all))
	s.kind.full.Store(false)
	for _, o := range all {
		if t, ok := o.(T); ok {
			there[string(t.GetUID())] = true
		}
	}
	for uid := range s.known { // first: what was made anew has the same name
		if !there[uid] {
			s.forget(uid)
		}
	}
	var errs []error
	for _, o := range all {
		errs = append(errs, s.Add(o))
	}
	return errors.Join(errs...)
}

// Resync implements cache.ReflectorStore.
func (s *kubeStore[T]) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a whole list is not kept whole.
func (s *kubeStore[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if t, ok := o.(T); ok {
			return s.strip(t), nil
		}
		return o, nil
	}
}

// away is since when nothing is told of pods; zero: it is.
func (k *kubernetes) away() time.Time {
	if kind := k.podKind.Load(); kind != nil {
		return kind.since()
	}
	return time.Time{}
}

// statuses is how every kind does.
func (k *kubernetes) statuses() []SourceStatus {
	k.mu.Lock()
	kinds := slices.Clone(k.kinds)
	k.mu.Unlock()
	if len(kinds) == 0 {
		return []SourceStatus{k.status(0)}
	}
	var all []SourceStatus
	for _, kind := range kinds {
		s := kind.status(int(kind.count.Load()))
		if s.Err == "" && kind.full.Load() {
			s.Err = fmt.Sprintf("there are more than %d: the rest has no names", maxKube)
		}
		all = append(all, s)
	}
	return all
}

// interner keeps one of each of the few strings that many objects have.
type interner map[string]string

func (i interner) one(s string) string {
	if had, ok := i[s]; ok {
		return had
	}
	if len(i) >= 65536 {
		clear(i)
	}
	s = string([]byte(s)) // not a part of a larger one
	i[s] = s
	return s
}
