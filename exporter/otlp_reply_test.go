// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A receiver's words, however many, make no record come twice: 5 of 10 records are rejected with so many words.
func TestLongAnswersAreUnderstoodOrTakenForYes(t *testing.T) {
	for _, c := range []struct {
		words          int
		lost           uint64
		warns, refuses bool
	}{
		{words: 100 << 10, lost: 5},
		{words: 3 << 20, lost: 5},
		{words: 5 << 20, warns: true},
		{words: 5 << 20, refuses: true, lost: 10},
	} {
		reply := &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{
			RejectedLogRecords: 5, ErrorMessage: strings.Repeat("x", c.words),
		}}
		encoded, err := proto.Marshal(reply)
		if err != nil {
			t.Fatal(err)
		}
		for name, start := range map[string]func(*testing.T, OTLPConfig) (*OTLP, func() int){
			"http": func(t *testing.T, config OTLPConfig) (*OTLP, func() int) {
				s := &webReceiver{answer: func(w http.ResponseWriter, _, _, _ int) {
					w.Header().Set("Content-Type", "application/x-protobuf")
					if c.refuses {
						w.WriteHeader(http.StatusBadRequest)
					}
					_, _ = w.Write(encoded) // the sink may have heard enough
				}}
				return s.start(t, config), func() int { return len(s.times) }
			},
			"grpc": func(t *testing.T, config OTLPConfig) (*OTLP, func() int) {
				r := &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
					if c.refuses { // words travel in a header there, of which gRPC takes 16 MiB
						return nil, status.Error(codes.InvalidArgument, strings.Repeat("x", c.words))
					}
					return reply, nil
				}}
				return r.start(t, config), r.requests
			},
		} {
			synctest.Test(t, func(t *testing.T) {
				var log syncBuffer
				o, requests := start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
				export(t, o, records(10)...)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				a, warned := o.Account(), strings.Contains(log.String(), "whether it rejects a part is not known")
				if requests() != 1 || a.TotalLost() != c.lost || a.Acknowledged != 10-c.lost || warned != c.warns {
					t.Errorf("%s, %d bytes: got %d requests and %+v, warned %v, want one request, %d lost, warned %v", name, c.words, requests(), a, warned, c.lost, c.warns)
				}
				if len(log.String()) > 64<<10 {
					t.Errorf("%s, %d bytes: got a log of %d", name, c.words, len(log.String()))
				}
			})
		}
	}
}
