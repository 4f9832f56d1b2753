// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"strings"

	"weft/flows"
)

// ends are the columns of who is behind one end. What is known of an Entity is made
// into ids once, and kept under its pointer as [whoCache] does.
type ends struct {
	n          *entityNames
	named      func(name string) vector
	pid        *fixed[int64]
	comm       *names
	labels     *listed
	key, value *names
	now, old   map[*flows.Entity]*knownEnd
	last       *flows.Entity
	lastKnown  *knownEnd
	attrs      []slog.Attr
}

// knownEnd is an Entity as ids and numbers of columns.
type knownEnd struct {
	texts  []knownText
	counts []knownCount
	labels [][2]int32
}

type knownText struct {
	c  *names
	id int32
}

type knownCount struct {
	c *counts
	v int64
}

// addWho adds the columns of one end, in the order of export.
func (s *columnSet) addWho(n *entityNames, d *budget) *ends {
	s.addTexts(d, n.layer, n.namespace, n.pod, n.podUID)
	for _, kind := range []string{"deployment", "replicaset", "daemonset", "statefulset", "job", "cronjob"} {
		s.addTexts(d, n.kinds[kind])
	}
	s.addTexts(d, n.workload, n.workloadKind, n.service, n.container, n.containerID, n.runtime,
		n.vm, n.vmID, n.hypervisor, n.sandbox, n.sandboxEngine)
	e := &ends{n: n, named: s.named}
	e.pid, e.comm = add(s, newCounts(n.pid)), add(s, newNames(n.comm, d))
	s.addTexts(d, n.unit, n.node, n.zone, n.region)
	e.labels = add(s, newMapped(strings.TrimSuffix(n.label, "."), d))
	e.key, e.value = e.labels.fields[0].(*names), e.labels.fields[1].(*names)
	s.addCounts(n.confidence)
	s.addTexts(d, n.why)
	return e
}

func (e *ends) forget() { e.now, e.old, e.last = nil, nil, nil }

// set sets a row to what is known of who. told: the owner of its socket is in the
// record already.
func (e *ends) set(row int, who *flows.Entity, told bool) {
	if who == nil {
		return
	}
	k := e.lastKnown
	if who != e.last {
		k = e.knownOf(who)
		e.last, e.lastKnown = who, k
	}
	for _, t := range k.texts {
		if !told || t.c != e.comm {
			t.c.set(row, t.id)
		}
	}
	for _, n := range k.counts {
		if !told || n.c != e.pid {
			n.c.set(row, n.v)
		}
	}
	if len(k.labels) > 0 {
		at := e.labels.begin(row)
		for i, l := range k.labels {
			e.key.set(at+i, l[0])
			e.value.set(at+i, l[1])
		}
		e.labels.end(row, len(k.labels))
	}
}

func (e *ends) knownOf(who *flows.Entity) *knownEnd {
	k, ok := e.now[who]
	if ok {
		return k
	}
	if k, ok = e.old[who]; !ok {
		k = e.learn(who)
	}
	if e.now == nil || len(e.now) >= maxWho {
		e.now, e.old = make(map[*flows.Entity]*knownEnd), e.now
	}
	e.now[who] = k
	return k
}

func (e *ends) learn(who *flows.Entity) *knownEnd {
	k := &knownEnd{}
	e.attrs = appendWho(e.attrs[:0], e.n, who, false)
	for _, a := range e.attrs {
		switch c := e.named(a.Key).(type) {
		case *names:
			k.texts = append(k.texts, knownText{c, c.dict.id(a.Value.String())})
		case *fixed[int64]:
			k.counts = append(k.counts, knownCount{c, a.Value.Int64()})
		case nil:
			if label, ok := strings.CutPrefix(a.Key, e.n.label); ok {
				k.labels = append(k.labels, [2]int32{e.key.dict.id(label), e.value.dict.id(a.Value.String())})
			}
		}
	}
	return k
}
