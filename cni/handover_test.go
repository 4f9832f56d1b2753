// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"
	"testing"
	"time"

	"weft/flows"
)

// stage is a topology of one namespace with one address, with these containers in it.
func stage(at time.Time, inside ...Container) *Topology {
	s := &Space{Netns: 7, Entity: &flows.Entity{}, Containers: inside}
	nameContainers(s.Entity, inside)
	d := &Device{Link: &Link{Index: 2}, Space: s, Addrs: []netip.Prefix{netip.MustParsePrefix("10.6.0.2/24")}, segment: 7}
	s.Devices = []*Device{d}
	return &Topology{At: at, Spaces: []*Space{s}, spaces: map[uint64]*Space{7: s}, domains: map[uint64]uint64{7: 7}}
}

// A network namespace, and the address in it, may outlive its container and be given to
// the next one: each has the packets of its own time, whenever their record is made.
func TestContainersThatFollowEachOtherInOneNamespaceAreToldByTime(t *testing.T) {
	began := time.Now().Add(-time.Minute)
	when := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	inside := func(id string, since float64) Container {
		return Container{ID: id, Runtime: "docker", Confidence: 95, Since: when(since)}
	}
	hold := inside("hold", 1)
	ofPod := func(id string, since float64) Container {
		c := inside(id, since)
		c.Sandbox = hold.ID
		return c
	}
	for what, c := range map[string]struct {
		stages []*Topology
		want   map[float64]string // container by second
	}{
		"it ends, and nobody follows": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(10))},
			map[float64]string{1.5: "a", 9.9: "a", 10.1: ""},
		},
		"the next one comes later": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(10)), stage(when(20), inside("b", 19.5))},
			map[float64]string{1.5: "a", 9.9: "a", 10.1: "b", 19.6: "b", 30: "b"},
		},
		"the next one is met in the same look": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(10), inside("b", 9.5))},
			map[float64]string{1.5: "a", 9.4: "a", 9.6: "b", 30: "b"},
		},
		"three within a second": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(10), inside("b", 9.7)), stage(when(10.4), inside("c", 10.2))},
			map[float64]string{9.6: "a", 9.8: "b", 10.1: "b", 10.3: "c", 30: "c"},
		},
		"one of a pod's is started again": {
			[]*Topology{stage(when(2), hold, ofPod("a", 1)), stage(when(10), hold), stage(when(20), hold, ofPod("b", 19))},
			map[float64]string{1.5: "a", 9.9: "a", 10.1: "hold", 19.5: "b", 30: "b"},
		},
		"it is met after its address": {
			[]*Topology{stage(when(2)), stage(when(3), inside("a", 2.5))},
			map[float64]string{1.9: "a", 2.6: "a", 30: "a"},
		},
		"a process of another looks in": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(3), inside("a", 1), inside("x", 2.9)), stage(when(4), inside("a", 1))},
			map[float64]string{2.8: "a", 3.5: "", 4.1: "a", 30: "a"}, // between: who knows
		},
		"one that says it began before the last one ended": {
			[]*Topology{stage(when(2), inside("a", 1)), stage(when(10)), stage(when(20), inside("b", 1))},
			map[float64]string{1.5: "a", 9.9: "a", 10.1: "b"},
		},
	} {
		var now *Topology
		census := &Census{topology: func() *Topology { return now }, resolver: NewResolver(), log: quiet(), disk: newOnDisk("", ""), spaces: map[uint64]*resident{}, asked: map[string]time.Time{}}
		now = &Topology{At: began}
		census.count(false)
		for _, now = range c.stages {
			census.count(false)
		}
		for second, want := range c.want {
			e := census.resolver.Resolve(flows.Scope{Netns: 7}, addrOf("10.6.0.2"), when(second).UnixNano())
			if e == nil || e.ContainerID != want {
				t.Errorf("%s, second %v: got %+v, want container %q", what, second, e, want)
			}
		}
	}
}
