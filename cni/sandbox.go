// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"weft/flows"
)

// gvisorGuest reads the command line of runsc's sandbox process, which is in the
// container's network namespace and whose last argument is the container's id;
// nil: another of runsc's processes. The host has no other trace of what runs in it.
func gvisorGuest(args []string) *guest {
	if args[0] != "runsc-sandbox" {
		return nil
	}
	g := &guest{runtime: "gvisor", why: "the command line of runsc-sandbox"}
	if id := args[len(args)-1]; len(args) > 1 && !strings.HasPrefix(id, "-") {
		g.sandbox = bounded(id)
	}
	return g
}

// describe says who a namespace belongs to.
func (p *people) describe(ns inode, c *crowd, all []*known) *flows.Entity {
	if ns == p.host {
		return &flows.Entity{Layer: flows.LayerHost, Confidence: p.hostSure, Why: p.hostWhy}
	}
	e := &flows.Entity{}
	nameContainers(e, c.containers)
	for _, k := range all {
		if g := k.guest; g != nil && g.runtime != "" {
			sandboxed(e, k, g)
			c.guestSince = k.born
			return e
		}
	}
	if e.Layer != flows.LayerUnknown {
		return e
	}
	e.Layer, e.Confidence, e.Why = flows.LayerContainer, 50, "a network namespace of its own, no container runtime known"
	if len(all) > 0 {
		e.Process, e.PID, e.Unit = all[0].Comm, all[0].PID, all[0].container.Unit
		e.Why += fmt.Sprintf("; process %d is the oldest in it", e.PID)
	}
	if path := p.found[ns]; strings.HasPrefix(path, netnsDirs[0]) {
		e.Why += ", named " + nameOf(path)
	}
	return e
}

// nameContainers takes over what containers share a namespace. The one that the shim
// of another was started for only holds the namespace for it.
func nameContainers(e *flows.Entity, containers []Container) {
	if len(containers) == 0 {
		return
	}
	e.Layer = flows.LayerContainer
	var inside []Container
	for _, c := range containers {
		holds := slices.ContainsFunc(containers, func(o Container) bool { return o.Sandbox == c.ID && o.ID != c.ID })
		if !holds {
			inside = append(inside, c)
		}
	}
	one := inside[0]
	e.ContainerID, e.Runtime, e.PodUID, e.Unit = one.ID, one.Runtime, one.PodUID, one.Unit
	e.Confidence, e.Why = one.Confidence, one.Why
	if len(inside) > 1 { // an address is all of theirs
		e.ContainerID, e.Unit = "", ""
		e.Why = fmt.Sprintf("%d containers share the network namespace; one by %s", len(inside), one.Why)
		for _, c := range inside {
			e.Confidence = min(e.Confidence, c.Confidence)
			if c.PodUID != one.PodUID {
				e.PodUID, e.Confidence = "", min(e.Confidence, 50)
			}
			if c.Runtime != one.Runtime {
				e.Runtime = ""
			}
		}
	}
}

// sandboxed adds the sandbox that a process in the namespace runs.
func sandboxed(e *flows.Entity, k *known, g *guest) {
	e.Layer, e.Sandbox, e.SandboxRuntime = flows.LayerSandbox, g.sandbox, g.runtime
	e.Hypervisor, e.Process, e.PID = g.hypervisor, k.Comm, k.PID
	e.Confidence, e.Why = 97, fmt.Sprintf("process %d of %s is in the network namespace, named by %s", k.PID, g.runtime, g.why)
	if g.sandbox == "" {
		e.Confidence = 80
	}
}

// nameOf is a namespace's name as `ip netns` has it; the path when it has none.
func nameOf(p string) string {
	if strings.HasPrefix(p, "/run/") {
		return path.Base(p)
	}
	return p
}
