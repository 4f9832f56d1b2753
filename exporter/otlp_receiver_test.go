// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP service that answers as a test says. The real Collector's
// receiver is in receivertest; this one can refuse.
type receiver struct {
	collogs.UnimplementedLogsServiceServer

	// answer to the n-th request for logs, from 1; nil: it takes everything.
	answer func(ctx context.Context, n int) (*collogs.ExportLogsServiceResponse, error)
	// unreachable: until then nobody can connect.
	unreachable time.Time
	most        int // bytes of a request; 0: gRPC's own bound
	wrap        func(net.Conn) net.Conn

	mu      sync.Mutex
	times   []time.Time // of every request
	sizes   []int       // of every request: records
	bytes   []int       // of every request: encoded
	taken   int         // records in requests answered without an error
	ids     []string    // of those requests
	headers metadata.MD
	coding  string // how the latest request was compressed
	metrics metricsReceiver
}

// The receiver is its server's stats.Handler, which is where gRPC shows the
// compression of a request.

// TagRPC adds nothing.
func (r *receiver) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn adds nothing.
func (r *receiver) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn notes nothing.
func (r *receiver) HandleConn(context.Context, stats.ConnStats) {}

// HandleRPC notes the compression.
func (r *receiver) HandleRPC(_ context.Context, s stats.RPCStats) {
	if h, ok := s.(*stats.InHeader); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.coding = h.Compression
	}
}

type metricsReceiver struct {
	colmetrics.UnimplementedMetricsServiceServer

	mu       sync.Mutex
	err      error
	partial  *colmetrics.ExportMetricsPartialSuccess
	requests []*colmetrics.ExportMetricsServiceRequest
}

func (r *receiver) Export(ctx context.Context, req *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	n := 0
	for _, rl := range req.ResourceLogs {
		for _, sl := range rl.ScopeLogs {
			n += len(sl.LogRecords)
		}
	}
	r.mu.Lock()
	r.times = append(r.times, time.Now())
	r.sizes = append(r.sizes, n)
	r.bytes = append(r.bytes, proto.Size(req))
	r.headers, _ = metadata.FromIncomingContext(ctx)
	request := len(r.times)
	r.mu.Unlock()
	response, err := &collogs.ExportLogsServiceResponse{}, error(nil)
	if r.answer != nil {
		response, err = r.answer(ctx, request)
	}
	if err == nil {
		r.mu.Lock()
		r.taken += n
		for _, a := range req.ResourceLogs[0].ScopeLogs[0].Scope.GetAttributes() {
			r.ids = append(r.ids, a.GetValue().GetStringValue())
		}
		r.mu.Unlock()
	}
	return response, err
}

func (r *metricsReceiver) Export(_ context.Context, req *colmetrics.ExportMetricsServiceRequest) (*colmetrics.ExportMetricsServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
	return &colmetrics.ExportMetricsServiceResponse{PartialSuccess: r.partial}, r.err
}

// when is the times of all requests so far.
func (r *receiver) when() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.times)
}

func (r *receiver) requests() int { return len(r.when()) }

// start serves r inside a synctest bubble and connects a sink to it.
func (r *receiver) start(t *testing.T, c OTLPConfig) *OTLP {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.StatsHandler(r), grpc.WaitForHandlers(true), grpc.MaxRecvMsgSize(cmp.Or(r.most, 4<<20)))
	collogs.RegisterLogsServiceServer(server, r)
	colmetrics.RegisterMetricsServiceServer(server, &r.metrics)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	c.Endpoint, c.dial = "http://127.0.0.1", func(ctx context.Context, _ string) (net.Conn, error) {
		if time.Now().Before(r.unreachable) {
			return nil, syscall.ECONNREFUSED
		}
		conn, err := lis.DialContext(ctx)
		if err == nil && r.wrap != nil {
			conn = r.wrap(conn)
		}
		return conn, err
	}
	if c.Getenv == nil {
		c.Getenv = env()
	}
	c.Finish = cmp.Or(c.Finish, time.Hour) // so that closeOTLP's deadline counts
	o, err := NewOTLP(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = o.Close(ctx) // a test that cares has closed it before
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("receiver: %v", err)
		}
	})
	return o
}

func closeOTLP(t *testing.T, o *OTLP, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return o.Close(ctx)
}
