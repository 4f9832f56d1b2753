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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"weft/exporter/api"
	"weft/flows"
)

// ErrUsage is in the chain of errors that the caller's words caused: a server
// that is no unix socket, a filter the agent does not know.
var ErrUsage = errors.New("usage")

// Client asks an agent over its local API. It may be used by several goroutines.
type Client struct {
	conn *grpc.ClientConn
	weft api.WeftClient
	path string
}

// Dial connects to the agent at server: unix:///path, or a bare /path.
// The error of a socket that is not there names it and how to start an agent.
func Dial(server string) (*Client, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(server, "unix://"), "unix:")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%w: server %q: want unix:///path, as in unix://%s", ErrUsage, server, DefaultSocket)
	}
	probe, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, dialError(path, err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("close probe of %s: %w", path, err)
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	conn, err := grpc.NewClient("passthrough:///weftd", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &Client{conn: conn, weft: api.NewWeftClient(conn), path: path}, nil
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to %s: %w: is weftd running? start it with make run", path, errnoOf(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to %s: %w: use sudo, or be in the group that listen.group names", path, errnoOf(err))
	}
	return fmt.Errorf("connect to %s: %w", path, err)
}

func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
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
// on until ctx ends, which is no error. An error is the last item.
func (c *Client) Observe(ctx context.Context, q Query) iter.Seq2[Observed, error] {
	return func(yield func(Observed, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := &api.ObserveRequest{Last: uint32(min(max(q.Last, 0), math.MaxUint32)), SinceNs: int64(q.Since), Follow: q.Follow}
		for _, t := range q.Terms {
			req.Terms = append(req.Terms, &api.Term{Kind: t.Kind, Value: []byte(t.Value), Negate: t.Negate})
		}
		stream, err := c.weft.Observe(ctx, req)
		for err == nil {
			var m *api.ObserveResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if m.Lost > 0 && !yield(Observed{Lost: m.Lost}, nil) {
				return
			}
			for _, r := range m.Records {
				rec := fromWire(r)
				if !yield(Observed{Record: &rec}, nil) {
					return
				}
			}
		}
		if !finished(ctx, err, q.Follow) {
			yield(Observed{}, c.explain("observe flows", err))
		}
	}
}

// Ledger yields the latest ledger, and with follow every later one until ctx
// ends, which is no error. An error is the last item.
func (c *Client) Ledger(ctx context.Context, follow bool) iter.Seq2[flows.Ledger, error] {
	return func(yield func(flows.Ledger, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.weft.Ledger(ctx, &api.LedgerRequest{Follow: follow})
		for err == nil {
			var m *api.LedgerResponse
			if m, err = stream.Recv(); err == nil && !yield(ledgerFromWire(m.Ledger), nil) {
				return
			}
		}
		if !finished(ctx, err, follow) {
			yield(flows.Ledger{}, c.explain("read ledger", err))
		}
	}
}

// Status is what the agent says of itself and its data plane.
func (c *Client) Status(ctx context.Context) (*api.StatusResponse, error) {
	m, err := c.weft.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return nil, c.explain("read status", err)
	}
	return m, nil
}

// finished: the stream ended as it should. Following has no end but the caller's.
func finished(ctx context.Context, err error, follow bool) bool {
	if follow && ctx.Err() != nil {
		return true
	}
	return errors.Is(err, io.EOF) && !follow || errors.Is(ctx.Err(), context.Canceled)
}

// explain turns what ended a request into what the user can do about it.
func (c *Client) explain(doing string, err error) error {
	if errors.Is(err, io.EOF) {
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
