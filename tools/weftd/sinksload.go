// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// sinksKey is the key below which the names of further sinks are.
const sinksKey = "exporter.sinks"

// The keys of a sink with tenants: the sections of them, and the sink of all others.
const (
	tenantsKey = "tenants"
	defaultKey = "default"
)

// maxSinks bounds the sinks and tenants of a configuration: each has goroutines,
// a queue and buffers of up to 4 MiB.
const maxSinks = 256

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
		name := n.Content[i]
		s := newSinkConfig(sinksKey, name.Value, origin{r.file, name.Line})
		if slices.Contains(ownSinks, s.name) {
			r.fail(name, "%s: the agent has a sink %s of its own; choose another name", s.key, s.name)
		} else if r.named(name, sinksKey) && r.sink(s, name, n.Content[i+1]) {
			r.c.Sinks = append(r.c.Sinks, s)
		}
	}
}

// named reports whether name may be that of a sink, and is the first of its name.
func (r *yamlReader) named(name *yaml.Node, parent string) bool {
	full := parent + "." + name.Value
	if at, twice := r.lines[full]; twice {
		r.fail(name, "%s: given on line %d already; keep one", full, at)
		return false
	}
	if !sinkName.MatchString(name.Value) {
		r.fail(name, "%s: %q is no name of a sink; write up to 32 small letters, digits, - and _", parent, name.Value)
		return false
	}
	r.lines[full] = name.Line
	return true
}

// member reads what only a sink with tenants has; false: it is something else.
func (r *yamlReader) member(full string, name, value *yaml.Node) bool {
	group := r.group
	if group == nil || group.tenant {
		return false
	}
	switch full {
	case group.key + "." + tenantsKey:
		value = target(value)
		if value.Kind != yaml.MappingNode {
			r.fail(value, "%s must be a section of tenants, each with a filter and a kind", full)
			return true
		}
		for i := 0; i+1 < len(value.Content); i += 2 {
			n := value.Content[i]
			t := newSinkConfig(full, n.Value, origin{r.file, n.Line})
			t.name, t.tenant = group.name+"/"+n.Value, true
			if n.Value == defaultKey {
				r.fail(n, "%s.%s: that is the name of the sink for all others; choose another", full, n.Value)
			} else if r.named(n, full) && r.sink(t, n, value.Content[i+1]) {
				group.tenants = append(group.tenants, t)
			}
		}
	case group.key + "." + defaultKey:
		t := newSinkConfig(group.key, defaultKey, origin{r.file, name.Line})
		t.name, t.tenant = group.name+"/"+defaultKey, true
		if r.sink(t, name, value) {
			group.other = t
		}
	default:
		return false
	}
	return true
}

// sink reads s; false: it is of no use.
func (r *yamlReader) sink(s *sinkConfig, name, value *yaml.Node) bool {
	all, group, before := r.known, r.group, len(r.bad)
	r.known, r.group = s.keys(), s
	r.section(s.key+".", value)
	r.known, r.group = all, group
	var given []string
	for i := range sinkKinds {
		if _, ok := r.lines[s.key+"."+sinkKinds[i].name]; ok {
			given, s.kind = append(given, sinkKinds[i].name), &sinkKinds[i]
		}
	}
	if _, ok := r.lines[s.key+"."+tenantsKey]; ok {
		given, s.kind = append(given, tenantsKey), nil
	}
	switch {
	case len(given) == 0 && len(r.bad) > before: // it is what the mistakes are about
	case len(given) == 0:
		r.fail(name, "%s: of no kind; give it one of %s", s.key, strings.Join(kindsOfSinks(), ", "))
	case len(given) > 1:
		r.fail(name, "%s: %s: a sink is of one kind; make %d sinks of it", s.key, strings.Join(given, " and "), len(given))
	case s.kind != nil && s.other != nil:
		r.fail(name, "%s.%s: it is for what belongs to no tenant, and %s has none; take it out", s.key, defaultKey, s.key)
	case s.kind == nil && s.tenants == nil && len(r.bad) == before:
		r.fail(name, "%s.%s: there is none; name one, with a filter and a kind", s.key, tenantsKey)
	}
	return len(given) == 1
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
