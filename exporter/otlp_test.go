// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"weft/flows"
)

func TestEveryRecordIsAcknowledgedInBatchesWithinTheLimits(t *testing.T) {
	fat := make([]flows.Record, 600) // 64 hops: far more than 3.5 MiB
	for i := range fat {
		fat[i] = bridgedRecord(i)
		for range 4 {
			fat[i].Hops = append(fat[i].Hops, fat[i].Hops...)
		}
	}
	for name, all := range map[string][]flows.Record{"many": records(8_500), "large": fat} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{}
			o := r.start(t, OTLPConfig{Compression: "none"})
			export(t, o, all...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			a := o.Account()
			checkBalance(t, a)
			if a.Acknowledged != uint64(len(all)) || r.taken != len(all) {
				t.Errorf("%s: got %+v and %d received, want %d", name, a, r.taken, len(all))
			}
			for i := range r.sizes {
				if r.sizes[i] > 4000 || r.bytes[i] > 3670016 {
					t.Errorf("%s: request %d: got %d records in %d bytes, want at most 4000 in 3.5 MiB", name, i, r.sizes[i], r.bytes[i])
				}
			}
			if name == "many" && len(r.sizes) < 3 || name == "large" && r.bytes[0] < 3<<20 {
				t.Errorf("%s: got requests of %v records and %v bytes, want them well filled", name, r.sizes, r.bytes)
			}
		})
	}
}

func exhausted(t *testing.T, wait time.Duration) error {
	s, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

func TestExactlyTheRetryableAnswersAreRetried(t *testing.T) {
	retryable := map[codes.Code]bool{
		codes.Canceled: true, codes.DeadlineExceeded: true, codes.Aborted: true, codes.OutOfRange: true,
		codes.Unavailable: true, codes.DataLoss: true,
	}
	answers := map[string]error{"resource exhausted, with a time": exhausted(t, 7*time.Second)}
	for _, words := range []string{"Error, decoded message length too large: found 2 bytes", "Error, message length too large: found 2 bytes"} {
		if a := grpcFailure(status.Error(codes.OutOfRange, words)); a.state != stateTooLarge {
			t.Errorf("%s: got %v, want too large", words, a)
		}
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		answers[code.String()] = status.Error(code, "no")
	}
	for name, answer := range answers {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(_ context.Context, n int) (*collogs.ExportLogsServiceResponse, error) {
				if n == 1 {
					return nil, answer
				}
				return &collogs.ExportLogsServiceResponse{}, nil
			}}
			var log syncBuffer
			o := r.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
			export(t, o, records(10)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			a := o.Account()
			checkBalance(t, a)
			told := strings.Contains(name, "with a time")
			words := "receiver refuses requests, not retried"
			if retryable[status.Code(answer)] || told {
				words = "receiver not reached or busy, retrying"
				if a.Acknowledged != 10 || r.requests() != 2 {
					t.Errorf("%s: got %+v after %d requests, want 10 acknowledged after 2", name, a, r.requests())
				}
			} else if a.Lost["refused"] != 10 || r.requests() != 1 {
				t.Errorf("%s: got %+v after %d requests, want 10 refused after 1", name, a, r.requests())
			}
			says(t, name, log.String(), words)
			if told {
				if waited := r.times[1].Sub(r.times[0]); waited != 7*time.Second {
					t.Errorf("%s: got a retry after %s, want it after the 7s asked for", name, waited)
				}
			}
		})
	}
}

func TestRetriesBackOffWithJitterUpToTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
			return nil, status.Error(codes.Unavailable, "down")
		}}
		o := r.start(t, OTLPConfig{})
		export(t, o, records(1)...)
		time.Sleep(5 * time.Minute)
		times := r.when()
		pause, same := minBackoff, 0
		for i := 1; i < len(times); i++ {
			gap := times[i].Sub(times[i-1])
			if gap < pause/2 || gap > pause {
				t.Errorf("retry %d: got it after %s, want %s to %s", i, gap, pause/2, pause)
			}
			if i > 8 && gap == times[i-1].Sub(times[i-2]) {
				same++
			}
			pause = min(2*pause, maxBackoff)
		}
		if len(times) < 30 || same > len(times)/2 {
			t.Errorf("got %d requests in 5 minutes, %d gaps equal to the one before, want at least 30 and jitter", len(times), same)
		}
		if a := o.Account(); a.Waiting != 1 {
			t.Errorf("got %+v, want the record still waiting", a)
		}
	})
}

// TestARecordThatNoRequestHoldsIsCountedAndTold, and the others are sent.
func TestARecordThatNoRequestHoldsIsCountedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := &webReceiver{}
		o := s.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
		all := records(5)
		for _, i := range []int{1, 3} {
			all[i].Hops = []flows.HopCount{{Hop: flows.Hop{Interface: strings.Repeat("x", maxBatchBytes)}}}
		}
		export(t, o, all...)
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Error(err)
		}
		a := o.Account()
		checkBalance(t, a)
		if a.Acknowledged != 3 || a.Lost["too_large"] != 2 {
			t.Errorf("got %+v, want 3 acknowledged and 2 lost as too_large", a)
		}
		if n := strings.Count(log.String(), "record is larger than a request may be, lost as every one like it"); n != 1 || !strings.Contains(log.String(), all[1].Key.String()) {
			t.Errorf("got %s, want one line, with the flow %s", log.String(), all[1].Key)
		}
	})
}

func TestRejectedPartIsCountedAndNotRetried(t *testing.T) {
	for name, c := range map[string]struct {
		partial  *collogs.ExportLogsPartialSuccess
		rejected uint64
	}{
		"three rejected":      {&collogs.ExportLogsPartialSuccess{RejectedLogRecords: 3, ErrorMessage: "too old"}, 3},
		"more than were sent": {&collogs.ExportLogsPartialSuccess{RejectedLogRecords: 99}, 10},
		"empty":               {&collogs.ExportLogsPartialSuccess{}, 0},
		"only a warning":      {&collogs.ExportLogsPartialSuccess{ErrorMessage: "be careful"}, 0},
		"nonsense":            {&collogs.ExportLogsPartialSuccess{RejectedLogRecords: -5}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
				return &collogs.ExportLogsServiceResponse{PartialSuccess: c.partial}, nil
			}}
			var log syncBuffer
			o := r.start(t, OTLPConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
			export(t, o, records(10)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if c.rejected > 0 {
				says(t, name, log.String(), "receiver rejects a part of what is sent")
			}
			a := o.Account()
			checkBalance(t, a)
			if a.Lost["rejected"] != c.rejected || a.Acknowledged != 10-c.rejected || r.requests() != 1 {
				t.Errorf("%s: got %+v after %d requests, want %d rejected after 1", name, a, r.requests(), c.rejected)
			}
		})
	}
}

func TestOutageIsBoundedLoggedOnceAndRecoveredFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		end := time.Now().Add(10 * time.Minute)
		r := &receiver{answer: func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
			if time.Now().Before(end) {
				return nil, status.Error(codes.Unavailable, "down")
			}
			return &collogs.ExportLogsServiceResponse{}, nil
		}}
		o := r.start(t, OTLPConfig{Queue: 100, Log: slog.New(slog.NewTextHandler(&log, nil))})
		for range 15 {
			before := time.Now()
			export(t, o, records(10)...)
			if time.Since(before) != 0 {
				t.Error("Export waited for the receiver")
			}
			checkBalance(t, o.Account())
			time.Sleep(time.Minute / 2)
		}
		if a := o.Account(); a.Waiting != 100 || a.Lost["queue_full"] != 50 {
			t.Errorf("during the outage: got %+v, want 100 waiting and 50 lost as queue_full", a)
		}
		time.Sleep(5 * time.Minute)
		export(t, o, records(10)...)
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Error(err)
		}
		a := o.Account()
		checkBalance(t, a)
		if a.Acknowledged != 110 || r.taken != 110 {
			t.Errorf("after it: got %+v and %d received, want 110 acknowledged", a, r.taken)
		}
		if n := strings.Count(log.String(), "retrying"); n != 1 || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("got %d complaints, want one line when it went and one when it came back:\n%s", n, log.String())
		}
	})
}

func TestReceiverThatComesBackIsFoundSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{unreachable: time.Now().Add(time.Hour)}
		o := r.start(t, OTLPConfig{})
		export(t, o, records(10)...)
		time.Sleep(time.Hour)
		if a := o.Account(); a.Waiting != 10 {
			t.Errorf("during the outage: got %+v, want 10 waiting", a)
		}
		time.Sleep(maxBackoff + maxBackoff/2)
		if a := o.Account(); a.Acknowledged != 10 {
			t.Errorf("15s after it: got %+v, want 10 acknowledged", a)
		}
	})
}

func TestHangingReceiverTimesOutAndIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(ctx context.Context, n int) (*collogs.ExportLogsServiceResponse, error) {
			if n == 1 {
				<-ctx.Done()
			}
			return &collogs.ExportLogsServiceResponse{}, ctx.Err()
		}}
		var log syncBuffer
		o := r.start(t, OTLPConfig{Getenv: env("OTEL_EXPORTER_OTLP_TIMEOUT", "3000"), Log: slog.New(slog.NewTextHandler(&log, nil))})
		export(t, o, records(10)...)
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Error(err)
		}
		says(t, "hanging", log.String(), "receiver not reached or busy, retrying")
		if gap := r.times[1].Sub(r.times[0]); gap < 3*time.Second || gap > 3*time.Second+minBackoff {
			t.Errorf("got the second request after %s, want it just after the 3s time-out", gap)
		}
		if a := o.Account(); a.Acknowledged != 10 {
			t.Errorf("got %+v, want 10 acknowledged", a)
		}
	})
}

func TestShutdownEndsAtItsDeadlineAndCountsWhatIsLeft(t *testing.T) {
	for name, answer := range map[string]func(context.Context, int) (*collogs.ExportLogsServiceResponse, error){
		"down": func(context.Context, int) (*collogs.ExportLogsServiceResponse, error) {
			return nil, status.Error(codes.Unavailable, "down")
		},
		"hanging": func(ctx context.Context, _ int) (*collogs.ExportLogsServiceResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{answer: answer}
			o := r.start(t, OTLPConfig{})
			export(t, o, records(500)...)
			time.Sleep(3 * time.Second)
			before := time.Now()
			err := closeOTLP(t, o, 5*time.Second)
			if took := time.Since(before); took != 5*time.Second {
				t.Errorf("%s: closed after %s, want the deadline of 5s", name, took)
			}
			if err != nil {
				t.Errorf("%s: got error %v, want none: the loss is in the account", name, err)
			}
			if s := o.Status().State; strings.Contains(s, "context canceled") {
				t.Errorf("%s: got state %q, want what the receiver said last, not that we gave up", name, s)
			}
			export(t, o, records(7)...)
			a := o.Account()
			checkBalance(t, a)
			if a.Lost["shutdown"] != 507 || a.Waiting != 0 {
				t.Errorf("%s: got %+v, want all 507 lost at shutdown", name, a)
			}
		})
	}
}

func TestRecordsGatherForTheFlushIntervalOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		o := r.start(t, OTLPConfig{Flush: 2 * time.Second})
		start := time.Now()
		for range 4 {
			export(t, o, records(5)...)
			time.Sleep(500 * time.Millisecond)
		}
		synctest.Wait()
		if len(r.times) != 1 || r.sizes[0] != 20 || r.times[0].Sub(start) != 2*time.Second {
			t.Errorf("got requests of %v records at %v, want one of 20 after 2s", r.sizes, r.times)
		}
		time.Sleep(time.Hour)
	})
}

func TestHeadersAndCompressionGoWithEveryRequest(t *testing.T) {
	for given, coding := range map[string]string{"": "gzip", "gzip": "gzip", "none": ""} {
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{}
			o := r.start(t, OTLPConfig{Compression: given, Headers: map[string]string{"X-Scope-OrgID": "blue"}})
			export(t, o, records(1)...)
			if err := closeOTLP(t, o, time.Minute); err != nil {
				t.Fatal(err)
			}
			if got := r.headers.Get("x-scope-orgid"); len(got) != 1 || got[0] != "blue" {
				t.Errorf("got %v, want the header", r.headers)
			}
			if got := r.headers.Get("user-agent"); len(got) != 1 || !strings.HasPrefix(got[0], "weft") {
				t.Errorf("got user agent %v, want weft", got)
			}
			if r.coding != coding {
				t.Errorf("compression %q: got %q on the wire, want %q", given, r.coding, coding)
			}
		})
	}
}

func BenchmarkDelivery(b *testing.B) {
	for _, compression := range []string{"gzip", "none"} {
		b.Run(compression, func(b *testing.B) {
			r := &receiver{}
			o, err := NewOTLP(OTLPConfig{Endpoint: "http://" + r.listen(b), Getenv: env(), Compression: compression, Flush: time.Nanosecond})
			if err != nil {
				b.Fatal(err)
			}
			batch := records(4000)
			for b.Loop() {
				export(b, o, batch...)
				eventually(b, "the answer", func() bool { return o.Account().Waiting == 0 })
			}
			if err := o.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(4000*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func TestShutdownGivesUpOnAReceiverThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(ctx context.Context, n int) (*collogs.ExportLogsServiceResponse, error) {
			if n <= 3 { // slow, and then stuck
				time.Sleep(1500 * time.Millisecond)
				return &collogs.ExportLogsServiceResponse{}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		o := r.start(t, OTLPConfig{Finish: 2 * time.Second, Compression: "none"})
		small := make([]flows.Record, 18_000) // five requests
		for i := range small {
			small[i] = icmpRecord()
		}
		export(t, o, small...)
		before := time.Now()
		if err := closeOTLP(t, o, time.Minute); err != nil {
			t.Errorf("got error %v, want none", err)
		}
		if took := time.Since(before); took != 3*1500*time.Millisecond+2*time.Second {
			t.Errorf("closed after %s, want 2s after the last answer", took)
		}
		a := o.Account()
		checkBalance(t, a)
		if a.Acknowledged != 12_000 || a.Lost["shutdown"] != 6_000 || a.Waiting != 0 {
			t.Errorf("got %+v, want 12000 acknowledged and 6000 lost at shutdown", a)
		}
	})
}

func TestStateNamesAReceiverThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang atomic.Bool
		hang.Store(true)
		r := &receiver{answer: func(ctx context.Context, _ int) (*collogs.ExportLogsServiceResponse, error) {
			if hang.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &collogs.ExportLogsServiceResponse{}, nil
		}}
		o := r.start(t, OTLPConfig{Metrics: time.Hour})
		state := func(after time.Duration, want string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := o.Status().State; !strings.HasPrefix(got, want) {
				t.Errorf("got state %q, want %q", got, want)
			}
		}
		state(0, "idle")
		export(t, o, records(5)...)
		since := time.Now().Add(time.Second).UTC().Format(time.RFC3339) // the flush
		state(3*time.Second, "waiting since "+since+" for an answer")
		state(9*time.Second, "retrying since "+since+": rpc error: code = DeadlineExceeded")
		hang.Store(false)
		state(20*time.Second, "ok")
		hang.Store(true)
		export(t, o, records(5)...)
		state(1500*time.Millisecond, "ok") // half a second is no news
		state(time.Second, "waiting since ")
	})
}

func TestStateTellsOfMetricsWhenRecordsAreWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		r.metrics.err = status.Error(codes.Unavailable, "no room")
		o := r.start(t, OTLPConfig{Metrics: time.Second})
		if err := o.Export(t.Context(), flows.Window{Ledger: flows.Ledger{At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := o.Status().State; !strings.HasPrefix(got, "metrics retrying since ") || !strings.HasSuffix(got, "no room") {
			t.Errorf("got state %q, want that metrics are not delivered", got)
		}
	})
}

// Metrics wait as long as the receiver asks; the next round has them.
func TestMetricsLeaveAReceiverAloneForAsLongAsItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		busy, err := status.New(codes.Unavailable, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(35 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		r.metrics.err = busy.Err()
		o := r.start(t, OTLPConfig{Metrics: 10 * time.Second})
		if err := o.Export(t.Context(), flows.Window{Ledger: flows.Ledger{At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		asked := func() int {
			r.metrics.mu.Lock()
			defer r.metrics.mu.Unlock()
			return len(r.metrics.requests)
		}
		time.Sleep(44 * time.Second)
		synctest.Wait()
		if n := asked(); n != 1 {
			t.Errorf("got %d requests before the time asked for, want 1", n)
		}
		r.metrics.mu.Lock()
		r.metrics.err = nil
		r.metrics.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := asked(); n != 2 {
			t.Errorf("got %d requests 10 s later, want 2", n)
		}
	})
}
