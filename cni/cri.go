// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of what a container runtime is asked for and of what is kept of it.
const (
	runtimeDeadline = 3 * time.Second  // of all questions by one of the two interfaces
	runtimePause    = 20 * time.Second // between two listings when nothing new was met
	runtimeRest     = 250 * time.Millisecond
	maxRuntimeReply = 64 << 20 // bytes of one answer; a larger one is an error
	maxNamed        = 16384    // containers of one runtime; further ones have no name
	maxLabels       = 32       // of one container; further ones, in the order of their names, are left out
)

// contained is what a container runtime says of one container, never written to once shared.
type contained struct {
	ID, Name, Runtime      string
	Pod, Namespace, PodUID string // of Kubernetes; empty: in no pod
	Sandbox                string // the container that holds the pod's namespaces; itself: it is that one
	Handler                string // the runtime's word for how it is run, such as runsc; empty: its default
	Labels                 map[string]string
	Native                 bool // containerd's own interface told it, not the CRI
	Ended                  bool // it does not run any more: an init container, or one that was started again since
}

// runtimeSource asks one container runtime, through its socket, for the names of
// containers. What it has learned stays while the runtime is away.
type runtimeSource struct {
	socket string
	asked  bool // by the configuration: that it is not here is a fault
	log    *slog.Logger
	told   func() // called after each change
	known  atomic.Pointer[map[string]*contained]
	pods   atomic.Pointer[map[string][]*contained] // what runs in each sandbox, itself and what ended not
	wake   chan struct{}
	health
}

func newRuntimeSource(socket string, log *slog.Logger, told func()) *runtimeSource {
	s := &runtimeSource{socket: socket, log: log, told: told, wake: make(chan struct{}, 1), health: health{name: "runtime " + socket}}
	s.known.Store(&map[string]*contained{})
	s.pods.Store(&map[string][]*contained{})
	return s
}

// find is what the runtime says of a container; nil: nothing yet.
func (s *runtimeSource) find(id string) *contained { return (*s.known.Load())[id] }

// within is what runs in a sandbox, without itself.
func (s *runtimeSource) within(sandbox string) []*contained { return (*s.pods.Load())[sandbox] }

// look asks for a listing soon: a container was met that has no name.
func (s *runtimeSource) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run lists until ctx ends. It never waits for the runtime longer than its deadline,
// and nobody waits for it.
func (s *runtimeSource) run(ctx context.Context) {
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRuntimeReply), grpc.WaitForReady(true)))
	if err != nil {
		s.say(s.log, fmt.Errorf("connect to %s: %w", s.socket, err))
		return
	}
	defer conn.Close()
	for failed := 0; ; {
		pause := runtimePause
		err := s.list(ctx, conn)
		if ctx.Err() != nil {
			return
		}
		if failed++; err == nil {
			failed = 0
		} else {
			pause = min(time.Second<<min(failed-1, 4), runtimePause)
		}
		s.say(s.log, err)
		if !s.wait(ctx, conn, pause) {
			return
		}
	}
}

// wait is a pause that look and the end of the connection cut short, to a rest that bounds what listing costs;
// false: ctx ended.
func (s *runtimeSource) wait(ctx context.Context, conn *grpc.ClientConn, pause time.Duration) bool {
	left, stop := context.WithCancel(ctx)
	defer stop()
	gone := make(chan struct{}) // the runtime, while we were connected
	if conn.GetState() == connectivity.Ready {
		go func() {
			if conn.WaitForStateChange(left, connectivity.Ready) {
				close(gone)
			}
		}()
	}
	rest, long := time.NewTimer(min(runtimeRest, pause)), time.NewTimer(pause)
	defer rest.Stop()
	defer long.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-rest.C:
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.wake:
	case <-gone:
	case <-long.C:
	}
	return true
}

// list takes what the runtime has now. Of an interface that does not answer, or not to
// the end, what it said before holds.
func (s *runtimeSource) list(ctx context.Context, conn *grpc.ClientConn) error {
	switch _, err := os.Stat(s.socket); {
	case errors.Is(err, os.ErrNotExist) && s.asked:
		return err
	case errors.Is(err, os.ErrNotExist):
		return errAbsent
	}
	conn.ResetConnectBackoff() // it may have come back since the last try
	found := map[string]*contained{}
	ask := func(list func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, runtimeDeadline)
		defer cancel()
		return list(ctx)
	}
	errCRI := ask(func(ctx context.Context) error { return listCRI(ctx, conn, found) })
	errNative := ask(func(ctx context.Context) error { return listContainerd(ctx, conn, found, errCRI == nil) })
	failed := errors.Join(errCRI, errNative)
	silentCRI, silentNative := errCRI != nil && !errors.Is(errCRI, errNotOffered), errNative != nil && !errors.Is(errNative, errNotOffered)
	if !silentCRI && !silentNative && (errCRI == nil || errNative == nil) {
		failed = nil // it has one of the two only
	}
	old := *s.known.Load()
	for id, was := range old {
		if was.Native && silentNative || !was.Native && silentCRI {
			found[id] = was
		} else if n := found[id]; n != nil && was.equal(n) { // so that who is told of it stays too
			found[id] = was
		}
	}
	if len(found) > maxNamed {
		return fmt.Errorf("list containers of %s: %d are there, and at most %d are named", s.socket, len(found), maxNamed)
	}
	if !maps.Equal(old, found) {
		s.take(found)
	}
	if failed != nil {
		return fmt.Errorf("list containers of %s: %w", s.socket, failed)
	}
	return nil
}

// take makes all the containers that are known.
func (s *runtimeSource) take(all map[string]*contained) {
	pods := map[string][]*contained{}
	for _, n := range all {
		if n.Sandbox != n.ID && !n.Ended {
			pods[n.Sandbox] = append(pods[n.Sandbox], n)
		}
	}
	s.known.Store(&all)
	s.pods.Store(&pods)
	s.told()
}

func (n *contained) equal(o *contained) bool {
	labels := maps.Equal(n.Labels, o.Labels)
	a, b := *n, *o
	a.Labels, b.Labels = nil, nil
	return labels && a.ID == b.ID && a.Name == b.Name && a.Runtime == b.Runtime && a.Pod == b.Pod && a.Namespace == b.Namespace &&
		a.PodUID == b.PodUID && a.Sandbox == b.Sandbox && a.Handler == b.Handler && a.Native == b.Native && a.Ended == b.Ended
}

// listCRI asks by the Kubernetes container runtime interface.
func listCRI(ctx context.Context, conn *grpc.ClientConn, into map[string]*contained) error {
	c := cri.NewRuntimeServiceClient(conn)
	version, err := c.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return fmt.Errorf("CRI version: %w", short(err))
	}
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("CRI pods: %w", short(err))
	}
	containers, err := c.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("CRI containers: %w", short(err))
	}
	runtime := bounded(version.RuntimeName)
	for _, p := range pods.Items {
		m := p.GetMetadata()
		into[p.Id] = &contained{
			ID: p.Id, Runtime: runtime, Pod: bounded(m.GetName()), Namespace: bounded(m.GetNamespace()), PodUID: bounded(m.GetUid()),
			Sandbox: p.Id, Handler: bounded(p.RuntimeHandler), Labels: boundLabels(p.Labels),
		}
	}
	for _, ct := range containers.Containers {
		n := &contained{ID: ct.Id, Name: bounded(ct.GetMetadata().GetName()), Runtime: runtime, Sandbox: ct.PodSandboxId, Ended: ct.State == cri.ContainerState_CONTAINER_EXITED}
		if p := into[ct.PodSandboxId]; p != nil {
			n.Pod, n.Namespace, n.PodUID, n.Handler, n.Labels = p.Pod, p.Namespace, p.PodUID, p.Handler, p.Labels
		}
		into[ct.Id] = n
	}
	return nil
}

// errNotOffered says that a runtime does not have an interface.
var errNotOffered = errors.New("not offered")

// short is a gRPC error without its envelope.
func short(err error) error {
	s := status.Convert(err)
	if s.Code() == codes.Unimplemented {
		return errNotOffered
	}
	if s.Code() == codes.Unknown {
		return errors.New(s.Message())
	}
	return fmt.Errorf("%s: %s", s.Code(), s.Message())
}

// boundLabels keeps the labels that people choose by, bounded.
func boundLabels(all map[string]string) map[string]string {
	if len(all) == 0 {
		return nil
	}
	kept := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(name, "io.kubernetes.") || strings.HasPrefix(name, "io.cri-containerd.") || len(name) > maxName || name == "" {
			continue // names of ours say that already, or nobody can type it
		}
		if len(kept) == maxLabels {
			break
		}
		kept[strings.Clone(name)] = strings.Clone(bounded(all[name]))
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// errAbsent says that a source is not on this machine, which is no fault.
var errAbsent = errors.New("not here")

// health is how a source does, for the status.
type health struct {
	name string
	mu   sync.Mutex
	was  string // the last error; empty: none
	ok   time.Time
	away time.Time // the first time in a row that it did not answer; zero: it does
}

// say notes how it went, and logs when that changed.
func (h *health) say(log *slog.Logger, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	h.mu.Lock()
	was, before, away := h.was, h.ok, h.away
	h.was = text
	switch {
	case err == nil:
		h.ok, h.away = time.Now(), time.Time{}
	case away.IsZero():
		h.away = time.Now()
	}
	h.mu.Unlock()
	switch {
	case text == was && (text != "" || !before.IsZero()):
	case err == nil && before.IsZero():
		log.Debug("source answers", "source", h.name)
	case err == nil:
		log.Info("source answers again", "source", h.name, "away", time.Since(away).Round(time.Second))
	case errors.Is(err, errAbsent):
		log.Debug("source is not here", "source", h.name)
	default:
		log.Warn("source does not answer, going on with what it said before", "source", h.name, "err", err)
	}
}

// SourceStatus is how one source of names does.
type SourceStatus struct {
	Name   string    // what is asked: "runtime /run/containerd/containerd.sock"
	Absent bool      // it is not on this machine, which is no fault
	Err    string    // why it does not answer; empty: it does, or has not been asked yet
	Last   time.Time // when it last answered; zero: never
	Away   time.Time // since when it does not answer; zero: it does, or has not been asked yet
	Known  int       // what it names
}

// since is when it did not answer for the first time in a row; zero: it does.
func (h *health) since() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.away
}

func (h *health) status(known int) SourceStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return SourceStatus{Name: h.name, Absent: h.was == errAbsent.Error(), Err: h.was, Last: h.ok, Away: h.away, Known: known}
}
