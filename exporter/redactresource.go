// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"maps"
	"slices"
	"strings"
)

// resourceFields are the attributes of a resource that name what is redacted elsewhere:
// those that begin so belong to the field.
var resourceFields = []struct {
	prefix string
	field  RedactField
}{
	{"host.ip", RedactAddress}, {"k8s.pod.ip", RedactAddress}, {"host.mac", RedactDevice},
	{"host.name", RedactNode}, {"host.id", RedactNode}, {"host.ip", RedactNode}, {"host.mac", RedactNode},
	{"k8s.node.", RedactNode}, {"cloud.availability_zone", RedactNode}, {"cloud.region", RedactNode}, {"cloud.resource_id", RedactNode},
	{"k8s.pod.label", RedactLabel}, {"k8s.pod.", RedactPod}, {"k8s.namespace.", RedactNamespace},
	{"k8s.deployment.", RedactWorkload}, {"k8s.replicaset.", RedactWorkload}, {"k8s.statefulset.", RedactWorkload},
	{"k8s.daemonset.", RedactWorkload}, {"k8s.job.", RedactWorkload}, {"k8s.cronjob.", RedactWorkload},
	{"k8s.container.", RedactContainer}, {"container.", RedactContainer}, {"process.", RedactProcess},
}

// resource is what is left of the attributes that describe this agent and its host: a
// value that goes is in no other one either. Addresses are not there with any treatment.
func (r *Redactor) resource(attrs map[string]string) {
	if r == nil {
		return
	}
	r.taken = r.taken[:0]
	hashed := map[string]bool{}
	for _, f := range resourceFields {
		if r.c.Fields[f.field] == Keep {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(attrs)) {
			if hashed[name] || !strings.HasPrefix(name, f.prefix) {
				continue
			}
			r.taken = take(r.taken, attrs[name])
			if attrs[name] = r.text(f.field, attrs[name]); attrs[name] == "" || f.field == RedactAddress {
				delete(attrs, name)
				continue
			}
			hashed[name] = true
		}
	}
	maps.DeleteFunc(attrs, func(name, v string) bool { return !hashed[name] && r.tells(v) })
	if attrs["service.name"] == "" { // every resource has to have one
		attrs["service.name"] = defaultService
	}
}
