// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"net"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"weft/exporter/api"
	"weft/flows"
)

// ErrUsage is in the chain of errors that the caller's words caused: a server
// that is no unix socket, a filter the agent does not know.
var ErrUsage = errors.New("usage")

// pingEvery is how long a followed agent may be silent before it is asked
// whether it lives; gRPC's least.
const pingEvery = 10 * time.Second

// ClientOptions say which agent to ask and how patiently.
type ClientOptions struct {
	Server string // unix:///path or /path
	// Patience is the longest wait for a connection and for each answer that is
	// due, and for a followed agent that is silent to say that it lives; 0: no end.
	// How long a whole answer takes is not bounded.
	Patience time.Duration
	// Say is told, in a line for people, when following lost the agent and when it
	// has it again, on the goroutine that reads; nil: nobody.
	Say func(line string)
}

// Client asks an agent over its local API. It may be used by several goroutines.
type Client struct {
	conn     *grpc.ClientConn
	weft     api.WeftClient
	path     string
	patience time.Duration
	say      func(string)
}

// Dial connects to the agent and returns when it answers. The error of a socket
// that is not there, or behind which nobody answers, names it and the mend.
func Dial(ctx context.Context, o ClientOptions) (*Client, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(o.Server, "unix://"), "unix:")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%w: --server %q: want unix:///path, as in unix://%s", ErrUsage, o.Server, DefaultSocket)
	}
	c := &Client{path: path, patience: o.Patience, say: o.Say}
	if c.say == nil {
		c.say = func(string) {}
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	ctx, clock := c.hurry(ctx, c.patience)
	defer clock.cancel(nil)
	clock.start()
	probe, err := dial(ctx, path)
	if err != nil {
		return nil, c.dialError(ctx, err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("close probe of %s: %w", path, err)
	}
	ping := keepalive.ClientParameters{Time: pingEvery, Timeout: o.Patience}
	if o.Patience == 0 {
		ping.Time = math.MaxInt64
	}
	c.conn, err = grpc.NewClient("passthrough:///weftd", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithKeepaliveParams(ping),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: minPause, Multiplier: 2, Jitter: 0.2, MaxDelay: maxPause}, MinConnectTimeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	c.weft = api.NewWeftClient(c.conn)
	if !c.connect(ctx) {
		return nil, errors.Join(c.explain(ctx, "connect", ctx.Err()), c.conn.Close())
	}
	return c, nil
}

// dialError is why the socket cannot be connected to, with the mend.
func (c *Client) dialError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil, errors.Is(err, syscall.EAGAIN): // nobody takes what waits in the socket's backlog
		return c.silent("connect")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to %s: %w: is weftd running? start it with make run", c.path, errnoOf(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to %s: %w: use sudo, or be in the group that listen.group names", c.path, errnoOf(err))
	}
	return fmt.Errorf("connect to %s: %w", c.path, err)
}

func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// connect waits until the agent has answered on the connection; false: ctx ended.
func (c *Client) connect(ctx context.Context) bool {
	for {
		s := c.conn.GetState()
		if s == connectivity.Ready {
			return true
		}
		if s == connectivity.Idle {
			c.conn.Connect()
		}
		if !c.conn.WaitForStateChange(ctx, s) {
			return false
		}
	}
}

// Close ends the connection and every request on it.
func (c *Client) Close() error { return c.conn.Close() }

// Observed is one item of [Client.Observe]: a record, or how many records the
// agent's store dropped before this reader came to them.
type Observed struct {
	Record *flows.Record // nil in a notice of loss
	Lost   uint64
}

// Observe yields the records that q chooses, oldest first; with q.Follow it goes
// on until ctx ends, which is no error, also when the agent is restarted: each
// record comes once. An error is the last item.
func (c *Client) Observe(ctx context.Context, q Query) iter.Seq2[Observed, error] {
	return func(yield func(Observed, error) bool) {
		req := &api.ObserveRequest{Last: uint32(min(max(q.Last, 0), math.MaxUint32)), SinceNs: int64(q.Since), Follow: q.Follow, Terms: termsToWire(q.Terms)}
		err := c.request(ctx, "observe flows", q.Follow, func(ctx context.Context, t *trip) error {
			stream, err := c.weft.Observe(ctx, req)
			return receive(t, stream, err, func(m *api.ObserveResponse) bool {
				t.arrived(req.GetAfter().GetStore() == m.GetNext().GetStore())
				if m.Lost > 0 && !yield(Observed{Lost: m.Lost}, nil) {
					return false
				}
				for _, r := range m.Records {
					rec := fromWire(r)
					if !yield(Observed{Record: &rec}, nil) {
						return false
					}
				}
				req.After = m.Next
				return true
			})
		})
		if err != nil {
			yield(Observed{}, err)
		}
	}
}

// Ledger yields the latest ledger, and with follow every later one until ctx
// ends, which is no error, also when the agent is restarted. An error is the
// last item.
func (c *Client) Ledger(ctx context.Context, follow bool) iter.Seq2[flows.Ledger, error] {
	return func(yield func(flows.Ledger, error) bool) {
		err := c.request(ctx, "read ledger", follow, func(ctx context.Context, t *trip) error {
			stream, err := c.weft.Ledger(ctx, &api.LedgerRequest{Follow: follow})
			return receive(t, stream, err, func(m *api.LedgerResponse) bool {
				t.arrived(true) // a ledger misses nothing
				return yield(ledgerFromWire(m.Ledger), nil)
			})
		})
		if err != nil {
			yield(flows.Ledger{}, err)
		}
	}
}

// Status is what the agent says of itself and its data plane.
func (c *Client) Status(ctx context.Context) (*api.StatusResponse, error) {
	ctx, clock := c.hurry(ctx, c.patience)
	defer clock.cancel(nil)
	clock.start()
	m, err := c.weft.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return nil, c.explain(ctx, "read status", err)
	}
	return m, nil
}

// explain turns what ended a request into what the user can do about it.
func (c *Client) explain(ctx context.Context, doing string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return c.silent(doing)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: weftd at %s stopped", doing, c.path)
	}
	switch s := status.Convert(err); s.Code() {
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %s", ErrUsage, s.Message())
	case codes.Unavailable:
		return fmt.Errorf("%s: weftd at %s went away: %s", doing, c.path, s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("%s: weftd at %s is of another version: %s", doing, c.path, s.Message())
	default:
		return fmt.Errorf("%s from %s: %s", doing, c.path, s.Message())
	}
}

// silent is the error of an agent that does not answer.
func (c *Client) silent(doing string) error {
	return fmt.Errorf("%s: weftd at %s did not answer within %s: it is stopped or stuck: see its log, continue or restart it; --timeout waits longer",
		doing, c.path, c.patience)
}
