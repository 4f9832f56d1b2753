// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"
	"time"

	"weft/flows"
)

// Translation implements [flows.Translations] by the connection tracking of those
// namespaces that are in the domain of scope. Loopback addresses are each namespace's own.
func (c *Census) Translation(scope flows.Scope, k flows.Key, first, last int64, opens bool) (flows.Translation, bool) {
	if c.nat == nil {
		return flows.Translation{}, false
	}
	if k.Src.Addr().IsLoopback() || k.Dst.Addr().IsLoopback() {
		return c.nat.find(func(space uint64) bool { return space == scope.Netns }, k, first, last, opens)
	}
	domain := c.resolver.domain(scope.Netns)
	return c.nat.find(func(space uint64) bool { return c.resolver.domain(space) == domain }, k, first, last, opens)
}

// Late implements [flows.Translations]: somewhere not all has been read that came until then.
func (c *Census) Late(at int64) bool { return c.nat != nil && c.nat.late(at) }

// translation is that of a record's connection. One whose views are kept apart may be any
// of them.
func (c *Census) translation(r *flows.Record) (flows.Translation, bool) {
	if r.NAT != nil {
		return flows.Translation{Opened: r.SocketKey(true), Sent: r.SocketKey(false).Reverse()}, true
	}
	return c.Translation(r.Scope, r.Key, r.Start.UnixNano(), r.End.UnixNano(), false)
}

// service adds the Service that the connection was opened to, if who is where it was sent
// to, or the pod that it was sent to, if who is a Service or a node with a port of one.
func (c *Census) service(r *flows.Record, who *flows.Entity) *flows.Entity {
	to, translated := c.translation(r)
	var s *flowsService
	if translated && to.Opened.Dst != to.Sent.Dst {
		s = c.serviceAt(r, to.Opened.Dst)
	}
	switch dst := r.Key.Dst; {
	case who == nil:
		if s == nil {
			return nil
		}
		e := c.whoHas(r, to.Opened.Dst.Addr())
		return c.serving(e, s, false)
	case s != nil && dst == to.Opened.Dst: // the view before the translation, by itself
		pod := c.whoHas(r, to.Sent.Dst.Addr())
		if pod != nil && pod.Pod != "" && pod.Namespace == s.namespace {
			who = pod
		}
		return c.serving(who, s, false)
	case s != nil:
		return c.serving(who, s, false)
	case who.Pod != "":
		return c.serving(who, c.kube.serviceOf(backend{dst.Addr().Unmap(), dst.Port(), r.Key.Proto}), true)
	case who.Service != "" || who.Node != "":
		return c.serving(who, c.serviceAt(r, dst), false)
	}
	return who
}

// serviceAt is the Service that has the address to, or that port of the node which has
// it; nil: none.
func (c *Census) serviceAt(r *flows.Record, to netip.AddrPort) *flowsService {
	e := c.whoHas(r, to.Addr())
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
	to, ok := c.translation(r)
	if !ok || to.Opened.Src.Addr() == r.Key.Src.Addr() {
		return who
	}
	if e := c.whoHas(r, to.Opened.Src.Addr()); e != nil {
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

// whoHas is who had an address when a record began; nil: nobody that is known, or several.
func (c *Census) whoHas(r *flows.Record, addr netip.Addr) *flows.Entity {
	h, disputed := c.resolver.holder(r.Scope, addr, r.Start.UnixNano(), nil)
	if h == nil || disputed {
		return nil
	}
	return c.aged(h, r.End)
}

// What the API server said of a pod elsewhere is taken for true for agedAfter when it does not
// answer any more. After that the address may be another's: agedSure percent.
const (
	agedAfter = 15 * time.Second
	agedSure  = 60
)

// agedOf is who the API server told of before it went away.
type agedOf struct {
	who  *flows.Entity
	away time.Time
}

// aged is who h tells of at a time, as sure as that still is.
func (c *Census) aged(h *holding, at time.Time) *flows.Entity {
	if c.kube == nil || h.owner.kind != ownerPod {
		return h.who
	}
	away := c.kube.away()
	if away.IsZero() || at.Sub(away) < agedAfter {
		return h.who
	}
	a := &c.annotated
	key := agedOf{h.who, away}
	e := a.aged[key]
	if e == nil {
		if a.aged == nil || len(a.aged) >= maxOwners {
			a.aged = map[agedOf]*flows.Entity{}
		}
		e = new(flows.Entity)
		*e = *h.who
		e.Confidence, e.Why = min(e.Confidence, agedSure), because(e.Why, "it does not answer since "+away.UTC().Format(time.DateTime)+" UTC")
		a.aged[key] = e
	}
	return e
}
