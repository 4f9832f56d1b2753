// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"weft/flows"
)

// flightService is a real Flight server that keeps what is put, once for each id.
type flightService struct {
	flight.BaseFlightServer
	t *testing.T
	// behave is called before a batch is kept, by its number from 0 on; an error ends the stream.
	behave func(batch int) error
	refuse string // the beginning of the id that is refused, each time; empty: none
	answer bool   // to each batch, with its id

	mu       sync.Mutex
	rows     map[string][]map[string]any // by id
	batches  int
	streams  int
	headers  metadata.MD
	paths    []string
	repeated int // batches whose id was there already
}

func (s *flightService) DoPut(put flight.FlightService_DoPutServer) error {
	s.mu.Lock()
	s.streams++
	s.headers, _ = metadata.FromIncomingContext(put.Context())
	s.mu.Unlock()
	r, err := flight.NewRecordReader(put)
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		s.mu.Lock()
		batch := s.batches
		s.batches++
		s.mu.Unlock()
		if s.behave != nil {
			if err := s.behave(batch); err != nil {
				return err
			}
		}
		id := string(r.LatestAppMetadata())
		if s.refuse != "" && strings.HasPrefix(id, s.refuse) {
			return status.Error(codes.InvalidArgument, "a value is out of range")
		}
		s.keep(id, r)
		if s.answer {
			if err := put.Send(&flight.PutResult{AppMetadata: []byte(id)}); err != nil {
				return err
			}
		}
	}
	if put.Context().Err() != nil {
		return put.Context().Err()
	}
	return r.Err()
}

func (s *flightService) keep(id string, r *flight.Reader) {
	rec := r.RecordBatch()
	var rows []map[string]any
	for i := range int(rec.NumRows()) {
		rows = append(rows, gotRow(s.t, rec, i))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths = r.LatestFlightDescriptor().GetPath()
	if _, ok := s.rows[id]; ok {
		s.repeated++
	}
	s.rows[id] = rows
}

// all are the rows of all ids.
func (s *flightService) all() (rows []map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rows {
		rows = append(rows, r...)
	}
	return rows
}

// serve starts s on lis, or on a port of its own.
func (s *flightService) serve(t *testing.T, lis net.Listener, options ...grpc.ServerOption) net.Listener {
	t.Helper()
	s.t = t
	if s.rows == nil {
		s.rows = map[string][]map[string]any{}
	}
	if lis == nil {
		var err error
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	server := grpc.NewServer(append(options, grpc.WaitForHandlers(true))...)
	flight.RegisterFlightServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("service: %v", err)
		}
	})
	return lis
}

func newTestFlight(t *testing.T, c FlightConfig, log *slog.Logger) *Flight {
	t.Helper()
	c.Metadata = map[string]string{"service.name": "weft"}
	if c.Flush == 0 {
		c.Flush = 5 * time.Millisecond
	}
	f, err := NewFlight(c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := f.Close(ctx); err != nil && !strings.Contains(err.Error(), "closing") {
			t.Error(err)
		}
	})
	return f
}

func wantRows(records []flows.Record, derived bool) (rows []map[string]any) {
	for i := range records {
		rows = append(rows, wantRow(&records[i], derived))
	}
	return rows
}

func TestFlightServiceGetsWhatTheTableOfNamesSays(t *testing.T) {
	for name, c := range map[string]struct {
		config FlightConfig
		answer bool
		unix   bool
	}{
		"answers each batch": {FlightConfig{Derived: true}, true, false},
		"answers at the end": {FlightConfig{Compression: "none"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &flightService{answer: c.answer}
			c.config.Headers, c.config.Path = map[string]string{"authorization": "Bearer x"}, "flows"
			if c.unix {
				socket := filepath.Join(t.TempDir(), "s.sock")
				lis, err := net.Listen("unix", socket)
				if err != nil {
					t.Fatal(err)
				}
				s.serve(t, lis)
				c.config.Endpoint = "grpc+unix://" + socket
			} else {
				c.config.Endpoint = "grpc://" + s.serve(t, nil).Addr().String()
			}
			f := newTestFlight(t, c.config, nil)
			r := rand.New(rand.NewPCG(13, 1))
			var all []flows.Record
			for round := range 10 {
				window := anyRecords(r, 1+r.IntN(200))
				all = append(all, window...)
				exportRecords(t, f, window)
				if c.answer {
					eventually(t, "it is acknowledged", func() bool { return f.Account().Acknowledged == uint64(len(all)) })
				}
				requireBalanced(t, f.Account())
				_ = round
			}
			if err := f.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if a := f.Account(); a.Acknowledged != uint64(len(all)) || a.Waiting != 0 {
				t.Errorf("got account %+v, want %d acknowledged", a, len(all))
			}
			requireRows(t, name, s.all(), wantRows(all, c.config.Derived))
			if s.repeated != 0 || strings.Join(s.headers.Get("authorization"), "") != "Bearer x" || strings.Join(s.paths, "/") != "flows" {
				t.Errorf("got %d repeated ids, headers %v, path %v; want none, ours and flows", s.repeated, s.headers, s.paths)
			}
		})
	}
}

// A stream is kept while the columns are the same.
func TestFlightStreamIsKept(t *testing.T) {
	s := &flightService{answer: true}
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + s.serve(t, nil).Addr().String()}, nil)
	for i := range 20 {
		exportRecords(t, f, figured(10))
		eventually(t, "it is acknowledged", func() bool { return f.Account().Acknowledged == uint64(i+1)*10 })
	}
	if s.streams != 1 || s.batches < 20 {
		t.Errorf("got %d streams of %d batches, want one of at least 20", s.streams, s.batches)
	}
}

func TestFlightFailuresLoseNothingThatCouldBeKept(t *testing.T) {
	for name, c := range map[string]struct {
		fail       error
		lost, want string // reason; words of the state or log
	}{
		"busy":        {status.Error(codes.Unavailable, "try later"), "", "try later"},
		"reset":       {status.Error(codes.Aborted, "aborted"), "", "aborted"},
		"refuses":     {status.Error(codes.InvalidArgument, "no such column"), "refused", "no such column"},
		"denies":      {status.Error(codes.PermissionDenied, "not you"), "refused", "not you"},
		"exhausted":   {status.Error(codes.ResourceExhausted, "quota"), "refused", "quota"},
		"takes small": {status.Error(codes.ResourceExhausted, "grpc: received message larger than max (1 vs. 2)"), "", "smaller"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &flightService{behave: func(batch int) error {
				if batch == 1 {
					return c.fail
				}
				return nil
			}, answer: true}
			var log syncBuffer
			f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + s.serve(t, nil).Addr().String()}, slog.New(slog.NewTextHandler(&log, nil)))
			all := figured(30)
			for i := range 3 { // the second fails
				exportRecords(t, f, all[i*10:i*10+10])
				eventually(t, "it is settled", func() bool { a := f.Account(); return a.Waiting == 0 })
			}
			a := f.Account()
			requireBalanced(t, a)
			want := all
			if c.lost != "" {
				want = append(append([]flows.Record{}, all[:10]...), all[20:]...)
			}
			if a.Acknowledged != uint64(len(want)) || a.Lost[c.lost] != uint64(len(all)-len(want)) {
				t.Errorf("got account %+v, want %d acknowledged, the rest lost as %q", a, len(want), c.lost)
			}
			requireRows(t, name, s.all(), wantRows(want, false))
			if text := log.String(); !strings.Contains(text, c.want) || strings.Count(text, "takes no records") != 1 || f.State() != "" {
				t.Errorf("got state %q, log\n%s\nwant one line with %q, and all well in the end", f.State(), text, c.want)
			}
		})
	}
}

// The service answers no batch. Of three on one stream it refuses the last, and says so with none of their ids.
func TestFlightLosesOnlyTheBatchThatIsRefused(t *testing.T) {
	s := &flightService{refuse: batchID(2, 0)[:16]}
	var log syncBuffer
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + s.serve(t, nil).Addr().String()}, slog.New(slog.NewTextHandler(&log, nil)))
	all := figured(40)
	for i := range 4 {
		exportRecords(t, f, all[i*10:i*10+10])
		eventually(t, "it arrives", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.batches > i })
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := f.Account()
	requireBalanced(t, a)
	if a.Acknowledged != 30 || a.Lost["refused"] != 10 {
		t.Errorf("got account %+v, want 30 acknowledged and 10 refused", a)
	}
	requireRows(t, "all but the third", s.all(), wantRows(append(append([]flows.Record{}, all[:20]...), all[30:]...), false))
	if n := strings.Count(log.String(), "service refuses records, which are not sent again"); n != 1 {
		t.Errorf("got %d lines of records refused, want one:\n%s", n, log.String())
	}
}

// The answer to a batch is lost: it comes again under its id.
func TestFlightSendsAgainUnderTheSameId(t *testing.T) {
	s := &flightService{}
	failed := false
	s.behave = func(batch int) error {
		if batch == 1 && !failed { // of two batches on one stream without answers
			failed = true
			return status.Error(codes.Unavailable, "restarted")
		}
		return nil
	}
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + s.serve(t, nil).Addr().String()}, nil)
	all := figured(20)
	exportRecords(t, f, all[:10])
	eventually(t, "the first batch is there", func() bool { return len(s.all()) == 10 })
	exportRecords(t, f, all[10:])
	eventually(t, "it fails", func() bool { return f.State() != "" || len(s.all()) == 20 })
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := f.Account(); a.Acknowledged != 20 || s.repeated != 1 {
		t.Errorf("got account %+v, %d ids twice; want all acknowledged, and the first batch twice", a, s.repeated)
	}
	requireRows(t, "each id once", s.all(), wantRows(all, false))
}

// Nobody is there, then somebody is.
func TestFlightWaitsForAService(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc+unix://" + socket, Queue: 40}, nil)
	all := figured(50)
	exportRecords(t, f, all)
	eventually(t, "nobody is there", func() bool { return strings.Contains(f.State(), "no such file") })
	if a := f.Account(); a.Waiting != 40 || a.Lost["queue_full"] != 10 {
		t.Errorf("got account %+v, want 40 waiting and 10 lost as the queue was full", a)
	}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &flightService{answer: true}
	s.serve(t, lis)
	eventually(t, "it is acknowledged", func() bool { return f.Account().Acknowledged == 40 })
	requireRows(t, "after", s.all(), wantRows(all[:40], false))
}

// A service that takes the stream and then neither reads nor answers.
func TestFlightServiceThatHangsHoldsUpNothing(t *testing.T) {
	hang := make(chan struct{})
	s := &flightService{behave: func(int) error { <-hang; return status.Error(codes.Unavailable, "over") }}
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + s.serve(t, nil).Addr().String(), Queue: 100}, nil)
	t.Cleanup(func() { close(hang) })
	for range 30 {
		begin := time.Now()
		exportRecords(t, f, figured(10))
		if d := time.Since(begin); d > time.Second {
			t.Fatalf("a window took %s to export, want no wait", d)
		}
	}
	eventually(t, "the service hangs", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.batches > 0 })
	eventually(t, "the state to say so", func() bool { return strings.HasPrefix(f.Status().State, "waiting since ") })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	a := f.Account()
	requireBalanced(t, a)
	if a.Waiting != 0 || a.Lost["queue_full"] != 200 || a.Lost["shutdown"] != 100 {
		t.Errorf("got account %+v, want 200 lost as the queue was full and 100 to the shutdown", a)
	}
}

// A gRPC server that takes messages of 24 KiB only.
func TestFlightBatchesShrinkToWhatTheServiceTakes(t *testing.T) {
	s := &flightService{answer: true}
	lis := s.serve(t, nil, grpc.MaxRecvMsgSize(24<<10))
	f := newTestFlight(t, FlightConfig{Endpoint: "grpc://" + lis.Addr().String(), Compression: "none"}, nil)
	all := figured(1000)
	exportRecords(t, f, all)
	eventually(t, "it is acknowledged", func() bool { return f.Account().Waiting == 0 })
	if a := f.Account(); a.Acknowledged != 1000 {
		t.Fatalf("got account %+v, want all acknowledged", a)
	}
	if s.repeated != 0 || f.rows > 200 {
		t.Errorf("got %d ids twice, batches of %d; want none, and small ones", s.repeated, f.rows)
	}
	requireRows(t, "small batches", s.all(), wantRows(all, false))
}

func TestFlightTrustsWhomItIsTold(t *testing.T) {
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AddCert(pair.Leaf)
	stranger, strangerKey := certificate(t)
	for name, c := range map[string]struct {
		ca, cert, key string
		asks          tls.ClientAuthType
		want          string
	}{
		"the authority is named":         {ca: cert},
		"it is not":                      {want: "unknown authority"},
		"the service knows the client":   {ca: cert, cert: cert, key: key, asks: tls.RequireAndVerifyClientCert},
		"the client shows nothing":       {ca: cert, asks: tls.RequireAndVerifyClientCert, want: "certificate required"},
		"the service knows it as nobody": {ca: cert, cert: stranger, key: strangerKey, asks: tls.RequireAndVerifyClientCert, want: "unknown certificate authority"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &flightService{answer: true}
			lis := s.serve(t, nil, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: c.asks, ClientCAs: known})))
			f := newTestFlight(t, FlightConfig{Endpoint: "grpc+tls://" + lis.Addr().String(), CA: c.ca, Certificate: c.cert, Key: c.key}, nil)
			exportRecords(t, f, figured(5))
			if c.want != "" {
				eventually(t, c.want, func() bool { return strings.Contains(f.State(), c.want) })
				if a := f.Account(); a.Acknowledged != 0 || a.Waiting != 5 {
					t.Errorf("got %+v, want all 5 to wait", a)
				}
				return
			}
			eventually(t, "it is acknowledged", func() bool { return f.Account().Acknowledged == 5 })
		})
	}
}

// In a bubble: the service reads a batch, and says nothing until it is asked to, and
// nothing then.
func TestFlightServiceWithoutAnAnswerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lis := bufconn.Listen(1 << 20)
		hung := true
		s := &flightService{}
		s.behave = func(batch int) error {
			if batch == 0 && hung {
				hung = false
				time.Sleep(time.Minute)
			}
			return nil
		}
		s.serve(t, lis)
		c := FlightConfig{Endpoint: "grpc://127.0.0.1:1", Flush: time.Second, Metadata: map[string]string{"service.name": "weft"}}
		f, err := newFlight(c, nil, func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		exportRecords(t, f, figured(5))
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if f.State() != "" || f.Account().Waiting != 5 {
			t.Errorf("after 15 s: got state %q, account %+v; want it waiting", f.State(), f.Account())
		}
		for f.State() == "" {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(begin); d < 20*time.Second || d > 22*time.Second || !strings.Contains(f.State(), "no answer for 10s") {
			t.Errorf("got state %q after %s, want no answer 10 s after the end of a stream of 10 s", f.State(), d)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if a := f.Account(); a.Acknowledged != 5 || f.State() != "" {
			t.Errorf("got account %+v, state %q; want it acknowledged by another stream", a, f.State())
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFlightConfigNamesEachMistake(t *testing.T) {
	for key, c := range map[string]FlightConfig{
		"endpoint=: is no":          {},
		"endpoint=http://h:1":       {Endpoint: "http://h:1"},
		"endpoint=grpc://h: ":       {Endpoint: "grpc://h"},
		"endpoint=grpc://h:1/flows": {Endpoint: "grpc://h:1/flows"},
		"has no TLS":                {Endpoint: "grpc://h:1", CA: "x"},
		"names no socket":           {Endpoint: "grpc+unix://"},
		"ca: open /nowhere":         {Endpoint: "grpc+tls://h:1", CA: "/nowhere"},
		"certificate: and key":      {Endpoint: "grpc+tls://h:1", Certificate: "x"},
		"flush=-1s":                 {Endpoint: "grpc://h:1", Flush: -time.Second},
		"compression=lz4":           {Endpoint: "grpc://h:1", Compression: "lz4"},
	} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v, want %s in it", err, key)
		}
		if _, err := NewFlight(c, nil); err == nil {
			t.Errorf("%s: got a sink, want the error", key)
		}
	}
}
