// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// listen serves r on loopback and returns its host:port.
func (r *receiver) listen(t testing.TB, options ...grpc.ServerOption) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(options, grpc.WaitForHandlers(true))...)
	collogs.RegisterLogsServiceServer(server, r)
	colmetrics.RegisterMetricsServiceServer(server, &r.metrics)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("receiver: %v", err)
		}
	})
	return lis.Addr().String()
}

func TestTransportSecurityFollowsTheVariables(t *testing.T) {
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(pem)
	secure := grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	mutual := grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	}))
	trust := []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", cert}
	for name, c := range map[string]struct {
		server []grpc.ServerOption
		scheme string
		env    []string
		log    string // of a sink that cannot get through; empty: it can
	}{
		"plain":                   {nil, "http://", nil, ""},
		"insecure without scheme": {nil, "", []string{"OTEL_EXPORTER_OTLP_INSECURE", "true"}, ""},
		"TLS":                     {[]grpc.ServerOption{secure}, "https://", trust, ""},
		"TLS without scheme":      {[]grpc.ServerOption{secure}, "", trust, ""},
		"mutual TLS": {[]grpc.ServerOption{mutual}, "https://",
			append([]string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", cert, "OTEL_EXPORTER_OTLP_CLIENT_KEY", key}, trust...), ""},
		// TLS 1.3 tells the client late, and its own write may fail first.
		"mutual TLS without certificate": {[]grpc.ServerOption{mutual}, "https://", trust, "receiver not reached or busy"},
		"unknown authority":              {[]grpc.ServerOption{secure}, "https://", nil, "certificate signed by unknown authority"},
		"TLS to a plain receiver":        {nil, "", nil, "write http:// for plain text"},
	} {
		t.Run(name, func(t *testing.T) {
			checkNoLeak(t)
			r := &receiver{}
			var log syncBuffer
			o, err := NewOTLP(OTLPConfig{
				Endpoint: c.scheme + r.listen(t, c.server...), Getenv: env(c.env...), Flush: time.Millisecond,
				Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			export(t, o, records(10)...)
			if c.log == "" {
				if err := closeOTLP(t, o, 20*time.Second); err != nil {
					t.Error(err)
				}
				if a := o.Account(); a.Acknowledged != 10 {
					t.Errorf("got %+v, want 10 acknowledged", a)
				}
				return
			}
			eventually(t, "a line about "+c.log, func() bool { return strings.Contains(log.String(), c.log) })
			if err := closeOTLP(t, o, time.Millisecond); err != nil {
				t.Errorf("close: %v", err)
			}
			a := o.Account()
			checkBalance(t, a)
			if a.Lost["shutdown"] != 10 {
				t.Errorf("got %+v, want 10 lost at shutdown", a)
			}
		})
	}
}
