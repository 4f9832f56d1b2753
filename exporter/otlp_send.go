// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // registers the compressor
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Retries wait from minBackoff, doubling to maxBackoff, each time a random half
// less, unless the receiver says how long. There is no last try: the queue is
// what bounds an outage.
const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// link is the way of one signal to its receiver, with what is known about it.
type link struct {
	signal string // "logs" or "metrics"
	target target
	conn   *grpc.ClientConn
	log    *slog.Logger

	mu       sync.Mutex
	state    string    // what the last answer meant: see the constants
	detail   string    // the answer
	undone   time.Time // when the first request was made since when none was answered for good; zero: none is due
	requests map[string]uint64
}

// States of a link and outcomes of requests.
const (
	stateIdle    = "idle"     // nothing sent yet
	stateWait    = "waiting"  // no answer yet; only told, no outcome
	stateOK      = "ok"       // acknowledged
	stateRetry   = "retrying" // not delivered, tried again
	stateRefused = "refused"  // will not be accepted, not tried again
	statePartial = "rejected" // taken in part
)

func newLink(signal string, t target, log *slog.Logger, dial func(context.Context, string) (net.Conn, error)) (*link, error) {
	creds := insecure.NewCredentials()
	if t.tls != nil {
		creds = credentials.NewTLS(t.tls)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("weft"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff / 2},
			MinConnectTimeout: t.timeout,
		}),
	}
	if t.compression == "gzip" {
		options = append(options, grpc.WithDefaultCallOptions(grpc.UseCompressor("gzip")))
	}
	if dial != nil {
		options = append(options, grpc.WithContextDialer(dial))
	}
	conn, err := grpc.NewClient(t.dial, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare OTLP %s to %s: %w", signal, t.endpoint, err)
	}
	return &link{
		signal: signal, target: t, conn: conn, state: stateIdle, requests: map[string]uint64{},
		log: log.With("sink", "otlp", "signal", signal, "endpoint", t.endpoint),
	}, nil
}

// call sends one request: its answer's partial success, or an error.
type call func(ctx context.Context) (rejected int64, message string, err error)

// once makes one request and says what became of it, and after which time the
// receiver wants to be asked again (0: as we like).
func (l *link) once(ctx context.Context, send call) (state string, rejected int64, wait time.Duration) {
	if l.target.headers != nil {
		ctx = metadata.NewOutgoingContext(ctx, l.target.headers)
	}
	l.begin()
	limited, cancel := context.WithTimeout(ctx, l.target.timeout)
	defer cancel()
	rejected, message, err := send(limited)
	switch {
	case err != nil && ctx.Err() != nil:
		return stateRetry, 0, 0 // we gave up, which says nothing about the receiver
	case err == nil && rejected > 0:
		state = statePartial
	case err == nil:
		state = stateOK
	default:
		var retry bool
		message = err.Error()
		if retry, wait = retryable(err); retry {
			state = stateRetry
		} else {
			state = stateRefused
		}
	}
	l.note(state, message)
	return state, rejected, wait
}

// deliver makes requests until one is answered for good. When ctx ends before
// that, the state is stateRetry.
func (l *link) deliver(ctx context.Context, send call) (state string, rejected int64) {
	pause := minBackoff
	for {
		state, rejected, wait := l.once(ctx, send)
		if state != stateRetry || ctx.Err() != nil {
			return state, rejected
		}
		if wait == 0 {
			wait = pause/2 + rand.N(pause/2)
			pause = min(2*pause, maxBackoff)
		}
		select {
		case <-ctx.Done():
			return state, 0
		case <-time.After(wait):
		}
	}
}

// retryable is OTLP's rule: these codes may pass, and an exhausted resource only
// when the receiver says when.
func retryable(err error) (bool, time.Duration) {
	s := status.Convert(err)
	var wait time.Duration
	told := false
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			wait, told = max(info.GetRetryDelay().AsDuration(), 0), true
		}
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return true, wait
	case codes.ResourceExhausted:
		return told, wait
	}
	return false, 0
}

// begin notes that an answer is due.
func (l *link) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undone.IsZero() {
		l.undone = time.Now()
	}
}

// note counts a request and logs when the state changes.
func (l *link) note(state, detail string) {
	l.mu.Lock()
	before := l.state
	l.state, l.detail = state, detail
	if state != stateRetry {
		l.undone = time.Time{}
	}
	l.requests[state]++
	l.mu.Unlock()
	if state == before {
		return
	}
	switch state {
	case stateOK:
		l.log.Info("receiver acknowledges")
	case stateRetry:
		args := []any{"err", detail}
		if l.target.guessedTLS {
			args = append(args, "mend", "the endpoint has no scheme, so TLS is used: write http:// for plain text")
		}
		l.log.Warn("receiver not reached or busy, retrying", args...)
	case stateRefused:
		l.log.Warn("receiver refuses requests, not retried", "err", detail)
	case statePartial:
		l.log.Warn("receiver rejects a part of what is sent", "err", detail)
	}
}

// describe is the state with its reason, for people, and whether all is well. A
// request is waited for when it is without an answer for more than a second.
func (l *link) describe() (text string, well bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := " since " + l.undone.UTC().Format(time.RFC3339)
	switch {
	case l.state == stateRetry:
		return l.state + since + ": " + l.detail, false
	case !l.undone.IsZero() && time.Since(l.undone) > time.Second:
		return stateWait + since + " for an answer", false
	case l.detail == "":
		return l.state, true
	}
	return l.state + ": " + l.detail, l.state == stateOK
}

// counts is how many requests ended in which state.
func (l *link) counts() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := make(map[string]uint64, len(l.requests))
	for k, v := range l.requests {
		m[k] = v
	}
	return m
}
