// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A followed agent that went away is looked for again after minPause, doubling
// to maxPause.
const (
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

var (
	errSilent = errors.New("no answer") // the cause of a context that ran out of patience
	errEnough = errors.New("enough")    // the caller's loop ended
)

// trip is one stream of a request, which following may make many of.
type trip struct {
	c        *Client
	clock    *clock
	lost     bool // an earlier trip ended
	unclean  bool // and it was not the agent that ended it
	answered bool // on this trip
}

// arrived notes an answer; same: it is of the run of the agent that the last
// trip was to, or that does not matter.
func (t *trip) arrived(same bool) {
	if !t.answered && t.lost {
		switch {
		case same:
			t.c.say(fmt.Sprintf("weftd at %s is back; going on where it was left", t.c.path))
		case t.unclean:
			t.c.say(fmt.Sprintf("weftd at %s is back, restarted; last records of the run before may have been missed, none of this one", t.c.path))
		default:
			t.c.say(fmt.Sprintf("weftd at %s is back, restarted; no record was missed", t.c.path))
		}
	}
	t.answered = true
}

// receive hands every message of a stream to take until it returns false.
func receive[M any](t *trip, stream grpc.ServerStreamingClient[M], err error, take func(*M) bool) error {
	for err == nil {
		t.clock.start()
		var m *M
		if m, err = stream.Recv(); err != nil {
			break
		}
		t.clock.Stop()
		if !take(m) {
			return errEnough
		}
	}
	return err
}

// request makes one stream, and with follow another one whenever the agent went
// away, until ctx ends or the caller has enough. The error is explained.
func (c *Client) request(ctx context.Context, doing string, follow bool, stream func(context.Context, *trip) error) error {
	if !follow {
		limited, clock := c.hurry(ctx, c.patience)
		defer clock.cancel(nil)
		err := stream(limited, &trip{c: c, clock: clock})
		if errors.Is(err, errEnough) || errors.Is(err, io.EOF) || errors.Is(ctx.Err(), context.Canceled) {
			return nil
		}
		return c.explain(limited, doing, err)
	}
	pause := minPause
	for t := (trip{c: c}); ; {
		limited, clock := c.hurry(ctx, 0) // silence is no fault, and gRPC asks whether the agent lives
		t.clock = clock
		err := stream(limited, &t)
		clock.cancel(nil)
		switch {
		case errors.Is(err, errEnough), ctx.Err() != nil:
			return nil
		case !errors.Is(err, io.EOF) && status.Code(err) != codes.Unavailable:
			return c.explain(ctx, doing, err)
		}
		if t.answered || !t.lost {
			pause = minPause
			t.unclean = !errors.Is(err, io.EOF)
			c.say(c.explain(ctx, doing, err).Error() + "; waiting for it to come back")
		}
		t.lost, t.answered = true, false
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		}
		if !c.connect(ctx) {
			return nil
		}
	}
}

// clock ends a context when an answer was due for longer than patience.
type clock struct {
	*time.Timer // stopped unless an answer is due
	patience    time.Duration
	cancel      context.CancelCauseFunc // frees the context
}

// start: an answer is due from now on. Without patience there is no end to it.
func (c *clock) start() {
	if c.patience > 0 {
		c.Reset(c.patience)
	}
}

// hurry is a context under a clock that stands still.
func (c *Client) hurry(ctx context.Context, patience time.Duration) (context.Context, *clock) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(time.Hour, func() { cancel(errSilent) })
	t.Stop()
	return ctx, &clock{t, patience, func(err error) { t.Stop(); cancel(err) }}
}
