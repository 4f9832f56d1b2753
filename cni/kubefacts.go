// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/flows"
)

// kubePod is what is kept of a pod.
type kubePod struct {
	who   *flows.Entity
	node  string
	owner string // uid of a replica set or job that has an owner itself; empty: none
	addrs []netip.Addr
	since int64 // Unix nanoseconds
	over  bool  // it has ended, and its addresses may be another's
}

type podName struct{ namespace, name string }

type kubeNode struct {
	zone, region string
	addrs        []netip.Addr
}

// kubeOwner is what owns a replica set or job.
type kubeOwner struct{ kind, name string }

// The well-known labels that are used.
const (
	labelZone   = "topology.kubernetes.io/zone"
	labelRegion = "topology.kubernetes.io/region"
)

// stripMeta keeps of an owner's metadata who it is and who owns it.
func stripMeta(m *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: m.TypeMeta, ObjectMeta: bareMeta(&m.ObjectMeta, false)}
}

func bareMeta(m *metav1.ObjectMeta, labels bool) metav1.ObjectMeta {
	bare := metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID}
	if labels {
		bare.Labels = m.Labels
	}
	if o := metav1.GetControllerOfNoCopy(m); o != nil {
		bare.OwnerReferences = []metav1.OwnerReference{*o}
	}
	return bare
}

func stripPod(p *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: bareMeta(&p.ObjectMeta, true),
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs, StartTime: p.Status.StartTime},
	}
}

func stripNode(n *corev1.Node) *corev1.Node {
	bare := bareMeta(&n.ObjectMeta, false)
	bare.Labels = map[string]string{labelZone: n.Labels[labelZone], labelRegion: n.Labels[labelRegion]}
	return &corev1.Node{ObjectMeta: bare, Status: corev1.NodeStatus{Addresses: n.Status.Addresses}}
}

func (k *kubernetes) keepOwner(m *metav1.PartialObjectMetadata) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, had := kubeOwner{}, k.owners[string(m.UID)]
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		o = kubeOwner{k.strings.one(strings.ToLower(c.Kind)), k.strings.one(bounded(c.Name))}
	}
	if o == had {
		return
	}
	k.owners[string(m.UID)] = o
	for uid, p := range k.pods { // pods that came before their owner
		if p.owner == string(m.UID) {
			e := *p.who
			e.WorkloadKind, e.Workload = o.kind, o.name
			p.who = &e
			k.claimPod(uid, p)
		}
	}
}

func (k *kubernetes) dropOwner(uid string, _ podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.owners, uid)
}

func (k *kubernetes) keepPod(from *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	uid := string(from.UID)
	p := k.newPod(from)
	if was := k.pods[uid]; was != nil {
		if from.Status.StartTime == nil {
			p.since = was.since // when it was met
		}
		if was.over == p.over && was.node == p.node && was.since == p.since && was.owner == p.owner &&
			slices.Equal(was.addrs, p.addrs) && sameEntity(was.who, p.who) {
			return
		}
		if sameEntity(was.who, p.who) {
			p.who = was.who
		}
	}
	k.pods[uid], k.names[podName{p.who.Namespace, p.who.Pod}] = p, uid
	k.claimPod(uid, p)
	k.told()
}

// newPod is what is kept of a pod. Without an address of its own it has none to claim.
func (k *kubernetes) newPod(from *corev1.Pod) *kubePod {
	one := k.strings.one
	p := &kubePod{
		node: one(from.Spec.NodeName), since: time.Now().Add(-backdate).UnixNano(),
		over: from.Status.Phase == corev1.PodSucceeded || from.Status.Phase == corev1.PodFailed,
	}
	if from.Status.StartTime != nil {
		p.since = from.Status.StartTime.UnixNano()
	}
	if !from.Spec.HostNetwork {
		for _, a := range from.Status.PodIPs {
			if addr, err := netip.ParseAddr(a.IP); err == nil && len(p.addrs) < 16 {
				p.addrs = append(p.addrs, addr.Unmap())
			}
		}
	}
	e := &flows.Entity{
		Layer: flows.LayerContainer, Pod: strings.Clone(bounded(from.Name)), Namespace: one(bounded(from.Namespace)),
		PodUID: strings.Clone(string(from.UID)), Node: p.node, Labels: k.labels(from.Labels), Confidence: 95, Why: "the API server's word",
	}
	if n := k.nodes[p.node]; n != nil {
		e.Zone, e.Region = n.zone, n.region
	}
	if c := metav1.GetControllerOfNoCopy(from); c != nil {
		e.WorkloadKind, e.Workload = one(strings.ToLower(c.Kind)), one(bounded(c.Name))
		if e.WorkloadKind == "replicaset" || e.WorkloadKind == "job" {
			p.owner = one(string(c.UID))
			if o := k.owners[p.owner]; o.name != "" {
				e.WorkloadKind, e.Workload = o.kind, o.name
			}
		}
	}
	p.who = e
	return p
}

// labels are bounded, and made of strings that are kept once.
func (k *kubernetes) labels(all map[string]string) map[string]string {
	kept := boundLabels(all)
	out := make(map[string]string, len(kept))
	for name, value := range kept {
		out[k.strings.one(name)] = k.strings.one(value)
	}
	return out
}

func (k *kubernetes) claimPod(uid string, p *kubePod) {
	var claims []claim
	for _, a := range p.addrs {
		if !p.over {
			claims = append(claims, claim{space: k.space(), addr: a, from: p.since, who: p.who, rank: rankRoutable})
		}
	}
	k.resolver.hold(owner{ownerPod, uid}, time.Now().UnixNano(), claims)
}

func (k *kubernetes) dropPod(uid string, n podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.resolver.hold(owner{ownerPod, uid}, time.Now().UnixNano(), nil)
	delete(k.pods, uid)
	if k.names[n] == uid {
		delete(k.names, n)
	}
}

// pod is what the API server says of a pod that runs on a node; nil: nothing. One with
// another uid is the same pod if the kubelet runs it without being told to, and an earlier
// one of that name if it ran elsewhere.
func (k *kubernetes) pod(uid, namespace, name, node string) *flows.Entity {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.pods[uid]; p != nil {
		return p.who
	}
	p := k.pods[k.names[podName{namespace, name}]]
	if p == nil || uid != "" && p.node != node && !strings.HasSuffix(name, "-"+p.node) {
		return nil
	}
	return p.who
}

func (k *kubernetes) keepNode(from *corev1.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := &kubeNode{zone: k.strings.one(bounded(from.Labels[labelZone])), region: k.strings.one(bounded(from.Labels[labelRegion]))}
	for _, a := range from.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && len(n.addrs) < 16 {
			n.addrs = append(n.addrs, addr.Unmap())
		}
	}
	was := k.nodes[from.Name]
	if was != nil && was.zone == n.zone && was.region == n.region && slices.Equal(was.addrs, n.addrs) {
		return
	}
	name := k.strings.one(bounded(from.Name))
	k.nodes[name] = n
	who := &flows.Entity{Layer: flows.LayerHost, Node: name, Zone: n.zone, Region: n.region, Confidence: 95, Why: "the API server's word"}
	var claims []claim
	for _, a := range n.addrs {
		if !slices.ContainsFunc(claims, func(c claim) bool { return c.addr == a }) {
			claims = append(claims, claim{space: k.space(), addr: a, who: who, rank: rankRoutable})
		}
	}
	k.resolver.hold(owner{ownerNode, name}, time.Now().UnixNano(), claims)
	for uid, p := range k.pods {
		if p.node == name && (p.who.Zone != n.zone || p.who.Region != n.region) {
			e := *p.who
			e.Zone, e.Region = n.zone, n.region
			p.who = &e
			k.claimPod(uid, p)
		}
	}
	k.told()
}

func (k *kubernetes) dropNode(_ string, n podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.resolver.hold(owner{ownerNode, n.name}, time.Now().UnixNano(), nil)
	delete(k.nodes, n.name)
}

// placed is where a node is.
func (k *kubernetes) placed(node string) (zone, region string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.nodes[node]; n != nil {
		return n.zone, n.region
	}
	return "", ""
}

// sameEntity compares what the API server tells of a pod.
func sameEntity(a, b *flows.Entity) bool {
	return a.Pod == b.Pod && a.Namespace == b.Namespace && a.PodUID == b.PodUID && a.Workload == b.Workload && a.WorkloadKind == b.WorkloadKind &&
		a.Node == b.Node && a.Zone == b.Zone && a.Region == b.Region && maps.Equal(a.Labels, b.Labels)
}
