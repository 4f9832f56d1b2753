// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"weft/exporter/api"
	"weft/flows"
)

func serve(t *testing.T, s *Store, status func() *api.StatusResponse) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "weft.sock")
	server, err := ListenSocket(path, "", s, status)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
	})
	return path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), ClientOptions{Server: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close client: %v", err)
		}
	})
	return c
}

func TestClientReadsWhatTheStoreHolds(t *testing.T) {
	checkNoLeak(t)
	s := NewStore(5000)
	all := append(records(2000), icmpRecord(), bridgedRecord(3))
	export(t, s, all...)
	path := serve(t, s, nil)
	c := dial(t, path)
	for name, q := range map[string]struct {
		q    Query
		want []flows.Record
	}{
		"all":    {Query{}, all},
		"last":   {Query{Last: 2}, all[2000:]},
		"filter": {Query{Terms: []flows.Term{{Kind: "protocol", Value: "tcp", Negate: true}}}, all[2000:2001]},
	} {
		var got []flows.Record
		for o, err := range c.Observe(t.Context(), q.q) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got = append(got, *o.Record)
		}
		checkRecords(t, name, got, q.want)
	}
}

func TestClientFollowsUntilItsContextEnds(t *testing.T) {
	checkNoLeak(t)
	s := NewStore(5000)
	path := serve(t, s, nil)
	c := dial(t, path)
	all := records(300)
	export(t, s, all[:100]...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []flows.Record
	for o, err := range c.Observe(ctx, Query{Follow: true, Last: 1000}) {
		if err != nil {
			t.Fatalf("after %d records: %v", len(got), err)
		}
		got = append(got, *o.Record)
		if len(got) == 100 {
			export(t, s, all[100:]...)
		}
		if len(got) == 300 {
			cancel()
		}
	}
	checkRecords(t, "followed", got, all)

	for _, err := range c.Observe(t.Context(), Query{Follow: true, Last: 5}) {
		if err != nil {
			t.Fatal(err)
		}
		break // a reader that has enough leaves nothing behind: checkNoLeak
	}
}

func TestClientIsToldWhatASlowReaderLost(t *testing.T) {
	s := NewStore(64)
	path := serve(t, s, nil)
	c := dial(t, path)
	export(t, s, tcpRecord(0))
	const total = 100_000
	var seen, lost uint64
	batch := records(1000)
	for o, err := range c.Observe(t.Context(), Query{Follow: true, Last: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		if o.Record != nil {
			seen++
		}
		lost += o.Lost
		if seen == 1 && lost == 0 { // far more than the store and the stream hold
			for range total / 1000 {
				export(t, s, batch...)
			}
		}
		if seen+lost == total+1 {
			break
		}
	}
	if lost == 0 {
		t.Errorf("got %d records and no loss, want a notice of loss", seen)
	}
}

func TestClientReadsEveryLedger(t *testing.T) {
	s := NewStore(10)
	path := serve(t, s, nil)
	c := dial(t, path)
	var n uint64
	next := func() {
		n++
		w := flows.Window{Ledger: flows.Ledger{At: t0.Add(time.Duration(n) * time.Second), Made: n}}
		if err := s.Export(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	next()
	for l, err := range c.Ledger(t.Context(), false) {
		if err != nil || l.Made != 1 {
			t.Fatalf("got %d made, %v, want 1", l.Made, err)
		}
	}
	for l, err := range c.Ledger(t.Context(), true) {
		if err != nil || l.Made != n {
			t.Fatalf("got %d made, %v, want %d", l.Made, err, n)
		}
		if n == 5 {
			break
		}
		next()
	}
}

func TestStatusArrivesWhole(t *testing.T) {
	want := &api.StatusResponse{
		Version: "1.2.3", Started: t0.UnixNano(), Pid: 7, Kernel: "6.18", Cpus: 2,
		Settings: []*api.Setting{{Key: "dataplane.interval", Value: "1s"}},
		Sinks:    []*api.SinkStatus{{Account: AccountToWire(flows.SinkAccount{Name: "otlp", Lost: map[string]uint64{"refused": 2}})}},
		Points:   []*api.PointStatus{{At: PointToWire(flows.Point{Netns: 1, Ifindex: 2, Hook: 1}, flows.Hop{Interface: "e\xff"}), Attached: true}},
		Off:      []*api.Capability{{Name: "xdp", Needs: "CAP_NET_ADMIN", Err: "EPERM"}},
		Drain:    &api.DrainStatus{Drains: 3, LastNs: 5},
	}
	path := serve(t, NewStore(1), func() *api.StatusResponse { return want })
	got, err := dial(t, path).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	at, hop := PointFromWire(got.Points[0].At)
	if at != (flows.Point{Netns: 1, Ifindex: 2, Hook: 1}) || hop.Interface != "e\xff" {
		t.Errorf("got %v %v, want the point as it went in", at, hop)
	}
	if a := AccountFromWire(got.Sinks[0].Account); !reflect.DeepEqual(a.Lost, map[string]uint64{"refused": 2}) {
		t.Errorf("got %+v, want two refused", a)
	}
}

func TestStatusSurvivesTextThatIsNotUTF8(t *testing.T) {
	path := serve(t, NewStore(1), func() *api.StatusResponse {
		return &api.StatusResponse{
			Kernel: "6\xff", Sinks: []*api.SinkStatus{{State: "retrying: \xff", Account: AccountToWire(flows.SinkAccount{Name: "otlp"})}},
			Points: []*api.PointStatus{{Err: "attach to e\xff"}}, Drain: &api.DrainStatus{},
		}
	})
	got, err := dial(t, path).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Kernel != "6\uFFFD" || got.Sinks[0].State != "retrying: \uFFFD" || got.Points[0].Err != "attach to e\uFFFD" {
		t.Errorf("got %v, want the replacement character for what is no UTF-8", got)
	}
}

func TestFilterReachesNamesThatAreNotUTF8(t *testing.T) {
	s := NewStore(10)
	odd := tcpRecord(1)
	odd.Hops[0].Hop.Interface = "e\xff"
	export(t, s, tcpRecord(0), odd)
	path := serve(t, s, nil)
	var got []flows.Record
	for o, err := range dial(t, path).Observe(t.Context(), Query{Terms: []flows.Term{{Kind: "interface", Value: "e\xff"}}}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, *o.Record)
	}
	checkRecords(t, "filtered", got, []flows.Record{odd})
}

func TestBadFilterIsTheCallersMistake(t *testing.T) {
	path := serve(t, NewStore(1), nil)
	for _, err := range dial(t, path).Observe(t.Context(), Query{Terms: []flows.Term{{Kind: "ip", Value: "10.0.0"}}}) {
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "10.0.0") {
			t.Errorf("got %v, want a usage error that names the value", err)
		}
	}
}

func TestAbsentAgentIsAnErrorThatNamesTheMend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	if _, err := Dial(t.Context(), ClientOptions{Server: "unix://" + path}); err == nil || !strings.Contains(err.Error(), path) ||
		!strings.Contains(err.Error(), "is weftd running? start it with make run") {
		t.Errorf("no socket: got %v, want its path and the mend", err)
	}
	leaveStaleSocket(t, path)
	if _, err := Dial(t.Context(), ClientOptions{Server: path}); err == nil || !strings.Contains(err.Error(), "is weftd running? start it with make run") {
		t.Errorf("stale socket: got %v, want the mend", err)
	}
	for _, server := range []string{"", "localhost:80", "http://localhost", "unix://relative"} {
		if _, err := Dial(t.Context(), ClientOptions{Server: server}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: got %v, want a usage error", server, err)
		}
	}
}

func leaveStaleSocket(t *testing.T, path string) {
	t.Helper()
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSocketModesGroupsAndLeftovers(t *testing.T) {
	gid := os.Getgid()
	other := gid
	if os.Getuid() == 0 {
		other++ // anybody else may only name a group of his own
	}
	for name, c := range map[string]struct {
		group int
		mode  os.FileMode
		stale bool
	}{
		"root only":           {-1, 0o600, false},
		"with a group":        {other, 0o660, false},
		"over a dead agent's": {-1, 0o600, true},
	} {
		group, want := "", gid
		if c.group >= 0 {
			group, want = fmt.Sprint(c.group), c.group
		}
		path := filepath.Join(t.TempDir(), "deep", "weft.sock")
		if c.stale {
			path = filepath.Join(t.TempDir(), "weft.sock")
			leaveStaleSocket(t, path)
		}
		s, err := ListenSocket(path, group, NewStore(1), func() *api.StatusResponse { return &api.StatusResponse{} })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != c.mode || int(info.Sys().(*syscall.Stat_t).Gid) != want {
			t.Errorf("%s: got %v, %v, want mode %o and group %d", name, info, err, c.mode, want)
		}
		if _, err := ListenSocket(path, "", NewStore(1), nil); err == nil || !strings.Contains(err.Error(), "another weftd is listening on "+path) {
			t.Errorf("%s: second agent: got %v, want that another is listening", name, err)
		}
		if _, err := dial(t, path).Status(t.Context()); err != nil {
			t.Errorf("%s: after the second agent: got %v, want the first to answer", name, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}

func TestSocketIsRefusedWhereItWouldDoHarm(t *testing.T) {
	file := filepath.Join(t.TempDir(), "weft.sock")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSocket(file, "", NewStore(1), nil); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in its place: got %v, want it named", err)
	}
	if b, err := os.ReadFile(file); string(b) != "mine" || err != nil {
		t.Errorf("got %q, %v, want the file untouched", b, err)
	}
	for _, path := range []string{filepath.Join(file, "weft.sock"), "/proc/weft.sock", "/proc/deep/weft.sock"} {
		if _, err := ListenSocket(path, "", NewStore(1), nil); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "set listen.socket to") {
			t.Errorf("where none can be: got %v, want %s and the mend", err, path)
		}
	}
	foreign := filepath.Join(t.TempDir(), "weft.sock")
	other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: foreign, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := ListenSocket(foreign, "", NewStore(1), nil); err == nil || !strings.Contains(err.Error(), foreign) {
		t.Errorf("a socket of another kind: got %v, want it named", err)
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("a socket of another kind: got %v, want it left alone", err)
	}
	path := filepath.Join(t.TempDir(), "weft.sock")
	if _, err := ListenSocket(path, "no-such-group-here", NewStore(1), nil); err == nil || !strings.Contains(err.Error(), "no-such-group-here") {
		t.Errorf("unknown group: got %v, want it named", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown group: got %v, want no socket left", err)
	}
}
