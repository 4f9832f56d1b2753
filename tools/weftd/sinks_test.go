// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"weft/exporter"
	"weft/flows"
)

func TestSinkMistakesNameKeyLineAndMend(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no sink":        {"exporter: {sinks: [a]}", `:1: exporter.sinks must be a section of sinks`},
		"no kind":        {"exporter:\n  sinks:\n    siem: {}", `:3: exporter.sinks.siem: of no kind; give it one of otlp, file, stdout`},
		"two kinds":      {"exporter:\n  sinks:\n    a: {file: {path: /a}, stdout: {}}", `:3: exporter.sinks.a: file and stdout: a sink is of one kind`},
		"no path":        {"exporter:\n  sinks:\n    a:\n      file: {keep: 3}", ":3: exporter.sinks.a.file.path: missing; write the file's"},
		"short path":     {"exporter:\n  sinks:\n    a:\n      file: {path: flows.jsonl}", `:4: exporter.sinks.a.file.path="flows.jsonl": want the whole path`},
		"bad format":     {"exporter:\n  sinks:\n    a:\n      stdout: {format: xml}", `:4: exporter.sinks.a.stdout.format: "xml"`},
		"shared file":    {"exporter:\n  sinks:\n    a: {file: {path: /a}}\n    b: {file: {path: /a}}", ":4: exporter.sinks.b.file.path: /a is that of exporter.sinks.a.file.path; every sink needs"},
		"stdout alone":   {"exporter: {sinks: {a: {stdout: {}}}}", ""},
		"unknown kind":   {"exporter:\n  sinks:\n    siem:\n      otpl: {endpoint: a}", ":4: unknown key exporter.sinks.siem.otpl; did you mean exporter.sinks.siem.otlp"},
		"unknown key":    {"exporter:\n  sinks:\n    siem:\n      otlp: {endpoint: 'http://a:1', protocols: grpc}", ":4: unknown key exporter.sinks.siem.otlp.protocols; did you mean exporter.sinks.siem.otlp.protocol?"},
		"no endpoint":    {"exporter:\n  sinks:\n    siem:\n      otlp: {protocol: grpc}", ":3: exporter.sinks.siem.otlp.endpoint: missing; write the receiver's"},
		"bad name":       {"exporter:\n  sinks:\n    A B: {otlp: {endpoint: 'http://a:1'}}", `:3: exporter.sinks: "A B" is no name of a sink`},
		"taken name":     {"exporter:\n  sinks:\n    otlp: {otlp: {endpoint: 'http://a:1'}}", ":3: exporter.sinks.otlp: the agent has a sink otlp of its own; choose another name"},
		"twice":          {"exporter:\n  sinks:\n    a: {otlp: {endpoint: 'http://a:1'}}\n    a: {otlp: {endpoint: 'http://a:1'}}", ":4: exporter.sinks.a: given on line 3 already"},
		"bad value":      {"exporter:\n  sinks:\n    a:\n      otlp:\n        endpoint: http://a:1\n        flush: 5", `:6: exporter.sinks.a.otlp.flush: "5" is not a duration`},
		"bad protocol":   {"exporter:\n  sinks:\n    a:\n      otlp:\n        endpoint: http://a:1\n        protocol: pigeon", `:6: exporter.sinks.a.otlp.protocol="pigeon": want grpc`},
		"missing key":    {"exporter:\n  sinks:\n    a:\n      otlp:\n        endpoint: https://a:1\n        certificate: /c.pem", `:6: exporter.sinks.a.otlp.certificate="/c.pem": exporter.sinks.a.otlp.key or`},
		"shared spool":   {"exporter:\n  sinks:\n    a: {otlp: {endpoint: 'http://a:1', spool: {dir: /s}}}\n    b: {otlp: {endpoint: 'http://a:1', spool: {dir: /s/}}}", ":4: exporter.sinks.b.otlp.spool.dir: /s is that of exporter.sinks.a.otlp.spool.dir; every sink needs"},
		"spool of otlp":  {"exporter:\n  otlp: {endpoint: 'http://a:1'}\n  spool: {dir: /s}\n  sinks:\n    a: {otlp: {endpoint: 'http://a:1', spool: {dir: /s}}}", ":5: exporter.sinks.a.otlp.spool.dir: /s is that of exporter.spool.dir"},
		"bad term":       {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      filter:\n        - port 1\n        - prt 2", `:7: exporter.sinks.a.filter: filter "prt": no such filter`},
		"bad rate":       {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      sample: {rate: 10}", `:5: exporter.sinks.a.sample.rate: "10" is no share`},
		"slow alone":     {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      sample: {slow: 1s}", `:5: exporter.sinks.a.sample.slow: without a rate`},
		"no hash key":    {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      redact: {address: hash}", `:3: exporter.sinks.a.redact.key: missing`},
		"bad treatment":  {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      redact: {pod: truncate}", `:5: exporter.sinks.a.redact.pod: "truncate" is not one of keep, drop, hash`},
		"unknown field":  {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      redact: {pods: drop}", `:5: unknown key exporter.sinks.a.redact.pods; did you mean exporter.sinks.a.redact.pod?`},
		"ledger leaks":   {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1', ledger: on}\n      redact: {pod: drop}", `:4: exporter.sinks.a.otlp.ledger: the ledger names devices`},
		"tenants, kind":  {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      tenants: {b: {otlp: {endpoint: 'http://a:1'}, filter: vlan 7}}", `:3: exporter.sinks.a: otlp and tenants: a sink is of one kind; make 2 sinks of it`},
		"no tenant":      {"exporter:\n  sinks:\n    a:\n      tenants: {}", `:3: exporter.sinks.a.tenants: there is none; name one`},
		"no filter":      {"exporter:\n  sinks:\n    a:\n      tenants:\n        b: {otlp: {endpoint: 'http://a:1'}}", `:5: exporter.sinks.a.tenants.b.filter: missing; say which records`},
		"tenant default": {"exporter:\n  sinks:\n    a:\n      tenants:\n        default: {otlp: {endpoint: 'http://a:1'}}", `:5: exporter.sinks.a.tenants.default: that is the name of`},
		"tenant twice":   {"exporter:\n  sinks:\n    a:\n      tenants:\n        b: {otlp: {endpoint: 'http://a:1'}, filter: vlan 7}\n        b: {otlp: {endpoint: 'http://a:1'}, filter: vlan 7}", `:6: exporter.sinks.a.tenants.b: given on line 5 already`},
		"tenant spool":   {"exporter:\n  sinks:\n    a:\n      tenants:\n        b: {otlp: {endpoint: 'http://a:1', spool: {dir: /s}}, filter: vlan 7}\n        c: {otlp: {endpoint: 'http://a:1', spool: {dir: /s}}, filter: vlan 8}", `:6: exporter.sinks.a.tenants.c.otlp.spool.dir: /s is that of exporter.sinks.a.tenants.b.otlp.spool.dir`},
		"tenant ledger":  {"exporter:\n  sinks:\n    a:\n      tenants:\n        b: {otlp: {endpoint: 'http://a:1', ledger: on}, filter: vlan 7}", `:5: exporter.sinks.a.tenants.b.otlp.ledger: the ledger names devices and servers of the whole host`},
		"nested tenants": {"exporter:\n  sinks:\n    a:\n      tenants:\n        b: {tenants: {c: {}}, filter: vlan 7}", `:5: unknown key exporter.sinks.a.tenants.b.tenants`},
		"group redacts":  {"exporter:\n  sinks:\n    a:\n      redact: {pod: drop}\n      tenants:\n        b: {otlp: {endpoint: 'http://a:1'}, filter: vlan 7}", `:3: exporter.sinks.a.redact: each tenant has its own`},
		"default alone":  {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      default: {otlp: {endpoint: 'http://a:1'}}", `:3: exporter.sinks.a.default: it is for what belongs to no tenant`},
		"no folder":      {"exporter:\n  sinks:\n    a:\n      parquet: {age: 1m}", ":3: exporter.sinks.a.parquet.dir: is missing; name a folder"},
		"bad packing":    {"exporter:\n  sinks:\n    a:\n      parquet:\n        dir: /d\n        compression: rar", ":6: exporter.sinks.a.parquet.compression=rar: is not one of none, snappy, zstd"},
		"shared folder":  {"exporter:\n  sinks:\n    a: {parquet: {dir: /s}}\n    b: {parquet: {dir: /s/}}", ":4: exporter.sinks.b.parquet.dir: /s is that of exporter.sinks.a.parquet.dir"},
		"no service":     {"exporter:\n  sinks:\n    a: {flight: {path: t}}", ":3: exporter.sinks.a.flight.endpoint=: is no address; write for instance grpc+tls://"},
		"plain with ca":  {"exporter:\n  sinks:\n    a:\n      flight:\n        endpoint: grpc://h:1\n        ca: /c.pem", ":5: exporter.sinks.a.flight.endpoint=grpc://h:1: has no TLS"},
		"second mistake": {"exporter:\n  sinks:\n    a: {file: {path: /a}}\n    b:\n      flight:\n        endpoint: grpc://h:1\n        compression: rar", ":7: exporter.sinks.b.flight.compression=rar: is not one of none, zstd"},
		"flight header":  {"exporter:\n  sinks:\n    a:\n      flight:\n        endpoint: grpc://h:1\n        headers: {a b: c}", `:6: exporter.sinks.a.flight.headers: header name "a b": want only letters`},
		"flight secret":  {"exporter:\n  sinks:\n    a:\n      flight:\n        endpoint: grpc://user:secret@h:1", ":5: exporter.sinks.a.flight.endpoint: put user and password into the headers"},
		"idle prefix":    {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      redact: {ipv4: 24}", ":5: exporter.sinks.a.redact.ipv4: addresses are not truncated; write address: truncate"},
		"idle key":       {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1'}\n      redact: {key: /k}", ":5: exporter.sinks.a.redact.key: nothing is redacted; write what"},
		"folder as file": {"exporter:\n  sinks:\n    a:\n      file: {path: /a/}", `:4: exporter.sinks.a.file.path="/a/": want the path of a file`},
		"renamed file":   {"exporter:\n  sinks:\n    a: {file: {path: /d/f.jsonl}}\n    b: {file: {path: /d/f.000007.jsonl}}", ":4: exporter.sinks.b.file.path: /d/f.000007.jsonl is a name that files of exporter.sinks.a are renamed to"},
		"packed file":    {"exporter:\n  sinks:\n    a: {file: {path: /d/f.jsonl}}\n    b: {file: {path: /d/f.000007.jsonl.gz}}", ":4: exporter.sinks.b.file.path: /d/f.000007.jsonl.gz is a name"},
		"no temporality": {"exporter:\n  sinks:\n    a:\n      otlp: {endpoint: 'http://a:1', temporality: x}", `:4: exporter.sinks.a.otlp.temporality: "x" is not one of cumulative, delta, lowmemory`},
		"anchor is fine": {"exporter:\n  sinks:\n    a: {otlp: &x {endpoint: 'http://a:1'}}\n    b: {otlp: *x}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.text)
			_, err := loadConfig(path, nil)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v, want none", err)
			case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), path+c.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("got %v, want one line that begins with %s", err, c.want)
			}
		})
	}
}

func TestSinksOfTheEnvironmentAreOtlpsOwn(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	c, err := loadConfig(file(t, "exporter: {sinks: {a: {otlp: {endpoint: 'http://a:1', headers: {b: c}}}}}"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Sinks[0]; s.otlp.Protocol != "grpc" || c.OTLP.Wanted() {
		t.Errorf("got protocol %s and otlp %v, want grpc and no sink of exporter.otlp", s.otlp.Protocol, c.OTLP.Wanted())
	}
	shown := map[string]string{}
	for _, k := range c.settings() {
		shown[k.name] = k.show(&c)
	}
	if shown["exporter.sinks.a.otlp.headers"] != "b" || shown["exporter.sinks.a.otlp.endpoint"] != "http://a:1" || shown["log.level"] != "info" {
		t.Errorf("got settings %v, want the sink's, without the values of headers", shown)
	}
}

func TestReloadNamesWhatOfTheSinksNeedsARestart(t *testing.T) {
	load := func(text string) Config {
		c, err := loadConfig(file(t, "exporter:\n  sinks:\n"+text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const before = `    same: {otlp: {endpoint: "http://a:1", headers: {x: y}}, filter: port 1}
    gone: {stdout: {}}
    other: {stdout: {}}
    changed: {otlp: {endpoint: "http://a:1", headers: {x: secret}, flush: 1s}, sample: {rate: 0.5}}
    cloud: {tenants: {a: {otlp: {endpoint: "http://a:1"}, filter: vlan 7}, b: {otlp: {endpoint: "http://a:1"}, filter: vlan 7}}}
`
	const after = `    same: {otlp: {endpoint: "http://a:1", headers: {x: y}}, filter: port 1}
    other: {otlp: {endpoint: "http://a:1"}}
    changed: {otlp: {endpoint: "http://b:1", headers: {x: hidden}, flush: 1s}, sample: {rate: 0.5}}
    cloud: {tenants: {b: {otlp: {endpoint: "http://a:1"}, filter: vlan 7}, a: {otlp: {endpoint: "http://a:1"}, filter: vlan 8}}, default: {otlp: {endpoint: "http://a:1"}}}
`
	for _, c := range []struct {
		next string
		want []string
	}{
		{before, nil},
		{after, []string{
			"sink=gone in_force=stdout configured=none", "sink=other in_force=stdout configured=otlp",
			"key=exporter.sinks.changed.otlp.endpoint in_force=http://a:1 configured=http://b:1",
			"key=exporter.sinks.changed.otlp.headers in_force=x configured=x",
			`key=exporter.sinks.cloud.tenants.a.filter in_force="vlan 7" configured="vlan 8"`,
			"sink=cloud/default in_force=none configured=otlp",
		}},
	} {
		var text bytes.Buffer
		a := &agent{cfg: load(before), log: slog.New(slog.NewTextHandler(&text, nil))}
		next := load(c.next)
		a.reloadSinks(&next)
		got := strings.Split(strings.TrimSpace(text.String()), "\n")
		if text.Len() == 0 {
			got = nil
		}
		for i, want := range c.want {
			if i >= len(got) || !strings.HasSuffix(got[i], want) {
				t.Errorf("line %d: got %q, want %q", i, got, want)
			}
		}
		if len(got) != len(c.want) || strings.Contains(text.String(), "secret") {
			t.Errorf("got %d lines, want %d and no header's value:\n%s", len(got), len(c.want), text.String())
		}
	}
}

// receiver counts the log records that it was sent.
type receiver struct {
	records atomic.Uint64
	mu      sync.Mutex
	bodies  [][]byte
	*httptest.Server
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var m collogs.ExportLogsServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &m)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		r.bodies = append(r.bodies, body)
		r.mu.Unlock()
		for _, rl := range m.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				r.records.Add(uint64(len(sl.LogRecords)))
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// was reports whether text is in what the receiver was sent.
func (r *receiver) was(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.bodies, func(b []byte) bool { return bytes.Contains(b, []byte(text)) })
}

// hangs is an endpoint that takes connections and never answers.
func hangs(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0") // connections wait in its backlog for ever
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func testRecords(n int) []flows.Record {
	at := time.Unix(100, 0)
	records := make([]flows.Record, n)
	for i := range records {
		records[i] = flows.Record{Key: flows.Key{
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1234), Dst: netip.MustParseAddrPort("192.0.2.1:443"), Proto: flows.ProtoTCP,
		}, Start: at, End: at, Packets: 1, Bytes: 60}
	}
	return records
}

// sinkAgent is an agent with the sinks of a configuration, and nothing else.
func sinkAgent(t *testing.T, text string) *agent {
	t.Helper()
	c, err := loadConfig(file(t, text), nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{cfg: c, log: slog.New(slog.DiscardHandler), table: flows.NewTable(flows.TableOptions{}),
		store: exporter.NewStore(16), refused: map[string]string{}}
	a.sinks = append(a.sinks, a.store)
	if err := a.openOutlets(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.closeSinks(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return a
}

// offer delivers one window of n records.
func (a *agent) offer(n int) {
	at := time.Unix(100, 0)
	a.deliver(flows.Window{End: at, Records: testRecords(n), Ledger: flows.Ledger{At: at, Made: uint64(n)}})
}

// account is that of the sink of that name in the ledger of now.
func (a *agent) account(t *testing.T, name string) flows.SinkAccount {
	t.Helper()
	for _, s := range a.accounted() {
		if s.Name() == name {
			return s.Account()
		}
	}
	t.Fatalf("no sink %s", name)
	return flows.SinkAccount{}
}

// eventually polls what until it is nil.
func eventually(t *testing.T, what func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if err = what(); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestHangingSinkHoldsUpNeitherTheDrainNorAnother(t *testing.T) {
	live := newReceiver(t)
	a := sinkAgent(t, `exporter:
  otlp: {endpoint: "http://`+hangs(t)+`", protocol: http/protobuf}
  flush: 10ms
  finish: 50ms
  sinks:
    dead: {otlp: {endpoint: "http://`+hangs(t)+`", flush: 10ms, finish: 50ms, ledger: off}}
    live: {otlp: {endpoint: "`+live.URL+`", protocol: http/protobuf, compression: none, flush: 10ms, ledger: off}}
    tiny: {otlp: {endpoint: "http://`+hangs(t)+`", flush: 10ms, finish: 50ms, queue: 10, ledger: off}}
`)
	const n = 3000
	began := time.Now()
	a.offer(n)
	if took := time.Since(began); took > time.Second {
		t.Errorf("delivery took %s, want far less than any time-out", took)
	}
	eventually(t, func() error {
		if got := live.records.Load(); got != n {
			return fmt.Errorf("the live receiver got %d records, want %d while the others hang", got, n)
		}
		if got := a.account(t, "live"); got.Acknowledged != n {
			return fmt.Errorf("live: got %+v, want all acknowledged", got)
		}
		return nil
	})
	for _, name := range []string{"otlp", "dead"} {
		if got := a.account(t, name); got.Waiting != n || got.TotalLost() != 0 {
			t.Errorf("%s: got %+v, want all waiting", name, got)
		}
	}
	if got := a.account(t, "tiny"); got.Lost["queue_full"] != n-10 {
		t.Errorf("tiny: got %+v, want its own queue of 10", got)
	}
	if l, _ := a.store.Ledger(); len(l.Sinks) != 5 || !l.Balanced() {
		t.Errorf("got ledger %+v, error %v, want a balanced account of each sink", l.Sinks, l.Check())
	}
}

// TestEveryStageIsMeasured, of each sink, in /metrics; what was encoded is what
// was sent. Tenants, which may be thousands, have no such series.
func TestEveryStageIsMeasured(t *testing.T) {
	all, one := newReceiver(t), newReceiver(t)
	dir := t.TempDir()
	a := sinkAgent(t, `listen: {http: "127.0.0.1:0"}
exporter:
  sinks:
    siem: {otlp: {endpoint: "`+all.URL+`", protocol: http/protobuf, flush: 10ms, spool: {dir: `+dir+`/spool}}}
    disk: {file: {path: `+dir+`/flows.jsonl, flush: 10ms}}
    lake: {parquet: {dir: `+dir+`/lake, age: 1s}}
    them: {tenants: {one: {otlp: {endpoint: "`+one.URL+`", protocol: http/protobuf, flush: 10ms}, filter: from-ip 10.0.0.0/8}}}
`)
	if err := a.listenHTTP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.web.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	a.offer(600)
	var text string
	count := func(name, sink, stage string) (n float64) {
		_, rest, found := strings.Cut(text, fmt.Sprintf("\nweft_stage_%s{sink=%q,stage=%q} ", name, sink, stage))
		if _, err := fmt.Sscan(rest, &n); found && err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, func() error {
		answer, err := http.Get("http://" + a.web.Addr() + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		page, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		text = string(page)
		for sink, stages := range map[string][]exporter.Stage{
			"":     {exporter.StageName, exporter.StageOffer},
			"siem": {exporter.StageQueue, exporter.StageEncode, exporter.StageSpool, exporter.StageUnspool, exporter.StageSend},
			"disk": {exporter.StageQueue, exporter.StageEncode, exporter.StageWrite},
			"lake": {exporter.StageQueue, exporter.StageEncode, exporter.StageWrite},
		} {
			for _, stage := range stages {
				if count("duration_seconds_count", sink, string(stage)) == 0 {
					return fmt.Errorf("stage %q of sink %q was never", stage, sink)
				}
			}
		}
		if count("bytes_total", "lake", "write") == 0 {
			return errors.New("nothing was written into a Parquet file")
		}
		return nil
	})
	if e, u, s := count("bytes_total", "siem", "encode"), count("bytes_total", "siem", "unspool"), count("bytes_total", "siem", "send"); e < 600*50 || u != e || s != e {
		t.Errorf("got %v bytes encoded, %v from the spool, %v sent: want as many", e, u, s)
	}
	if e, w := count("bytes_total", "disk", "encode"), count("bytes_total", "disk", "write"); e < 600*50 || w != e {
		t.Errorf("got %v bytes encoded, %v written: want as many", e, w)
	}
	if s, w := count("bytes_total", "siem", "spool"), count("bytes_total", "lake", "write"); s == 0 || s >= 600*50 || w == 0 {
		t.Errorf("got %v bytes in the spool, %v in the Parquet file: want some, compressed", s, w)
	}
	if strings.Contains(text, `sink="them/one",stage=`) {
		t.Error("a tenant has series of stages, want none")
	}
}

func TestSinkTakesWhatItsFilterAndItsRateSay(t *testing.T) {
	some, few := newReceiver(t), newReceiver(t)
	a := sinkAgent(t, `exporter:
  sinks:
    some: {otlp: {endpoint: "`+some.URL+`", protocol: http/protobuf, compression: none, flush: 10ms, ledger: off}, filter: [from-ip 10.0.1.0/24, not from-ip 10.0.1.7]}
    few: {otlp: {endpoint: "`+few.URL+`", protocol: http/protobuf, compression: none, flush: 10ms, ledger: off}, sample: {rate: 0.5, slow: 1s}}
`)
	a.offer(600)
	eventually(t, func() error {
		kept := a.account(t, "few")
		if some.records.Load() != 255 || few.records.Load() != 600-kept.LeftOut["sampled_out"] || kept.Waiting > 0 {
			return fmt.Errorf("receivers got %d and %d records of %+v, want 255 and what was not sampled out", some.records.Load(), few.records.Load(), kept)
		}
		return nil
	})
	if got := a.account(t, "some").LeftOut["filtered"]; got != 345 {
		t.Errorf("some: got %d filtered, want 345 of 600", got)
	}
	if left := a.account(t, "few").LeftOut["sampled_out"]; left < 200 || left > 400 {
		t.Errorf("few: got %d of 600 sampled out, want about half", left)
	}
	if l, _ := a.store.Ledger(); !l.Balanced() {
		t.Error(l.Check())
	}
}

func TestOneSinkRedactsAndTheOtherDoesNot(t *testing.T) {
	open, shut := newReceiver(t), newReceiver(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("a key of more than sixteen bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := sinkAgent(t, `exporter:
  sinks:
    open: {otlp: {endpoint: "`+open.URL+`", community_id: on, protocol: http/protobuf, compression: none, flush: 10ms, ledger: off}}
    shut: {otlp: {endpoint: "`+shut.URL+`", community_id: on, protocol: http/protobuf, compression: none, flush: 10ms}, redact: {key: `+path+`, names: drop, address: hash, pod: hash}}
`)
	if c := a.cfg.Sinks[1].redact; c.Fields[exporter.RedactPod] != exporter.Hash || c.Fields[exporter.RedactNode] != exporter.Drop {
		t.Errorf("got fields %v, want names dropped but for the pod", c.Fields)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	a.offer(100)
	eventually(t, func() error {
		if open.records.Load() != 100 || shut.records.Load() != 100 {
			return fmt.Errorf("got %d and %d records, want 100 each", open.records.Load(), shut.records.Load())
		}
		return nil
	})
	for _, text := range []string{"10.0.0.7", "192.0.2.1", "weft.flow.community_id", host} {
		if !open.was(text) || shut.was(text) {
			t.Errorf("%q: got it %t in what is open and %t in what is redacted, want true and false", text, open.was(text), shut.was(text))
		}
	}
}

func TestDeadTenantDelaysNeitherTheDrainNorAnotherTenant(t *testing.T) {
	blue, red, rest := newReceiver(t), newReceiver(t), newReceiver(t)
	quick := `protocol: http/protobuf, compression: none, flush: 10ms, finish: 50ms`
	a := sinkAgent(t, `exporter:
  sinks:
    cloud:
      filter: [not port 53]
      tenants:
        dead: {filter: namespace dead, otlp: {endpoint: "http://`+hangs(t)+`", `+quick+`, queue: 50}}
        blue: {filter: namespace blue, otlp: {endpoint: "`+blue.URL+`", `+quick+`, headers: {x-tenant: blue}}}
        red: {filter: [label team=red, vlan 7], otlp: {endpoint: "`+red.URL+`", `+quick+`}, redact: {address: drop}}
        vm: {filter: vm web*, otlp: {endpoint: "`+red.URL+`", `+quick+`}}
      default: {otlp: {endpoint: "`+rest.URL+`", `+quick+`}}
    alone:
      tenants:
        blue: {filter: from-namespace blue, otlp: {endpoint: "`+blue.URL+`", `+quick+`}}
`)
	at := time.Unix(100, 0)
	records := testRecords(1000)
	ends := []*flows.Entity{{Namespace: "dead"}, {Namespace: "blue"}, {Labels: map[string]string{"team": "red"}}, {VM: "web1"}, nil}
	for i := range records {
		r := &records[i]
		switch end := ends[i%len(ends)]; i % 2 {
		case 0:
			r.Source = end
		default:
			r.Destination = end
		}
		switch {
		case i < 10:
			r.Key.Dst = netip.MustParseAddrPort("192.0.2.1:53")
		case i%len(ends) == 2:
			r.Scope.VLAN.Outer = 7
		case i < 20 && i%len(ends) == 1:
			r.Source, r.Destination = ends[0], ends[1] // of two tenants
		}
	}
	began := time.Now()
	a.deliver(flows.Window{End: at, Records: records, Ledger: flows.Ledger{At: at, Made: 1000}})
	if took := time.Since(began); took > time.Second {
		t.Errorf("delivery took %s, want far less than any time-out", took)
	}
	eventually(t, func() error {
		// Of 990 without port 53 each kind of end has 198; both of two tenants' are the blue one's too.
		got := [4]uint64{a.account(t, "cloud/blue").Acknowledged, a.account(t, "cloud/red").Acknowledged, a.account(t, "cloud/vm").Acknowledged, a.account(t, "cloud/default").Acknowledged}
		if want := [4]uint64{198, 198, 198, 198}; got != want {
			return fmt.Errorf("got %v acknowledged by blue, red, vm and default, want %v while dead hangs", got, want)
		}
		if n := a.account(t, "alone/blue").Acknowledged; red.records.Load() != 396 || rest.records.Load() != 198 || blue.records.Load() != 198+n {
			return fmt.Errorf("receivers got %d, %d and %d records, want what is acknowledged", blue.records.Load(), red.records.Load(), rest.records.Load())
		}
		return nil
	})
	if got := a.account(t, "cloud/dead"); got.Offered != 200 || got.Waiting != 50 || got.Lost["queue_full"] != 150 {
		t.Errorf("dead: got %+v, want 200 offered and its own queue of 50", got)
	}
	if got := a.account(t, "cloud"); got.Offered != 1000 || got.LeftOut["filtered"] != 10 || got.LeftOut["routed"] != 990 || got.LeftOut["no_tenant"] != 0 {
		t.Errorf("cloud: got %+v, want 1000 offered, 10 filtered, 990 routed", got)
	}
	if got := a.account(t, "alone"); got.LeftOut["no_tenant"] != 1000-a.account(t, "alone/blue").Offered || got.LeftOut["no_tenant"] < 800 {
		t.Errorf("alone: got %+v, want the rest counted as no_tenant", got)
	}
	if l, _ := a.store.Ledger(); len(l.Sinks) != 9 || !l.Balanced() {
		t.Errorf("got %d accounts, error %v, want 9 that balance", len(l.Sinks), l.Check())
	}
	if blue.was("team") || !red.was("web1") {
		t.Error("want each tenant's records at its receiver only")
	}
}

// The whole way: traffic, the agent, files that a reader takes.
func TestAgentWritesParquetFiles(t *testing.T) {
	h := newHouse(t)
	dir := filepath.Join(h.dir, "lake")
	w := h.start(t, "dataplane: {interfaces: ["+device+"]}\nexporter: {sinks: {lake: {parquet: {dir: "+dir+", age: 1s}}}}\n")
	h.talk(t, 7000, 1000)
	h.talk(t, 7001, 1000)
	h.eventually(t, "the first file", func() error {
		if files, err := filepath.Glob(filepath.Join(dir, "*.parquet")); err != nil || len(files) == 0 {
			return fmt.Errorf("files %v, %w", files, err)
		}
		return nil
	})
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != 0 {
		t.Fatalf("got exit code %d, want 0", code)
	}
	files, err := filepath.Glob(filepath.Join(dir, "weft-*"))
	if err != nil {
		t.Fatal(err)
	}
	rows := int64(0)
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		p, err := parquet.OpenFile(f, info.Size())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		rows += p.NumRows()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if want := fmt.Sprintf("lake.acknowledged=%d lake.lost=0", rows); rows < 2 || !strings.Contains(w.log.String(), want) {
		t.Errorf("got %d rows in %v, want at least 2 and a last line with %s", rows, files, want)
	}
}
