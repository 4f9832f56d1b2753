// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// webReceiver is an OTLP/HTTP receiver that answers as a test says.
type webReceiver struct {
	// answer to the n-th request for logs, from 1, of so many records and bytes.
	answer func(w http.ResponseWriter, n, records, size int)

	mu     sync.Mutex
	times  []time.Time
	sizes  []int // records of every request
	bytes  []int
	latest http.Request
}

func (s *webReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := unpacked(r)
	var m collogs.ExportLogsServiceRequest
	if err == nil && r.Header.Get("Content-Type") == "application/json" {
		err = protojson.Unmarshal(body, &m)
	} else if err == nil {
		err = proto.Unmarshal(body, &m)
	}
	if err != nil || r.URL.Path != "/v1/logs" {
		http.Error(w, fmt.Sprint(r.URL.Path, err), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.times = append(s.times, time.Now())
	s.sizes = append(s.sizes, logCount(&m))
	s.bytes = append(s.bytes, len(body))
	s.latest = *r
	n := len(s.times)
	s.mu.Unlock()
	if s.answer != nil {
		s.answer(w, n, logCount(&m), len(body))
	}
}

func unpacked(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	switch r.Header.Get("Content-Encoding") {
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	case "zstd":
		return unzstd(body)
	}
	return body, nil
}

// start serves s inside a synctest bubble and connects a sink to it.
func (s *webReceiver) start(t *testing.T, c OTLPConfig) *OTLP {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Hour}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	c.Endpoint, c.Protocol = cmp.Or(c.Endpoint, "http://127.0.0.1:4318"), cmp.Or(c.Protocol, protocolHTTP)
	c.dial = func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }
	c.Getenv, c.Finish = env(), time.Hour
	o, err := NewOTLP(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = o.Close(ctx) // a test that cares has closed it before
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("receiver: %v", err)
		}
	})
	return o
}

func TestHTTPCarriesEveryRecordInEveryForm(t *testing.T) {
	for _, protocol := range []string{protocolHTTP, protocolJSON} {
		for _, compression := range compressions {
			synctest.Test(t, func(t *testing.T) {
				s := &webReceiver{}
				o := s.start(t, OTLPConfig{Protocol: protocol, Compression: compression, Headers: map[string]string{"x-scope-orgid": "blue"}})
				export(t, o, records(5000)...)
				if err := closeOTLP(t, o, time.Minute); err != nil {
					t.Fatal(err)
				}
				got := 0
				for _, n := range s.sizes {
					got += n
				}
				if a := o.Account(); a.Acknowledged != 5000 || got != 5000 {
					t.Errorf("%s, %s: got %+v and %d received, want 5000", protocol, compression, a, got)
				}
				if h := s.latest.Header; h.Get("X-Scope-Orgid") != "blue" || h.Get("User-Agent") != "weft" || h.Get("Content-Encoding") != strings.TrimPrefix(compression, "none") {
					t.Errorf("%s, %s: got headers %v", protocol, compression, h)
				}
			})
		}
	}
}

func TestExactlyTheRetryableHTTPCodesAreRetried(t *testing.T) {
	codes := []int{301, 307, 400, 401, 403, 404, 405, 408, 415, 422, 429, 500, 501, 502, 503, 504}
	retried := []int{429, 502, 503, 504}
	for _, code := range codes {
		synctest.Test(t, func(t *testing.T) {
			var log syncBuffer
			s := &webReceiver{answer: func(w http.ResponseWriter, n, _, _ int) {
				if n == 1 {
					w.Header().Set("Content-Type", "application/json")
					if code/100 == 3 {
						w.Header().Set("Location", "http://127.0.0.1:4318/elsewhere")
					}
					w.WriteHeader(code)
					_, _ = io.WriteString(w, `{"code":3,"message":"because of\u001b[31m this"}`)
				}
			}}
			o := s.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
			export(t, o, records(10)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Error(err)
			}
			a := o.Account()
			checkBalance(t, a)
			words := "receiver refuses requests, not retried"
			if slices.Contains(retried, code) {
				words = "receiver not reached or busy, retrying"
				if a.Acknowledged != 10 || len(s.times) != 2 {
					t.Errorf("%d: got %+v after %d requests, want 10 acknowledged after 2", code, a, len(s.times))
				}
			} else if a.Lost["refused"] != 10 || len(s.times) != 1 {
				t.Errorf("%d: got %+v after %d requests, want 10 refused after 1", code, a, len(s.times))
			}
			says(t, fmt.Sprint(code), log.String(), words)
			if why := map[bool]string{true: "elsewhere", false: "because of"}[code/100 == 3]; !strings.Contains(log.String(), why) || strings.Contains(log.String(), "\x1b") {
				t.Errorf("%d: got log %q, want one line with %q and no escapes", code, log.String(), why)
			}
		})
	}
}

func TestRetryAfterIsObeyedInSecondsAndAsADate(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(h http.Header)
		want time.Duration
	}{
		"seconds": {func(h http.Header) { h.Set("Retry-After", "7") }, 7 * time.Second},
		"a date": {func(h http.Header) {
			h.Set("Retry-After", time.Now().Add(9*time.Second).UTC().Format(http.TimeFormat))
		}, 9 * time.Second},
		"a date by a clock that is a year late": {func(h http.Header) {
			late := time.Now().AddDate(-1, 0, 0).UTC()
			h.Set("Date", late.Format(http.TimeFormat))
			h.Set("Retry-After", late.Add(5*time.Second).Format(http.TimeFormat))
		}, 5 * time.Second},
		"a slip of some digits": {func(h http.Header) { h.Set("Retry-After", "999999999") }, maxTold},
		"nonsense":              {func(h http.Header) { h.Set("Retry-After", "soon") }, 0},
		"a date that is over":   {func(h http.Header) { h.Set("Retry-After", "Sat, 02 Jan 1999 15:04:05 GMT") }, 0},
	} {
		for _, code := range []int{429, 503} {
			synctest.Test(t, func(t *testing.T) {
				s := &webReceiver{answer: func(w http.ResponseWriter, n, _, _ int) {
					if n == 1 {
						c.set(w.Header())
						w.WriteHeader(code)
					}
				}}
				var log syncBuffer
				o := s.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
				export(t, o, records(10)...)
				if err := closeOTLP(t, o, time.Hour); err != nil {
					t.Error(err)
				}
				says(t, name, log.String(), "receiver not reached or busy, retrying")
				if c.want == maxTold {
					says(t, name, log.String(), "receiver asks for a longer pause than is kept")
				}
				if len(s.times) != 2 || o.Account().Acknowledged != 10 {
					t.Fatalf("%s: got %d requests, %+v, want 2 and all acknowledged", name, len(s.times), o.Account())
				}
				gap := s.times[1].Sub(s.times[0])
				if c.want == 0 && (gap < minBackoff/2 || gap > minBackoff) || c.want > 0 && gap != c.want {
					t.Errorf("%s: got a retry after %s, want %s (0: the usual back-off)", name, gap, c.want)
				}
			})
		}
	}
}

func TestPartialSuccessOverHTTPIsCountedAndNotRetried(t *testing.T) {
	binary, err := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 3, ErrorMessage: "old"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kind, body string
		rejected   uint64
	}{
		"JSON":              {"application/json; charset=utf-8", `{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"old"},"later":1}`, 3},
		"protobuf":          {"application/x-protobuf", string(binary), 3},
		"empty JSON":        {"application/json", `{"partialSuccess":{}}`, 0},
		"empty":             {"", "", 0},
		"something foreign": {"text/plain", "thank you", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &webReceiver{answer: func(w http.ResponseWriter, _, _, _ int) {
				w.Header().Set("Content-Type", c.kind)
				_, _ = io.WriteString(w, c.body)
			}}
			var log syncBuffer
			o := s.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
			export(t, o, records(10)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Error(err)
			}
			if c.rejected > 0 {
				says(t, name, log.String(), "receiver rejects a part of what is sent")
			}
			if a := o.Account(); a.Lost["rejected"] != c.rejected || a.Acknowledged != 10-c.rejected || len(s.times) != 1 {
				t.Errorf("%s: got %+v after %d requests, want %d rejected after 1", name, a, len(s.times), c.rejected)
			}
		})
	}
}

func TestRequestsAreSplitUntilTheReceiverTakesThem(t *testing.T) {
	for name, c := range map[string]struct {
		limit, lost int
	}{"1 MiB": {1 << 20, 0}, "100 KiB": {100 << 10, 0}, "nothing": {0, 4000}} {
		synctest.Test(t, func(t *testing.T) {
			s := &webReceiver{answer: func(w http.ResponseWriter, _, _, size int) {
				if size > c.limit {
					w.WriteHeader(http.StatusRequestEntityTooLarge)
				}
			}}
			var log syncBuffer
			o := s.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
			export(t, o, records(4000)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "receiver takes smaller requests only, splitting") { // each limit is told
				t.Errorf("%s: got log %s, want that requests are split", name, log.String())
			}
			a := o.Account()
			checkBalance(t, a)
			if a.Acknowledged != uint64(4000-c.lost) || a.Lost["too_large"] != uint64(c.lost) {
				t.Errorf("%s: got %+v, want %d lost as too_large", name, a, c.lost)
			}
			taken, refused := 0, 0
			for i, n := range s.sizes {
				if s.bytes[i] <= c.limit {
					taken += n
				} else {
					refused++
				}
			}
			if taken != 4000-c.lost || c.lost == 0 && refused > 8 || len(s.sizes) > 600 {
				t.Errorf("%s: got %d records in %d requests, %d of them too large, want each once and the limit learnt", name, taken, len(s.sizes), refused)
			}
		})
	}
}

func TestHTTPEndpointsMeanWhatTheSpecificationSays(t *testing.T) {
	for name, c := range map[string]struct {
		variable, endpoint, url, bad string
	}{
		"a base":                {"", "http://collector:4318", "http://collector:4318/v1/logs", ""},
		"a base with a path":    {"", "https://vendor/otlp/", "https://vendor/otlp/v1/logs", ""},
		"the signal's own":      {"LOGS_", "http://collector:4318/in", "http://collector:4318/in", ""},
		"its own without path":  {"LOGS_", "http://collector:4318", "http://collector:4318/", ""},
		"a socket":              {"", "unix:///run/otlp.sock", "http://localhost/v1/logs", ""},
		"no scheme":             {"", "collector:4318", "", "want http://host:port"},
		"the path twice":        {"", "http://collector:4318/v1/logs", "", "leave /v1/logs out"},
		"a password, not shown": {"", "http://me:geheim@collector", "", "into the headers"},
	} {
		e := env("OTEL_EXPORTER_OTLP_"+c.variable+"ENDPOINT", c.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL", protocolHTTP)
		l, _, _, err := OTLPConfig{Getenv: e}.resolve()
		switch {
		case c.bad == "" && (err != nil || l.url != c.url):
			t.Errorf("%s: got %q, %v, want %q", name, l.url, err, c.url)
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad) || strings.Contains(err.Error(), "geheim")):
			t.Errorf("%s: got %v, want an error with %q", name, err, c.bad)
		}
	}
}

// The compressor's channels must not belong to the first test's bubble.
func init() {
	packed, err := packers["zstd"]([]byte("outside of every bubble"))
	if err != nil {
		panic(err)
	}
	if _, err := unzstd(packed); err != nil {
		panic(err)
	}
}
