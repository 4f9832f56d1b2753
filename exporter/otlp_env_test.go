// SPDX-License-Identifier: Apache-2.0

package exporter

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
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/flows"
)

func env(pairs ...string) func(string) string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return m[name] }
}

func TestEndpointFormsMeanWhatTheSpecificationSays(t *testing.T) {
	for name, c := range map[string]struct {
		endpoint, insecure string
		dial               string
		tls                bool
	}{
		"http":                {"http://collector:4317", "", "dns:///collector:4317", false},
		"http beats insecure": {"https://collector:4317", "true", "dns:///collector:4317", true},
		"https without port":  {"https://collector", "", "dns:///collector:4317", true},
		"trailing slash":      {"http://127.0.0.1:14317/", "", "dns:///127.0.0.1:14317", false},
		"upper case":          {"HTTP://collector:4317", "", "dns:///collector:4317", false},
		"no scheme":           {"collector:4317", "", "dns:///collector:4317", true},
		"no scheme, insecure": {"collector:4317", "True", "dns:///collector:4317", false},
		"IPv6":                {"http://[::1]:4317", "", "dns:///[::1]:4317", false},
		"IPv6 without port":   {"http://[::1]", "", "dns:///[::1]:4317", false},
		"socket":              {"unix:///run/otlp.sock", "", "unix:///run/otlp.sock", false},
	} {
		e := env("OTEL_EXPORTER_OTLP_ENDPOINT", c.endpoint, "OTEL_EXPORTER_OTLP_INSECURE", c.insecure)
		logs, metrics, _, err := OTLPConfig{Getenv: e}.resolve()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, got := range []target{logs, metrics} {
			if got.dial != c.dial || (got.tls != nil) != c.tls || got.endpoint != c.endpoint {
				t.Errorf("%s: got %s (TLS %t), want %s (TLS %t)", name, got.dial, got.tls != nil, c.dial, c.tls)
			}
		}
	}
}

func TestSignalsVariableBeatsTheGeneralAndConfigurationBeatsBoth(t *testing.T) {
	e := env(
		"OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:2",
		"OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=x%20y%2Cz", "OTEL_EXPORTER_OTLP_METRICS_HEADERS", "Tenant=m",
		"OTEL_EXPORTER_OTLP_COMPRESSION", "none", "OTEL_EXPORTER_OTLP_TIMEOUT", "2500", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "70",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc",
	)
	logs, metrics, _, err := OTLPConfig{Getenv: e}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if logs.dial != "dns:///logs:2" || metrics.dial != "dns:///all:1" {
		t.Errorf("got %s and %s, want logs:2 and all:1", logs.dial, metrics.dial)
	}
	if logs.timeout != 70*time.Millisecond || metrics.timeout != 2500*time.Millisecond {
		t.Errorf("got %s and %s, want 70ms and 2.5s", logs.timeout, metrics.timeout)
	}
	if got := logs.headers.Get("b"); len(got) != 1 || got[0] != "x y,z" || metrics.headers.Get("tenant")[0] != "m" || len(metrics.headers.Get("a")) != 0 {
		t.Errorf("got headers %v and %v", logs.headers, metrics.headers)
	}
	if logs.compression != "none" {
		t.Errorf("got %s, want no compression", logs.compression)
	}
	logs, metrics, _, err = OTLPConfig{
		Getenv: e, Endpoint: "http://mine:3", Compression: "gzip", Headers: map[string]string{"X-Mine": "1"},
	}.resolve()
	if err != nil || logs.dial != "dns:///mine:3" || metrics.dial != "dns:///mine:3" || logs.compression != "gzip" ||
		len(logs.headers) != 1 || logs.headers.Get("x-mine")[0] != "1" {
		t.Errorf("got %+v, %+v, %v, want the configuration's endpoint, compression and headers", logs, metrics, err)
	}
}

func TestOneSignalAloneIsWanted(t *testing.T) {
	c := OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:1")}
	logs, metrics, _, err := c.resolve()
	if !c.Wanted() || err != nil || logs.endpoint != "" || metrics.endpoint == "" {
		t.Errorf("got wanted %t, logs %q, metrics %q, %v, want metrics alone", c.Wanted(), logs.endpoint, metrics.endpoint, err)
	}
	if (OTLPConfig{Getenv: env()}).Wanted() {
		t.Error("got wanted without an endpoint")
	}
}

func TestEnvironmentIsNotJudgedWithoutAnEndpoint(t *testing.T) {
	e := env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	if err := (OTLPConfig{Getenv: e}).Check(); err != nil {
		t.Errorf("got %v, want no complaint about what is not used", err)
	}
	if err := (OTLPConfig{Getenv: e, Compression: "zip"}).Check(); err == nil || !strings.Contains(err.Error(), "exporter.otlp.compression") {
		t.Errorf("got %v, want the mistake in the configuration", err)
	}
}

func TestEveryMistakeIsReportedAtOnceWithItsVariable(t *testing.T) {
	c := OTLPConfig{
		Protocol: "http",
		Getenv: env(
			"OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317",
			"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "ftp://collector",
			"OTEL_EXPORTER_OTLP_COMPRESSION", "brotli",
			"OTEL_EXPORTER_OTLP_TIMEOUT", "10s",
			"OTEL_EXPORTER_OTLP_INSECURE", "maybe",
			"OTEL_EXPORTER_OTLP_HEADERS", "grpc-x=1,b d=secret1,ok=a%0ab",
			"OTEL_EXPORTER_OTLP_LOGS_HEADERS", "broken,x=secret2",
			"OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist.pem",
			"OTEL_EXPORTER_OTLP_CLIENT_KEY", "/does/not/exist.key",
			"OTEL_RESOURCE_ATTRIBUTES", "a=%zz",
		),
	}
	err := c.Check()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{
		"exporter.otlp.protocol=\"http\": want grpc, http/protobuf, http/json", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=\"ftp://collector\"",
		"OTEL_EXPORTER_OTLP_COMPRESSION=\"brotli\": want gzip, zstd, none", "OTEL_EXPORTER_OTLP_TIMEOUT=\"10s\": want milliseconds",
		"OTEL_EXPORTER_OTLP_INSECURE=\"maybe\"", "OTEL_EXPORTER_OTLP_HEADERS: header name \"grpc-x\"", "header name \"b d\"",
		"header \"ok\": want printable", "OTEL_EXPORTER_OTLP_LOGS_HEADERS: item 1", "OTEL_EXPORTER_OTLP_CERTIFICATE: open /does/not/exist.pem",
		"OTEL_EXPORTER_OTLP_CLIENT_KEY=\"/does/not/exist.key\": exporter.otlp.certificate or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is missing",
		"OTEL_RESOURCE_ATTRIBUTES: item 1, \"a\"",
	} {
		if n := strings.Count(err.Error(), want); n != 1 {
			t.Errorf("got %q %d times, want once in:\n%v", want, n, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("got a header's value in:\n%v", err)
	}
	if _, err := NewOTLP(c); err == nil {
		t.Error("NewOTLP: got no error, want the same ones")
	}
}

func TestEndpointsThatGRPCCannotReachAreRefused(t *testing.T) {
	for _, endpoint := range []string{
		"http://collector:4318/v1/logs", "http://user:pw@collector:4317", "http://", "http://collector:0", "http://collector:x",
		"http://collector:4317?x=1", "grpc://collector:4317",
	} {
		if err := (OTLPConfig{Endpoint: endpoint, Getenv: env()}).Check(); err == nil || !strings.Contains(err.Error(), "exporter.otlp.endpoint") {
			t.Errorf("%s: got %v, want an error that names exporter.otlp.endpoint", endpoint, err)
		}
	}
}

func TestResourceSaysWhoSends(t *testing.T) {
	e := []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"}
	_, _, got, err := OTLPConfig{Version: "1.2.3", Getenv: env(e...)}.resolve()
	host, hostErr := os.Hostname()
	if err != nil || hostErr != nil || got["service.name"] != "weft" || got["service.version"] != "1.2.3" ||
		got["host.name"] != host || got["os.type"] != "linux" {
		t.Errorf("got %v, %v", got, err)
	}
	e = append(e, "OTEL_RESOURCE_ATTRIBUTES", "service.name=other,host.name=h%2C1,team=net")
	_, _, got, _ = OTLPConfig{Getenv: env(e...)}.resolve()
	if got["service.name"] != "other" || got["host.name"] != "h,1" || got["team"] != "net" {
		t.Errorf("got %v, want what OTEL_RESOURCE_ATTRIBUTES says", got)
	}
	_, _, got, _ = OTLPConfig{Getenv: env(append(e, "OTEL_SERVICE_NAME", "edge")...)}.resolve()
	if got["service.name"] != "edge" {
		t.Errorf("got %s, want OTEL_SERVICE_NAME to win", got["service.name"])
	}
}

// certificate writes a self-signed certificate for 127.0.0.1 and its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weft test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestSettingsInForceAreThoseOfVariablesAndDefaults(t *testing.T) {
	for name, c := range map[string]struct {
		config OTLPConfig
		want   [3]string
	}{
		"nothing":       {OTLPConfig{Getenv: env()}, [3]string{"", "grpc", "gzip"}},
		"no endpoint":   {OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")}, [3]string{"", "grpc", "gzip"}},
		"variables":     {OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1", "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none")}, [3]string{"http://a:1", "grpc", "none"}},
		"configuration": {OTLPConfig{Endpoint: "http://b:1", Compression: "gzip", Getenv: env("OTEL_EXPORTER_OTLP_COMPRESSION", "none")}, [3]string{"http://b:1", "grpc", "gzip"}},
	} {
		got := c.config.InForce()
		if have := [3]string{got.Endpoint, got.Protocol, got.Compression}; have != c.want {
			t.Errorf("%s: got %q, want %q", name, have, c.want)
		}
	}
}

func TestMetricsLeaveAsOftenAsTheVariableSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := &receiver{}, syncBuffer{}
		o := r.start(t, OTLPConfig{Getenv: env(envInterval, "2500", envAggregation, "explicit_bucket_histogram"), Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err := o.Export(t.Context(), flows.Window{Ledger: fullLedger()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10100 * time.Millisecond)
		synctest.Wait()
		if n := len(r.metrics.requests); n != 4 {
			t.Errorf("got %d requests in 10 s, want one each 2.5 s", n)
		}
		says(t, envAggregation, log.String(), "histograms stay exponential")
	})
	for text, want := range map[string]string{"0": envInterval, "10s": envInterval, "-1": envInterval, "60000": ""} {
		err := OTLPConfig{Endpoint: "http://collector:4317", Getenv: env(envInterval, text)}.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want+"="+text)) {
			t.Errorf("%s: got %v, want an error that names %q", text, err, want)
		}
	}
}

// Every variable of the OTLP exporter is in the table of DESIGN.md, with the test that shows it or with the reason why it has none.
func TestEveryVariableOfTheExporterIsInTheTable(t *testing.T) {
	_, table, _ := strings.Cut(read(t, "DESIGN.md"), "\n## The variables of OpenTelemetry")
	table, _, _ = strings.Cut(table, "\n## ")
	tests := read(t, "*_test.go") + read(t, "receivertest/*_test.go") + read(t, "../tools/weftd/*_test.go")
	for _, name := range []string{
		"ENDPOINT", "INSECURE", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE", "HEADERS", "COMPRESSION", "TIMEOUT", "PROTOCOL",
		"METRICS_TEMPORALITY_PREFERENCE", "METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME",
		"OTEL_METRIC_EXPORT_INTERVAL", "OTEL_SDK_DISABLED", "HTTPS_PROXY",
	} {
		if !strings.Contains(table, "`"+name+"`") {
			t.Errorf("got no %s in the table", name)
		}
	}
	for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(table, -1) {
		if !strings.Contains(tests, "\nfunc "+m[1]+"(t *testing.T)") {
			t.Errorf("got %s in the table, want a test that there is", m[1])
		}
	}
}
