// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/config/confignet"
	"go.opentelemetry.io/collector/config/configtls"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"

	"weft/exporter"
	"weft/flows"
)

// authority issues certificates into a folder.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// file is where a certificate (or, with -key, its key) is.
func (a *authority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

// leaf writes a certificate for server and client that is valid for until.
func (a *authority) leaf(t *testing.T, name string, until time.Duration, hosts ...net.IP) {
	t.Helper()
	a.issue(t, name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: hosts, DNSNames: []string{name + ".example"}, NotAfter: time.Now().Add(until),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func (a *authority) issue(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	c.SerialNumber, c.NotBefore = big.NewInt(a.n), time.Now().Add(-2*time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		a.file(name): {Type: "CERTIFICATE", Bytes: der}, a.file(name + "-key"): {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, key
}

// secured is a receiver's configuration with a's certificate named server;
// mutual: it wants one of a's from the client.
func (a *authority) secured(server string, mutual bool) func(*otlpreceiver.Config) {
	return func(cfg *otlpreceiver.Config) {
		c := configtls.NewDefaultServerConfig()
		c.CertFile, c.KeyFile = a.file(server), a.file(server+"-key")
		if mutual {
			c.ClientCAFile = a.file("ca")
		}
		*cfg.Protocols.GRPC.Get().TLS.GetOrInsertDefault() = c
		*cfg.Protocols.HTTP.Get().ServerConfig.TLS.GetOrInsertDefault() = c
	}
}

var loopback = net.IPv4(127, 0, 0, 1)

func TestEveryTransportReachesTheCollector(t *testing.T) {
	a := newAuthority(t, "ca")
	a.leaf(t, "server", time.Hour, loopback)
	a.leaf(t, "client", time.Hour)
	for _, protocol := range []string{"grpc", "http/protobuf", "http/json"} {
		for _, compression := range []string{"none", "gzip", "zstd"} {
			for security, setup := range map[string]func(*otlpreceiver.Config){
				"plain": nil, "TLS": a.secured("server", false), "mutual TLS": a.secured("server", true),
			} {
				t.Run(protocol+" "+compression+" "+security, func(t *testing.T) {
					logs, metrics := new(consumertest.LogsSink), new(consumertest.MetricsSink)
					r := startCollector(t, "", logs, metrics, setup)
					c := exporter.OTLPConfig{Protocol: protocol, Compression: compression, Flush: time.Millisecond, Finish: 30 * time.Second}
					if security != "plain" {
						c.CA, c.Certificate, c.Key = a.file("ca"), a.file("client"), a.file("client-key")
					}
					o := newSink(t, r.at(protocol, security != "plain"), c)
					records := corpus(4500, 3)
					export(t, o, flows.Window{Records: records, Ledger: flows.Ledger{At: start, Made: 4500}})
					closeSink(t, o)
					compare(t, received(logs), records)
					checkAccount(t, o.Account(), len(records))
					if metrics.DataPointCount() == 0 {
						t.Error("got no metrics")
					}
				})
			}
		}
	}
}

func TestUnixSocketsReachTheCollector(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf", "http/json"} {
		dir := t.TempDir()
		socket := filepath.Join(dir, "otlp.sock")
		logs, metrics := new(consumertest.LogsSink), new(consumertest.MetricsSink)
		startCollector(t, "", logs, metrics, func(cfg *otlpreceiver.Config) {
			at := confignet.AddrConfig{Endpoint: socket, Transport: confignet.TransportTypeUnix}
			other := confignet.AddrConfig{Endpoint: socket + "2", Transport: confignet.TransportTypeUnix}
			cfg.Protocols.GRPC.Get().NetAddr, cfg.Protocols.HTTP.Get().ServerConfig.NetAddr = at, other
			if protocol != "grpc" {
				cfg.Protocols.GRPC.Get().NetAddr, cfg.Protocols.HTTP.Get().ServerConfig.NetAddr = other, at
			}
		})
		o := newSink(t, "unix://"+socket, exporter.OTLPConfig{Protocol: protocol, Flush: time.Millisecond})
		records := corpus(100, 2)
		export(t, o, flows.Window{Records: records, Ledger: flows.Ledger{At: start, Made: 100}})
		closeSink(t, o)
		compare(t, received(logs), records)
		if metrics.DataPointCount() == 0 {
			t.Errorf("%s: got no metrics", protocol)
		}
	}
}

// What is wrong is said once, and what waited meanwhile arrives when it is mended: the receiver's certificate by a restart
// of the receiver, the authority's by another file under the same name, without a restart of the agent.
func TestCertificatesThatCannotBeTrustedSayWhy(t *testing.T) {
	a := newAuthority(t, "ca")
	a.leaf(t, "expired", -time.Hour, loopback)
	a.leaf(t, "elsewhere", time.Hour)
	a.leaf(t, "server", time.Hour, loopback)
	for name, c := range map[string]struct {
		setup   func(*otlpreceiver.Config)
		wrongCA bool
		want    string
	}{
		"expired":       {a.secured("expired", false), false, "certificate has expired"},
		"name mismatch": {a.secured("elsewhere", false), false, "doesn't contain any IP SANs"},
		"wrong CA":      {a.secured("server", false), true, "signed by unknown authority"},
		"plain text":    {nil, false, "http://"},
	} {
		for _, protocol := range []string{"grpc", "http/protobuf"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				var log lines
				logs, trusted := new(consumertest.LogsSink), a
				if c.wrongCA {
					trusted = newAuthority(t, "ca")
				}
				r := startCollector(t, "", logs, new(consumertest.MetricsSink), c.setup)
				o := newSink(t, r.at(protocol, true), exporter.OTLPConfig{
					Protocol: protocol, CA: trusted.file("ca"), Flush: time.Millisecond, Finish: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil)),
					Spool: exporter.SpoolConfig{Dir: filepath.Join(t.TempDir(), "spool")},
				})
				records := corpus(10, 1)
				export(t, o, flows.Window{Records: records})
				eventually(t, "a line with "+c.want, func() bool { return strings.Contains(log.String(), c.want) })
				if text := log.String(); !strings.Contains(text, "receiver not reached or busy, retrying") || !strings.Contains(text, "mend=") || strings.Count(text, "\n") != 1 {
					t.Errorf("got %s, want one line that says how to mend it", text)
				}
				if o.Account().Acknowledged != 0 {
					t.Errorf("got %+v acknowledged by a receiver that must not be trusted", o.Account())
				}
				if c.wrongCA {
					right, err := os.ReadFile(a.file("ca"))
					if err == nil {
						err = os.WriteFile(trusted.file("ca"), right, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				} else {
					r.stop(t)
					startCollector(t, r.endpoint, logs, new(consumertest.MetricsSink), a.secured("server", false), func(cfg *otlpreceiver.Config) {
						cfg.Protocols.HTTP.Get().ServerConfig.NetAddr.Endpoint = r.web
					})
				}
				eventually(t, "the records", func() bool { return o.Account().Acknowledged == 10 })
				compare(t, received(logs), records)
			})
		}
	}
}

func TestRenewedCertificatesAreUsedWithoutRestart(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			a := newAuthority(t, "ca")
			a.leaf(t, "server", time.Hour, loopback)
			a.leaf(t, "client", -time.Hour) // expired: the receiver refuses it
			logs := new(consumertest.LogsSink)
			r := startCollector(t, "", logs, new(consumertest.MetricsSink), a.secured("server", true))
			o := newSink(t, r.at(protocol, true), exporter.OTLPConfig{
				Protocol: protocol, CA: a.file("ca"), Certificate: a.file("client"), Key: a.file("client-key"), Flush: time.Millisecond,
			})
			records := corpus(10, 1)
			export(t, o, flows.Window{Records: records})
			eventually(t, "the refusal", func() bool { return strings.HasPrefix(o.Status().State, "retrying") })
			a.leaf(t, "client", time.Hour)
			eventually(t, "the records", func() bool { return o.Account().Acknowledged == 10 })
			compare(t, received(logs), records)
		})
	}
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
