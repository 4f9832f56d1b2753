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
		if opened, ok := c.openedAs(r); ok {
			if s := c.serviceAt(r, opened.Dst); s != nil {
				return c.serving(who, s, false)
			}
		}
		return c.serving(who, c.kube.serviceOf(backend{dst.Addr().Unmap(), dst.Port(), r.Key.Proto}), true)
	case who.Service != "" || who.Node != "":
		s := c.serviceAt(r, dst)
		if s == nil {
			return who
		}
		if to, ok := c.kube.nat.sentTo(r.Key); ok && c.tracked(r) {
			if pod, _ := c.resolver.find(r.Scope, to.Addr(), r.Start.UnixNano(), nil); pod != nil && pod.Pod != "" && pod.Namespace == s.namespace {
				return c.serving(pod, s, false)
			}
		}
		return c.serving(who, s, false)
	}
	return who
}

// tracked: the record is of where the agent's own connection tracking is. What is
// elsewhere may have the same addresses and ports.
func (c *Census) tracked(r *flows.Record) bool {
	return c.resolver.domain(r.Scope.Netns) == c.resolver.domain(c.kube.space())
}

// openedAs is the connection of a record as it was opened, where it is sent elsewhere.
func (c *Census) openedAs(r *flows.Record) (flows.Key, bool) {
	opened, ok := c.kube.nat.openedAs(r.Key)
	return opened, ok && c.tracked(r)
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
	opened, ok := c.openedAs(r)
	if !ok || opened.Src.Addr() == r.Key.Src.Addr() {
		return who
	}
	if e, _ := c.resolver.find(r.Scope, opened.Src.Addr(), r.Start.UnixNano(), nil); e != nil {
		return e
	}
	return who
}

// backendSure is how sure it is, in percent, that what goes to the port of a pod that
// one Service alone has behind it was opened to that Service, and not to the pod.
const backendSure = 75

// serving is who as a part of a Service; inferred: only because it is one that the
// Service sends to.
func (c *Census) serving(who *flows.Entity, s *flowsService, inferred bool) *flows.Entity {
	if s == nil || s.namespace != who.Namespace && who.Pod != "" || s.name == who.Service {
		return who
	}
	a := &c.annotated
	key := servingOf{who, *s, inferred}
	e := a.serving[key]
	if e == nil {
		if a.serving == nil || len(a.serving) >= maxOwners {
			a.serving = map[servingOf]*flows.Entity{}
		}
		e = new(flows.Entity)
		*e = *who
		e.Service, e.Namespace = s.name, s.namespace
		if inferred {
			e.Confidence, e.Why = min(e.Confidence, backendSure), because(e.Why, "the port is one that the Service sends to")
		}
		a.serving[key] = e
	}
	return e
}
