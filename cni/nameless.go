// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// namelessFor is for how long nobody must have told of a container until it is counted as one
// without a name: as long as runtimes are asked again and again, and their files are read twice.
const namelessFor = askFor

// Nameless is a container that runs here and of which nobody tells more than its id.
type Nameless struct {
	ID      string
	Runtime string    // by its cgroup; empty: that does not say
	Address string    // the socket of the containerd that its shim tells of; empty: none is known
	Met     time.Time // when it was met
	Why     string    // what each of those who may know it said
}

// Nameless is the containers that have had no name for longer than it takes to ask for one, in
// the order of their ids. Any goroutine may ask.
func (c *Census) Nameless() []Nameless {
	noted := c.nameless.Load()
	if noted == nil {
		return nil
	}
	all := slices.Clone(*noted)
	for i := range all {
		all[i].Why = c.whyNameless(&all[i])
	}
	return all
}

// noteNameless finds those that have no name now.
func (c *Census) noteNameless(now time.Time) {
	if !c.opts.Containers {
		return // nobody was to be asked
	}
	var all []Nameless
	for _, s := range c.last.Spaces {
		for _, ct := range s.Containers {
			met, asked := c.asked[ct.ID]
			if !asked || now.Sub(met) < namelessFor || c.knows(&ct) || slices.ContainsFunc(all, func(n Nameless) bool { return n.ID == ct.ID }) {
				continue
			}
			all = append(all, Nameless{ID: ct.ID, Runtime: ct.Runtime, Address: ct.Address, Met: met})
		}
	}
	slices.SortFunc(all, func(a, b Nameless) int { return strings.Compare(a.ID, b.ID) })
	c.nameless.Store(&all)
}

// knows reports whether anybody says more of a container than its id.
func (c *Census) knows(ct *Container) bool {
	if ct.Name != "" || c.named(ct.ID) != nil || len(c.attached[ct.ID]) > 0 {
		return true
	}
	return c.kube != nil && ct.PodUID != "" && c.kube.pod(ct.PodUID, "", "", c.opts.Node) != nil
}

// whyNameless is what those said who may know n: files for Docker and Podman, which have no
// other interface that is read, else the runtimes' sockets.
func (c *Census) whyNameless(n *Nameless) string {
	if n.Runtime == "docker" || n.Runtime == "podman" {
		switch s := c.disk.status(0); {
		case s.Absent:
			return fmt.Sprintf("%s keeps nothing in %s or %s", n.Runtime, c.disk.docker, c.disk.podman)
		case s.Err != "":
			return s.Err
		}
		return fmt.Sprintf("%s and %s do not have it", c.disk.docker, c.disk.podman)
	}
	var said, absent []string
	for _, r := range c.runtimes {
		switch s := r.status(0); {
		case s.Absent:
			absent = append(absent, r.socket)
		case s.Err != "":
			said = append(said, s.Err)
		case s.Last.Before(n.Met):
			said = append(said, r.socket+" has not answered since it was met")
		default:
			said = append(said, r.socket+" answers and does not list it")
		}
	}
	if len(said) == 0 {
		said = append(said, "there is no runtime's socket at "+strings.Join(absent, " or "))
	}
	// In a pod the same socket may have another path.
	if n.Address != "" && !slices.ContainsFunc(c.runtimes, func(r *runtimeSource) bool { return r.socket == n.Address }) {
		said = append(said, "its shim is of "+n.Address)
	}
	return strings.Join(said, "; ")
}
