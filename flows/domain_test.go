// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"testing"
	"time"
)

// TestNamespacesOfADomainShareAConversation: the same packets, seen in a pod and
// on the host's end of its veth pair, are counted once; equal addresses in
// namespaces that nothing joins are two conversations.
func TestNamespacesOfADomainShareAConversation(t *testing.T) {
	key := Key{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:53"), Proto: ProtoUDP}
	at := time.Unix(1000, 0)
	seen := func(netns, domain uint64, hook Hook) Sample {
		return Sample{
			Key: key, At: Point{Netns: netns, Ifindex: 2, Hook: hook}, Domain: domain, Packets: 5, Bytes: 500,
			First: at.UnixNano() + int64(netns), Last: at.UnixNano() + int64(netns), New: true,
		}
	}
	for name, c := range map[string]struct {
		samples []Sample
		records int
		scope   uint64 // of the first
	}{
		"joined":     {[]Sample{seen(7, 3, HookEgress), seen(3, 3, HookIngress)}, 1, 3},
		"not joined": {[]Sample{seen(7, 0, HookEgress), seen(8, 0, HookIngress)}, 2, 7},
	} {
		table := NewTable(TableOptions{})
		table.Fold(Batch{At: at, Flows: c.samples})
		records := table.Close(at.Add(time.Second)).Records
		if len(records) != c.records {
			t.Errorf("%s: got %d records, want %d", name, len(records), c.records)
			continue
		}
		for _, r := range records {
			if r.Packets != 5 || r.Bytes != 500 {
				t.Errorf("%s: total: got %d packets of %d bytes, want 5 of 500", name, r.Packets, r.Bytes)
			}
			if want := 2 / c.records; len(r.Hops) != want {
				t.Errorf("%s: got %d hops, want %d", name, len(r.Hops), want)
			}
		}
		if got := records[0].Scope.Netns; got != c.scope {
			t.Errorf("%s: scope: got %d, want %d", name, got, c.scope)
		}
	}
}
