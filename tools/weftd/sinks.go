// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/exporter"
	"weft/exporter/api"
	"weft/flows"
)

// outlet is a sink of exporter.sinks, or the one of exporter.otlp: it holds records
// that it has to hand over.
type outlet interface {
	flows.Sink
	Status() *api.SinkStatus
	// Close hands over what waits, until ctx ends; what it could not is in the account.
	Close(ctx context.Context) error
}

// sinkConfig is one entry of exporter.sinks.
type sinkConfig struct {
	name string // a tenant's: that of the sink, a slash and its own
	key  string // in the configuration
	at   origin
	kind *sinkKind // nil: it has tenants

	tenants []*sinkConfig
	other   *sinkConfig // of what belongs to no tenant; nil: none
	tenant  bool        // s is one of tenants, or the other

	filter []string        // terms, as they are written
	intake exporter.Intake // made of filter, of the keys below sample, and of redact
	redact exporter.RedactConfig
	names  exporter.Treatment // of what redact says nothing about, but for addresses

	otlp   exporter.OTLPConfig
	file   exporter.FileConfig
	stdout exporter.StdoutConfig

	parquet exporter.ParquetConfig
	flight  exporter.FlightConfig
}

// sinkKind is a kind of sink: it knows its keys, what is wrong with their values
// together, and how to open one.
type sinkKind struct {
	name string
	keys func(prefix string, s *sinkConfig) []key
	// check joins every mistake of s; each begins with the full name of its key.
	check  func(c *Config, s *sinkConfig) error
	folder string // key below the kind of the folder that no other sink may have; empty: none
	target func(s *sinkConfig) string
	open   func(s *sinkConfig, log *slog.Logger) (outlet, error)
}

// sinkKinds is every kind there is: a new one is an entry here and a field of
// [sinkConfig] that its keys fill.
var sinkKinds = []sinkKind{
	{
		name: "otlp", folder: "spool.dir",
		keys: func(prefix string, s *sinkConfig) []key {
			of := func(*Config) *exporter.OTLPConfig { return &s.otlp }
			return slices.Concat(otlpKeys(prefix, of), spoolKeys(prefix+"spool.", of), paceKeys(prefix, of), []key{
				number(prefix+"queue", func(*Config) *int { return &s.otlp.Queue }, 1, 1<<24),
				word(prefix+"ledger", func(*Config) *bool { return &s.otlp.NoLedger }, choice[bool]{"on", false}, choice[bool]{"off", true}),
			})
		},
		check:  checkOTLPSink,
		target: func(s *sinkConfig) string { return "OTLP to " + s.otlp.Endpoint },
		open: func(s *sinkConfig, log *slog.Logger) (outlet, error) {
			c := s.otlp
			c.Log, c.Intake = log, s.intake
			return exporter.NewOTLP(c)
		},
	},
	fileKind,
	stdoutKind,
	parquetKind,
	flightKind,
}

// checkOTLPSink also completes the settings: those variables of OpenTelemetry that
// say where to send are exporter.otlp's, the ones that describe the agent are everybody's.
func checkOTLPSink(c *Config, s *sinkConfig) error {
	prefix := s.prefix()
	s.otlp.Name, s.otlp.Prefix, s.otlp.Version = s.name, strings.TrimSuffix(prefix, "."), ownVersion()
	s.otlp.Getenv = func(name string) string {
		if strings.HasPrefix(name, "OTEL_EXPORTER_") {
			return ""
		}
		return os.Getenv(name)
	}
	if s.otlp.Endpoint == "" {
		return fmt.Errorf("%sendpoint: missing; write the receiver's, such as http://collector:4317", prefix)
	}
	err := s.otlp.Check()
	if s.redact.On() || s.tenant {
		if c.given(prefix+"ledger") && !s.otlp.NoLedger {
			err = errors.Join(err, fmt.Errorf("%sledger: the ledger names devices and servers of the whole host, and a sink that redacts or is a tenant's gets none; write off", prefix))
		}
		s.otlp.NoLedger = true
	}
	s.otlp = s.otlp.InForce()
	return err
}

// newSinkConfig is a sink called name below the key parent, with every kind's defaults.
func newSinkConfig(parent, name string, at origin) *sinkConfig {
	o := defaultConfig().OTLP
	o.Queue = exporter.DefaultQueue
	return &sinkConfig{
		name: name, key: parent + "." + name, at: at, otlp: o, file: defaultFile(), stdout: defaultStdout(),
		parquet: defaultParquet(), flight: defaultFlight(),
		redact: exporter.RedactConfig{IPv4: 24, IPv6: 48},
	}
}

// prefix is that of the keys of s's kind.
func (s *sinkConfig) prefix() string { return s.key + "." + s.kind.name + "." }

// keys is every key that s may have: those of any sink, and of its kind once that is known, else of all.
func (s *sinkConfig) keys() []key {
	all := []key{
		list(s.key+".filter", func(*Config) *[]string { return &s.filter }, checkTerm),
		fraction(s.key+".sample.rate", func(*Config) *float64 { return &s.intake.Sample.Rate }),
		duration(s.key+".sample.slow", func(*Config) *time.Duration { return &s.intake.Sample.Slow }, 0, time.Hour),
	}
	all = append(all, s.redactKeys()...)
	for i := range sinkKinds {
		if k := &sinkKinds[i]; s.kind == nil || s.kind == k {
			all = append(all, k.keys(s.key+"."+k.name+".", s)...)
		}
	}
	return all
}

// allSinks is every sink of c: the ones with tenants, and behind them theirs.
func (c *Config) allSinks() []*sinkConfig {
	var all []*sinkConfig
	for _, s := range c.Sinks {
		all = append(append(all, s), s.tenants...)
		if s.other != nil {
			all = append(all, s.other)
		}
	}
	return all
}

// settle finishes what is common to all kinds. Terms that are wrong were told of
// when they were read.
func (s *sinkConfig) settle() error {
	var terms []flows.Term
	for _, text := range s.filter {
		if t, err := flows.ParseTerm(text); err == nil {
			terms = append(terms, t)
		}
	}
	var err error
	if len(terms) > 0 {
		s.intake.Filter, err = flows.ParseFilter(terms)
	}
	if err != nil {
		return fmt.Errorf("%s.filter: %w", s.key, err)
	}
	if s.intake.Sample.Slow > 0 && s.intake.Sample.Rate == 0 {
		return fmt.Errorf("%s.sample.slow: without a rate every record is taken; add a rate, such as 0.1", s.key)
	}
	return nil
}

func checkTerm(text string) error {
	_, err := flows.ParseTerm(text)
	return err
}

// check finds what is wrong with s beside its single keys.
func (s *sinkConfig) check(c *Config) error {
	switch {
	case s.kind == nil && s.redact.On():
		return fmt.Errorf("%s.redact: each tenant has its own; move it there", s.key)
	case s.kind == nil:
		return nil
	case s.tenant && s.intake.Filter == nil && !strings.HasSuffix(s.name, "/"+defaultKey):
		return fmt.Errorf("%s.filter: missing; say which records are the tenant's, such as [namespace shop], [label team=shop], [vm web1] or [vlan 7]", s.key)
	}
	return s.kind.check(c, s)
}

// folder is the folder that s writes to, and its key; empty: none.
func (s *sinkConfig) folder() (key, path string) {
	if s.kind == nil || s.kind.folder == "" {
		return "", ""
	}
	key = s.prefix() + s.kind.folder
	if k := keyNamed(s.keys(), key); k != nil {
		path = k.show(nil)
	}
	return key, path
}

// settleSinks checks each sink, and that no two write to one folder.
func (c *Config) settleSinks() mistakes {
	var bad mistakes
	taken := map[string]string{} // by folder: the key that has it
	if c.OTLP.Wanted() && c.OTLP.Spool.Dir != "" {
		taken[filepath.Clean(c.OTLP.Spool.Dir)] = "exporter.spool.dir"
	}
	all := c.allSinks()
	if len(all) > maxSinks {
		bad = append(bad, mistake{all[0].at, fmt.Sprintf("%s: %d sinks and tenants; have %d at most", sinksKey, len(all), maxSinks)})
	}
	for _, s := range all {
		bad = append(bad, c.found(errors.Join(s.settle(), s.settleRedact(c), s.check(c)), s.at)...)
		key, path := s.folder()
		if path == "" {
			continue
		}
		path = filepath.Clean(path)
		if other := taken[path]; other != "" {
			bad = append(bad, mistake{cmp.Or(c.Set[key], s.at), fmt.Sprintf("%s: %s is that of %s; every sink needs one of its own", key, path, other)})
		}
		taken[path] = key
	}
	return bad
}

// found is the mistakes that err joins. Each begins with its key or variable, then
// = and the value, or : without it; at is where it is when the key was not given.
func (c *Config) found(err error, at origin) mistakes {
	var bad mistakes
	for _, err := range flatten(err) {
		name := err.Error()
		if end := strings.IndexAny(name, "=:"); end >= 0 {
			name = name[:end]
		}
		bad = append(bad, mistake{cmp.Or(c.Set[name], at), err.Error()})
	}
	return bad
}

// settings is every key that c has a value for, those of its sinks among them.
func (c *Config) settings() []key {
	all := keys
	for _, s := range c.allSinks() {
		all = append(slices.Clip(all), s.keys()...)
	}
	return all
}

// openOutlets opens the sink of exporter.otlp and those of exporter.sinks.
func (a *agent) openOutlets() error {
	if c := a.cfg.OTLP; c.Wanted() {
		c.Log = a.log
		o, err := exporter.NewOTLP(c)
		if err != nil {
			return err
		}
		a.outlets = append(a.outlets, o)
	}
	for _, o := range a.outlets {
		a.sinks = append(a.sinks, o)
	}
	for _, s := range a.cfg.Sinks {
		o, err := a.openSink(s)
		if err != nil {
			return err
		}
		a.sinks = append(a.sinks, o)
	}
	return nil
}

// openSink opens s, and its tenants' sinks first. They are outlets from then on.
func (a *agent) openSink(s *sinkConfig) (outlet, error) {
	if s.kind != nil {
		o, err := s.kind.open(s, a.log)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", s.key, err)
		}
		a.outlets = append(a.outlets, o)
		return o, nil
	}
	var tenants []exporter.Tenant
	for _, t := range s.tenants {
		alone := *t // what is routed to it has passed its filter
		alone.intake.Filter = nil
		o, err := a.openSink(&alone)
		if err != nil {
			return nil, err
		}
		tenants = append(tenants, exporter.Tenant{Match: t.intake.Filter, Sink: o})
		a.routed = append(a.routed, o)
	}
	var other flows.Sink
	if s.other != nil {
		o, err := a.openSink(s.other)
		if err != nil {
			return nil, err
		}
		other = o
		a.routed = append(a.routed, o)
	}
	o := exporter.NewTenants(s.name, s.intake, tenants, other)
	a.outlets = append(a.outlets, o)
	return o, nil
}

// accounted is every sink that has an account: those that get windows, and those that
// another one routes records to.
func (a *agent) accounted() []flows.Sink { return slices.Concat(a.sinks, a.routed) }

// outlet is the one that s is; nil: none.
func (a *agent) outlet(s flows.Sink) outlet {
	for _, o := range a.outlets {
		if s == flows.Sink(o) {
			return o
		}
	}
	return nil
}
