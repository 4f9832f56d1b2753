// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"weft/flows"
)

func TestCompactLineReadsAsExpected(t *testing.T) {
	f := &Formatter{Format: Compact, Zone: time.UTC}
	tcp, icmp := tcpRecord(1), icmpRecord()
	for _, c := range []struct{ got, want string }{
		{string(f.Header()),
			"END           SOURCE                     DESTINATION            PROTO   PKTS   BYTES  R-PKTS  R-BYTES  DURATION  FLAGS      ENDED           INTERFACE  TROUBLE\n"},
		{string(f.Append(nil, &tcp)),
			"20:30:01.327  10.0.0.1:40000         ->  10.0.0.2:443           tcp       12    3.5k      10      15k      1.2s  FSA/SA     end_of_flow     eth0\n"},
		{string(f.Append(nil, &icmp)),
			"20:30:01.123  fd00::1                ->  fd00::2                icmpv6      1     118       0        0        1s  128/0      idle_timeout    -\n"},
	} {
		if c.got != c.want {
			t.Errorf("got  %qwant %q", c.got, c.want)
		}
	}
}

func TestTroubleIsNamedOnlyWhereThereIsSome(t *testing.T) {
	refused := tcpRecord(1)
	refused.TCP = &flows.TCPRecord{Failure: flows.FailRefused}
	reordered := healthyRecord(1)
	reordered.TCP.Source.OutOfOrder, reordered.TCP.Source.DupAcks = 5, 9
	for name, c := range map[string]struct {
		record flows.Record
		want   string
	}{
		"not measured": {tcpRecord(1), "eth0"}, "fine": {healthyRecord(1), "eth0"}, "reordered": {reordered, "eth0"},
		"refused": {refused, "eth0       refused"},
		"sick":    {sickRecord(1), "eth0       reset drops 4 retrans 6 zerowin 2"},
		"lookup":  {dnsRecord(1), "eth0       NXDOMAIN 1 unanswered 1"},
	} {
		f := &Formatter{Format: Compact, Zone: time.UTC}
		line := string(f.Append(nil, &c.record))
		if got := line[strings.Index(line, "end_of_flow")+16:]; got != c.want+"\n" {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestWideHasWhatWasMeasured(t *testing.T) {
	half := healthyRecord(1)
	half.TCP.Source = flows.TCPHealth{}
	for name, c := range map[string]struct {
		record flows.Record
		want   []string
	}{
		"not measured": {tcpRecord(1), []string{"-", "-", "-", "-", "-"}},
		"half":         {half, []string{"-/12ms", "-/0", "-", "-", "-"}},
		"fine":         {healthyRecord(1), []string{"250µs/12ms", "0/0", "-", "-", "-"}},
		"sick":         {sickRecord(1), []string{"250µs/12ms", "5/1", "4 NETFILTER_DROP", "reset", "-"}},
		"lookup":       {dnsRecord(1), []string{"-", "-", "-", "-", "gone.example.com AAAA unanswered +3"}},
	} {
		f := &Formatter{Format: Wide, Zone: time.UTC}
		f.Append(nil, &c.record) // the columns take their widths
		header, line := []rune(string(f.Header())), []rune(string(f.Append(nil, &c.record)))
		for i, title := range []string{"RTT", "RETRANS", "DROPS", "FAIL", "DNS"} {
			at := strings.Index(string(header), "  "+title+" ") + 2
			if got, _, _ := strings.Cut(string(line[at:]), "  "); got != c.want[i] {
				t.Errorf("%s: %s: got %q, want %q", name, title, got, c.want[i])
			}
		}
	}
}

func TestEndsAreCalledByTheirNames(t *testing.T) {
	r := tcpRecord(1)
	r.Key.Src, r.Key.Dst = netip.MustParseAddrPort("10.244.1.3:47834"), netip.MustParseAddrPort("10.96.0.9:8080")
	pod := flows.Entity{Layer: flows.LayerContainer, Namespace: "shop", Pod: "web-1", Container: "nginx", Node: "n1", Process: "nginx"}
	for _, c := range []struct {
		who           flows.Entity
		compact, wide string
		address       bool // is shown
	}{
		{pod, "shop/web-1:8080", "layer=container pod=shop/web-1 container=nginx process=nginx node=n1", false},
		{flows.Entity{Namespace: "shop", Service: "front"}, "shop/front:8080", "service=shop/front", false},
		{flows.Entity{Layer: flows.LayerVM, VM: "db", Node: "n1"}, "db:8080", "layer=vm vm=db node=n1", false},
		{flows.Entity{ContainerID: strings.Repeat("ab", 32)}, "abababababab:8080", "container=abababababab", false},
		{flows.Entity{Layer: flows.LayerHost, Unit: "ssh.service", Process: "sshd", Node: "n1"}, "10.96.0.9:8080 (ssh.service)", "layer=host unit=ssh.service process=sshd node=n1", true},
		{flows.Entity{Layer: flows.LayerSandbox, Sandbox: "s1", SandboxRuntime: "runsc"}, "10.96.0.9:8080 (runsc)", "layer=sandbox sandbox=runsc", true},
		{flows.Entity{Layer: flows.LayerHost, Node: "n1"}, "10.96.0.9:8080", "layer=host node=n1", true},
		{flows.Entity{}, "10.96.0.9:8080", "", true},
	} {
		r.Source, r.Destination = nil, &c.who
		compact := string((&Formatter{Format: Compact, Zone: time.UTC}).Append(nil, &r))
		wide := string((&Formatter{Format: Wide, Zone: time.UTC}).Append(nil, &r))
		if !strings.Contains(compact, "10.244.1.3:47834") || !strings.Contains(compact, "->  "+c.compact+" ") || strings.Contains(compact, "10.96.0.9") != c.address {
			t.Errorf("compact: got %s, want it to go to %s", compact, c.compact)
		}
		if !strings.Contains(wide, "->  10.96.0.9:8080 ") || !strings.Contains(wide, "  "+c.wide+"  ") {
			t.Errorf("wide: got %s, want the address, and %s", wide, c.wide)
		}
	}
}

func TestColumnsStayAlignedAfterTheyGrew(t *testing.T) {
	for _, format := range []Format{Compact, Wide} {
		f := &Formatter{Format: format, Zone: time.UTC}
		long, short := bridgedRecord(1), tcpRecord(2)
		f.Append(nil, &long)
		header, a, b := string(f.Header()), string(f.Append(nil, &long)), string(f.Append(nil, &short))
		at := strings.Index(header, "DESTINATION")
		if a[at-4:at] != "->  " || b[at-4:at] != "->  " {
			t.Errorf("%s: got\n%s%s%s, want the arrow before column %d", format, header, a, b, at)
		}
	}
}

func TestColourIsOnlyAddedWhenAsked(t *testing.T) {
	r := tcpRecord(1)
	r.TCPFlags |= flows.FlagRST
	plain := (&Formatter{Format: Compact, Zone: time.UTC}).Append(nil, &r)
	colour := (&Formatter{Format: Compact, Zone: time.UTC, Color: true}).Append(nil, &r)
	if strings.Contains(string(plain), "\x1b") {
		t.Errorf("got an escape in %q", plain)
	}
	stripped := string(colour)
	for _, seq := range []string{"\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[36m"} {
		if !strings.Contains(stripped, seq) {
			t.Errorf("got no %q in %q", seq, colour)
		}
		stripped = strings.ReplaceAll(stripped, seq, "")
	}
	if stripped != string(plain) {
		t.Errorf("without colours: got %q, want %q", stripped, plain)
	}
}

func TestHostileNamesCannotReachTheTerminal(t *testing.T) {
	r := bridgedRecord(1)
	r.TCP, r.Dropped, r.DropReason = &flows.TCPRecord{}, 1, "NO\x1b[2J"
	r.DNS = &flows.DNS{Queries: 1, Questions: []flows.DNSQuestion{{Name: "a\x1b]0;\u202e\xff.example"}}}
	r.SourceProcess = &flows.Process{PID: 1, Comm: "s\x1b[31mh"}
	for i := range r.Hops {
		r.Hops[i].Hop = flows.Hop{Interface: "e\x1b[2J\x07\u009b\u202e\xff", Netns: "/run/netns/\x1b]0;owned\x07\U000e0001"}
	}
	for _, format := range []Format{Compact, Wide, JSON, JSONL, YAML} {
		for _, c := range string((&Formatter{Format: format}).Append(nil, &r)) {
			if c != '\n' && !unicode.IsPrint(c) {
				t.Errorf("%s: got %U raw", format, c)
			}
		}
	}
}

func TestYAMLIsOneSequenceOverAllRecords(t *testing.T) {
	f := &Formatter{Format: YAML}
	tcp, icmp := tcpRecord(1), icmpRecord()
	tcp.Hops[0].Hop.Interface = "0x10" // must stay text
	var got []map[string]any
	text := f.Append(f.Append(nil, &tcp), &icmp)
	if err := yaml.Unmarshal(text, &got); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(got) != 2 {
		t.Fatalf("got %d items, want 2:\n%s", len(got), text)
	}
	hops, _ := got[0]["hops"].([]any)
	if len(hops) != 2 || hops[0].(map[string]any)["interface"] != "0x10" || got[0]["destination.port"] != 443 ||
		got[0]["network.interface.name"] != "0x10" || got[1]["source.address"] != "fd00::1" {
		t.Errorf("got %v", got)
	}
}

func TestJSONFormatsHoldTheSameObject(t *testing.T) {
	r := bridgedRecord(1)
	line := (&Formatter{Format: JSONL}).Append(nil, &r)
	indented := (&Formatter{Format: JSON}).Append([]byte("x"), &r)
	var a, b map[string]any
	if err := json.Unmarshal(line, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(indented[1:], &b); err != nil {
		t.Fatal(err)
	}
	if len(a) != len(b) || a["weft.connection.id"] != b["weft.connection.id"] || strings.Count(string(line), "\n") != 1 {
		t.Errorf("got %v and %v, want equal objects, the first on one line", a, b)
	}
}

func TestShortFiguresHoldThreeDigits(t *testing.T) {
	f := &Formatter{Format: Compact}
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1.0k", 9949: "9.9k", 9951: "10k", 99_499: "99k", 999_499: "999k", 999_501: "1.0M",
		math.MaxUint64: "18E",
	} {
		if got := f.bytes(n); got != want {
			t.Errorf("bytes(%d): got %q, want %q", n, got, want)
		}
	}
}

func TestUnknownFormatIsRefusedWithTheList(t *testing.T) {
	if _, err := ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "compact, wide, json, jsonl or yaml") {
		t.Errorf("got %v, want the list of formats", err)
	}
	if f, err := ParseFormat("wide"); f != Wide || err != nil {
		t.Errorf("got %q, %v, want wide", f, err)
	}
}

func TestWideNamesEveryHop(t *testing.T) {
	r := tcpRecord(1)
	r.Scope.VLAN = flows.VLAN{Outer: 100}
	r.Hops = append(r.Hops, flows.HopCount{At: flows.Point{Ifindex: 9, Hook: flows.HookXDP}, Packets: 12, Bytes: 3000})
	r.Key.Src = netip.MustParseAddrPort("10.0.0.1:40000")
	line := string((&Formatter{Format: Wide, Zone: time.UTC}).Append(nil, &r))
	for _, want := range []string{"eth0:egress>*12/3456", "eth0:ingress<*10/15100", "if9:xdp>12/3000", "4026531840/100", "0123456789abcdf0", "15100"} {
		if !strings.Contains(line, want) {
			t.Errorf("got %q, want %q in it", line, want)
		}
	}
	if got := string((&Formatter{Format: Compact}).Append(nil, &r)); !strings.HasSuffix(got, "eth0+1\n") {
		t.Errorf("compact: got %q, want the other device counted: eth0+1", got)
	}
}

func BenchmarkCompactLine(b *testing.B) {
	f, r := &Formatter{Format: Compact}, tcpRecord(1)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = f.Append(buf[:0], &r)
	}
}
