// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
)

// mute is a connection of which nothing is heard any more once it fell silent, as behind a firewall that forgot it.
type mute struct {
	net.Conn
	silent chan struct{} // closed: nothing is read
	gone   chan struct{} // closed: so is the connection
	once   sync.Once
}

func (m *mute) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	select {
	case <-m.silent:
		<-m.gone
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (m *mute) Close() error {
	m.once.Do(func() { close(m.gone) })
	return m.Conn.Close()
}

// Without pings the request would wait for its time-out of an hour, and the next one for the next.
func TestAConnectionThatFellSilentIsGivenUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, conns := &receiver{}, []*mute{}
		c := OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")}
		r.wrap = func(conn net.Conn) net.Conn {
			m := &mute{Conn: conn, silent: make(chan struct{}), gone: make(chan struct{})}
			conns = append(conns, m)
			return m
		}
		o := r.start(t, c)
		export(t, o, records(10)...)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if a := o.Account(); a.Acknowledged != 10 || len(conns) != 1 {
			t.Fatalf("got %+v on %d connections, want 10 acknowledged on one", a, len(conns))
		}
		close(conns[0].silent)
		export(t, o, records(10)...)
		time.Sleep(pingAfter + pingTimeout + 5*time.Second)
		synctest.Wait()
		if a := o.Account(); a.Acknowledged != 20 || len(conns) != 2 {
			t.Errorf("got %+v on %d connections, want 20 acknowledged, the last on a second one", a, len(conns))
		}
	})
}

// gRPC servers close a connection on which they are pinged more often than every five minutes, unless told otherwise.
func TestAReceiverThatWantsNoPingsLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(ctx context.Context, n int) (*collogs.ExportLogsServiceResponse, error) {
			if n == 1 { // it is there and answers pings, and not the request
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &collogs.ExportLogsServiceResponse{}, nil
		}}
		conns := 0
		c := OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")}
		r.wrap = func(conn net.Conn) net.Conn { conns++; return conn }
		o := r.start(t, c)
		export(t, o, records(10)...)
		time.Sleep(5 * pingAfter)
		synctest.Wait()
		if a := o.Account(); a.Acknowledged != 10 || a.TotalLost() != 0 || conns != 2 || r.requests() != 2 {
			t.Errorf("got %+v after %d requests on %d connections, want 10 acknowledged by the second on a second one", a, r.requests(), conns)
		}
	})
}
