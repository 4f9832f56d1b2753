// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// maxReply bounds what is read of a reply, and maxError of one that says no; the rest is left. The odd byte tells
// gRPC's refusal of a reply from a receiver's refusal of a request.
const (
	maxReply = 4<<20 + 1
	maxError = 64 << 10
)

// longReply is what a receiver's yes means whose words are too many to be read.
var longReply = answer{state: stateOK, message: "its answer has more than 4 MiB: whether it rejects a part is not known"}

// httpTransport POSTs protobuf or JSON.
type httpTransport struct {
	client  *http.Client
	url     string
	header  http.Header
	message func() *jsonMessage // what a body is, for JSON; nil: protobuf is sent
	pack    func([]byte) ([]byte, error)
}

func newHTTP(signal string, t target, dial dialer) *httpTransport {
	carrier := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           1, // the worker makes one request at a time
		IdleConnTimeout:        2 * time.Minute,
		TLSHandshakeTimeout:    t.timeout,
		MaxResponseHeaderBytes: maxError,
		DialContext:            (&net.Dialer{Timeout: t.timeout, KeepAlive: pingAfter}).DialContext,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	if t.tls != nil {
		carrier.TLSClientConfig = t.tls.config()
	}
	if t.socket != "" {
		carrier.Proxy = nil
		carrier.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", t.socket)
		}
	}
	if dial != nil {
		carrier.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) }
	}
	h := &httpTransport{
		// A redirect would turn a POST into a GET, whose 200 acknowledges nothing.
		client: &http.Client{Transport: carrier, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		url:    t.url, header: http.Header{},
	}
	for name, values := range t.headers {
		h.header[http.CanonicalHeaderKey(name)] = values
	}
	h.header.Set("User-Agent", "weft")
	h.header.Set("Content-Type", "application/x-protobuf")
	if t.protocol == protocolJSON {
		h.header.Set("Content-Type", "application/json")
		h.message = jsonLogs
		if signal == "metrics" {
			h.message = jsonMetrics
		}
	}
	if t.compression != "none" {
		h.header.Set("Content-Encoding", t.compression)
	}
	h.pack = packers[t.compression]
	return h
}

func (h *httpTransport) close() error { h.client.CloseIdleConnections(); return nil }

func (h *httpTransport) send(ctx context.Context, body []byte) answer {
	payload, err := h.payload(body)
	if err != nil {
		return answer{state: stateRefused, message: err.Error()}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(payload))
	if err != nil {
		return answer{state: stateRefused, message: err.Error()}
	}
	request.Header = h.header.Clone()
	if host := h.header.Get("Host"); host != "" {
		request.Host = host
	}
	response, err := h.client.Do(request)
	if err != nil {
		return answer{state: stateRetry, message: err.Error()}
	}
	defer func() { _ = response.Body.Close() }() // what matters of it was read
	most := maxReply
	if response.StatusCode/100 != 2 {
		most = maxError
	}
	reply, err := io.ReadAll(io.LimitReader(response.Body, int64(most)))
	if err != nil && response.StatusCode/100 != 2 {
		reply = nil // the code says enough
	} else if err != nil {
		return answer{state: stateRetry, message: fmt.Errorf("read the answer: %w", err).Error()}
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type")) // none: the empty one
	isJSON := kind == "application/json"
	switch {
	case response.StatusCode/100 == 2 && len(reply) == most:
		return longReply
	case response.StatusCode/100 == 2:
		return success(reply, isJSON)
	}
	return httpFailure(response, reply, kind)
}

// payload is body as it goes over the wire: a copy, since net/http may read it
// after the call.
func (h *httpTransport) payload(body []byte) ([]byte, error) {
	if h.message != nil {
		text, err := h.message().append(nil, body)
		if err != nil {
			return nil, fmt.Errorf("write own request as JSON: %w", err)
		}
		body = text
	}
	return h.pack(body)
}

// success is what a reply without an error means: the partial success of logs
// and metrics has the same fields.
func success(reply []byte, isJSON bool) answer {
	var rejected int64
	var message string
	if isJSON {
		lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
		logs, points := &collogs.ExportLogsServiceResponse{}, &colmetrics.ExportMetricsServiceResponse{}
		if lenient.Unmarshal(reply, logs) != nil || lenient.Unmarshal(reply, points) != nil {
			return answer{state: stateOK} // not OTLP's, but the code said yes
		}
		rejected = max(logs.GetPartialSuccess().GetRejectedLogRecords(), points.GetPartialSuccess().GetRejectedDataPoints())
		message = logs.GetPartialSuccess().GetErrorMessage()
	} else {
		m := &collogs.ExportLogsServiceResponse{}
		if proto.Unmarshal(reply, m) != nil {
			return answer{state: stateOK}
		}
		rejected, message = m.GetPartialSuccess().GetRejectedLogRecords(), m.GetPartialSuccess().GetErrorMessage()
	}
	if rejected > 0 {
		return answer{state: statePartial, rejected: rejected, message: message}
	}
	return answer{state: stateOK, message: message}
}

// httpFailure is OTLP's rule: 429, 502, 503 and 504 may pass, nothing else.
func httpFailure(r *http.Response, reply []byte, kind string) answer {
	a := answer{state: stateRefused, message: Printable(r.Status)}
	if at := r.Header.Get("Location"); at != "" {
		a.message += ": the receiver is at " + strconv.Quote(at)
	} else if text := errorText(reply, kind); text != "" {
		a.message += ": " + text
	}
	switch r.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		a.state, a.wait = stateRetry, retryAfter(r.Header)
	case http.StatusRequestEntityTooLarge:
		a.state = stateTooLarge
	}
	return a
}

// errorText is the message of a reply that is a google.rpc.Status, or the
// beginning of another one.
func errorText(reply []byte, kind string) string {
	var s rpcstatus.Status
	err := errors.ErrUnsupported
	switch kind {
	case "application/x-protobuf":
		err = proto.Unmarshal(reply, &s)
	case "application/json":
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(reply, &s)
	}
	text := s.GetMessage()
	if err != nil {
		text = string(reply[:min(len(reply), 200)])
	}
	return Printable(strings.TrimSpace(text))
}

// retryAfter is how long a receiver asks to be left alone; 0: it does not say. A
// date counts from the receiver's own clock where it shows it.
func retryAfter(h http.Header) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	then, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return max(then.Sub(now), 0)
}
