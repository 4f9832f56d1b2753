// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft/flows"
)

func TestObjectsOfAClusterAreBoundedAndTheStatusSaysSo(t *testing.T) {
	k := newKubernetes(quiet(), NewResolver(), func() uint64 { return 1 }, func() {})
	kind := &kubeKind{health: health{name: "kubernetes jobs"}}
	k.kinds = append(k.kinds, kind)
	s := &kubeStore[*metav1.PartialObjectMetadata]{
		kind: kind, strip: stripMeta, keep: k.keepOwner, drop: k.dropOwner, known: map[string]podName{}, names: interner{},
	}
	job := func(i int) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint("job-", i), Namespace: "shop", UID: types.UID(fmt.Sprint(i)),
			OwnerReferences: []metav1.OwnerReference{{Kind: "CronJob", Name: "nightly", Controller: new(true)}},
		}}
	}
	for i := range maxKube + 10 {
		if err := s.Add(job(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.statuses()[0]; len(s.known) != maxKube || len(k.owners) != maxKube || !strings.Contains(got.Err, "the rest has no names") {
		t.Errorf("of %d jobs %d are known, %d as owners, and the status says %q; want %d and that there are more", maxKube+10, len(s.known), len(k.owners), got.Err, maxKube)
	}
	if err := s.Replace([]any{job(1)}, ""); err != nil {
		t.Fatal(err)
	}
	if got := k.statuses()[0]; len(s.known) != 1 || len(k.owners) != 1 || got.Known != 1 || got.Err != "" {
		t.Errorf("after a list with one job: %d are known, %d as owners, status %+v", len(s.known), len(k.owners), got)
	}
	if o := k.owners["1"]; o != (kubeOwner{"cronjob", "nightly"}) {
		t.Errorf("owner of the job: got %+v, want cronjob nightly", o)
	}
}

// What was deleted and made anew while nobody watched has the same name and another uid.
func TestServiceMadeAnewKeepsItsName(t *testing.T) {
	k := newKubernetes(quiet(), NewResolver(), func() uint64 { return 1 }, func() {})
	s := &kubeStore[*corev1.Service]{
		kind: &kubeKind{health: health{name: "kubernetes services"}}, strip: stripService, keep: k.keepService, drop: k.dropService,
		known: map[string]podName{}, names: interner{},
	}
	if err := s.Add(frontService("1")); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace([]any{frontService("2")}, ""); err != nil {
		t.Fatal(err)
	}
	vip := netip.MustParseAddr("10.96.0.1")
	got := k.resolver.Resolve(flows.Scope{Netns: 1}, vip, time.Now().UnixNano())
	if got == nil || got.Service != "front" || got.Namespace != "shop" || len(k.services) != 1 {
		t.Errorf("%s: got %+v of %d Services, want shop/front of 1", vip, got, len(k.services))
	}
}

func frontService(uid types.UID) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "front", Namespace: "shop", UID: uid, CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}},
	}
}

// A pod's port that a Service sends to is most likely, and not surely, that Service's.
// Only where the agent's own connection tracking is, does it tell.
func TestServiceOfABackendIsAsSureAsItsEvidence(t *testing.T) {
	const own, foreign = 1, 2
	r := NewResolver()
	k := newKubernetes(quiet(), r, func() uint64 { return own }, func() {})
	c := &Census{topology: func() *Topology { return &Topology{} }, resolver: r, kube: k, nat: newConntrack(quiet(), nil)}
	pod := &flows.Entity{Pod: "web-1", Namespace: "shop", Confidence: 95, Why: "the API server's word"}
	direct := tracking("10.0.0.1:4000", "10.0.0.2:8080")
	began := time.Now().Add(-time.Hour).UnixNano()
	for _, space := range []uint64{own, foreign} {
		r.hold(owner{ownerPod, fmt.Sprint("web-1 in ", space)}, began, []claim{{space: space, addr: direct.Dst.Addr(), from: began, who: pod, rank: rankRoutable}})
	}
	k.keepService(frontService("1"))
	port, tcp := int32(8080), corev1.ProtocolTCP
	k.keepSlice(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "front-1", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "front"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}}, Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &tcp}},
	})
	go k.makeBackends(t.Context())
	soonEnough(t, 5*time.Second, "the backend is known", func() bool { return len(k.backendsNow()) == 1 })
	nat := &tracker{space: own, translations: newTranslations(&c.nat.places)}
	nat.add(flows.Translation{Opened: tracking("10.0.0.1:4000", "10.96.0.1:80"), Sent: direct}, 0, began, 1, true)
	nat.complete(1, began)
	c.nat.known.Store(&[]*tracker{nat})
	for name, want := range map[string]struct {
		src   string
		space uint64
		sure  uint8
	}{
		"sent there from the Service's address":           {"10.0.0.1:4000", own, 95},
		"not known to be sent":                            {"10.0.0.1:4001", own, backendSure},
		"the same addresses where others track or nobody": {"10.0.0.1:4000", foreign, backendSure},
	} {
		key := tracking(want.src, "10.0.0.2:8080")
		rec := &flows.Record{Key: key, Scope: flows.Scope{Netns: want.space}, Start: time.Now(), End: time.Now()}
		c.Annotate(rec)
		got := rec.Destination
		if got == nil || got.Pod != "web-1" || got.Service != "front" || got.Confidence != want.sure {
			t.Errorf("%s: got %+v, want pod web-1 of front, %d percent", name, got, want.sure)
		}
	}
}

func tracking(src, dst string) flows.Key {
	return flows.Key{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), Proto: flows.ProtoTCP}
}

// A pod elsewhere may end, and its address be another's, while the API server is away: what it
// said last is no certainty then. Of a pod here, an earlier one of its name says nothing if that ran elsewhere.
func TestWhatTheAPIServerSaidLastIsLessSureWhileItIsAway(t *testing.T) {
	r := NewResolver()
	k := newKubernetes(quiet(), r, func() uint64 { return 1 }, func() {})
	kind := &kubeKind{health: health{name: "pods"}}
	k.podKind.Store(kind)
	c := &Census{topology: func() *Topology { return &Topology{} }, resolver: r, kube: k, opts: CensusOptions{Node: "here"}}
	started := metav1.NewTime(time.Now().Add(-time.Hour))
	k.keepPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-0", Namespace: "shop", UID: "old", Labels: map[string]string{"version": "1"}},
		Spec:       corev1.PodSpec{NodeName: "there"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &started, PodIPs: []corev1.PodIP{{IP: "10.0.0.2"}}},
	})
	ask := func(end time.Time) *flows.Entity {
		rec := &flows.Record{Key: tracking("10.0.0.9:4000", "10.0.0.2:80"), Scope: flows.Scope{Netns: 1}, Start: end.Add(-time.Second), End: end}
		c.Annotate(rec)
		return rec.Destination
	}
	now := time.Now()
	sure := func(what string, at time.Time, want uint8) {
		t.Helper()
		e := ask(at)
		if e == nil || e.Pod != "web-0" || e.Confidence != want || (want < 95) != strings.Contains(e.Why, "does not answer since") {
			t.Errorf("%s: got %+v, want web-0 with %d percent", what, e, want)
		}
		if again := ask(at); again != e {
			t.Errorf("%s: got another entity the second time", what)
		}
	}
	kind.say(quiet(), nil)
	sure("it answers", now.Add(time.Hour), 95)
	kind.say(quiet(), errors.New("connection refused"))
	sure("away for a moment", now.Add(5*time.Second), 95)
	sure("a packet from before", now.Add(-time.Minute), 95)
	sure("away for a minute", now.Add(time.Minute), agedSure)
	kind.say(quiet(), nil)
	sure("back again", now.Add(2*time.Minute), 95)

	e := &flows.Entity{Pod: "web-0", Namespace: "shop", PodUID: "new", Node: "here"}
	if c.byAPI(e); e.Node != "here" || e.Labels != nil {
		t.Errorf("a pod here, made anew while the server is away: got %+v, want nothing of the one there", e)
	}
	k.keepPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "proxy-here", Namespace: "sys", UID: "mirror", Labels: map[string]string{"app": "proxy"}}, Spec: corev1.PodSpec{NodeName: "here"}})
	e = &flows.Entity{Pod: "proxy-here", Namespace: "sys", PodUID: "static", Node: "here"}
	if c.byAPI(e); e.Labels["app"] != "proxy" {
		t.Errorf("a pod that the kubelet runs by itself: got %+v, want the labels of its mirror", e)
	}
}
