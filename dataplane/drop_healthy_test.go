// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"weft/flows"
)

// TestHealthyTrafficLosesNothing moves bulk TCP and UDP through a router and closes.
func TestHealthyTrafficLosesNothing(t *testing.T) {
	r := dropRouted(t, Options{})
	for range 3 {
		r.client.tcp(r.server, dropServer4, 16<<20)
		r.client.tcp(r.server, dropServer6, 16<<20)
		r.client.udp(r.server, dropServer4, 1000, 1000)
		r.client.udp(r.server, dropServer6, 100, 8000)
	}
	r.a.passed()
	for name, n := range map[string]*nsSpace{"client": r.client, "router": r.router, "server": r.server} {
		for _, s := range r.a.in(n, func(flows.DropSample) bool { return true }) {
			t.Logf("%s: %+v", name, s)
			if s.Class == flows.DropLoss {
				t.Errorf("%s: got a loss of %d packets (%s in %s) of %v, want none", name, s.Packets, s.Reason, s.Location, s.Key)
			}
		}
	}
	r.a.stop()
}
