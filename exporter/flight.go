// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"weft/exporter/api"
	"weft/flows"
)

// What a Flight sink does unless told otherwise.
const (
	DefaultFlightPath  = "weft_flow"
	DefaultFlightFlush = time.Second
)

// FlightConfig says where Arrow record batches are put.
type FlightConfig struct {
	Name string // of the sink; empty: "flight"
	// Endpoint is grpc://host:port, grpc+tls://host:port or grpc+unix:///socket.
	Endpoint string
	Path     string            // of the descriptor, for instance a table; empty: [DefaultFlightPath]
	Headers  map[string]string // of every call
	// CA, Certificate and Key are PEM files: whom to trust, empty the system's roots, and
	// what to show. They are read at each handshake.
	CA, Certificate, Key string

	Intake                    // which records, and how
	Finish      time.Duration // longest wait for the service's next answer when closing; 0: [DefaultFinish]
	Flush       time.Duration // longest time in which records gather; 0: [DefaultFlightFlush]
	Compression string        // of the batches: zstd (also empty) or none
	Derived     bool          // see [ColumnsConfig]
	Metadata    map[string]string
	Queue       int // most records waiting, sent ones among them; 0: [DefaultQueue]
}

// Check is every mistake of c; each begins with the name of its key.
func (c FlightConfig) Check() error {
	_, _, err := c.target(nil)
	_, bad := checkHeaders("headers", c.Headers)
	errs := []error{err, bad}
	if c.Flush < 0 {
		errs = append(errs, fmt.Errorf("flush=%s: is negative; leave it out for 1s", c.Flush))
	}
	if c.Compression != "" && c.Compression != "zstd" && c.Compression != "none" {
		errs = append(errs, fmt.Errorf("compression=%s: is not one of none, zstd", c.Compression))
	}
	return errors.Join(errs...)
}

// target is where to dial, and how; a nil log is for checking only.
func (c FlightConfig) target(log *slog.Logger) (dial string, creds credentials.TransportCredentials, err error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || c.Endpoint == "" {
		return "", nil, fmt.Errorf("endpoint=%s: is no address; write for instance grpc+tls://collector:8815", c.Endpoint)
	}
	if u.User != nil {
		return "", nil, errors.New("endpoint: put user and password into the headers, as authorization: Basic with both in base64") // which shows neither
	}
	if u.Scheme == "grpc+unix" {
		if u.Path == "" || u.Host != "" {
			return "", nil, fmt.Errorf("endpoint=%s: names no socket; write for instance grpc+unix:///run/collector.sock", c.Endpoint)
		}
		return "unix://" + u.Path, insecure.NewCredentials(), nil
	}
	if u.Scheme != "grpc" && u.Scheme != "grpc+tls" {
		return "", nil, fmt.Errorf("endpoint=%s: begins with none of grpc://, grpc+tls:// and grpc+unix://", c.Endpoint)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return "", nil, fmt.Errorf("endpoint=%s: is not a host and a port; a table goes into path", c.Endpoint)
	}
	if u.Scheme == "grpc" {
		if c.CA != "" || c.Certificate != "" || c.Key != "" {
			return "", nil, fmt.Errorf("endpoint=%s: has no TLS, for which ca, certificate and key are; write grpc+tls://", c.Endpoint)
		}
		return u.Host, insecure.NewCredentials(), nil
	}
	files := &tlsFiles{host: u.Hostname(), ca: c.CA, cert: c.Certificate, key: c.Key, log: logger(log)}
	var errs []error
	if c.CA != "" {
		errs = append(errs, wrapKey("ca", files.readRoots()))
	}
	if (c.Certificate == "") != (c.Key == "") {
		errs = append(errs, errors.New("certificate: and key go together; give both"))
	} else if c.Certificate != "" {
		errs = append(errs, wrapKey("certificate", files.readPair()))
	}
	return u.Host, credentials.NewTLS(files.config()), errors.Join(errs...)
}

func wrapKey(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// Flight is a sink that puts records into a Flight service (DoPut), as batches of a
// [Columns]. A stream is kept open, so that dictionaries are sent once.
//
// Each batch has an id in its app_metadata, the same when it has to be sent again. A
// record is acknowledged when a PutResult has its batch's id as app_metadata, or when the
// stream ended without an error, which for services that answer nothing before happens
// every 10 seconds. After an error what was not acknowledged is sent again, so a service
// may see an id twice; what it will not have is found by sending each batch on a stream of its own.
type Flight struct {
	*queue

	c      FlightConfig
	log    *slog.Logger
	client flight.Client
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	run    uint64 // random, of the ids
	next   uint64 // number of the next batch

	columns  *Columns
	rows     int              // most records of a batch
	rest     []flows.Record   // taken from the queue, in no batch yet
	gathered time.Time        // since when records wait for a batch; zero: none do
	unsent   []*putBatch      // to be sent on the next stream, in order
	stream   *putStream       // nil: none is open
	alone    int              // so many of unsent go on streams of their own: one of them is refused
	pause    time.Duration    // after the next failure
	again    <-chan time.Time // when it is tried again; nil: now

	closing atomic.Pointer[time.Timer] // of Close's patience; nil before it
	mu      sync.Mutex
	state   string // what is wrong now; empty: nothing
}

// NewFlight starts a sink; the caller must Close it. A nil log logs nothing. The error
// is [FlightConfig.Check]'s. A service that is not there is none: it may be later.
func NewFlight(c FlightConfig, log *slog.Logger) (*Flight, error) {
	return newFlight(c, log, nil)
}

func newFlight(c FlightConfig, log *slog.Logger, dial dialer) (*Flight, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	c.Name, c.Path, c.Flush = cmp.Or(c.Name, "flight"), cmp.Or(c.Path, DefaultFlightPath), cmp.Or(c.Flush, DefaultFlightFlush)
	c.Compression = cmp.Or(c.Compression, "zstd")
	f := &Flight{c: c, queue: newQueue(c.Name, c.Queue), done: make(chan struct{}), run: rand.Uint64(), pause: minBackoff} //nolint:gosec // it guards nothing
	f.c.Finish = cmp.Or(c.Finish, DefaultFinish)
	f.queue.intake = c.Intake
	f.c.Metadata = maps.Clone(c.Metadata)
	c.Redact.resource(f.c.Metadata)
	f.log = logger(log).With("sink", c.Name, "endpoint", c.Endpoint)
	f.rows = int(max(1, min(maxFlightRows, f.queue.limit/4))) //nolint:gosec // small
	f.columns = f.newColumns()
	target, creds, err := c.target(f.log)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("weft"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff / 2},
			MinConnectTimeout: putTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
	}
	if dial != nil {
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dial(ctx, a) }))
	}
	if f.client, err = flight.NewClientWithMiddleware(target, nil, nil, options...); err != nil {
		return nil, fmt.Errorf("prepare Flight to %s: %w", c.Endpoint, err)
	}
	f.ctx, f.cancel = context.WithCancel(metadata.NewOutgoingContext(context.Background(), metadata.New(c.Headers)))
	go f.work()
	return f, nil
}

func (f *Flight) newColumns() *Columns {
	return NewColumns(ColumnsConfig{Rows: f.rows, Derived: f.c.Derived, Metadata: f.c.Metadata})
}

// State is what keeps the service from taking records; empty: nothing is known to.
func (f *Flight) State() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Status says how the sink fares: the service it puts records to and what is wrong.
func (f *Flight) Status() *api.SinkStatus {
	return &api.SinkStatus{Account: AccountToWire(f.Account()), Target: f.c.Endpoint, State: cmp.Or(f.State(), f.queue.idle(f.c.Flush, "an answer"), stateOK)}
}

// Close sends what waits and ends the stream, or returns when ctx ends or the service
// has answered nothing for FlightConfig.Finish: then what was not acknowledged is
// Lost["shutdown"], which is no error.
func (f *Flight) Close(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := time.AfterFunc(f.c.Finish, cancel)
	defer patience.Stop()
	f.closing.Store(patience)
	f.queue.close()
	select {
	case <-f.done:
	case <-ctx.Done():
		f.queue.abandon()
		f.cancel()
		<-f.done // the stream ends with f.ctx
	}
	f.cancel()
	return f.client.Close()
}

// note logs when the service stops or starts to take records.
func (f *Flight) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state, err, func() { f.log.Warn("service takes no records, trying again", "err", err) },
		func() { f.log.Info("service takes records") })
}
