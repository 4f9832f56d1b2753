// SPDX-License-Identifier: Apache-2.0

package main

// reloadSinks says what of exporter.sinks is configured otherwise than it runs. None of
// it is applied: a sink that is closed loses what no spool keeps, and its account is a
// part of the ledger for as long as the agent runs.
func (a *agent) reloadSinks(next *Config) {
	running, configured := byName(a.cfg.allSinks()), byName(next.allSinks())
	for _, s := range a.cfg.allSinks() {
		other, ok := configured[s.name]
		switch {
		case !ok:
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", s.kindName(), "configured", "none")
		case s.kind != other.kind:
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", s.kindName(), "configured", other.kindName())
		default:
			a.reloadSink(s, other)
		}
	}
	for _, s := range next.allSinks() {
		if _, ok := running[s.name]; !ok {
			a.log.Warn("sink needs a restart", "sink", s.name, "in_force", "none", "configured", s.kindName())
		}
	}
}

// reloadSink says which keys differ between two configurations of one sink.
func (a *agent) reloadSink(running, configured *sinkConfig) {
	before, after := running.keys(), configured.keys() // of one kind, so in the same order
	for i, k := range before {
		if !k.agrees(&a.cfg, after[i], &a.cfg) {
			a.log.Warn("key needs a restart", "key", k.name, "in_force", k.show(&a.cfg), "configured", after[i].show(&a.cfg))
		}
	}
}

func byName(sinks []*sinkConfig) map[string]*sinkConfig {
	m := make(map[string]*sinkConfig, len(sinks))
	for _, s := range sinks {
		m[s.name] = s
	}
	return m
}

// kindName is what s is of.
func (s *sinkConfig) kindName() string {
	if s.kind == nil {
		return tenantsKey
	}
	return s.kind.name
}
