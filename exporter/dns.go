// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"weft/flows"
)

// DNS shows what is known of resolvers as weft_dns_*. Its cardinality is that of the
// resolvers, which flows bounds, times four and the codes that they answered with. Safe
// for concurrent use.
type DNS struct {
	latest atomic.Pointer[flows.DNSFigures]
}

// A resolver that had no room is told with an empty address.
var (
	dnsLabels    = []string{"server_address", "server_port", "transport"}
	dnsQuestions = prometheus.NewDesc("weft_dns_questions_total", "DNS questions, each once however often it was sent or seen.", dnsLabels, nil)
	dnsRetries   = prometheus.NewDesc("weft_dns_retries_total", "Times a DNS question was sent again before its answer.", dnsLabels, nil)
	dnsTimeouts  = prometheus.NewDesc("weft_dns_timeouts_total", "DNS questions that had no answer within the time-out.", dnsLabels, nil)
	dnsLate      = prometheus.NewDesc("weft_dns_late_answers_total", "DNS answers that came after the time-out.", dnsLabels, nil)
	dnsAnswers   = prometheus.NewDesc("weft_dns_answers_total", "DNS questions that were answered, by code.", append(dnsLabels[:3:3], "rcode"), nil)

	dnsOutstanding = prometheus.NewDesc("weft_dns_outstanding_questions", "DNS questions that wait for their answer.", nil, nil)
	dnsOverflow    = prometheus.NewDesc("weft_dns_unfollowed_questions_total", "DNS questions that were not followed: too many waited.", nil, nil)
	dnsUnasked     = prometheus.NewDesc("weft_dns_unasked_answers_total",
		"DNS answers for which no question was seen, as often as points saw them.", nil, nil)
	dnsDuplicates = prometheus.NewDesc("weft_dns_duplicate_answers_total",
		"Further answers to a DNS question, as often as points saw them.", nil, nil)
	dnsUnrecorded = prometheus.NewDesc("weft_dns_unrecorded_results_total", "DNS answers and time-outs that are in no flow record.", nil, nil)

	dnsPackets  = prometheus.NewDesc("weft_dns_packets_total", "Packets with payload from and to port 53, at all points.", nil, nil)
	dnsLost     = prometheus.NewDesc("weft_dns_lost_packets_total", "Of them, those that were not read: the kernel's buffer was full.", nil, nil)
	dnsMessages = prometheus.NewDesc("weft_dns_messages_total", "DNS messages read in those packets.", nil, nil)
	dnsFaults   = prometheus.NewDesc("weft_dns_faults_total", "What was no DNS message, by reason.", []string{"reason"}, nil)
)

// Set takes the figures of a window; nil leaves those of the last one.
func (d *DNS) Set(f *flows.DNSFigures) {
	if f != nil {
		d.latest.Store(f)
	}
}

// Describe sends every description.
func (d *DNS) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		dnsQuestions, dnsRetries, dnsTimeouts, dnsLate, dnsAnswers, dnsOutstanding, dnsOverflow,
		dnsUnasked, dnsDuplicates, dnsUnrecorded, dnsPackets, dnsLost, dnsMessages, dnsFaults,
	} {
		ch <- desc
	}
}

// Collect sends the latest figures; none before the first window.
func (d *DNS) Collect(ch chan<- prometheus.Metric) {
	f := d.latest.Load()
	if f == nil {
		return
	}
	send := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	for i := range f.Resolvers {
		r := &f.Resolvers[i]
		labels := resolverLabels(r)
		send(dnsQuestions, r.Queries, labels...)
		send(dnsRetries, r.Retries, labels...)
		send(dnsTimeouts, r.Timeouts, labels...)
		send(dnsLate, r.Late, labels...)
		for code, n := range r.Rcodes {
			if n > 0 {
				send(dnsAnswers, n, append(labels[:3:3], flows.DNSRcodeName(uint16(code)))...)
			}
		}
	}
	ch <- prometheus.MustNewConstMetric(dnsOutstanding, prometheus.GaugeValue, float64(f.Outstanding))
	send(dnsOverflow, f.Overflow)
	send(dnsUnasked, f.Unasked)
	send(dnsDuplicates, f.Duplicates)
	send(dnsUnrecorded, f.Unrecorded)
	send(dnsPackets, f.Account.Seen)
	send(dnsLost, f.Account.Lost)
	send(dnsMessages, f.Account.Messages)
	for fault := flows.DNSSound + 1; fault < flows.NumDNSFaults; fault++ {
		send(dnsFaults, f.Account.Faults[fault], fault.String())
	}
}

func resolverLabels(r *flows.DNSResolver) []string {
	labels := []string{"", "", "udp"}
	if r.Protocol == flows.ProtoTCP {
		labels[2] = "tcp"
	}
	if r.Server.IsValid() {
		labels[0], labels[1] = r.Server.Addr().String(), strconv.Itoa(int(r.Server.Port()))
	}
	return labels
}
