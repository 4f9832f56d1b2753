// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Retries wait from minBackoff, doubling to maxBackoff, each time a random half
// less, unless the receiver says how long. There is no last try: the queue is
// what bounds an outage.
const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 10 * time.Second
	// maxTold bounds what a receiver may ask for: a wrong clock or a slip of a
	// digit must not silence an agent for a day.
	maxTold = 10 * time.Minute
)

// answer is what a receiver's reply to one request means.
type answer struct {
	state    string        // see the constants
	rejected int64         // of statePartial: how many records or data points
	message  string        // the receiver's or the network's words
	wait     time.Duration // of stateRetry: how long to wait at least; 0: as we like
}

// transport carries the serialised requests of one signal, one at a time.
type transport interface {
	// send makes one request; ctx bounds it. It keeps no part of body.
	send(ctx context.Context, body []byte) answer
	close() error
}

// link is the way of one signal to its receiver, with what is known about it.
type link struct {
	signal    string // "logs" or "metrics"
	target    target
	transport transport
	log       *slog.Logger
	key       func(string) string // what a key of the sink is called
	stages    *atomic.Pointer[Stages]
	limit     atomic.Int64 // bytes of a body that the receiver is known not to take more of; 0: none known

	mu       sync.Mutex
	state    string    // what the last answer meant: see the constants
	warning  string    // the last that came with an acknowledgement
	detail   string    // the answer
	undone   time.Time // when the first request was made since when none was answered for good; zero: none is due
	requests map[string]uint64
}

// States of a link and outcomes of requests.
const (
	stateIdle     = "idle"      // nothing sent yet
	stateWait     = "waiting"   // no answer yet; only told, no outcome
	stateOK       = "ok"        // acknowledged
	stateRetry    = "retrying"  // not delivered, tried again
	stateRefused  = "refused"   // will not be accepted, not tried again
	statePartial  = "rejected"  // taken in part
	stateTooLarge = "too_large" // the receiver wants smaller requests
)

// dialer replaces the network in tests; nil: the network.
type dialer func(ctx context.Context, address string) (net.Conn, error)

func newLink(signal string, t target, c OTLPConfig, stages *atomic.Pointer[Stages]) (*link, error) {
	l := &link{
		stages: stages,
		signal: signal, target: t, key: c.key, state: stateIdle, requests: map[string]uint64{},
		log: logger(c.Log).With("sink", cmp.Or(c.Name, "otlp"), "signal", signal, "endpoint", t.endpoint),
	}
	if t.tls != nil {
		t.tls.log = l.log
	}
	var err error
	if t.protocol == protocolGRPC {
		l.transport, err = newGRPC(signal, t, c.dial)
	} else {
		l.transport = newHTTP(signal, t, c.dial)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare OTLP %s to %s: %w", signal, t.endpoint, err)
	}
	return l, nil
}

// once makes one request and says what became of it. When ctx ends before, the
// state is stateRetry, which says nothing about the receiver.
func (l *link) once(ctx context.Context, body []byte) answer {
	l.begin()
	limited, cancel := context.WithTimeout(ctx, l.target.timeout)
	defer cancel()
	began, stage := time.Now(), StageSend
	if l.signal == "metrics" {
		stage = StageMetrics
	}
	a := l.transport.send(limited, body)
	l.stages.Load().Done(stage, began, len(body))
	if ctx.Err() != nil && a.state == stateRetry {
		return answer{state: stateRetry}
	}
	if a.wait > maxTold {
		l.log.Warn("receiver asks for a longer pause than is kept", "asked", a.wait, "kept", maxTold)
		a.wait = maxTold
	}
	l.note(a.state, a.message)
	return a
}

// deliver makes requests until one is answered for good. When ctx ends before
// that, the state is stateRetry.
func (l *link) deliver(ctx context.Context, body []byte) answer {
	pause := minBackoff
	for {
		a := l.once(ctx, body)
		if a.state != stateRetry || ctx.Err() != nil {
			return a
		}
		if a.wait == 0 {
			a.wait = pause/2 + rand.N(pause/2)
			pause = min(2*pause, maxBackoff)
		}
		select {
		case <-ctx.Done():
			return a
		case <-time.After(a.wait):
		}
	}
}

// tooLarge reports whether a body of that many bytes is known to be more than the receiver takes.
func (l *link) tooLarge(size int) bool {
	limit := int(l.limit.Load())
	return limit > 0 && size > limit
}

// shrink notes that the receiver did not take a body of that many bytes.
func (l *link) shrink(size int) {
	limit := max(size/2, minSplit)
	l.limit.Store(int64(limit))
	l.log.Warn("receiver takes smaller requests only, splitting", "bytes", size, "limit", limit)
}

// begin notes that an answer is due.
func (l *link) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undone.IsZero() {
		l.undone = time.Now()
	}
}

// maxDetail bounds what is told of a receiver's words, in bytes.
const maxDetail = 500

// note counts a request and logs when the state changes.
func (l *link) note(state, detail string) {
	detail = Printable(strings.ToValidUTF8(detail[:min(len(detail), maxDetail)], ""))
	l.mu.Lock()
	before := l.state
	l.state, l.detail = state, detail
	if state != stateRetry {
		l.undone = time.Time{}
	}
	l.requests[state]++
	warns := state == stateOK && detail != "" && detail != l.warning
	if warns {
		l.warning = detail
	}
	l.mu.Unlock()
	if warns {
		l.log.Warn("receiver took all and warns", "warning", detail)
	}
	if state == before {
		return
	}
	switch state {
	case stateOK:
		l.log.Info("receiver acknowledges")
	case stateRetry:
		args := []any{"err", detail}
		if mend := l.mend(detail); mend != "" {
			args = append(args, "mend", mend)
		}
		l.log.Warn("receiver not reached or busy, retrying", args...)
	case stateRefused:
		l.log.Warn("receiver refuses requests, not retried", "err", detail)
	case statePartial:
		l.log.Warn("receiver rejects a part of what is sent", "err", detail)
	case stateTooLarge:
		l.log.Warn("receiver finds a request too large", "err", detail)
	}
}

// mends is what helps, by what is in the words of Go's TLS and X.509; a key of the sink is in braces.
var mends = []struct{ words, mend string }{
	{"signed by unknown authority", "name the receiver's authority in {ca} or OTEL_EXPORTER_OTLP_CERTIFICATE"},
	{"certificate has expired or is not yet valid", "renew the receiver's certificate, or set this host's clock"},
	{"certificate is valid for", "write the endpoint with a name that is in the receiver's certificate"},
	{"certificate is not valid for any names", "the receiver's certificate needs the endpoint's host as a subject alternative name"},
	{"doesn't contain any IP SANs", "write the endpoint with a name that is in the receiver's certificate, or add the address to that"},
	{"first record does not look like a TLS handshake", "the receiver speaks plain text: write http://"},
	{"server gave HTTP response to HTTPS client", "the receiver speaks plain text: write http://"},
	{"certificate required", "name a client certificate in {certificate} and {key}"},
}

// mend is what to do about detail, if that is known.
func (l *link) mend(detail string) string {
	for _, m := range mends {
		if strings.Contains(detail, m.words) {
			if l.target.guessedTLS && strings.Contains(m.mend, "http://") {
				break
			}
			return strings.NewReplacer("{ca}", l.key("ca"), "{certificate}", l.key("certificate"), "{key}", l.key("key")).Replace(m.mend)
		}
	}
	if l.target.guessedTLS {
		return "the endpoint has no scheme, so TLS is used: write http:// for plain text"
	}
	return ""
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
