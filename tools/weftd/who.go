// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"weft/cni"
	"weft/exporter/api"
	"weft/flows"
)

// openCensus begins to find out who has which address.
func (a *agent) openCensus() {
	if a.mirror == nil {
		return
	}
	c := a.cfg.CNI
	a.census = cni.OpenCensus(a.mirror.Topology, cni.CensusOptions{
		Log: a.log, Node: c.node, Containers: c.containers, Runtimes: c.runtimes, Results: c.results, Leases: c.leases,
		Processes: c.processes, Conntrack: c.kubernetes || !a.cfg.Table.Apart, Tracked: a.cfg.Dataplane.Netns, Kubernetes: c.kubernetes, Kubeconfig: c.kubeconfig,
	})
}

// name says who the ends of records are.
func (a *agent) name(records []flows.Record) {
	if a.census == nil {
		return
	}
	for i := range records {
		a.census.Annotate(&records[i])
	}
}

// nameLive says it of what goes on now.
func (a *agent) nameLive(now []flows.Live) {
	if a.census == nil {
		return
	}
	for i := range now {
		a.census.Annotate(&now[i].Record)
	}
}

// namesOff is who cannot be named, and why. It is called once the agent is open.
func (a *agent) namesOff() (all []*api.Capability) {
	if a.census == nil {
		return all
	}
	for _, s := range a.census.Status() {
		if s.Err == "" || s.Absent {
			continue
		}
		all = append(all, &api.Capability{Name: "names by " + s.Name, Needs: "its answer", Err: s.Err + "; " + sinceWhen(s)})
	}
	if n := a.census.Nameless(); len(n) > 0 {
		all = append(all, &api.Capability{
			Name: "names of some containers", Needs: "a runtime that knows them; cni.runtimes says where its socket is", Err: nameless(n),
		})
	}
	if n := a.census.Disputed(); n > 0 {
		all = append(all, &api.Capability{
			Name: "names of some ends", Needs: "one holder of the address, or a hop that leads to the holder",
			Err: fmt.Sprintf("%d ends had an address that several held at that time, and got no name", n),
		})
	}
	if n := a.census.Refused(); n > 0 {
		all = append(all, &api.Capability{
			Name: "names of some addresses", Needs: "fewer addresses than Weft remembers", Err: fmt.Sprintf("no room for %d", n),
		})
	}
	return all
}

// namelessTold is how many containers without a name are told with their ids.
const namelessTold = 3

// nameless says how many containers have no name, which, and why.
func nameless(all []cni.Nameless) string {
	text := fmt.Sprintf("%d have an id only: ", len(all))
	for i, n := range all[:min(len(all), namelessTold)] {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%.12s (%s)", n.ID, n.Why)
	}
	if len(all) > namelessTold {
		text += " and others"
	}
	return text
}

// sinceWhen says how long a source has not answered, and what that means.
func sinceWhen(s cni.SourceStatus) string {
	away := s.Away.Format(time.DateTime)
	switch {
	case s.Away.IsZero(): // it answers, but not all is well
		return fmt.Sprintf("the %d names that it gave hold", s.Known)
	case s.Last.IsZero():
		return "it has never answered, and was first asked at " + away
	default:
		return fmt.Sprintf("away since %s; the %d names that it gave before still hold", away, s.Known)
	}
}
