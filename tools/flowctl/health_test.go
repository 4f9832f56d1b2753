// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

// slow is a connection to a far server over a bad path, which the server reset.
func slow() flows.Record {
	r := record(5, flows.ProtoTCP, 443)
	r.ReverseTCPFlags |= flows.FlagRST
	r.TCP = &flows.TCPRecord{
		Source: flows.TCPHealth{
			RTT:       flows.RTT{Count: 9, Sum: 1800 * time.Microsecond, Min: 150 * time.Microsecond, Max: 300 * time.Microsecond},
			Handshake: 180 * time.Microsecond, Retransmits: 6, Lost: 4, OutOfOrder: 1,
		},
		Destination: flows.TCPHealth{
			RTT:       flows.RTT{Count: 2, Sum: 160 * time.Millisecond, Min: 79 * time.Millisecond, Max: 81 * time.Millisecond},
			Handshake: 78 * time.Millisecond, DupAcks: 8, ZeroWindows: 1, ZeroWindow: 250 * time.Millisecond,
		},
		DestinationReset: true, Failure: flows.FailReset,
	}
	r.Dropped, r.DropReason = 2, "NETFILTER_DROP"
	r.SourceProcess = &flows.Process{PID: 4711, Comm: "curl", Cgroup: 99}
	return r
}

// lookups is a client's questions to a resolver.
func lookups() flows.Record {
	r := record(6, flows.ProtoUDP, 53)
	r.DNS = &flows.DNS{
		Queries: 2, Retries: 1, Answers: 2, Latency: flows.RTT{Count: 1, Sum: 3 * time.Millisecond, Min: 3 * time.Millisecond, Max: 3 * time.Millisecond},
		Rcodes:    []flows.DNSRcode{{Rcode: 3, Count: 1}, {Rcode: 0, Count: 1}},
		Questions: []flows.DNSQuestion{{Name: "nowhere.example.com", Type: 1, Rcode: 3, Latency: 3 * time.Millisecond}, {Name: "www.example.com", Type: 28, Records: 1}},
	}
	return r
}

func TestObserveChoosesByHealth(t *testing.T) {
	server := agent(t, ledger(), record(1, flows.ProtoTCP, 443), slow(), lookups())
	for args, want := range map[string]string{
		"--retransmits":                             "5",
		"--retransmits=6":                           "5",
		"--retransmits=7":                           "",
		"--to-retransmits":                          "",
		"--retransmits --port 443":                  "5", // the flag took no value
		"--not --retransmits":                       "1 6",
		"--rtt-over 50ms":                           "5",
		"--from-rtt-over 50ms":                      "",
		"--failed":                                  "5",
		"--failed=reset":                            "5",
		"--failed=refused":                          "",
		"--not --failed":                            "1 6",
		"--dropped":                                 "5",
		"--drop-reason netfilter*":                  "5",
		"--dns-rcode NXDOMAIN":                      "6",
		"--dns-rcode 3 --dns-name *.example.com":    "6",
		"--not --dns-name *.example.com":            "1 5",
		"--to-tcp-flags RST":                        "5",
		"--from-tcp-flags RST":                      "",
		"--protocol tcp --not --to-tcp-flags RST":   "1",
		"--failed --retransmits --dropped --last 1": "5",
		"--dns-rcode NXDOMAIN --dns-rcode SERVFAIL": "6",
	} {
		out, complaint, code := ctl(t, server, append([]string{"observe", "-o", "jsonl"}, strings.Fields(args)...)...)
		var got []string
		for line := range strings.Lines(out) {
			var r struct {
				Source string `json:"source.address"`
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %v: %s", args, err, line)
			}
			got = append(got, strings.TrimPrefix(r.Source, "10.0.0."))
		}
		exit := exitFine
		if want == "" {
			exit = exitNothing
		}
		if strings.Join(got, " ") != want || code != exit {
			t.Errorf("observe %s: got records %v, exit code %d, %s, want %q and %d", args, got, code, complaint, want, exit)
		}
	}
}

func TestWrongHealthFiltersAreUsageErrors(t *testing.T) {
	server := agent(t, ledger(), slow())
	for args, says := range map[string]string{
		"--retransmits 5":       "takes no argument",
		"--retransmits=none":    "at least how many",
		"--rtt-over fast":       "50ms",
		"--failed=sadly":        "half_open",
		"--dns-rcode NOSUCH":    "NXDOMAIN",
		"--from-failed":         "from-failed",
		"--tcp-flags SYN,SMILE": "FIN, SYN, RST",
	} {
		_, complaint, code := ctl(t, server, append([]string{"observe"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(complaint, says) {
			t.Errorf("observe %s: got exit code %d and %q, want %d and %q", args, code, complaint, exitUsage, says)
		}
	}
}

// As TestOutputIsStable, for what is measured beside packets.
func TestOutputOfHealthIsStable(t *testing.T) {
	server := agent(t, ledger(), slow(), lookups())
	for _, format := range []string{"compact", "wide", "json", "jsonl", "yaml"} {
		got, complaint, code := ctl(t, server, "observe", "-o", format)
		if code != exitFine {
			t.Errorf("-o %s: exit code %d: %s", format, code, complaint)
		}
		path := filepath.Join("testdata", "health."+format)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("flowctl observe -o %s: got\n%s\nwant\n%s", format, got, want)
		}
	}
}
