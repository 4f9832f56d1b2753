// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A connection on which a request is due and nothing was heard for pingAfter is
// asked for a sign of life, and given up pingTimeout later: otherwise one that a
// firewall forgot would swallow every retry until TCP gives up, a quarter of an hour.
const (
	pingAfter   = 20 * time.Second
	pingTimeout = 10 * time.Second
)

// grpcTransport sends over gRPC, which connects again by itself.
type grpcTransport struct {
	conn    *grpc.ClientConn
	method  string
	headers metadata.MD
}

func newGRPC(signal string, t target, dial dialer) (*grpcTransport, error) {
	creds := insecure.NewCredentials()
	if t.tls != nil {
		creds = credentials.NewTLS(t.tls.config())
	}
	calls := []grpc.CallOption{grpc.MaxCallRecvMsgSize(maxReply), grpc.ForceCodecV2(rawCodec{copies: t.compression == "none"})}
	if t.compression != "none" {
		calls = append(calls, grpc.UseCompressor(t.compression))
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("weft"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff / 2},
			MinConnectTimeout: t.timeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(calls...),
	}
	if dial != nil {
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dial(ctx, a) }))
	}
	method := collogs.LogsService_Export_FullMethodName
	if signal == "metrics" {
		method = colmetrics.MetricsService_Export_FullMethodName
	}
	conn, err := grpc.NewClient(t.dial, options...)
	return &grpcTransport{conn: conn, method: method, headers: t.headers}, err
}

func (t *grpcTransport) close() error { return t.conn.Close() }

func (t *grpcTransport) send(ctx context.Context, body []byte) answer {
	if t.headers != nil {
		ctx = metadata.NewOutgoingContext(ctx, t.headers)
	}
	var reply []byte
	if err := t.conn.Invoke(ctx, t.method, body, &reply); err != nil {
		return grpcFailure(err)
	}
	return success(reply, false)
}

// grpcFailure is OTLP's rule: these codes may pass, and an exhausted resource only
// when the receiver says when. That a request was too large has no code of its
// own; these are the words of gRPC's Go, C++ and Java servers, and of tonic.
func grpcFailure(err error) answer {
	s := status.Convert(err)
	a := answer{state: stateRefused, message: err.Error()}
	told := false
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			a.wait, told = max(info.GetRetryDelay().AsDuration(), 0), true
		}
	}
	switch s.Code() {
	case codes.OutOfRange: // tonic's word for a message that is too large
		a.state = stateRetry
		if strings.Contains(strings.ToLower(s.Message()), "message length too large") {
			a.state = stateTooLarge
		}
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.Unavailable, codes.DataLoss:
		a.state = stateRetry
	case codes.ResourceExhausted:
		text := strings.ToLower(s.Message())
		if told {
			a.state = stateRetry
		} else if strings.HasSuffix(text, fmt.Sprintf("vs. %d)", maxReply)) || strings.HasSuffix(text, fmt.Sprintf("larger than max %d", maxReply)) {
			return longReply // of this side: only a request that was taken has an answer
		} else if strings.Contains(text, "larger than max") || strings.Contains(text, "exceeds maximum size") {
			a.state = stateTooLarge
		}
	}
	return a
}

// rawCodec carries messages that are serialised already.
type rawCodec struct {
	copies bool // gRPC may hold a body beyond the call's end, unless a compressor has read it
}

// Marshal is v, a []byte.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	body, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("send %T: want bytes", v)
	}
	if c.copies {
		return mem.BufferSlice{mem.Copy(body, mem.DefaultBufferPool())}, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(body)}, nil
}

// Unmarshal sets v, a *[]byte.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	reply, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("receive %T: want a pointer to bytes", v)
	}
	*reply = data.Materialize()
	return nil
}

// Name is that of what the bytes are.
func (rawCodec) Name() string { return "proto" }
