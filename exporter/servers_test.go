// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// named is a histogram of each measure, who its server is if anybody, and one who has none.
func named(who *flows.Entity) Latencies {
	gone := flows.Server{Addr: netip.MustParseAddrPort("192.0.2.9:443"), Protocol: flows.ProtoTCP}
	l := Latencies{At: t0.Add(time.Hour), All: allMeasures(), Who: []flows.NamedServer{{Server: gone, Who: &flows.Entity{Pod: "gone"}}}}
	if who != nil {
		l.Who = append(l.Who, flows.NamedServer{Server: flows.Server{Addr: web, Protocol: flows.ProtoTCP}, Who: who})
	}
	return l
}

// pairs are labels as text.
func pairs(m *dto.Metric) (all []string) {
	for _, l := range m.Label {
		if l.GetValue() != "" {
			all = append(all, l.GetName()+"="+l.GetValue())
		}
	}
	return all
}

func TestScrapersReadWhoAServerIsByItsAddress(t *testing.T) {
	who := &flows.Entity{Pod: "web-1", Namespace: "shop", Workload: "web\xff", WorkloadKind: "deployment", Service: "front", Node: "n1", ContainerID: "c0ffee"}
	var was []string
	for _, e := range []*flows.Entity{nil, who, {Unit: "nginx.service", Process: "nginx"}} {
		l := named(e)
		families := scrapeAll(t, func() Latencies { return l })
		var histograms []string
		for _, m := range families["weft_tcp_rtt_seconds"].Metric {
			histograms = append(histograms, fmt.Sprint(pairs(m), m.Histogram.GetSampleCount()))
		}
		slices.Sort(histograms)
		if was != nil && !slices.Equal(histograms, was) {
			t.Errorf("histograms change with the name: got %q, want %q", histograms, was)
		}
		was = histograms
		info := families["weft_server_info"]
		if e == nil {
			if info != nil {
				t.Errorf("of nobody: got %v", info)
			}
			continue
		}
		want := []string{"container=c0ffee", "namespace=shop", "node=n1", "pod=web-1", "server_address=192.0.2.1", "server_port=443", "service=front", "transport=tcp", "workload=web\uFFFD", "workload_kind=deployment"}
		if e != who {
			want = []string{"process=nginx", "server_address=192.0.2.1", "server_port=443", "transport=tcp", "unit=nginx.service"}
		}
		if len(info.GetMetric()) != 1 || info.Metric[0].GetGauge().GetValue() != 1 || !slices.Equal(pairs(info.Metric[0]), want) {
			t.Errorf("got %v, want one series 1 with %q", info, want)
		}
	}
}

func TestOTLPSaysWhoAServerIsByItsAddress(t *testing.T) {
	e := newEncoder(map[string]string{"service.name": "weft"}, "1", t0)
	l := named(&flows.Entity{Pod: "web-1", Namespace: "shop", Service: "front", VM: "db"})
	var got []string
	for _, b := range e.latencyBatches(l) {
		for _, m := range b.ResourceMetrics[0].ScopeMetrics[0].Metrics {
			if m.Name != "weft.server.info" {
				continue
			}
			if m.GetSum() == nil || m.GetSum().IsMonotonic {
				t.Errorf("got %v, want a sum that may fall", m)
			}
			for _, p := range m.GetSum().DataPoints {
				for _, a := range p.Attributes {
					got = append(got, a.Key+"="+strings.Trim(fmt.Sprint(a.Value.GetStringValue(), a.Value.GetIntValue()), " 0"))
				}
				got = append(got, fmt.Sprint(p.GetAsInt()))
			}
		}
	}
	want := []string{
		"server.address=192.0.2.1", "server.port=443", "network.transport=tcp", "destination.k8s.namespace.name=shop",
		"destination.k8s.pod.name=web-1", "destination.k8s.service.name=front", "weft.destination.vm.name=db", "1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	e.partial = true
	for _, b := range e.latencyBatches(l) {
		if strings.Contains(b.String(), nameServerInfo) {
			t.Error("a sink that gets a part of the records is told who all servers are")
		}
	}
}

func TestNamesOfManyServersFitTheirRequests(t *testing.T) {
	long := strings.Repeat("x", 256)
	l := Latencies{At: t0, All: many(maxLatencySeries)}
	for _, h := range l.All {
		l.Who = append(l.Who, flows.NamedServer{Server: flows.Server{Addr: h.Key.Server, Protocol: h.Key.Protocol}, Who: &flows.Entity{
			Pod: long, Namespace: long, PodUID: long, Workload: long, WorkloadKind: "deployment", Service: long, Container: long, ContainerID: long,
			Runtime: long, VM: long, VMID: long, Hypervisor: long, Sandbox: long, SandboxRuntime: long, Process: long, Unit: long, Node: long, Zone: long, Region: long,
		}})
	}
	e := newEncoder(map[string]string{"service.name": "weft"}, "1", t0)
	some, _ := l.exportable()
	n := 0
	for _, b := range e.serverBatches(l, some) {
		n += len(b.ResourceMetrics[0].ScopeMetrics[0].Metrics[0].GetSum().DataPoints)
		if size := proto.Size(b); size > maxBatchBytes {
			t.Errorf("got a request of %d bytes, want at most %d", size, maxBatchBytes)
		}
	}
	if n != maxLatencySeries {
		t.Errorf("got %d servers, want %d", n, maxLatencySeries)
	}
}
