// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/flows"
)

// flowsService names a Service.
type flowsService struct{ namespace, name string }

// backend is where a Service sends to.
type backend struct {
	addr  netip.Addr
	port  uint16
	proto uint8
}

type kubeService struct {
	who   *flows.Entity
	addrs []netip.Addr
	ports []backend // on every node, without an address
}

type kubeSlice struct {
	of       *flowsService
	backends []backend
}

// backendsEvery is how long changes of EndpointSlices are gathered.
const backendsEvery = 100 * time.Millisecond

// maxBackends bounds what one EndpointSlice adds: Kubernetes allows 1,000 endpoints.
const maxBackends = 8192

func stripService(s *corev1.Service) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: created(bareMeta(&s.ObjectMeta, false), &s.ObjectMeta),
		Spec:       corev1.ServiceSpec{ClusterIPs: s.Spec.ClusterIPs, ExternalIPs: s.Spec.ExternalIPs, Ports: s.Spec.Ports},
		Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: s.Status.LoadBalancer.Ingress}},
	}
}

func created(bare metav1.ObjectMeta, m *metav1.ObjectMeta) metav1.ObjectMeta {
	bare.CreationTimestamp = m.CreationTimestamp
	return bare
}

// stripSlice keeps the addresses and ports, and the name of the Service.
func stripSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	bare := bareMeta(&s.ObjectMeta, false)
	bare.Labels = map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]}
	all := make([]discoveryv1.Endpoint, len(s.Endpoints))
	for i := range s.Endpoints {
		all[i].Addresses = s.Endpoints[i].Addresses
	}
	return &discoveryv1.EndpointSlice{ObjectMeta: bare, AddressType: s.AddressType, Endpoints: all, Ports: s.Ports}
}

func (k *kubernetes) keepService(from *corev1.Service) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := from.Namespace + "/" + from.Name
	texts := slices.Concat(from.Spec.ClusterIPs, from.Spec.ExternalIPs)
	for _, i := range from.Status.LoadBalancer.Ingress {
		texts = append(texts, i.IP)
	}
	var addrs []netip.Addr
	for _, text := range texts { // "None" is that of a headless one
		if a, err := netip.ParseAddr(text); err == nil && len(addrs) < 64 && !slices.Contains(addrs, a.Unmap()) {
			addrs = append(addrs, a.Unmap())
		}
	}
	var ports []backend
	for i := range from.Spec.Ports {
		if p := &from.Spec.Ports[i]; p.NodePort != 0 && len(ports) < maxBackends {
			ports = append(ports, backend{port: uint16(p.NodePort), proto: protocolOf(&p.Protocol)})
		}
	}
	was := k.services[id]
	if was != nil && slices.Equal(was.addrs, addrs) && slices.Equal(was.ports, ports) {
		return
	}
	if len(ports) > 0 || was != nil && len(was.ports) > 0 {
		k.changeBackends()
	}
	s := &kubeService{addrs: addrs, ports: ports}
	if was != nil {
		s.who = was.who
	} else {
		s.who = &flows.Entity{Service: k.strings.one(bounded(from.Name)), Namespace: k.strings.one(bounded(from.Namespace)), Confidence: 95, Why: "the API server's word"}
	}
	k.services[id] = s
	var claims []claim
	for _, a := range addrs {
		claims = append(claims, claim{space: k.space(), addr: a, from: from.CreationTimestamp.UnixNano(), who: s.who, rank: rankRoutable})
	}
	k.resolver.hold(owner{ownerService, id}, time.Now().UnixNano(), claims)
}

func (k *kubernetes) dropService(_ string, n podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := n.namespace + "/" + n.name
	k.resolver.hold(owner{ownerService, id}, time.Now().UnixNano(), nil)
	if s := k.services[id]; s != nil && len(s.ports) > 0 {
		k.changeBackends()
	}
	delete(k.services, id)
}

func (k *kubernetes) keepSlice(from *discoveryv1.EndpointSlice) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id, name := from.Namespace+"/"+from.Name, from.Labels[discoveryv1.LabelServiceName]
	s := &kubeSlice{of: &flowsService{k.strings.one(bounded(from.Namespace)), k.strings.one(bounded(name))}}
	for _, e := range from.Endpoints {
		for _, text := range e.Addresses {
			a, err := netip.ParseAddr(text)
			for _, p := range from.Ports {
				if err == nil && p.Port != nil && len(s.backends) < maxBackends {
					s.backends = append(s.backends, backend{a.Unmap(), uint16(*p.Port), protocolOf(p.Protocol)})
				}
			}
		}
	}
	was := k.slices[id]
	if was != nil && *was.of == *s.of && slices.Equal(was.backends, s.backends) {
		return
	}
	if k.slices[id] = s; name == "" { // made by hand, of no Service
		delete(k.slices, id)
	}
	k.changeBackends()
}

func protocolOf(p *corev1.Protocol) uint8 {
	switch {
	case p == nil || *p == "" || *p == corev1.ProtocolTCP:
		return flows.ProtoTCP
	case *p == corev1.ProtocolUDP:
		return flows.ProtoUDP
	}
	return flows.ProtoSCTP
}

func (k *kubernetes) dropSlice(_ string, n podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.slices, n.namespace+"/"+n.name)
	k.changeBackends()
}

func (k *kubernetes) changeBackends() {
	select {
	case k.stale <- struct{}{}:
	default:
	}
}

// makeBackends makes the table that readers use, after changes.
func (k *kubernetes) makeBackends(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.stale:
		}
		k.mu.Lock()
		all := make(map[backend][]*flowsService, len(k.backendsNow()))
		for _, s := range k.slices {
			for _, b := range s.backends {
				if !slices.ContainsFunc(all[b], func(o *flowsService) bool { return *o == *s.of }) {
					all[b] = append(all[b], s.of)
				}
			}
		}
		for _, s := range k.services {
			for _, p := range s.ports { // no two Services have the same
				all[p] = []*flowsService{{s.who.Namespace, s.who.Service}}
			}
		}
		k.mu.Unlock()
		k.backends.Store(&all)
		if !pause(ctx, backendsEvery) {
			return
		}
	}
}

func (k *kubernetes) backendsNow() map[backend][]*flowsService { return *k.backends.Load() }

// serviceOf is the Service that a backend belongs to; nil: to none, or to several,
// so that only the address that was asked for tells. Without an address: the Service
// that has that port of every node.
func (k *kubernetes) serviceOf(b backend) *flowsService {
	if all := k.backendsNow()[b]; len(all) == 1 {
		return all[0]
	}
	return nil
}
