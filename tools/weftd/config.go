// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"weft/cni"
	"weft/dataplane"
	"weft/exporter"
	"weft/flows"
)

// Config is every setting of the agent after the file, the environment and the
// defaults. The rooms' own option structs are filled directly, so that a key
// cannot exist without a reader.
type Config struct {
	Socket string // unix socket of the API
	Group  string // group that may use it; empty: root alone
	HTTP   string // address of /metrics, /healthz and /readyz; empty or "off": none

	Dataplane dataplane.Options
	Table     flows.TableOptions
	Store     int // records kept in memory for flowctl
	Pairs     int // that have series of their own in /metrics; 0: no such metrics

	CNI   cniConfig
	OTLP  exporter.OTLPConfig // the sink "otlp"
	Sinks []*sinkConfig       // the others, in their order in the file
	Level slog.Level
	JSON  bool // log lines as JSON instead of text

	// Set has where each key was given that the file or the environment gave.
	Set map[string]origin
}

// cniConfig says whom to name, and where to ask.
type cniConfig struct {
	kubernetes, containers, vms, sandboxes, processes bool

	node       string   // this machine's name; empty: its host name
	runtimes   []string // sockets of container runtimes
	results    string   // where libcni keeps its results
	leases     string   // where host-local keeps its leases
	kubeconfig string   // how to reach the API server; empty: as a pod is told

}

// defaultConfig is what runs without a file and without an environment.
func defaultConfig() Config {
	return Config{
		Socket: exporter.DefaultSocket,
		HTTP:   exporter.DefaultHTTP,
		Dataplane: dataplane.Options{
			Interfaces:    []string{"*"},
			Exclude:       []string{"lo"},
			Interval:      time.Second,
			XDP:           dataplane.XDPOff,
			TCP:           true,
			Sockets:       true,
			Slots:         65536,
			MaxMemory:     64 << 20,
			MaxInterfaces: 2048,
		},
		Table: flows.TableOptions{
			ActiveTimeout:    60 * time.Second,
			IdleTimeout:      15 * time.Second,
			MaxConversations: 131072,
		},
		Store: exporter.DefaultStore,
		Pairs: exporter.DefaultTrafficSeries,
		CNI: cniConfig{
			kubernetes: true, containers: true, vms: true, sandboxes: true, processes: true,
			runtimes: cni.DefaultRuntimes, results: cni.DefaultResults, leases: cni.DefaultLeases,
		},
		OTLP: exporter.OTLPConfig{
			Flush: time.Second, Finish: exporter.DefaultFinish,
			Spool: exporter.SpoolConfig{Size: exporter.DefaultSpoolSize, Age: exporter.DefaultSpoolAge},
		},
		Level: slog.LevelInfo,
		Set:   map[string]origin{},
	}
}

// origin is where a key was given.
type origin struct {
	where string // file or variable
	line  int    // of the file; 0: none
}

// loadConfig reads file (none when empty) and the WEFT_ variables of environ
// over the defaults. The error holds every mistake of both, one a line.
func loadConfig(file string, environ []string) (Config, error) {
	c := defaultConfig()
	var bad mistakes
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			bad = append(bad, mistake{origin{where: "-config"}, err.Error() + "; name a readable file, or leave it out for the defaults"})
		}
		bad = append(bad, readYAML(&c, file, text)...)
	}
	bad = append(bad, readEnviron(&c, environ)...)
	bad = append(bad, c.settle()...)
	if len(bad) > 0 {
		slices.SortStableFunc(bad, func(a, b mistake) int { return cmp.Or(rank(a)-rank(b), a.line-b.line) })
		return c, bad
	}
	return c, nil
}

// rank puts the file's mistakes, which have lines, before the others.
func rank(m mistake) int {
	if m.line > 0 {
		return 0
	}
	return 1
}

// settle finishes what depends on more than one key.
func (c *Config) settle() mistakes {
	// Naming lo is asking for it; the default exclusion must not win.
	if !c.given("dataplane.exclude") && slices.Contains(c.Dataplane.Interfaces, "lo") {
		c.Dataplane.Exclude = nil
	}
	if c.HTTP == "off" {
		c.HTTP = ""
	}
	c.OTLP.Version = ownVersion()
	bad := append(c.found(c.OTLP.Check(), origin{}), c.settleSinks()...)
	if c.Table.IdleTimeout < c.Dataplane.Interval {
		bad = append(bad, mistake{c.Set["flows.idle_timeout"], fmt.Sprintf(
			"flows.idle_timeout: %s is shorter than dataplane.interval (%s), so every flow would end at every drain; make it longer",
			c.Table.IdleTimeout, c.Dataplane.Interval)})
	}
	return bad
}

// given reports whether the file or the environment gave the key.
func (c *Config) given(key string) bool {
	_, ok := c.Set[key]
	return ok
}

// flatten is the errors that err joins, and those that they join; none when it is nil.
func flatten(err error) (all []error) {
	many, ok := err.(interface{ Unwrap() []error }) // a joined one itself, not what wraps one
	switch {
	case err == nil:
		return nil
	case !ok:
		return []error{err}
	}
	for _, err := range many.Unwrap() {
		all = append(all, flatten(err)...)
	}
	return all
}

// forScreen shortens what was not configured, so that a person who looks at
// -print sees a conversation within about two seconds of its first packet. Idle
// is more than a second, so that a ping is one conversation, and well under
// active, so that what is over ends as idle.
func (c *Config) forScreen() {
	if !c.given("dataplane.interval") {
		c.Dataplane.Interval = min(500*time.Millisecond, c.Table.IdleTimeout)
	}
	if !c.given("flows.active_timeout") {
		c.Table.ActiveTimeout = 2 * time.Second
	}
	if !c.given("flows.idle_timeout") {
		c.Table.IdleTimeout = max(1200*time.Millisecond, c.Dataplane.Interval)
	}
}

// mistake is one thing wrong with the configuration and how to mend it.
type mistake struct {
	origin // empty: the settings as a whole
	text   string
}

// String is "file:line: text".
func (m mistake) String() string {
	switch {
	case m.where == "":
		return m.text
	case m.line == 0:
		return m.where + ": " + m.text
	}
	return fmt.Sprintf("%s:%d: %s", m.where, m.line, m.text)
}

// mistakes is every mistake of one configuration, as an error.
type mistakes []mistake

// Error has one mistake a line, in the order of the file's lines.
func (m mistakes) Error() string {
	lines := make([]string, len(m))
	for i, e := range m {
		lines[i] = e.String()
	}
	return strings.Join(lines, "\n")
}
