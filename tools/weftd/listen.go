// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"weft/exporter"
	"weft/flows"
)

// listenHTTP serves /metrics and what asks for health, with all that has metrics.
func (a *agent) listenHTTP() (err error) {
	if a.cfg.HTTP == "" {
		return nil
	}
	a.stages = exporter.NewStages("")
	extra := []prometheus.Collector{newAgentCollector(a), a.stages}
	if a.cfg.Pairs > 0 {
		a.traffic = exporter.NewTraffic(a.cfg.Pairs)
		extra = append(extra, a.traffic)
	}
	if a.cfg.Dataplane.Drops {
		a.drops = &exporter.Drops{Name: a.device}
		extra = append(extra, a.drops)
	}
	if a.cfg.Dataplane.DNS {
		a.dns = &exporter.DNS{}
		extra = append(extra, a.dns)
	}
	for _, o := range a.outlets {
		if c, ok := o.(prometheus.Collector); ok {
			extra = append(extra, c)
		}
		if s, ok := o.(interface{ Stages() *exporter.Stages }); ok && !slices.Contains(a.routed, flows.Sink(o)) { // tenants may be thousands
			extra = append(extra, s.Stages())
		}
	}
	a.web, err = exporter.ListenHTTP(exporter.WebOptions{
		Addr: a.cfg.HTTP, Version: ownVersion(), Health: a.healthy, Ready: a.ready, Extra: extra,
		Ledger: func() flows.Ledger { l, _ := a.store.Ledger(); return l }, Latencies: a.store.Latencies,
	})
	return err
}
