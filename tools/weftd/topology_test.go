// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// What `flowctl topology` draws of a running agent's host is what is there, also
// what came after the agent.
func TestTopologyShowsBothEndsOfAPair(t *testing.T) {
	h := newHouse(t)
	h.start(t, "dataplane: {interfaces: [wire0]}\n")
	command(t, "ip", "-n", h.here, "link", "add", "late0", "type", "bridge")
	command(t, "ip", "-n", h.here, "link", "set", device, "master", "late0")
	type place struct {
		Netns   uint64
		Ifindex uint32
	}
	var doc struct {
		Namespaces []struct {
			Netns   uint64
			Path    string
			Own     bool
			Devices []struct {
				Interface, Kind, Layer, Reason string
				Ifindex, Master                uint32
				Far                            *place
				Addresses                      []string
				Confidence                     int
			}
		}
	}
	h.eventually(t, "the late bridge is drawn", func() error {
		out, complaint, code := h.flowctl(t, "topology", "-o", "json")
		if code != 0 {
			return fmt.Errorf("exit %d: %s", code, complaint)
		}
		doc.Namespaces = nil
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if !strings.Contains(out, `"late0"`) {
			return errors.New(out)
		}
		return nil
	})
	ends := map[string]place{}
	far := map[string]place{}
	for i, n := range doc.Namespaces {
		if n.Own != (i == 0) || n.Own != strings.HasSuffix(n.Path, h.here) {
			t.Errorf("namespace %d is at %s, own %t; want the agent's, %s, first and alone", i, n.Path, n.Own, h.here)
		}
		for _, d := range n.Devices {
			if d.Layer == "" || d.Reason == "" || d.Confidence == 0 {
				t.Errorf("%s is in layer %q, %d %%, because %q; want all three", d.Interface, d.Layer, d.Confidence, d.Reason)
			}
			if n.Path == "/run/netns/"+h.here && d.Interface == device || n.Path == "/run/netns/"+h.there && d.Interface == "wire1" {
				ends[d.Interface] = place{n.Netns, d.Ifindex}
				if d.Far != nil {
					far[d.Interface] = *d.Far
				}
				if d.Interface == device && (d.Master == 0 || len(d.Addresses) != 1 || d.Addresses[0] != hereAddr+"/24") {
					t.Errorf("%s has master %d and addresses %v, want the late bridge and %s", device, d.Master, d.Addresses, hereAddr)
				}
			}
		}
	}
	if len(ends) != 2 || far[device] != ends["wire1"] || far["wire1"] != ends[device] {
		t.Errorf("the ends are %v and lead to %v, want each to the other", ends, far)
	}
	if out, _, code := h.flowctl(t, "topology"); code != 0 || !strings.Contains(out, device+"  veth") || !strings.Contains(out, "⇄ wire1 in ") {
		t.Errorf("exit %d and\n%s\nwant a tree with both ends", code, out)
	}
	if out, _, code := h.flowctl(t, "topology", "-o", "dot"); code != 0 || !strings.HasPrefix(out, "graph topology {") {
		t.Errorf("exit %d and\n%s\nwant a graph", code, out)
	}
	if _, complaint, code := h.flowctl(t, "topology", "-o", "nonsense"); code != 2 || !strings.Contains(complaint, "dot") {
		t.Errorf("exit %d and %q, want 2 and what can be had", code, complaint)
	}
}
