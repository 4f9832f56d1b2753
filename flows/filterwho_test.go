// SPDX-License-Identifier: Apache-2.0

package flows

import "testing"

func TestFiltersChooseByWho(t *testing.T) {
	r := Record{
		Source: &Entity{
			Layer: LayerContainer, Pod: "web-1", Namespace: "shop", Workload: "web", WorkloadKind: "deployment", Container: "nginx",
			ContainerID: "0123456789abcdef", Labels: map[string]string{"app": "web", "tier": ""},
		},
		Destination:        &Entity{Layer: LayerVM, VM: "db", VMID: "u-1", Service: "db", Namespace: "data", Unit: "pg.service", Process: "qemu", PID: 3},
		DestinationProcess: &Process{PID: 42, Comm: "postgres"},
	}
	for term, want := range map[string]bool{
		"pod=shop/web-1": true, "pod=shop/web-*": true, "pod=web-1": true, "pod=other/web-1": false, "to-pod=web-1": false, "from-pod=web-1": true,
		"namespace=shop": true, "namespace=data": true, "from-namespace=data": false,
		"workload=web": true, "workload=deployment/web": true, "workload=Deployment/web": true, "workload=job/web": false,
		"service=db": true, "service=data/db": true, "service=shop/db": false, "service=pg.service": true, "from-service=db": false,
		"container=nginx": true, "container=012345": true, "container=01234": false, "container=ffffff": false,
		"vm=db": true, "vm=u-1": true, "vm=d?": true, "from-vm=db": false, "sandbox=gvisor": false,
		"process=postgres": true, "process=42": true, "process=qemu": false, "process=3": false, "from-process=*": false,
		"label=app": true, "label=app=web": true, "label=app=w*": true, "label=app=db": false, "label=tier=": true, "label=none": false,
		"layer=container": true, "layer=VM": true, "to-layer=container": false, "layer=sandbox": false,
	} {
		f, err := ParseFilter(terms(term))
		if err != nil {
			t.Errorf("%s: %v", term, err)
			continue
		}
		if got := f.Match(&r); got != want {
			t.Errorf("%s: got %v, want %v", term, got, want)
		}
		if f.Match(&Record{}) {
			t.Errorf("%s: matches a record whose ends nobody names", term)
		}
	}
	for _, bad := range []string{"pod=a/b/[", "layer=cloud", "label==x", "namespace=", "workload=/web"} {
		if _, err := ParseFilter(terms(bad)); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	f, err := ParseFilter(terms("pod=shop/web-* workload=deployment/web label=app=web layer=container service=db"))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { f.Match(&r) }); n != 0 {
		t.Errorf("%v allocations a match, want none", n)
	}
}
