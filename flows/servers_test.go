// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// namesIn is what a window of these histograms and records names.
func namesIn(s *Servers, servers []string, records ...Record) (all []string) {
	w := Window{Records: records, Latencies: []Latency{{}}}
	for _, addr := range servers {
		w.Latencies = append(w.Latencies, Latency{Key: LatencyKey{Server: netip.MustParseAddrPort(addr), Protocol: ProtoTCP}})
	}
	s.Name(&w)
	for _, n := range w.Servers {
		all = append(all, fmt.Sprintf("%s %s%s/%s", n.Addr, n.Who.Service, n.Who.Namespace, n.Who.Pod))
	}
	return all
}

func TestServersOfHistogramsHaveTheNamesOfRecords(t *testing.T) {
	pod := func(name string) *Entity {
		return &Entity{Pod: name, Namespace: "shop", PID: 7, Confidence: 80, Why: "seen"}
	}
	to := func(netns uint64, dst *Entity) Record {
		return Record{Key: tcp(aClient, aBackend), Scope: Scope{Netns: netns}, Destination: dst}
	}
	serving := to(1, &Entity{Pod: "web", Namespace: "shop", Service: "front"})
	serving.NAT = &NAT{Destination: netip.MustParseAddrPort(aService)}
	reversed := Record{Key: tcp(aClient, aBackend).Reverse(), Source: pod("web")}
	both := []string{aBackend, aService}
	for _, c := range []struct {
		what    string
		records []Record // a window each
		want    []string // in the last
	}{
		{"nobody is known", []Record{to(1, nil), to(1, &Entity{Why: "nothing"})}, nil},
		{"a pod", []Record{to(1, pod("web"))}, []string{aBackend + " shop/web"}},
		{"a pod that is the source of its record", []Record{reversed}, []string{aBackend + " shop/web"}},
		{"behind a Service, whose address is many", []Record{serving}, []string{aBackend + " frontshop/web", aService + " frontshop/"}},
		{"who knows less takes nothing away", []Record{serving, to(1, pod("web")), to(2, pod("web")), to(1, nil)}, []string{aBackend + " frontshop/web", aService + " frontshop/"}},
		{"the next one with the address", []Record{to(1, pod("web")), to(1, pod("next"))}, []string{aBackend + " shop/next"}},
		{"two tenants with one address", []Record{to(1, pod("web")), to(2, pod("other"))}, nil},
		{"and then", []Record{to(1, pod("web")), to(2, pod("other")), to(1, pod("web"))}, nil},
	} {
		var s Servers
		var got []string
		namesIn(&s, both)
		for _, r := range c.records {
			got = namesIn(&s, both, r)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}

func TestAServerMayHaveItsRecordBeforeItsHistogram(t *testing.T) {
	var s Servers
	r := Record{Key: tcp(aClient, aBackend), Source: &Entity{Pod: "client"}, Destination: &Entity{Pod: "web"}}
	namesIn(&s, nil)
	s.Name(&Window{Records: []Record{r}})
	if len(s.fresh) != 1 {
		t.Errorf("got %d remembered, want the server alone", len(s.fresh))
	}
	if got, want := namesIn(&s, []string{aBackend}), []string{aBackend + " /web"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for i := range 2 * maxFreshServers {
		r.Key.Dst = netip.AddrPortFrom(r.Key.Dst.Addr(), uint16(i))
		s.Name(&Window{Records: []Record{r}})
	}
	if len(s.fresh) != maxFreshServers {
		t.Errorf("got %d remembered, want at most %d", len(s.fresh), maxFreshServers)
	}
	if namesIn(&s, nil); len(s.fresh) != 0 {
		t.Errorf("after the next histograms: got %d remembered, want none", len(s.fresh))
	}
}

func TestServersWithoutHistogramsAreForgotten(t *testing.T) {
	var s Servers
	r := Record{Key: tcp(aClient, aBackend), Destination: &Entity{Pod: "web", Labels: map[string]string{"a": "b"}, PID: 7, Confidence: 9, Why: "x"}}
	namesIn(&s, []string{aBackend}, r)
	if who := s.known[Server{netip.MustParseAddrPort(aBackend), ProtoTCP}].who; who.Labels != nil || who.PID != 0 || who.Confidence != 0 || who.Why != "" || r.Destination.PID != 7 {
		t.Errorf("got %+v, want the pod alone, and the record's as it was", who)
	}
	if got := namesIn(&s, nil, r); got != nil || len(s.known) != 0 {
		t.Errorf("got %q and %d held, want none", got, len(s.known))
	}
	namesIn(&s, nil)
	if got := namesIn(&s, []string{aBackend}); got != nil {
		t.Errorf("there again: got %q, want nobody yet", got)
	}
	w := Window{Records: []Record{r}}
	if s.Name(&w); w.Servers != nil {
		t.Errorf("without histograms: got %v", w.Servers)
	}
}
