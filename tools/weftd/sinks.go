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
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

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
	name string
	at   origin
	kind *sinkKind // nil: a mistake

	filter []string        // terms, as they are written
	intake exporter.Intake // made of filter, of the keys below sample, and of redact
	redact exporter.RedactConfig
	names  exporter.Treatment // of what redact says nothing about, but for addresses

	otlp   exporter.OTLPConfig
	file   exporter.FileConfig
	stdout exporter.StdoutConfig
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
	if s.redact.On() {
		if c.given(prefix+"ledger") && !s.otlp.NoLedger {
			err = errors.Join(err, fmt.Errorf("%sledger: the ledger names devices and servers, and the sink redacts; write off, or take redact out", prefix))
		}
		s.otlp.NoLedger = true
	}
	s.otlp = s.otlp.InForce()
	return err
}

// newSinkConfig has every kind's defaults.
func newSinkConfig(name string, at origin) *sinkConfig {
	o := defaultConfig().OTLP
	o.Queue = exporter.DefaultQueue
	return &sinkConfig{
		name: name, at: at, otlp: o, file: defaultFile(), stdout: defaultStdout(),
		redact: exporter.RedactConfig{IPv4: 24, IPv6: 48},
	}
}

// key is what s is called in the configuration.
func (s *sinkConfig) key() string { return sinksKey + "." + s.name }

// prefix is that of the keys of s's kind.
func (s *sinkConfig) prefix() string { return s.key() + "." + s.kind.name + "." }

// keys is every key that s may have: those of any sink, and of its kind once that is known, else of all.
func (s *sinkConfig) keys() []key {
	all := []key{
		list(s.key()+".filter", func(*Config) *[]string { return &s.filter }, checkTerm),
		fraction(s.key()+".sample.rate", func(*Config) *float64 { return &s.intake.Sample.Rate }),
		duration(s.key()+".sample.slow", func(*Config) *time.Duration { return &s.intake.Sample.Slow }, 0, time.Hour),
	}
	all = append(all, s.redactKeys()...)
	for i := range sinkKinds {
		if k := &sinkKinds[i]; s.kind == nil || s.kind == k {
			all = append(all, k.keys(s.key()+"."+k.name+".", s)...)
		}
	}
	return all
}

// same reports whether s and other are configured alike.
func (s *sinkConfig) same(other *sinkConfig) bool {
	return s.kind == other.kind && slices.EqualFunc(s.keys(), other.keys(), func(a, b key) bool {
		return reflect.DeepEqual(a.field(nil), b.field(nil))
	})
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
		return fmt.Errorf("%s.filter: %w", s.key(), err)
	}
	if s.intake.Sample.Slow > 0 && s.intake.Sample.Rate == 0 {
		return fmt.Errorf("%s.sample.slow: without a rate every record is taken; add a rate, such as 0.1", s.key())
	}
	return nil
}

func checkTerm(text string) error {
	_, err := flows.ParseTerm(text)
	return err
}

// folder is the folder that s writes to, and its key; empty: none.
func (s *sinkConfig) folder() (key, path string) {
	if s.kind.folder == "" {
		return "", ""
	}
	key = s.prefix() + s.kind.folder
	if k := keyNamed(s.keys(), key); k != nil {
		path = k.show(nil)
	}
	return key, path
}

// sinksKey is the key below which the names of further sinks are.
const sinksKey = "exporter.sinks"

// ownSinks are the names of sinks that need no entry.
var ownSinks = []string{"otlp", "print", "store"}

var sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// sinks reads the mapping n from names to sinks.
func (r *yamlReader) sinks(n *yaml.Node) {
	n = target(n)
	if empty(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a section of sinks, such as `siem: {otlp: {endpoint: \"http://collector:4317\"}}`", sinksKey)
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		r.sink(n.Content[i], n.Content[i+1])
	}
}

// sink reads one of them.
func (r *yamlReader) sink(name, value *yaml.Node) {
	s := newSinkConfig(name.Value, origin{r.file, name.Line})
	at, twice := r.lines[s.key()]
	switch {
	case twice:
		r.fail(name, "%s: given on line %d already; keep one", s.key(), at)
		return
	case slices.Contains(ownSinks, s.name):
		r.fail(name, "%s: the agent has a sink %s of its own; choose another name", s.key(), s.name)
		return
	case !sinkName.MatchString(s.name):
		r.fail(name, "%s: %q is no name of a sink; write up to 32 small letters, digits, - and _", sinksKey, s.name)
		return
	}
	r.lines[s.key()] = name.Line
	all, before := r.known, len(r.bad)
	r.known = s.keys()
	r.section(s.key()+".", value)
	r.known = all
	var given []string
	for i := range sinkKinds {
		if _, ok := r.lines[s.key()+"."+sinkKinds[i].name]; ok {
			given, s.kind = append(given, sinkKinds[i].name), &sinkKinds[i]
		}
	}
	switch {
	case len(given) == 0 && len(r.bad) > before: // it is what the mistakes are about
	case len(given) == 0:
		r.fail(name, "%s: of no kind; give it one of %s", s.key(), strings.Join(kindsOfSinks(), ", "))
	case len(given) == 1:
		r.c.Sinks = append(r.c.Sinks, s)
	default:
		r.fail(name, "%s: %s: a sink is of one kind; make %d sinks of it", s.key(), strings.Join(given, " and "), len(given))
	}
}

// kinds are the sections that a sink may have below prefix, to suggest one.
func (r *yamlReader) kinds(prefix string) []string {
	var names []string
	for _, name := range kindsOfSinks() {
		if isSection(r.known, prefix+name) {
			names = append(names, prefix+name)
		}
	}
	return names
}

func kindsOfSinks() []string {
	var names []string
	for i := range sinkKinds {
		names = append(names, sinkKinds[i].name)
	}
	return names
}

// settleSinks checks each sink, and that no two write to one folder.
func (c *Config) settleSinks() mistakes {
	var bad mistakes
	taken := map[string]string{} // by folder: the key that has it
	if c.OTLP.Wanted() && c.OTLP.Spool.Dir != "" {
		taken[filepath.Clean(c.OTLP.Spool.Dir)] = "exporter.spool.dir"
	}
	for _, s := range c.Sinks {
		bad = append(bad, c.found(errors.Join(s.settle(), s.settleRedact(c), s.kind.check(c, s)), s.at)...)
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
	for _, s := range c.Sinks {
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
	for _, s := range a.cfg.Sinks {
		o, err := s.kind.open(s, a.log)
		if err != nil {
			return fmt.Errorf("open %s: %w", s.key(), err)
		}
		a.outlets = append(a.outlets, o)
	}
	for _, o := range a.outlets {
		a.sinks = append(a.sinks, o)
	}
	return nil
}

// outlet is the one that s is; nil: none.
func (a *agent) outlet(s flows.Sink) outlet {
	for _, o := range a.outlets {
		if s == flows.Sink(o) {
			return o
		}
	}
	return nil
}

// reloadSinks says which sinks are configured otherwise than those that run.
func (a *agent) reloadSinks(next []*sinkConfig) {
	named := func(in []*sinkConfig, name string) *sinkConfig {
		if i := slices.IndexFunc(in, func(s *sinkConfig) bool { return s.name == name }); i >= 0 {
			return in[i]
		}
		return nil
	}
	for _, s := range a.cfg.Sinks {
		switch other := named(next, s.name); {
		case other == nil:
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", "open", "configured", "no more")
		case !s.same(other):
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", "as it was", "configured", "otherwise")
		}
	}
	for _, s := range next {
		if named(a.cfg.Sinks, s.name) == nil {
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", "none", "configured", "new")
		}
	}
}

// otlpKeys are the settings of a receiver.
func otlpKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		text(prefix+"endpoint", func(c *Config) *string { return &of(c).Endpoint }, anything),
		text(prefix+"protocol", func(c *Config) *string { return &of(c).Protocol }, anything),
		pairs(prefix+"headers", func(c *Config) *map[string]string { return &of(c).Headers }),
		text(prefix+"compression", func(c *Config) *string { return &of(c).Compression }, anything),
		word(prefix+"community_id", func(c *Config) *bool { return &of(c).CommunityID }, choice[bool]{"off", false}, choice[bool]{"on", true}),
		text(prefix+"ca", func(c *Config) *string { return &of(c).CA }, anything),
		text(prefix+"certificate", func(c *Config) *string { return &of(c).Certificate }, anything),
		text(prefix+"key", func(c *Config) *string { return &of(c).Key }, anything),
	}
}

// spoolKeys are the settings of where requests wait on disk.
func spoolKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		text(prefix+"dir", func(c *Config) *string { return &of(c).Spool.Dir }, checkSpool),
		size(prefix+"size", func(c *Config) *int { return &of(c).Spool.Size }, 16<<20, 1<<40),
		duration(prefix+"age", func(c *Config) *time.Duration { return &of(c).Spool.Age }, time.Minute, 365*24*time.Hour),
		word(prefix+"sync", func(c *Config) *bool { return &of(c).Spool.NoSync }, choice[bool]{"on", false}, choice[bool]{"off", true}),
	}
}

// paceKeys are how long records gather, and how long a closing sink waits.
func paceKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		duration(prefix+"flush", func(c *Config) *time.Duration { return &of(c).Flush }, 10*time.Millisecond, time.Minute),
		duration(prefix+"finish", func(c *Config) *time.Duration { return &of(c).Finish }, 10*time.Millisecond, finishAtMost),
	}
}
