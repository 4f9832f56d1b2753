// SPDX-License-Identifier: Apache-2.0

package receivertest

import (
	"io"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/collector/consumer/consumertest"

	"weft/exporter"
	"weft/flows"
)

// resetting stands before a receiver and resets the first connections in the middle of a
// request; it returns where it listens. They are counted in reset.
func resetting(t *testing.T, receiver string, first int32, reset *atomic.Int32) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				to, err := net.Dial("tcp", receiver)
				if err != nil {
					return
				}
				defer to.Close()
				go relay(conn, to, math.MaxInt64)
				if reset.Add(1) > first {
					relay(to, conn, math.MaxInt64)
				} else if relay(to, conn, 100_000) { // into a request's body
					if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // Close sends RST
						t.Error(err)
					}
				}
			}()
		}
	}()
	return lis.Addr().String()
}

// relay copies up to n bytes; false: one end closed before.
func relay(to io.Writer, from io.Reader, n int64) bool {
	_, err := io.CopyN(to, from, n)
	return err == nil
}

func TestConnectionsThatAreResetLoseNothing(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			logs := new(consumertest.LogsSink)
			receiver := startCollector(t, "", logs, new(consumertest.MetricsSink))
			at, reset := receiver.endpoint, atomic.Int32{}
			if protocol != "grpc" {
				at = receiver.web
			}
			var log lines
			o := newSink(t, resetting(t, at, 3, &reset), exporter.OTLPConfig{
				Protocol: protocol, Compression: "none", Flush: time.Millisecond, NoLedger: true, Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			records := corpus(3000, 2)
			export(t, o, flows.Window{Records: records})
			eventually(t, "all acknowledged", func() bool { return o.Account().Acknowledged == uint64(len(records)) })
			closeSink(t, o)
			checkAccount(t, o.Account(), len(records))
			if n := reset.Load(); n <= 3 {
				t.Errorf("got %d connections, want more than the 3 that were reset", n)
			}
			compare(t, received(logs), records)
			if text := log.String(); strings.Count(text, "receiver not reached or busy, retrying") != 1 || strings.Count(text, "receiver acknowledges") != 1 {
				t.Errorf("got %s, want one line when it began and one when it was over", text)
			}
		})
	}
}
