// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// halfRuntime answers by two interfaces, each of which may fail or hang.
type halfRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	now atomic.Pointer[answers]
}

type answers struct {
	badCRI, badNative func(context.Context) error // nil: it answers
	containers        []*cri.Container
	native            string // container in containerd's namespace nerdctl
}

func hang(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func starting(context.Context) error {
	return status.Error(codes.Unavailable, "server is not initialized yet")
}

func (h *halfRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd"}, nil
}

func (h *halfRuntime) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	pod := &cri.PodSandbox{Id: "hold", Metadata: &cri.PodSandboxMetadata{Name: "web-1", Namespace: "shop", Uid: "u1"}, Labels: map[string]string{"app": "web"}}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{pod}}, nil
}

func (h *halfRuntime) ListContainers(ctx context.Context, _ *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	now := h.now.Load()
	if now.badCRI != nil {
		return nil, now.badCRI(ctx)
	}
	return &cri.ListContainersResponse{Containers: now.containers}, nil
}

// field is one of a protobuf message, with bytes or a message in it.
func field(number protowire.Number, value string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), value))
}

// containerd answers the two calls of its own interface.
func (h *halfRuntime) containerd(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	text := field(fieldItem, field(fieldName, "nerdctl"))
	if method == callContainers {
		now := h.now.Load()
		if now.badNative != nil {
			return now.badNative(s.Context())
		}
		text = field(fieldItem, field(fieldName, now.native)+field(fieldLabels, field(fieldMapKey, "app")+field(fieldMapValue, "db")))
	}
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown([]byte(text))
	return s.SendMsg(m)
}

// serve answers until the test ends; the second result lists once.
func (h *halfRuntime) serve(t *testing.T) (*runtimeSource, func() error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "r.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(h.containerd))
	cri.RegisterRuntimeServiceServer(server, h)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s := newRuntimeSource(path, quiet(), func() {})
	return s, func() error { return s.list(t.Context(), conn) }
}

// A runtime that fails or hangs in the middle of its answer takes no name away that it
// gave, and says so; what its other interface has now is known nevertheless.
func TestRuntimeThatAnswersByHalfKeepsItsNames(t *testing.T) {
	for what, c := range map[string]struct {
		badCRI, badNative func(context.Context) error
		says              string
	}{
		"the CRI is starting": {starting, nil, "not initialized"},
		"the CRI hangs":       {hang, nil, "DeadlineExceeded"},
		"its own fails":       {nil, starting, "not initialized"},
		"its own hangs":       {nil, hang, "DeadlineExceeded"},
		"both fail":           {starting, starting, "not initialized"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := &halfRuntime{}
			well := &answers{native: "db", containers: []*cri.Container{{Id: "c1", PodSandboxId: "hold", Metadata: &cri.ContainerMetadata{Name: "web"}}}}
			h.now.Store(well)
			s, list := h.serve(t)
			if err := list(); err != nil {
				t.Fatal(err)
			}
			web, db := s.find("c1"), s.find("db")
			if web == nil || web.Labels["app"] != "web" || db == nil || db.Labels["app"] != "db" {
				t.Fatalf("at first: got %+v and %+v", web, db)
			}
			h.now.Store(&answers{c.badCRI, c.badNative, well.containers, well.native})
			began := time.Now()
			if err := list(); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got error %v, want %s", err, c.says)
			}
			if took := time.Since(began); took > 2*runtimeDeadline {
				t.Errorf("took %s, want at most %s", took, 2*runtimeDeadline)
			}
			if s.find("c1") != web || s.find("db") != db || len(s.within("hold")) != 1 {
				t.Errorf("got %+v and %+v, want both as they were", s.find("c1"), s.find("db"))
			}
			h.now.Store(&answers{native: "db2"})
			if err := list(); err != nil || s.find("c1") != nil || s.find("db") != nil || s.find("db2") == nil {
				t.Errorf("back again: got error %v, %+v, %+v, want db2 alone", err, s.find("c1"), s.find("db"))
			}
		})
	}
}

// What ended in a pod, its init containers and what was started again, leaves what runs
// there alone with its name.
func TestEndedContainersOfAPodAreNotCounted(t *testing.T) {
	h, all := &halfRuntime{}, &answers{native: "db"}
	for id, state := range map[string]cri.ContainerState{"init": cri.ContainerState_CONTAINER_EXITED, "old": cri.ContainerState_CONTAINER_EXITED, "c2": cri.ContainerState_CONTAINER_RUNNING} {
		all.containers = append(all.containers, &cri.Container{Id: id, PodSandboxId: "hold", State: state, Metadata: &cri.ContainerMetadata{Name: "name-" + id}})
	}
	h.now.Store(all)
	s, list := h.serve(t)
	if err := list(); err != nil {
		t.Fatal(err)
	}
	now := stage(time.Now(), Container{ID: "hold", Confidence: 95})
	c := &Census{topology: func() *Topology { return now }, resolver: NewResolver(), log: quiet(), disk: newOnDisk("", ""), spaces: map[uint64]*resident{}, asked: map[string]time.Time{}, runtimes: []*runtimeSource{s}}
	e, _ := c.describe(now.Spaces[0])
	if e.Container != "name-c2" || e.ContainerID != "c2" || e.Pod != "web-1" {
		t.Errorf("got %+v, want c2 of web-1", e)
	}
	if n := s.find("old"); n == nil || n.Name != "name-old" {
		t.Errorf("what ended: got %+v, want its name as long as the runtime has it", n)
	}
}
