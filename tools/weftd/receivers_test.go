//go:build receivers

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// program is one that other people wrote, running on the loopback of the
// agent's namespace.
type program struct {
	*house
	address string // host:port of HTTP
	dial    func(network, address string) (net.Conn, error)
	client  *http.Client
}

// receive runs the named program of the folder that `make test-receivers` filled, and waits
// until it answers on page; empty: until it listens.
func (h *house) receive(t *testing.T, name, address, page string, args ...string) *program {
	t.Helper()
	path := filepath.Join(os.Getenv("RECEIVERS"), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run this by make test-receivers, which builds it", err)
	}
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + h.here, path}, args...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its exit code is its own affair
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", name, log.Bytes()[max(0, log.Len()-4000):])
		}
	})
	r := &program{house: h, address: address, dial: func(network, addr string) (conn net.Conn, err error) {
		h.in(t, h.here, func() error { conn, err = net.Dial(network, addr); return nil })
		return conn, err
	}}
	r.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: r.dial}}
	h.eventually(t, name+" answers", func() error {
		if page != "" {
			_, err := r.ask(page)
			return err
		}
		conn, err := r.dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return r
}

// ask is the body of a page.
func (r *program) ask(page string) ([]byte, error) {
	resp, err := r.client.Get("http://" + r.address + page)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", page, resp.Status, body)
	}
	return body, err
}

// traffic is connections of several sizes, and datagrams, and then silence: what is
// counted no longer moves.
func (h *house) traffic(t *testing.T) {
	t.Helper()
	for i := range 8 {
		h.talk(t, 5100+i, 1000<<i)
	}
	h.in(t, h.here, func() error {
		for port := range 5 {
			conn, err := net.Dial("udp", net.JoinHostPort(thereAddr, strconv.Itoa(6000+port)))
			if err != nil {
				return err
			}
			for range 10 * (port + 1) {
				if _, err := conn.Write(make([]byte, 100)); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
					return err
				}
			}
			if err := conn.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

// series is one of a metric, by its labels; those of the agent's own page have the
// names that receivers give them.
type series struct{ name, labels string }

// labelNames are what the agent's page calls what OTLP calls otherwise.
var labelNames = map[string]string{
	"interface": "network_interface_name", "direction": "network_io_direction", "netns": "weft_hop_netns", "hook": "weft_hop_hook",
	"class": "weft_hop_class", "side": "weft_tcp_side", "transport": "network_transport",
	"sink": "weft_ledger_sink", "reason": "weft_ledger_reason", "source": "weft_ledger_source",
}

// resource are labels that receivers make of the name and of who sent it.
var resource = regexp.MustCompile(`^(__name__|job|instance|(host|os|service|scope)_.*)$`)

func labelled(name string, labels map[string]string) series {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !resource.MatchString(k) && labels[k] != "" {
			all = append(all, k+"="+labels[k])
		}
	}
	return series{name, strings.Join(all, ",")}
}

// histogram is cumulative counts by upper bound in seconds, their number and sum.
type histogram struct {
	count, sum float64
	upTo       map[float64]float64
}

// own is what the agent's page says: sums of the ledger, and histograms.
func (h *house) own(t *testing.T) (sums map[series]float64, histograms map[series]histogram, err error) {
	text, err := h.get(t, "/metrics")
	if err != nil {
		return nil, nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	sums, histograms = map[series]float64{}, map[series]histogram{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[cmp.Or(labelNames[l.GetName()], l.GetName())] = l.GetValue()
			}
			at := labelled(name, labels)
			switch {
			case strings.HasPrefix(name, "weft_stage_"): // the agent's own work, on its page alone
			case m.GetHistogram() != nil:
				got := histogram{float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum(), map[float64]float64{}}
				for _, b := range m.GetHistogram().GetBucket() {
					got.upTo[b.GetUpperBound()] = float64(b.GetCumulativeCount())
				}
				histograms[at] = got
			case strings.HasPrefix(name, "weft_ledger_source_"): // of all sockets of the host, which rest for nobody
			case name == "weft_ledger_unbalanced_total": // of the page alone
			case strings.HasPrefix(name, "weft_ledger_") && strings.HasSuffix(name, "_total") && m.GetCounter() != nil:
				sums[at] = m.GetCounter().GetValue()
			}
		}
	}
	return sums, histograms, nil
}

// agree waits until the receiver's sums and histograms are the agent's own.
func (h *house) agree(t *testing.T, theirs func() (map[series]float64, map[series]histogram, error)) {
	t.Helper()
	compared := 0
	h.within(t, time.Minute, "the receiver has what the agent has", func() error { // metrics leave every 10 s
		wantSums, wantHistograms, err := h.own(t)
		if err != nil {
			return err
		}
		gotSums, gotHistograms, err := theirs()
		if err != nil {
			return err
		}
		compared = 0
		for at, want := range wantSums {
			if got, ok := gotSums[at]; !ok || got != want {
				return fmt.Errorf("%v: got %v (there: %v), want %v; the receiver has %v", at, got, ok, want, gotSums)
			}
			compared++
		}
		for at, want := range wantHistograms {
			got, ok := gotHistograms[at]
			if !ok || got.count != want.count || math.Abs(got.sum-want.sum) > 1e-9*want.sum {
				return fmt.Errorf("%v: got %v, want %v; the receiver has %v", at, got, want, gotHistograms)
			}
			for bound, n := range want.upTo {
				if !math.IsInf(bound, 1) && got.below(bound) != n {
					return fmt.Errorf("%v: up to %v s: got %v, want %v", at, bound, got.below(bound), n)
				}
			}
		}
		if compared < 4 || len(wantHistograms) < 2 {
			return fmt.Errorf("compared %d sums and %d histograms, want more", compared, len(wantHistograms))
		}
		t.Logf("%d sums and %d histograms agree", compared, len(wantHistograms))
		return nil
	})
}

// below is how many were at most bound, with the bucket whose upper edge is that,
// give or take rounding: VictoriaMetrics writes four digits, and edges are 9 % apart.
func (g histogram) below(bound float64) (n float64) {
	for edge, count := range g.upTo {
		if edge <= bound*1.001 {
			n += count
		}
	}
	return n
}

func TestPrometheusHasWhatTheLedgerHas(t *testing.T) {
	h := newHouse(t)
	config := filepath.Join(h.dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte("global: {scrape_interval: 1h}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := h.receive(t, "prometheus", "127.0.0.1:9090", "/-/ready", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(h.dir, "tsdb"),
		"--web.listen-address=127.0.0.1:9090", "--web.enable-otlp-receiver", "--enable-feature=native-histograms")
	h.start(t, quick, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:9090/api/v1/otlp/v1/metrics", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
	h.traffic(t)
	h.agree(t, p.prometheus)
}

// prometheus is what an instant query returns.
func (r *program) prometheus() (map[series]float64, map[series]histogram, error) {
	body, err := r.ask("/api/v1/query?query=" + url.QueryEscape(`{__name__=~"weft_.*|dns_.*"}`))
	if err != nil {
		return nil, nil, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric    map[string]string
				Value     [2]any
				Histogram [2]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, body)
	}
	sums, histograms := map[series]float64{}, map[series]histogram{}
	for _, s := range answer.Data.Result {
		at := labelled(s.Metric["__name__"], s.Metric)
		if s.Histogram[1] == nil {
			if sums[at], err = strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64); err != nil {
				return nil, nil, err
			}
			continue
		}
		var native struct {
			Count, Sum string
			Buckets    [][4]any // how its edges are meant, lower, upper, count
		}
		if err := json.Unmarshal(s.Histogram[1], &native); err != nil {
			return nil, nil, err
		}
		got := histogram{figure(native.Count), figure(native.Sum), map[float64]float64{}}
		for _, b := range native.Buckets {
			got.upTo[figure(b[2])] += figure(b[3])
		}
		histograms[at] = got
	}
	return sums, histograms, nil
}

// figure is text as JSON of metrics has numbers; NaN: it is none.
func figure(text any) float64 {
	f, err := strconv.ParseFloat(fmt.Sprint(text), 64)
	if err != nil {
		return math.NaN()
	}
	return f
}

func TestVictoriaMetricsHasWhatTheLedgerHas(t *testing.T) {
	h := newHouse(t)
	v := h.receive(t, "victoria-metrics", "127.0.0.1:8428", "/health", "-storageDataPath="+filepath.Join(h.dir, "vm"), "-httpListenAddr=127.0.0.1:8428",
		"-opentelemetry.usePrometheusNaming", "-search.latencyOffset=0s")
	h.start(t, quick, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:8428/opentelemetry/v1/metrics", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
	h.traffic(t)
	h.agree(t, v.victoria)
}

// victoria is the latest sample of each series that an export has; exponential
// histograms are series of vmrange there.
func (r *program) victoria() (map[series]float64, map[series]histogram, error) {
	body, err := r.ask("/api/v1/export?" + url.Values{"match[]": {`{__name__!=""}`}, "start": {"0"}}.Encode())
	if err != nil {
		return nil, nil, err
	}
	sums, histograms := map[series]float64{}, map[series]histogram{}
	for line := range bytes.Lines(body) {
		var s struct {
			Metric     map[string]string
			Values     []float64
			Timestamps []int64
		}
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, nil, fmt.Errorf("%w: %s", err, line)
		}
		value := s.Values[slices.Index(s.Timestamps, slices.Max(s.Timestamps))]
		name, vmrange := s.Metric["__name__"], s.Metric["vmrange"]
		delete(s.Metric, "vmrange")
		base, part := name, ""
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if b, ok := strings.CutSuffix(name, suffix); ok && strings.HasSuffix(b, "_seconds") {
				base, part = b, suffix
			}
		}
		at := labelled(base, s.Metric)
		got := histograms[at]
		if got.upTo == nil {
			got.upTo = map[float64]float64{}
		}
		switch part {
		case "":
			sums[at] = value
			continue
		case "_count":
			got.count = value
		case "_sum":
			got.sum = value
		case "_bucket":
			_, upper, _ := strings.Cut(vmrange, "...")
			got.upTo[figure(upper)] += value
		}
		histograms[at] = got
	}
	return sums, histograms, nil
}

const collectorConfig = `
receivers: {otlp: {protocols: {grpc: {endpoint: 127.0.0.1:4317}}}}
exporters:
  file/logs: {path: DIR/logs.jsonl, flush_interval: 100ms}
  file/metrics: {path: DIR/metrics.jsonl, flush_interval: 100ms}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], exporters: [file/logs]}
    metrics: {receivers: [otlp], exporters: [file/metrics]}
`

func TestCollectorsFilesHaveWhatFlowctlShows(t *testing.T) {
	h := newHouse(t)
	config := filepath.Join(h.dir, "otelcol.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(collectorConfig, "DIR", h.dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	h.receive(t, "otelcol", "127.0.0.1:4317", "", "--config=file:"+config)
	rx0, tx0 := h.counters(t)
	w := h.start(t, quick, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317")
	h.traffic(t)
	rtts, handshakes := uint64(0), uint64(0)
	want, l := h.finish(t, w, rx0+tx0, func() {
		h.eventually(t, "the histograms are read, which is each five seconds", func() error {
			_, histograms, err := h.own(t)
			rtts, handshakes = 0, 0
			for at, g := range histograms {
				switch at.name {
				case "weft_tcp_rtt_seconds":
					rtts += uint64(g.count)
				case "weft_tcp_handshake_duration_seconds":
					handshakes += uint64(g.count)
				}
			}
			if err == nil && handshakes != 16 { // two sides of eight connections
				err = fmt.Errorf("got %d handshakes", handshakes)
			}
			return err
		})
	})
	var got []map[string]any
	h.eventually(t, "the file has every record", func() (err error) {
		if got, err = filed(filepath.Join(h.dir, "logs.jsonl")); err == nil && len(got) < len(want) {
			err = fmt.Errorf("got %d records, want %d", len(got), len(want))
		}
		return err
	})
	if !reflect.DeepEqual(sorted(got), sorted(want)) {
		t.Errorf("got records\n%v\nwant those that flowctl shows\n%v", sorted(got), sorted(want))
	}
	packets := uint64(0)
	for _, r := range got {
		packets += uint64(r["weft.flow.packets"].(float64) + r["weft.flow.reverse.packets"].(float64))
	}
	if in := l.inFlows(); packets != in {
		t.Errorf("got %d packets in the file's records, want the %d that the ledger has in flows", packets, in)
	}
	figures := filedFigures(t, filepath.Join(h.dir, "metrics.jsonl"))
	for name, want := range map[string]uint64{
		"weft.ledger.seen.packets": l.packets() + figures["weft.ledger.gso.packets"], "weft.ledger.flows.packets": l.inFlows(), "weft.ledger.recorded.packets": l.inFlows(), "weft.ledger.open.packets": 0,
		"weft.ledger.records.made": l.Records.Made, "weft.ledger.records.acknowledged otlp": l.Records.Made, "weft.ledger.records.waiting otlp": 0,
		"weft.tcp.rtt": rtts, "weft.tcp.handshake.duration": handshakes,
	} {
		if got, ok := figures[name]; !ok || got != want || want == 0 && !strings.Contains(name, ".open.") && !strings.Contains(name, ".waiting") {
			t.Errorf("%s: got %d (there: %v), want %d; all: %v", name, got, ok, want, figures)
		}
	}
	t.Logf("%d records and their %d packets agree, and %d figures", len(got), packets, len(figures))
}

// filedFigures is by metric, and of those of records by sink, the sum of the latest points of all series, and of histograms
// the number of times.
func filedFigures(t *testing.T, path string) map[string]uint64 {
	t.Helper()
	type points struct {
		DataPoints []struct {
			Attributes []struct {
				Key   string
				Value struct{ StringValue, IntValue string }
			}
			TimeUnixNano, AsInt, Count string
		}
	}
	var file struct {
		ResourceMetrics []struct {
			ScopeMetrics []struct {
				Metrics []struct {
					Name                      string
					Sum, ExponentialHistogram points
				}
			}
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	latest, at := map[string]uint64{}, map[string]string{}
	for line := range bytes.Lines(text) {
		file.ResourceMetrics = nil
		if err := json.Unmarshal(line, &file); err != nil {
			t.Fatal(err)
		}
		for _, m := range file.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			for _, p := range append(m.Sum.DataPoints, m.ExponentialHistogram.DataPoints...) {
				key, sink := m.Name, ""
				for _, a := range p.Attributes {
					if key += "\x00" + a.Key + a.Value.StringValue + a.Value.IntValue; a.Key == "weft.ledger.sink" {
						sink = " " + a.Value.StringValue
					}
				}
				n, err := strconv.ParseUint(cmp.Or(p.AsInt, p.Count), 10, 64)
				if err != nil {
					t.Fatalf("%s: %v", m.Name, err)
				}
				if key = m.Name + sink + "\x00" + key; p.TimeUnixNano >= at[key] {
					latest[key], at[key] = n, p.TimeUnixNano
				}
			}
		}
	}
	sums, last := map[string]uint64{}, ""
	for _, t := range at {
		last = max(last, t)
	}
	for key, n := range latest {
		if name, _, _ := strings.Cut(key, "\x00"); at[key] == last { // else it is no longer told: a point that has gone
			sums[name] += n
		}
	}
	return sums
}

func (l ledgerAnswer) inFlows() (n uint64) {
	for _, p := range l.Points {
		n += p.Flows
	}
	return n
}

// open is the packets that are in no record yet.
func (l ledgerAnswer) open() (n uint64) {
	for _, p := range l.Points {
		n += p.Open
	}
	return n
}

// finish stops the agent when every record is acknowledged and all that the device counted since before
// is in them: what flowctl showed, and the ledger.
func (h *house) finish(t *testing.T, w *weftd, before uint64, look func()) (shown []map[string]any, l ledgerAnswer) {
	t.Helper()
	h.eventually(t, "every record is acknowledged and nothing is open", func() error {
		l, _ = h.ledger(t)
		if rx, tx := h.counters(t); l.packets() != rx+tx-before || l.Records.Made == 0 || l.Records.Waiting > 0 || !l.Balanced || l.open() > 0 {
			return fmt.Errorf("%+v, want the %d packets of the device, none of them open", l, rx+tx-before)
		}
		return nil
	})
	shown = h.shown(t)
	look()
	l, _ = h.ledger(t) // neighbours were asked meanwhile
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t); code != exitFine {
		t.Errorf("SIGTERM: got exit code %d, want 0", code)
	}
	return shown, l
}

// shown is each record of flowctl, with the names and types that OTLP's JSON has.
func (h *house) shown(t *testing.T) (all []map[string]any) {
	t.Helper()
	text, complaint, code := h.flowctl(t, "observe", "--last", "100000", "-o", "jsonl")
	if code != exitFine {
		t.Fatalf("flowctl observe: exit code %d: %s", code, complaint)
	}
	for line := range strings.Lines(text) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		began, err := time.Parse(time.RFC3339Nano, r["start"].(string))
		if err != nil {
			t.Fatal(err)
		}
		r["weft.flow.start_unix_nano"] = float64(began.UnixNano())
		for _, name := range []string{"packets", "bytes", "reverse.packets", "reverse.bytes"} {
			r["weft.flow."+name] = r[name]
			delete(r, name)
		}
		for from, to := range map[string]string{"hops": "weft.flow.hops", "end_reason": "weft.flow.end_reason"} {
			if v, ok := r[from]; ok {
				r[to] = v
				delete(r, from)
			}
		}
		for _, only := range []string{"start", "end", "weft.flow.community_id"} {
			delete(r, only)
		}
		all = append(all, r)
	}
	return all
}

// filed is each log record of the Collector's file: its attributes as plain values.
func filed(path string) (all []map[string]any, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var d struct {
			ResourceLogs []struct {
				ScopeLogs []struct {
					LogRecords []struct{ Attributes []keyed }
				}
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			return nil, err
		}
		for _, r := range d.ResourceLogs {
			for _, s := range r.ScopeLogs {
				for _, l := range s.LogRecords {
					all = append(all, plain(l.Attributes))
				}
			}
		}
	}
	return all, lines.Err()
}

type keyed struct {
	Key   string
	Value anyValue
}

// anyValue is one of OTLP's JSON.
type anyValue struct {
	StringValue *string
	BoolValue   *bool
	IntValue    *string
	DoubleValue *float64
	ArrayValue  *struct{ Values []anyValue }
	KvlistValue *struct{ Values []keyed }
}

func plain(list []keyed) map[string]any {
	m := map[string]any{}
	for _, kv := range list {
		m[kv.Key] = kv.Value.plain()
	}
	return m
}

func (v anyValue) plain() any {
	switch {
	case v.StringValue != nil:
		return *v.StringValue
	case v.BoolValue != nil:
		return *v.BoolValue
	case v.IntValue != nil:
		return figure(*v.IntValue)
	case v.DoubleValue != nil:
		return *v.DoubleValue
	case v.ArrayValue != nil:
		list := []any{}
		for _, e := range v.ArrayValue.Values {
			list = append(list, e.plain())
		}
		return list
	case v.KvlistValue != nil:
		return plain(v.KvlistValue.Values)
	}
	return nil
}

// sorted is each record as text, in order.
func sorted(records []map[string]any) (lines []string) {
	for _, r := range records {
		b, _ := json.Marshal(r) // of maps of plain values: it cannot fail
		lines = append(lines, string(b))
	}
	slices.Sort(lines)
	return lines
}

// TestDuckDBReadsEveryRecord: of the Parquet files, as flowctl shows them.
func TestDuckDBReadsEveryRecord(t *testing.T) {
	h := newHouse(t)
	dir := filepath.Join(h.dir, "lake")
	rx0, tx0 := h.counters(t)
	w := h.start(t, quick+"exporter: {sinks: {lake: {parquet: {dir: "+dir+", age: 1s}}}}\n")
	h.traffic(t)
	want, l := h.finish(t, w, rx0+tx0, func() {})
	from := fmt.Sprintf("from read_parquet('%s/*.parquet')", dir)
	var got []map[string]any
	for _, r := range duck(t, `select "source.address", "source.port", "destination.address", "destination.port", "network.transport",
		"weft.flow.packets", "weft.flow.bytes", "weft.flow.reverse.packets", "weft.flow.reverse.bytes" `+from) {
		got = append(got, r)
	}
	for _, r := range want {
		for name := range r {
			if len(got) > 0 {
				if _, ok := got[0][name]; !ok {
					delete(r, name)
				}
			}
		}
	}
	text := func(all []map[string]any) (lines []string) {
		for _, r := range all {
			line := ""
			for _, name := range slices.Sorted(maps.Keys(r)) {
				if r[name] != nil {
					line += fmt.Sprint(name, "=", r[name], " ")
				}
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		return lines
	}
	if got, want := text(got), text(want); !slices.Equal(got, want) {
		t.Errorf("got %d records\n%s\nwant %d as flowctl shows them\n%s", len(got), strings.Join(got, "\n"), len(want), strings.Join(want, "\n"))
	}
	sums := duck(t, `select sum("weft.flow.packets") + sum("weft.flow.reverse.packets") as packets, sum(len(list_filter("weft.flow.hops", h -> h.chosen))) as chosen,
		count(*) filter ("weft.flow.packets" > 0) + count(*) filter ("weft.flow.reverse.packets" > 0) as directions `+from)
	if len(sums) != 1 || fmt.Sprint(sums[0]["packets"]) != fmt.Sprint(l.inFlows()) || sums[0]["chosen"] == nil || sums[0]["chosen"] != sums[0]["directions"] {
		t.Errorf("got %v, want the %d packets that the ledger has in flows, and a chosen hop of each direction", sums, l.inFlows())
	}
}

// duck is what DuckDB answers.
func duck(t *testing.T, sql string) (rows []map[string]any) {
	t.Helper()
	var complaint bytes.Buffer
	cmd := exec.Command("node", "../receivers/duckdb.cjs", filepath.Join(os.Getenv("RECEIVERS"), "duckdb"), sql)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("DuckDB: %v: %s (run this by make test-receivers)", err, &complaint)
	}
	for line := range strings.Lines(string(out)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r)
	}
	return rows
}
