// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/flows"
)

// DefaultFinish is how long a closing sink waits for its receiver's next answer.
const DefaultFinish = 2 * time.Second

// OTLPConfig says where OTLP goes. What is empty here is taken from the OTEL_*
// variables: OTEL_EXPORTER_OTLP_[LOGS_|METRICS_]{ENDPOINT, INSECURE, CERTIFICATE,
// CLIENT_KEY, CLIENT_CERTIFICATE, HEADERS, COMPRESSION, TIMEOUT, PROTOCOL},
// OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.
type OTLPConfig struct {
	Name   string // of the sink; empty: "otlp"
	Prefix string // of the keys that errors name; empty: "exporter.otlp"

	// Endpoint of logs and metrics: http://host:port is plain text,
	// https://host:port is TLS, unix:///path a socket. With gRPC host:port is TLS
	// unless OTEL_EXPORTER_OTLP_INSECURE is true, and without a port it is 4317.
	// With HTTP it is a base to which /v1/logs and /v1/metrics are appended.
	Endpoint    string
	Protocol    string            // "grpc" (also when nothing says otherwise), "http/protobuf" or "http/json"
	Compression string            // "gzip" (also when nothing says otherwise), "zstd" or "none"
	Headers     map[string]string // sent with every request
	// Temporality of the metrics; empty: OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE,
	// or else [Cumulative].
	Temporality Temporality
	CommunityID bool // records have weft.flow.community_id, which a receiver can compute: see [LogEncoder]

	// PEM files, read again at every handshake: whom to trust (empty: the
	// system's roots), and what to show to a receiver that asks.
	CA, Certificate, Key string

	Flush    time.Duration // how long records gather into one request; 0: one second
	Finish   time.Duration // longest wait for the receiver's next answer when closing; 0: [DefaultFinish]
	Metrics  time.Duration // between two exports of the ledger; 0: ten seconds
	NoLedger bool          // records only: neither the ledger nor the histograms go there
	Queue    int           // records that may wait in memory; 0: [DefaultQueue]
	Spool    SpoolConfig   // where requests wait on disk

	Intake // which records it takes

	Version string              // service.version
	Getenv  func(string) string // nil: os.Getenv
	Log     *slog.Logger        // one line per change of state; nil: none

	dial func(context.Context, string) (net.Conn, error) // tests
}

// Wanted reports whether there is an endpoint for any signal.
func (c OTLPConfig) Wanted() bool {
	for _, signal := range []string{"LOGS", "METRICS"} {
		if (settings{signal, c.getenv()}).get("ENDPOINT", setting{"", c.Endpoint}).value != "" {
			return true
		}
	}
	return false
}

// key is what c's key is called in the configuration.
func (c OTLPConfig) key(name string) string { return cmp.Or(c.Prefix, "exporter.otlp") + "." + name }

// Check finds every mistake in c and in the environment at once. It reads
// certificate files and connects to nothing.
func (c OTLPConfig) Check() error {
	_, _, _, err := c.resolve()
	return err
}

// InForce is c with the endpoint, protocol and compression that the OTEL_*
// variables and the defaults give where c says nothing; for both signals those
// of the logs.
func (c OTLPConfig) InForce() OTLPConfig {
	s := settings{"LOGS", c.getenv()}
	if !c.Wanted() {
		s.getenv = func(string) string { return "" } // not looked at
	}
	c.Endpoint = s.get("ENDPOINT", setting{"", c.Endpoint}).value
	c.Protocol = cmp.Or(s.get("PROTOCOL", setting{"", c.Protocol}).value, "grpc")
	if c.Temporality == "" {
		t, err := ParseTemporality(cmp.Or(strings.TrimSpace(s.getenv(envTemporality)), string(Cumulative)))
		if err == nil { // else Check says so
			c.Temporality = t
		}
	}
	c.Compression = cmp.Or(s.get("COMPRESSION", setting{"", c.Compression}).value, "gzip")
	return c
}

func (c OTLPConfig) getenv() func(string) string {
	if c.Getenv != nil {
		return c.Getenv
	}
	return os.Getenv
}

// OTLP is a sink that sends every record as an OTLP log record, and the ledger
// and the histograms as OTLP metrics, over gRPC or HTTP. Records wait in a bounded
// queue while the receiver is away. A record is acknowledged when a receiver's
// answer says so; the ways to lose one are
//
//	queue_full  more than Queue records waited
//	rejected    the receiver took the request but not this record
//	refused     the receiver answered with an error that must not be retried
//	too_large   the receiver takes not even a few records at once (see minSplit), or one is over 3.5 MiB
//	shutdown    the agent stopped before an answer came, and no spool keeps it
//	spool_full, spool_age, spool_damaged
//	            it was the oldest on disk when there was no room, it waited too
//	            long, its file cannot be read
//
// A request of metrics that fails is made good by the next one: see [Temporality].
type OTLP struct {
	*queue

	rounds // of metrics

	logEncoder *LogEncoder // the worker's
	body       []byte      // the worker's, of the request at hand
	spool      *spool      // nil: requests wait as records, in memory
	run        uint64      // random, of this life of the sink
	batches    uint64      // encoded so far, without a spool; the worker's

	recovered [2]atomic.Uint64 // records of earlier runs: delivered, lost

	descs   otlpDescs
	flush   time.Duration
	finish  time.Duration
	logs    *link // nil: records are not exported
	metrics *link // nil: the ledger is not exported

	mu        sync.Mutex
	ledger    flows.Ledger // the latest
	latencies Latencies    // the latest

	fresh chan struct{} // one token: there is something to tell the spool; nil: there is none
	part  bool          // it takes a part of the records only, and cannot know which conversations are its

	ctx     context.Context // of every request; ended by Close's deadline
	cancel  context.CancelFunc
	stop    chan struct{}              // closed by Close
	closing atomic.Pointer[time.Timer] // of Close's patience; nil before it
	once    sync.Once
	giant   sync.Once // the first record that no request holds is told
	work    sync.WaitGroup
}

// NewOTLP starts the sink. It does not wait for a connection. The error joins
// every mistake in c and in the environment. The caller must Close it.
func NewOTLP(c OTLPConfig) (*OTLP, error) {
	logs, metrics, resource, err := c.resolve()
	if err != nil {
		return nil, err
	}
	if c.NoLedger || c.Redact != nil { // the ledger names devices, the histograms servers
		metrics.endpoint = ""
	}
	if logs.endpoint == "" && metrics.endpoint == "" {
		return nil, fmt.Errorf("start OTLP: no endpoint: set %s or OTEL_EXPORTER_OTLP_ENDPOINT", c.key("endpoint"))
	}
	c.Redact.resource(resource)
	o := &OTLP{
		queue: newQueue(cmp.Or(c.Name, "otlp"), c.Queue), rounds: newRounds(resource, c),
		flush: cmp.Or(c.Flush, time.Second), finish: cmp.Or(c.Finish, DefaultFinish), stop: make(chan struct{}),
	}
	o.queue.intake = c.Intake
	o.descs = newOTLPDescs(o.Name())
	if o.logEncoder, err = NewLogEncoder(resource, c.Version); err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	o.logEncoder.CommunityID = c.CommunityID
	o.ctx, o.cancel = context.WithCancel(context.Background())
	if logs.endpoint != "" {
		if o.logs, err = newLink("logs", logs, c, &o.queue.stages); err != nil {
			return nil, err
		}
		if o.run = rand.Uint64(); c.Spool.Dir != "" {
			o.spool, o.part = newSpool(c.Spool, o.run, o.logs.log), o.encoder.partial
			o.spool.stages = &o.queue.stages
			o.queue.counted, o.fresh = true, make(chan struct{}, 1)
			o.work.Go(o.sendSpooled)
			o.work.Go(o.tellSpool)
		}
		o.work.Go(o.encodeLogs)
	}
	if metrics.endpoint != "" {
		if o.metrics, err = newLink("metrics", metrics, c, &o.queue.stages); err != nil {
			return nil, errors.Join(err, o.Close(context.Background()))
		}
		asked, _ := exportInterval(c.getenv()) // resolve has judged it
		every := cmp.Or(c.Metrics, asked, 10*time.Second)
		if want := strings.TrimSpace(c.getenv()(envAggregation)); want != "" && !strings.EqualFold(want, exponential) {
			o.metrics.log.Warn("histograms stay exponential, since they are counted so in the kernel", envAggregation, want)
		}
		o.work.Go(func() { o.sendMetrics(every) })
	}
	return o, nil
}

// Export queues w's records and keeps its ledger and its histograms for the next
// export of metrics.
func (o *OTLP) Export(_ context.Context, w flows.Window) error {
	if o.logs != nil {
		o.queue.put(w.Records)
	}
	if !w.Ledger.At.IsZero() {
		o.mu.Lock()
		o.ledger = w.Ledger
		o.mu.Unlock()
	}
	select {
	case o.fresh <- struct{}{}:
	default:
	}
	if w.Latencies != nil {
		o.mu.Lock()
		o.latencies = latenciesOf(w)
		o.mu.Unlock()
	}
	return nil
}

// tellSpool is the worker that keeps the spool's tally: the drain must not wait for a disk.
func (o *OTLP) tellSpool() {
	for {
		select {
		case <-o.fresh:
			all, ledger := o.held()
			o.spool.told(all, &ledger)
		case <-o.stop:
			return
		}
	}
}

// held is what the sink has had by now: what the ledger has in flows, or, for want of one
// and of a sink that takes a part only, what its records have; and the ledger.
func (o *OTLP) held() (flows.Count, flows.Ledger) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.part || o.ledger.At.IsZero() {
		return o.queue.count(), o.ledger
	}
	return flowsCount(&o.ledger), o.ledger
}

// Close sends what waits and the latest ledger until ctx ends, or until the
// receiver has answered nothing for OTLPConfig.Finish; what was not acknowledged
// by then is Lost["shutdown"], which is no error, but for what is in the spool. A disk
// that hangs is left behind when ctx has ended. Closing again does nothing.
func (o *OTLP) Close(ctx context.Context) error {
	var errs []error
	o.once.Do(func() {
		close(o.stop)
		o.queue.close()
		stopWaiting := context.AfterFunc(ctx, o.cancel)
		impatient := time.AfterFunc(o.finish, o.cancel)
		o.closing.Store(impatient)
		ended := o.ended(ctx)
		impatient.Stop()
		stopWaiting()
		o.cancel()
		switch {
		case !ended:
			o.logs.log.Warn("spool's disk hangs and is left behind", "spool", o.spool.c.Dir)
			o.queue.abandonUnparked()
		case o.spool != nil:
			all, ledger := o.held()
			o.spool.told(all, &ledger)
			held, err := o.spool.close()
			o.lose(held)
			errs = append(errs, err)
		}
		for _, l := range []*link{o.logs, o.metrics} {
			if l != nil {
				errs = append(errs, l.transport.close())
			}
		}
	})
	return errors.Join(errs...)
}

// hangs is how long after the deadline the workers may take to notice it: only a disk
// holds them up for longer.
const hangs = 250 * time.Millisecond

// ended waits for the workers; false: the disk of the spool keeps them beyond ctx.
func (o *OTLP) ended(ctx context.Context) bool {
	done := make(chan struct{})
	go func() {
		o.work.Wait()
		close(done)
	}()
	if o.spool == nil {
		<-done
		return true
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	case <-time.After(hangs):
		return false
	}
}
