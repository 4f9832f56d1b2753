// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// entityKinds are the filters by who an end is. An end that nobody names fulfils
// none of them.
var entityKinds = []kind{
	{name: "pod", value: "[NAMESPACE/]NAME", help: "Kubernetes pod, each part a name or a pattern such as shop/web-*", end: parsePodTerm},
	{name: "namespace", value: "GLOB", help: "Kubernetes namespace", end: byName(func(e *Entity) []string { return []string{e.Namespace} })},
	{name: "workload", value: "[KIND/]NAME", help: "Kubernetes workload, such as web or deployment/web", end: parseWorkloadTerm},
	{name: "service", value: "[NAMESPACE/]NAME", help: "Kubernetes Service, or systemd unit such as nginx.service", end: parseServiceTerm},
	{name: "container", value: "NAME|ID", help: "container, a name, a pattern or the first digits of its id", end: parseContainerTerm},
	{name: "vm", value: "NAME|UUID", help: "virtual machine", end: byName(func(e *Entity) []string { return []string{e.VM, e.VMID} })},
	{name: "sandbox", value: "ID|RUNTIME", help: "sandbox, by its id or its runtime: gvisor, kata", end: byName(func(e *Entity) []string { return []string{e.Sandbox, e.SandboxRuntime} })},
	{name: "process", value: "NAME|PID", help: "owner of the socket", end: parseProcessTerm},
	{name: "label", value: "KEY[=VALUE]", help: "Kubernetes pod label", end: parseLabelTerm},
	{name: "layer", value: "LAYER", help: "isolation layer: " + strings.Join(layerNames[1:], ", "), end: parseLayerTerm},
}

// who is who one end is; never nil.
func (r *Record) who(source bool) *Entity {
	e := r.Destination
	if source {
		e = r.Source
	}
	if e == nil {
		return &nobody
	}
	return e
}

var nobody Entity

type endParser = func(string) (string, func(*Record, bool) bool, error)

// byName holds where one of the names matches a pattern.
func byName(of func(*Entity) []string) endParser {
	return func(v string) (string, func(*Record, bool) bool, error) {
		return v, func(r *Record, source bool) bool {
			for _, name := range of(r.who(source)) {
				if name != "" && matches(v, name) {
					return true
				}
			}
			return false
		}, glob(v)
	}
}

// inTwo splits outer/name, where outer may be left out; empty: any.
func inTwo(v string) (outer, name string, err error) {
	outer, name, two := strings.Cut(v, "/")
	if !two {
		outer, name = "", v
	} else if err := glob(outer); err != nil {
		return "", "", err
	}
	return outer, name, glob(name)
}

func within(outer, name, in, what string) bool {
	return what != "" && matches(name, what) && (outer == "" || matches(outer, in))
}

func parsePodTerm(v string) (string, func(*Record, bool) bool, error) {
	ns, name, err := inTwo(v)
	return v, func(r *Record, source bool) bool {
		e := r.who(source)
		return within(ns, name, e.Namespace, e.Pod)
	}, err
}

func parseWorkloadTerm(v string) (string, func(*Record, bool) bool, error) {
	kind, name, err := inTwo(v)
	kind = strings.ToLower(kind)
	return v, func(r *Record, source bool) bool {
		e := r.who(source)
		return within(kind, name, e.WorkloadKind, e.Workload)
	}, err
}

func parseServiceTerm(v string) (string, func(*Record, bool) bool, error) {
	ns, name, err := inTwo(v)
	return v, func(r *Record, source bool) bool {
		e := r.who(source)
		return within(ns, name, e.Namespace, e.Service) || ns == "" && within("", name, "", e.Unit)
	}, err
}

// The first digits of an id are as good as all of them, from 6 on.
func parseContainerTerm(v string) (string, func(*Record, bool) bool, error) {
	return v, func(r *Record, source bool) bool {
		e := r.who(source)
		return within("", v, "", e.Container) || len(v) >= 6 && strings.HasPrefix(e.ContainerID, v)
	}, glob(v)
}

func parseProcessTerm(v string) (string, func(*Record, bool) bool, error) {
	return v, func(r *Record, source bool) bool {
		p := r.DestinationProcess
		if source {
			p = r.SourceProcess
		}
		e := r.who(source)
		if p == nil {
			p = &Process{PID: e.PID, Comm: e.Process}
		}
		return within("", v, "", p.Comm) || p.PID != 0 && fmt.Sprint(p.PID) == v
	}, glob(v)
}

func parseLabelTerm(v string) (string, func(*Record, bool) bool, error) {
	key, value, has := strings.Cut(v, "=")
	if key == "" {
		return "", nil, errors.New("want a label such as app or app=web")
	}
	if has && value != "" {
		if _, err := path.Match(value, ""); err != nil {
			return "", nil, fmt.Errorf("want a value or a pattern such as web*: %w", err)
		}
	}
	return v, func(r *Record, source bool) bool {
		got, ok := r.who(source).Labels[key]
		return ok && (!has || got == value || matches(value, got))
	}, nil
}

func parseLayerTerm(v string) (string, func(*Record, bool) bool, error) {
	for l := LayerUnknown + 1; l < NumLayers; l++ {
		if strings.EqualFold(v, l.String()) {
			return l.String(), func(r *Record, source bool) bool { return r.who(source).Layer == l }, nil
		}
	}
	return "", nil, errors.New("want one of " + strings.Join(layerNames[1:], ", "))
}
