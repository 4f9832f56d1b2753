// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// Server is what histograms are of.
type Server struct {
	Addr     netip.AddrPort
	Protocol uint8 // IP protocol
}

// NamedServer is a server and what lasts of who it is: no labels, no process's number, no evidence.
type NamedServer struct {
	Server
	Who *Entity
}

// Servers learns from records who the servers of the histograms are. It holds those of one
// window's histograms, and until the next one that has some the destinations of records: a
// short connection's may come first. The zero value knows nobody. For one goroutine.
type Servers struct {
	known map[Server]*served
	fresh map[Server]*served // of no histogram yet; at most maxFreshServers
}

// maxFreshServers is some ten times as many as there are new ones in the seconds between two
// readings of 1,024 histograms; further ones are named by their next record.
const maxFreshServers = 8192

type served struct {
	who     *Entity // nil: not known
	from    *Entity // the latest that was looked at
	scope   Scope
	several bool // different ones have the address in different scopes: nobody is named
	there   bool // in the window at hand
}

// Name learns from w's records and adds who the servers of w's histograms are, if it has any.
func (s *Servers) Name(w *Window) {
	if w.Latencies != nil {
		s.keep(w.Latencies)
	}
	for i := range w.Records {
		r := &w.Records[i]
		s.learn(r, r.Key.Src, r.Source, false)
		s.learn(r, r.Key.Dst, r.Destination, true)
		if e := r.Destination; r.NAT != nil && e != nil && e.Service != "" {
			// Behind the address of a Service there are many.
			s.learn(r, r.NAT.Destination, &Entity{Namespace: e.Namespace, Service: e.Service}, true)
		}
	}
	if w.Latencies != nil {
		w.Servers = s.named()
	}
}

// keep makes room for the servers of all, and forgets the others.
func (s *Servers) keep(all []Latency) {
	if s.known == nil {
		s.known, s.fresh = map[Server]*served{}, map[Server]*served{}
	}
	for i := range all {
		k := Server{all[i].Key.Server, all[i].Key.Protocol}
		if !k.Addr.IsValid() {
			continue // of those that had no room
		}
		if s.known[k] == nil {
			s.known[k] = cmp.Or(s.fresh[k], &served{})
		}
		s.known[k].there = true
	}
	for k, x := range s.known {
		if !x.there {
			delete(s.known, k)
		}
		x.there = false
	}
	clear(s.fresh)
}

// learn is told by r who has an address; serves: as a server.
func (s *Servers) learn(r *Record, addr netip.AddrPort, who *Entity, serves bool) {
	if who == nil || s.known == nil { // nothing is measured
		return
	}
	k := Server{addr, r.Key.Proto}
	x := cmp.Or(s.known[k], s.fresh[k])
	if x == nil {
		if !serves || len(s.fresh) >= maxFreshServers {
			return
		}
		x = &served{}
		s.fresh[k] = x
	}
	switch {
	case who == x.from: // as mostly
	case who.empty() || x.who != nil && who.within(x.who):
		x.from = who
	case x.who != nil && x.scope != r.Scope && !x.who.within(who):
		x.several = true
	default:
		x.from, x.who, x.scope = who, who.lasting(), r.Scope
	}
}

// named is those that are known, in a stable order.
func (s *Servers) named() (all []NamedServer) {
	for k, x := range s.known {
		if x.who != nil && !x.several {
			all = append(all, NamedServer{k, x.who})
		}
	}
	slices.SortFunc(all, func(a, b NamedServer) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol))
	})
	return all
}

// lasting is e without what differs from record to record.
func (e *Entity) lasting() *Entity {
	l := *e
	l.PID, l.Labels, l.Confidence, l.Why = 0, nil, 0, ""
	return &l
}

// names are the names in it that last.
func (e *Entity) names() [17]string {
	return [...]string{
		e.Pod, e.Namespace, e.PodUID, e.Workload, e.WorkloadKind, e.Service, e.Container, e.ContainerID, e.Runtime,
		e.VM, e.VMID, e.Sandbox, e.Process, e.Unit, e.Node, e.Zone, e.Region,
	}
}

func (e *Entity) empty() bool { return e.names() == [17]string{} }

// within reports whether o says all that e does.
func (e *Entity) within(o *Entity) bool {
	a, b := e.names(), o.names()
	for i := range a {
		if a[i] != "" && a[i] != b[i] {
			return false
		}
	}
	return true
}
