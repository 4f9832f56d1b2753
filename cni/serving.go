// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"

	"weft/flows"
)

// service adds the Service that the connection was opened to, if who is a pod, or the
// pod that it was sent to, if who is a Service or a node with a port of one: both views
// of it then say both.
func (c *Census) service(r *flows.Record, who *flows.Entity) *flows.Entity {
	dst := r.Key.Dst
	switch {
	case who.Pod != "":
		if opened, ok := c.kube.nat.openedAs(r.Key); ok {
			if s := c.serviceAt(r, opened.Dst); s != nil {
				return c.serving(who, s)
			}
		}
		return c.serving(who, c.kube.serviceOf(backend{dst.Addr().Unmap(), dst.Port(), r.Key.Proto}))
	case who.Service != "" || who.Node != "":
		s := c.serviceAt(r, dst)
		if s == nil {
			return who
		}
		if to, ok := c.kube.nat.sentTo(r.Key); ok {
			if pod, _ := c.resolver.find(r.Scope, to.Addr(), r.Start.UnixNano(), nil); pod != nil && pod.Pod != "" && pod.Namespace == s.namespace {
				return c.serving(pod, s)
			}
		}
		return c.serving(who, s)
	}
	return who
}

// serviceAt is the Service that has the address to, or that port of the node which has
// it; nil: none.
func (c *Census) serviceAt(r *flows.Record, to netip.AddrPort) *flowsService {
	e, _ := c.resolver.find(r.Scope, to.Addr(), r.Start.UnixNano(), nil)
	switch {
	case e == nil || e.Pod != "":
		return nil
	case e.Service != "":
		return &flowsService{e.Namespace, e.Service}
	case e.Node != "":
		return c.kube.serviceOf(backend{port: to.Port(), proto: r.Key.Proto})
	}
	return nil
}

// opener is who opened a connection whose source the kernel has replaced by an address
// of the node's, as it does for the port of a node; who: there is no such thing.
func (c *Census) opener(r *flows.Record, who *flows.Entity) *flows.Entity {
	opened, ok := c.kube.nat.openedAs(r.Key)
	if !ok || opened.Src.Addr() == r.Key.Src.Addr() {
		return who
	}
	if e, _ := c.resolver.find(r.Scope, opened.Src.Addr(), r.Start.UnixNano(), nil); e != nil {
		return e
	}
	return who
}

// serving is who as a part of a Service.
func (c *Census) serving(who *flows.Entity, s *flowsService) *flows.Entity {
	if s == nil || s.namespace != who.Namespace && who.Pod != "" || s.name == who.Service {
		return who
	}
	a := &c.annotated
	key := servingOf{who, *s}
	e := a.serving[key]
	if e == nil {
		if a.serving == nil || len(a.serving) >= maxOwners {
			a.serving = map[servingOf]*flows.Entity{}
		}
		e = new(flows.Entity)
		*e = *who
		e.Service, e.Namespace = s.name, s.namespace
		a.serving[key] = e
	}
	return e
}
