// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"

	"weft/flows"
)

// Who the server of a histogram is, is a series of its own whose value is 1, to be joined by
// address, port and protocol: so histograms go on under their names when who it is becomes
// known, or changes.
const (
	nameServerInfo = "weft.server.info"
	helpServerInfo = "1 for each server of a histogram of which more than the address is known; to be joined with those."
)

var serverInfo = prometheus.NewDesc(underscored(nameServerInfo), helpServerInfo, []string{
	"server_address", "server_port", "transport",
	"namespace", "service", "workload", "workload_kind", "pod", "container", "vm", "sandbox", "unit", "process", "node", "zone",
}, nil)

// serverLabels are n's values of the labels of serverInfo.
func serverLabels(n *flows.NamedServer) []string {
	w := n.Who
	all := []string{
		n.Addr.Addr().String(), strconv.Itoa(int(n.Addr.Port())), flows.ProtoName(n.Protocol),
		w.Namespace, w.Service, w.Workload, w.WorkloadKind, w.Pod, w.Container, w.VM, w.Sandbox, w.Unit, w.Process, w.Node, w.Zone,
	}
	if w.Container == "" {
		all[8] = w.ContainerID
	}
	for i := range all {
		all[i] = text(all[i])
	}
	return all
}

// named is those of l.Who that have a histogram in some: at most one for each of it.
func (l Latencies) named(some []*flows.Latency) (all []flows.NamedServer) {
	exported := map[flows.Server]bool{}
	for _, h := range some {
		exported[flows.Server{Addr: h.Key.Server, Protocol: h.Key.Protocol}] = true
	}
	for _, n := range l.Who {
		if exported[n.Server] {
			all = append(all, n)
		}
	}
	return all
}

// maxBatchServers bounds the servers of a request: each has 18 names of up to 253 bytes, so
// it stays below maxBatchBytes.
const maxBatchServers = 500

// serverBatches encodes who the servers of some are, a bounded number a request.
func (e encoder) serverBatches(l Latencies, some []*flows.Latency) (batches []*colmetrics.ExportMetricsServiceRequest) {
	for part := range slices.Chunk(l.named(some), maxBatchServers) {
		s := e.sums(l.At)
		for i := range part {
			s.add(nameServerInfo, "{server}", helpServerInfo, false, 1, serverAttributes(&part[i])...)
		}
		batches = append(batches, e.metricsRequest(s.metrics))
	}
	return batches
}

// serverAttributes are the server's as its histograms have it, and the names that records
// have for a destination.
func serverAttributes(n *flows.NamedServer) (attrs []*common.KeyValue) {
	all := []slog.Attr{
		slog.String(nameServer, n.Addr.Addr().String()), slog.Int64(nameServerPort, int64(n.Addr.Port())),
		slog.String(nameTransport, flows.ProtoName(n.Protocol)),
	}
	for _, a := range appendWho(all, &destinationWho, n.Who, false) {
		attrs = append(attrs, keyValue(a))
	}
	return attrs
}
