// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
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
	protocol    string      // one of protocols
	dial        string      // with gRPC: its target
	url         string      // with HTTP: where to POST
	socket      string      // with HTTP: the unix socket to connect to; empty: what url says
	tls         *tlsFiles   // nil: plain text
	guessedTLS  bool        // because the endpoint had no scheme
	headers     metadata.MD // the names in lower case
	compression string      // one of compressions
	timeout     time.Duration
}

// What OTEL_EXPORTER_OTLP_PROTOCOL and OTEL_EXPORTER_OTLP_COMPRESSION may say,
// the default first.
var (
	protocols    = []string{protocolGRPC, protocolHTTP, protocolJSON}
	compressions = []string{"gzip", "zstd", "none"}
)

const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
	protocolJSON = "http/json"
)

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
	if text := strings.TrimSpace(getenv(envTemporality)); text != "" && c.Temporality == "" {
		if _, err := ParseTemporality(text); err != nil {
			errs = append(errs, fmt.Errorf("%s=%w", envTemporality, err))
		}
	}
	_, err = exportInterval(getenv)
	errs = append(errs, err)
	resource, err = c.resource(getenv)
	errs = append(errs, err)
	return logs, metrics, resource, joinDistinct(errs)
}

// Variables of metrics alone.
const (
	envTemporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
	envInterval    = "OTEL_METRIC_EXPORT_INTERVAL"
	envAggregation = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
	exponential    = "base2_exponential_bucket_histogram"
)

// exportInterval is how often metrics leave by the environment; 0: it does not say.
func exportInterval(getenv func(string) string) (time.Duration, error) {
	text := strings.TrimSpace(getenv(envInterval))
	if text == "" {
		return 0, nil
	}
	ms, err := strconv.ParseUint(text, 10, 31)
	if err != nil || ms == 0 {
		return 0, fmt.Errorf("%s=%s: want milliseconds, for instance 60000", envInterval, text)
	}
	return time.Duration(ms) * time.Millisecond, nil
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
	protocol := s.get("PROTOCOL", setting{c.key("protocol"), c.Protocol})
	if t.protocol = cmp.Or(protocol.value, protocols[0]); !slices.Contains(protocols, t.protocol) {
		note(protocol.wrong("want " + strings.Join(protocols, ", ")))
		t.protocol = protocols[0]
	}
	compression := s.get("COMPRESSION", setting{c.key("compression"), c.Compression})
	if t.compression = cmp.Or(compression.value, compressions[0]); !slices.Contains(compressions, t.compression) {
		note(compression.wrong("want " + strings.Join(compressions, ", ")))
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
	endpoint := s.get("ENDPOINT", setting{c.key("endpoint"), c.Endpoint})
	if t.endpoint = endpoint.value; t.protocol == protocolGRPC {
		note(t.connectGRPC(s, endpoint))
	} else {
		note(t.connectHTTP(s, endpoint))
	}
	if t.tls != nil {
		note(t.tls.read(c, s))
	}
	return t, errors.Join(errs...)
}

// connectGRPC sets where to connect to and whether with TLS: http:// is plain,
// https:// is TLS, and without a scheme it is TLS unless INSECURE says otherwise.
func (t *target) connectGRPC(s settings, endpoint setting) error {
	insecure := s.get("INSECURE", setting{})
	plain, err := strconv.ParseBool(cmp.Or(strings.ToLower(insecure.value), "false"))
	if err != nil {
		err = insecure.wrong("want true or false")
	}
	if endpoint.value == "" {
		return err
	}
	scheme, host, found := strings.Cut(endpoint.value, "://")
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
	name, address, hostErr := hostPort(host)
	if hostErr != nil {
		return errors.Join(err, endpoint.wrong(hostErr.Error()))
	}
	t.dial = "dns:///" + address
	if !plain {
		t.tls = &tlsFiles{host: name}
	}
	return err
}

// hostPort is the host alone, and with OTLP's port for gRPC if it has none.
func hostPort(host string) (name, address string, err error) {
	host = strings.TrimSuffix(host, "/")
	if strings.ContainsAny(host, "/?#@ ") {
		return "", "", errors.New("gRPC takes host:port without path, query or user; for OTLP over HTTP set the protocol to http/protobuf")
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), "4317"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || name == "" {
		return "", "", errors.New("want a host and a port from 1 to 65535, as in http://127.0.0.1:4317")
	}
	return name, net.JoinHostPort(name, port), nil
}

// connectHTTP sets where to POST: an endpoint for all signals is a base to which
// the signal's path is appended, the one of a signal's own variable is the whole.
func (t *target) connectHTTP(s settings, endpoint setting) error {
	path := "/v1/" + strings.ToLower(s.signal)
	own := endpoint.name == "OTEL_EXPORTER_OTLP_"+s.signal+"_ENDPOINT"
	if endpoint.value == "" {
		return nil
	}
	if socket, ok := strings.CutPrefix(endpoint.value, "unix:"); ok {
		t.socket, t.url = strings.TrimPrefix(socket, "//"), "http://localhost"+path
		return nil
	}
	u, err := url.Parse(endpoint.value)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return endpoint.wrong("want http://host:port, https://host:port or unix:///path")
	case u.User != nil:
		return setting{endpoint.name, u.Redacted()}.wrong("put user and password into the headers, as authorization=Basic ...")
	case own && u.Path == "":
		u.Path = "/"
	case !own && strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), path):
		return endpoint.wrong("leave " + path + " out: it is appended")
	case !own:
		u = u.JoinPath(path)
	}
	t.url = u.String()
	if u.RawQuery = ""; u.Scheme == "https" {
		t.tls = &tlsFiles{host: u.Hostname()}
	}
	t.endpoint = u.String() // without the query, which may hold a secret
	return nil
}

// headers go with every request. Their values are secrets: no error shows one.
func (c OTLPConfig) headers(s settings) (metadata.MD, error) {
	name, pairs := c.key("headers"), c.Headers
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
	return checkHeaders(name, pairs)
}

// checkHeaders is headers as gRPC wants them; name is where they were given.
func checkHeaders(name string, pairs map[string]string) (metadata.MD, error) {
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

// Resource is what every record's resource is: this host's name and system, the agent's
// version, and what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say over that. The
// error is that the first is no list of pairs.
func Resource(version string, getenv func(string) string) (map[string]string, error) {
	return OTLPConfig{Version: version}.resource(getenv)
}

// defaultService is service.name unless a variable gives another.
const defaultService = "weft"

// resource describes this agent and host: what is found out, then
// OTEL_RESOURCE_ATTRIBUTES over it, then OTEL_SERVICE_NAME over that.
func (c OTLPConfig) resource(getenv func(string) string) (map[string]string, error) {
	r := map[string]string{"service.name": defaultService, "os.type": runtime.GOOS}
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
