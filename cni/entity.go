// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"slices"

	"weft/flows"
)

// describe says who is in a namespace, by everybody's word, and which attachments
// of its containers CNI wrote down.
func (c *Census) describe(s *Space) (*flows.Entity, []*attachment) {
	e := *s.Entity
	if e.Node == "" {
		e.Node = c.opts.Node
	}
	if e.ContainerID == "" && e.Sandbox == "" && e.VM == "" {
		e.Process, e.PID, e.Unit = "", 0, "" // any of those in there: sockets say which
	}
	var attached []*attachment
	var inside []*contained // that run in it, without those that only hold it
	for _, ct := range s.Containers {
		attached = append(attached, c.attached[ct.ID]...)
		n := c.named(ct.ID)
		if n == nil && ct.Name != "" { // a user's own: what his Podman keeps is in his folders
			n = byPodman(ct.ID, ct.Name)
		}
		if n == nil {
			continue
		}
		pod(&e, n.Pod, n.Namespace, n.PodUID, n.Runtime)
		if e.Runtime == "" {
			e.Runtime = n.Runtime
		}
		if e.Labels == nil {
			e.Labels = n.Labels
		}
		all := []*contained{n}
		if n.Sandbox == n.ID { // what runs in it may have no process yet, or one that was not met
			all = c.within(n.ID)
			if e.ContainerID == n.ID {
				e.ContainerID = ""
			}
		}
		for _, n := range all {
			if !slices.Contains(inside, n) {
				inside = append(inside, n)
			}
		}
	}
	for _, a := range attached {
		pod(&e, a.Pod, a.Namespace, a.PodUID, "the CNI result")
	}
	if len(inside) == 1 {
		n := inside[0]
		e.Container, e.ContainerID = n.Name, n.ID
		e.Why = because(e.Why, "named by "+n.Runtime)
	}
	c.byAPI(&e)
	return &e, attached
}

// byAPI adds what only the API server says.
func (c *Census) byAPI(e *flows.Entity) {
	if c.kube == nil {
		return
	}
	if e.PodUID != "" || e.Pod != "" {
		if p := c.kube.pod(e.PodUID, e.Namespace, e.Pod, c.opts.Node); p != nil {
			pod(e, p.Pod, p.Namespace, p.PodUID, "the API server")
			e.Workload, e.WorkloadKind, e.Labels, e.Node = p.Workload, p.WorkloadKind, p.Labels, p.Node
		}
	}
	e.Zone, e.Region = c.kube.placed(e.Node)
}

// pod names e's pod, unless somebody did already; who says another one is noted.
func pod(e *flows.Entity, name, namespace, uid, by string) {
	switch {
	case name == "":
	case e.Pod == "":
		e.Pod, e.Namespace = name, namespace
		if e.PodUID == "" || uid != "" {
			e.PodUID = uid
		}
		e.Why = because(e.Why, "pod by "+by)
	case e.Pod != name || e.Namespace != namespace:
		e.Confidence = min(e.Confidence, 50)
		e.Why = because(e.Why, by+" says pod "+namespace+"/"+name)
	}
}

func because(why, more string) string {
	if why == "" {
		return more
	}
	return why + "; " + more
}
