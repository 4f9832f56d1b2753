// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
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
