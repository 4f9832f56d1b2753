// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"weft/flows"
)

func TestResolversAreTold(t *testing.T) {
	d := &DNS{}
	if n := testutil.CollectAndCount(d); n != 0 {
		t.Errorf("before the first window: got %d series, want none", n)
	}
	d.Set(&flows.DNSFigures{
		Resolvers: []flows.DNSResolver{
			{Protocol: flows.ProtoUDP, Queries: 9, Timeouts: 9},
			{Server: netip.MustParseAddrPort("10.0.0.53:53"), Protocol: flows.ProtoUDP, Queries: 8, Retries: 2, Timeouts: 1, Late: 1, Rcodes: [16]uint64{0: 4, 3: 2, 12: 1}},
			{Server: netip.MustParseAddrPort("[fd00::53]:53"), Protocol: flows.ProtoTCP, Queries: 1, Rcodes: [16]uint64{2: 1}},
		},
		Outstanding: 3, Unasked: 5,
		Account: flows.DNSAccount{Seen: 100, Lost: 4, Drained: 96, Messages: 80, Faults: [flows.NumDNSFaults]uint64{flows.DNSName: 16}},
	})
	d.Set(nil)
	want := `
# HELP weft_dns_answers_total DNS questions that were answered, by code.
# TYPE weft_dns_answers_total counter
weft_dns_answers_total{rcode="NOERROR",server_address="10.0.0.53",server_port="53",transport="udp"} 4
weft_dns_answers_total{rcode="NXDOMAIN",server_address="10.0.0.53",server_port="53",transport="udp"} 2
weft_dns_answers_total{rcode="RCODE12",server_address="10.0.0.53",server_port="53",transport="udp"} 1
weft_dns_answers_total{rcode="SERVFAIL",server_address="fd00::53",server_port="53",transport="tcp"} 1
# HELP weft_dns_faults_total What was no DNS message, by reason.
# TYPE weft_dns_faults_total counter
weft_dns_faults_total{reason="cut"} 0
weft_dns_faults_total{reason="direction"} 0
weft_dns_faults_total{reason="name"} 16
weft_dns_faults_total{reason="opcode"} 0
weft_dns_faults_total{reason="questions"} 0
weft_dns_faults_total{reason="short"} 0
weft_dns_faults_total{reason="split"} 0
weft_dns_faults_total{reason="unread"} 0
# HELP weft_dns_lost_packets_total Of them, those that were not read: the kernel's buffer was full.
# TYPE weft_dns_lost_packets_total counter
weft_dns_lost_packets_total 4
# HELP weft_dns_outstanding_questions DNS questions that wait for their answer.
# TYPE weft_dns_outstanding_questions gauge
weft_dns_outstanding_questions 3
# HELP weft_dns_timeouts_total DNS questions that had no answer within the time-out.
# TYPE weft_dns_timeouts_total counter
weft_dns_timeouts_total{server_address="",server_port="",transport="udp"} 9
weft_dns_timeouts_total{server_address="10.0.0.53",server_port="53",transport="udp"} 1
weft_dns_timeouts_total{server_address="fd00::53",server_port="53",transport="tcp"} 0
`
	if err := testutil.CollectAndCompare(d, strings.NewReader(want), "weft_dns_answers_total", "weft_dns_faults_total",
		"weft_dns_lost_packets_total", "weft_dns_outstanding_questions", "weft_dns_timeouts_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(d); err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v", problems, err)
	}
}
