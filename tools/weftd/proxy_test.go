// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
)

// countingLogs is a gRPC receiver of records.
type countingLogs struct {
	collogs.UnimplementedLogsServiceServer
	records atomic.Uint64
}

func (c *countingLogs) Export(_ context.Context, m *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	for _, rl := range m.ResourceLogs {
		for _, sl := range rl.ScopeLogs {
			c.records.Add(uint64(len(sl.LogRecords)))
		}
	}
	return &collogs.ExportLogsServiceResponse{}, nil
}

// proxy passes requests and tunnels on to one receiver, whatever host they are for; asked
// is how many it was asked for. It listens at the far end of the wire.
func (h *house) proxy(t *testing.T, receiver string, asked *atomic.Uint64) (url string) {
	t.Helper()
	var lis net.Listener
	h.in(t, h.there, func() (err error) {
		lis, err = net.Listen("tcp", thereAddr+":3128")
		return err
	})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Method != http.MethodConnect {
			r.URL.Host, r.RequestURI = receiver, ""
			answer, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer answer.Body.Close()
			w.WriteHeader(answer.StatusCode)
			_, _ = io.Copy(w, answer.Body) // who asked may have gone
			return
		}
		to, err := net.Dial("tcp", receiver)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer to.Close()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			defer conn.Close()
			_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		}
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(to, conn) }() // either end may close
		_, _ = io.Copy(conn, to)
	})}
	go func() { _ = server.Serve(lis) }() // until it is closed
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + thereAddr + ":3128"
}

// TestProxiesOfTheEnvironmentAreUsed: the endpoint's name means something to the proxy
// alone, and the receiver cannot be reached without it.
func TestProxiesOfTheEnvironmentAreUsed(t *testing.T) {
	for protocol, variable := range map[string]string{"grpc": "HTTPS_PROXY", "http/protobuf": "HTTP_PROXY"} {
		t.Run(protocol, func(t *testing.T) {
			h := newHouse(t)
			var got func() uint64
			var at string
			if protocol == "grpc" {
				lis, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				c, server := &countingLogs{}, grpc.NewServer()
				collogs.RegisterLogsServiceServer(server, c)
				go func() { _ = server.Serve(lis) }() // until it is stopped
				t.Cleanup(server.Stop)
				got, at = c.records.Load, lis.Addr().String()
			} else {
				r := newReceiver(t)
				got, at = r.records.Load, r.Listener.Addr().String()
			}
			var asked atomic.Uint64
			url := h.proxy(t, at, &asked)
			w := h.start(t, "dataplane: {interfaces: ["+device+"], exclude: []}\nflows: {idle_timeout: 1s}\n"+
				"exporter: {otlp: {endpoint: 'http://collector.example:4318', protocol: "+protocol+", compression: none}}\n", variable+"="+url)
			for range 5 {
				h.talk(t, 8080, 100)
			}
			h.eventually(t, "the receiver has the records", func() error {
				if n := got(); n < 5 {
					return fmt.Errorf("%d records through the proxy, which was asked %d times", n, asked.Load())
				}
				return nil
			})
			if asked.Load() == 0 {
				t.Error("the proxy was never asked")
			}
			w.signal(t, syscall.SIGTERM)
			if code := w.wait(t); code != 0 {
				t.Errorf("got exit code %d, want 0", code)
			}
		})
	}
}
