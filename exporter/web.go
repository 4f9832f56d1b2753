// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/flows"
)

// DefaultHTTP is where metrics and health are served: this host only.
const DefaultHTTP = "127.0.0.1:9470"

// WebOptions says what is served and where it comes from.
type WebOptions struct {
	Addr    string              // host:port; empty: [DefaultHTTP]
	Version string              // of the agent, for weft_build_info
	Ledger  func() flows.Ledger // the latest; zero At: none yet
	// Latencies are the latest histograms; nil: there are none.
	Latencies func() Latencies
	Health    func() error           // why the agent is not well; nil: it is alive and drains
	Ready     func() error           // why it is not at work; nil: attached, and drained once
	Extra     []prometheus.Collector // what else has metrics, such as the OTLP sink
}

// Web serves /metrics, /healthz and /readyz.
type Web struct {
	lis    net.Listener
	server *http.Server
	done   chan struct{}
	err    error // of serving, once done is closed
}

// ListenHTTP starts serving o. The error of an address that is taken or wrong
// names listen.http and the mend.
func ListenHTTP(o WebOptions) (*Web, error) {
	if o.Addr == "" {
		o.Addr = DefaultHTTP
	}
	registry := prometheus.NewRegistry()
	own := []prometheus.Collector{
		NewLedgerCollector(o.Ledger), buildInfo(o.Version), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
	if o.Latencies != nil {
		own = append(own, NewLatencyCollector(o.Latencies))
	}
	for _, c := range append(own, o.Extra...) {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	lis, err := net.Listen("tcp", o.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen.http: %s is in use: stop what listens there or set another listen.http: %w", o.Addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen.http: cannot listen on %q, want host:port such as %s: %w", o.Addr, DefaultHTTP, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, EnableOpenMetrics: true}))
	mux.Handle("GET /healthz", probe(o.Health))
	mux.Handle("GET /readyz", probe(o.Ready))
	w := &Web{
		lis: lis, done: make(chan struct{}),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10},
	}
	go func() {
		defer close(w.done)
		if err := w.server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			w.err = fmt.Errorf("serve listen.http: %w", err)
		}
	}()
	return w, nil
}

// Addr is the address listened on, with the port that was chosen for port 0.
func (w *Web) Addr() string { return w.lis.Addr().String() }

// Close waits for running requests until ctx ends, then cuts them off. The
// error is the one that ended serving early.
func (w *Web) Close(ctx context.Context) error {
	err := w.server.Shutdown(ctx)
	if err != nil {
		err = w.server.Close()
	}
	<-w.done
	return errors.Join(w.err, err)
}

// probe answers 200 "ok", or 503 and what is wrong.
func probe(check func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok") // a caller that went away needs no answer
	})
}
