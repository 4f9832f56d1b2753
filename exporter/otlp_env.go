// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
)

// defaultTimeout of one request, as the OpenTelemetry specification has it.
const defaultTimeout = 10 * time.Second

// target is where one signal goes, and how.
type target struct {
	endpoint    string      // as it was given, to show; empty: this signal is not exported
	dial        string      // the same as gRPC target
	tls         *tls.Config // nil: plain text
	guessedTLS  bool        // because the endpoint had no scheme
	headers     metadata.MD
	compression string // "gzip" or "none"
	timeout     time.Duration
}

// setting is a configured value and what to call it when it is wrong.
type setting struct{ name, value string }

func (s setting) wrong(want string) error { return fmt.Errorf("%s=%q: %s", s.name, s.value, want) }

// settings reads one signal's configuration: first the agent's own, then the
// variable for the signal, then the one for all. An empty variable is unset.
type settings struct {
	signal string // LOGS or METRICS
	getenv func(string) string
}

func (s settings) get(suffix string, own setting) setting {
	if own.value != "" {
		return own
	}
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_" + s.signal + "_", "OTEL_EXPORTER_OTLP_"} {
		if v := strings.TrimSpace(s.getenv(prefix + suffix)); v != "" {
			return setting{prefix + suffix, v}
		}
	}
	return setting{}
}

// resolve works out both targets and the resource. The error joins every
// mistake, each with the key or variable it is in. Without any endpoint the
// environment is not looked at, only the agent's own configuration.
func (c OTLPConfig) resolve() (logs, metrics target, resource map[string]string, err error) {
	getenv := c.getenv()
	wanted := c.Wanted()
	if !wanted {
		getenv = func(string) string { return "" }
	}
	var errs []error
	read := func(signal string) target {
		t, err := c.target(settings{signal, getenv})
		errs = append(errs, err)
		return t
	}
	logs, metrics = read("LOGS"), read("METRICS")
	resource, err = c.resource(getenv)
	errs = append(errs, err)
	return logs, metrics, resource, joinDistinct(errs)
}

// joinDistinct joins errors; a variable that both signals read is wrong once.
func joinDistinct(errs []error) error {
	var distinct []error
	seen := map[string]bool{}
	for _, err := range errs {
		for _, e := range unjoin(err) {
			if !seen[e.Error()] {
				seen[e.Error()] = true
				distinct = append(distinct, e)
			}
		}
	}
	return errors.Join(distinct...)
}

func unjoin(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok:
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, unjoin(e)...)
	}
	return all
}

func (c OTLPConfig) target(s settings) (target, error) {
	t := target{timeout: defaultTimeout}
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	protocol := s.get("PROTOCOL", setting{"exporter.otlp.protocol", c.Protocol})
	if protocol.value != "" && protocol.value != "grpc" {
		note(protocol.wrong("only grpc is supported: use grpc and the receiver's gRPC port, usually 4317"))
	}
	compression := s.get("COMPRESSION", setting{"exporter.otlp.compression", c.Compression})
	t.compression = cmp.Or(compression.value, "gzip")
	if t.compression != "gzip" && t.compression != "none" {
		note(compression.wrong("want gzip or none"))
	}
	if timeout := s.get("TIMEOUT", setting{}); timeout.value != "" {
		ms, err := strconv.ParseUint(timeout.value, 10, 31)
		if err != nil || ms == 0 {
			note(timeout.wrong("want milliseconds, more than 0"))
		}
		t.timeout = time.Duration(ms) * time.Millisecond
	}
	var err error
	t.headers, err = c.headers(s)
	note(err)
	note(t.connection(s, s.get("ENDPOINT", setting{"exporter.otlp.endpoint", c.Endpoint})))
	return t, errors.Join(errs...)
}

// connection sets where to connect to and whether with TLS: http:// is plain,
// https:// is TLS, and without a scheme it is TLS unless INSECURE says otherwise.
func (t *target) connection(s settings, endpoint setting) error {
	insecure := s.get("INSECURE", setting{})
	plain, err := strconv.ParseBool(cmp.Or(strings.ToLower(insecure.value), "false"))
	if err != nil {
		err = insecure.wrong("want true or false")
	}
	if endpoint.value == "" {
		return err
	}
	scheme, host, found := strings.Cut(endpoint.value, "://")
	t.endpoint = endpoint.value
	switch {
	case strings.HasPrefix(endpoint.value, "unix:"):
		t.dial = endpoint.value
		return err
	case !found:
		host, t.guessedTLS = endpoint.value, !plain
	case strings.EqualFold(scheme, "http"):
		plain = true
	case strings.EqualFold(scheme, "https"):
		plain = false
	default:
		return errors.Join(err, endpoint.wrong("want http://host:port, https://host:port, host:port or unix:///path"))
	}
	address, hostErr := hostPort(host)
	if hostErr != nil {
		return errors.Join(err, endpoint.wrong(hostErr.Error()))
	}
	t.dial = "dns:///" + address
	if plain {
		return err
	}
	var tlsErr error
	t.tls, tlsErr = tlsConfig(s)
	return errors.Join(err, tlsErr)
}

// hostPort is host with OTLP's port for gRPC if it has none.
func hostPort(host string) (string, error) {
	host = strings.TrimSuffix(host, "/")
	if strings.ContainsAny(host, "/?#@ ") {
		return "", errors.New("gRPC takes host:port without path, query or user")
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), "4317"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || name == "" {
		return "", errors.New("want a host and a port from 1 to 65535, as in http://127.0.0.1:4317")
	}
	return net.JoinHostPort(name, port), nil
}

// tlsConfig trusts the system's roots unless CERTIFICATE names others, and shows
// a client certificate if there is one.
func tlsConfig(s settings) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var errs []error
	if ca := s.get("CERTIFICATE", setting{}); ca.value != "" {
		pem, err := os.ReadFile(ca.value)
		cfg.RootCAs = x509.NewCertPool()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ca.name, err))
		} else if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			errs = append(errs, ca.wrong("no PEM certificate in the file"))
		}
	}
	cert, key := s.get("CLIENT_CERTIFICATE", setting{}), s.get("CLIENT_KEY", setting{})
	switch {
	case cert.value != "" && key.value != "":
		pair, err := tls.LoadX509KeyPair(cert.value, key.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s and %s: %w", cert.name, key.name, err))
		}
		cfg.Certificates = []tls.Certificate{pair}
	case cert.value != "":
		errs = append(errs, cert.wrong("OTEL_EXPORTER_OTLP_CLIENT_KEY is missing"))
	case key.value != "":
		errs = append(errs, key.wrong("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is missing"))
	}
	return cfg, errors.Join(errs...)
}

// headers go with every request. Their values are secrets: no error shows one.
func (c OTLPConfig) headers(s settings) (metadata.MD, error) {
	name, pairs := "exporter.otlp.headers", c.Headers
	if len(pairs) == 0 {
		list := s.get("HEADERS", setting{})
		if list.value == "" {
			return nil, nil
		}
		var err error
		if pairs, err = parsePairs(list.value); err != nil {
			return nil, fmt.Errorf("%s: %w", list.name, err)
		}
		name = list.name
	}
	md := metadata.MD{}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		lower := strings.ToLower(key)
		switch {
		case lower == "" || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
			errs = append(errs, fmt.Errorf("%s: header name %q: want only letters, digits and - _ . in it", name, key))
		case strings.HasPrefix(lower, "grpc-"):
			errs = append(errs, fmt.Errorf("%s: header name %q: grpc- is reserved", name, key))
		case strings.IndexFunc(pairs[key], func(c rune) bool { return c < ' ' || c > '~' }) >= 0:
			errs = append(errs, fmt.Errorf("%s: header %q: want printable ASCII", name, key))
		default:
			md.Append(lower, pairs[key])
		}
	}
	return md, errors.Join(errs...)
}

// parsePairs reads key=value,key=value with percent-encoded values. Errors name
// keys and positions, never values.
func parsePairs(list string) (map[string]string, error) {
	pairs := map[string]string{}
	for i, item := range strings.Split(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		key, value, found := strings.Cut(item, "=")
		if key = strings.TrimSpace(key); !found || key == "" {
			return nil, fmt.Errorf("item %d: want key=value", i+1)
		}
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("item %d, %q: value is not percent-encoded", i+1, key)
		}
		pairs[key] = decoded
	}
	return pairs, nil
}

// resource describes this agent and host: what is found out, then
// OTEL_RESOURCE_ATTRIBUTES over it, then OTEL_SERVICE_NAME over that.
func (c OTLPConfig) resource(getenv func(string) string) (map[string]string, error) {
	r := map[string]string{"service.name": "weft", "os.type": runtime.GOOS}
	if c.Version != "" {
		r["service.version"] = c.Version
	}
	if name, err := os.Hostname(); err == nil {
		r["host.name"] = name
	}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil && len(strings.TrimSpace(string(id))) > 0 {
		r["host.id"] = strings.TrimSpace(string(id))
	}
	given, err := parsePairs(getenv("OTEL_RESOURCE_ATTRIBUTES"))
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	maps.Copy(r, given)
	if name := strings.TrimSpace(getenv("OTEL_SERVICE_NAME")); name != "" {
		r["service.name"] = name
	}
	return r, nil
}
