// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// terms reads "from-ip=10.0.0.1 !port=80" as terms.
func terms(s string) []Term {
	var ts []Term
	for _, word := range strings.Fields(s) {
		word, negate := strings.CutPrefix(word, "!")
		kind, value, _ := strings.Cut(word, "=")
		ts = append(ts, Term{Kind: kind, Value: value, Negate: negate})
	}
	return ts
}

func TestFilterMatches(t *testing.T) {
	web := &Record{
		Key: tcp("10.0.0.9:40000", "192.0.2.7:443"), TCPFlags: FlagSYN | FlagACK, ReverseTCPFlags: FlagRST,
		Hops: []HopCount{{Hop: Hop{Interface: "veth12", Netns: "/run/netns/blue"}}, {Hop: Hop{Interface: "eth0"}}},
	}
	ping := &Record{Key: key(ProtoICMP, "10.0.0.9", 8, "10.0.0.1", 0)}
	six := &Record{Key: udp("[2001:db8::1]:5353", "[ff02::fb]:5353")}
	part := &Record{Key: udp("10.0.0.9:0", "10.0.0.1:0"), Fragment: true}
	slow := &Record{Key: tcp("10.0.0.9:40000", "192.0.2.7:443"), Dropped: 3, DropReason: "NETFILTER_DROP", TCP: &TCPRecord{
		Source:      TCPHealth{Handshake: 60 * time.Millisecond, Retransmits: 4},
		Destination: TCPHealth{RTT: RTT{Count: 2, Sum: 30 * time.Millisecond, Max: 29 * time.Millisecond}, Handshake: time.Second, Retransmits: 1},
		Failure:     FailReset,
	}}
	fine := &Record{Key: tcp("10.0.0.9:40000", "192.0.2.7:443"), TCP: &TCPRecord{}}
	lookup := &Record{Key: udp("10.0.0.9:40000", "10.0.0.1:53"), DNS: &DNS{
		Rcodes:    []DNSRcode{{0, 2}, {3, 1}, {2, 0}},
		Questions: []DNSQuestion{{Name: "www.example.com"}, {Name: "0/25.2.0.192.in-addr.arpa"}},
	}}
	for _, c := range []struct {
		filter string
		r      *Record
		want   bool
	}{
		{"", web, true},
		{"from-ip=10.0.0.9", web, true},
		{"from-ip=192.0.2.7", web, false},
		{"to-ip=192.0.2.0/24", web, true},
		{"to-ip=10.0.0.9", web, false},
		{"ip=192.0.2.7", web, true},
		{"ip=10.0.0.0/8", web, true},
		{"ip=172.16.0.0/12", web, false},
		{"ip=::ffff:10.0.0.9", web, true},
		{"ip=::ffff:10.0.0.0/104", web, true},
		{"ip=::/0", web, false},
		{"ip=2001:db8::/32", six, true},
		{"ip=0.0.0.0/0", six, false},
		{"from-port=40000", web, true},
		{"to-port=40000", web, false},
		{"port=443", web, true},
		{"port=8", ping, false},
		{"port=0", part, false},
		{"protocol=tcp", web, true},
		{"protocol=TCP", web, true},
		{"protocol=6", web, true},
		{"protocol=udp", web, false},
		{"protocol=icmp", ping, true},
		{"protocol=icmpv6", ping, false},
		{"interface=eth0", web, true},
		{"interface=veth*", web, true},
		{"interface=eth", web, false},
		{"interface=*", ping, false},
		{"netns=blue", web, true},
		{"netns=/run/netns/*", web, true},
		{"netns=self", web, true},
		{"netns=red", web, false},
		{"tcp-flags=SYN", web, true},
		{"tcp-flags=syn+ack", web, true},
		{"tcp-flags=ACK,SYN", web, true},
		{"tcp-flags=RST", web, true},
		{"tcp-flags=SYN+RST", web, false},
		{"tcp-flags=FIN", web, false},
		{"from-tcp-flags=SYN,ACK", web, true},
		{"to-tcp-flags=SYN", web, false},
		{"to-tcp-flags=RST", web, true},
		{"!tcp-flags=RST", web, false},
		{"!from-tcp-flags=RST", web, true},
		{"retransmits=1", slow, true},
		{"retransmits=4", slow, true},
		{"retransmits=5", slow, false}, // not the sum of both ends
		{"from-retransmits=2", slow, true},
		{"to-retransmits=2", slow, false},
		{"retransmits=1", fine, false},
		{"retransmits=1", web, false},
		{"!retransmits=1", web, true},
		{"rtt-over=50ms", slow, true}, // the source's handshake
		{"from-rtt-over=60ms", slow, false},
		{"to-rtt-over=14ms", slow, true},
		{"to-rtt-over=15ms", slow, false}, // the mean and not the longest, nor the handshake
		{"rtt-over=0s", fine, false},
		{"rtt-over=0s", web, false},
		{"failed=any", slow, true},
		{"failed=reset", slow, true},
		{"failed=Reset", slow, true},
		{"failed=refused", slow, false},
		{"failed=any", fine, false},
		{"!failed=any", fine, true},
		{"failed=any", web, false},
		{"dropped=1", slow, true},
		{"dropped=4", slow, false},
		{"dropped=1", fine, false},
		{"drop-reason=netfilter_*", slow, true},
		{"drop-reason=NO_SOCKET", slow, false},
		{"drop-reason=*", fine, false},
		{"dns-rcode=nxdomain", lookup, true},
		{"dns-rcode=3", lookup, true},
		{"dns-rcode=NOERROR dns-name=www.*", lookup, true},
		{"dns-rcode=SERVFAIL", lookup, false},
		{"dns-rcode=NOERROR", web, false},
		{"dns-name=*.Example.com.", lookup, true},
		{"dns-name=example.com", lookup, false},
		{"dns-name=*.in-addr.arpa", lookup, true},
		{"dns-name=0/25.*", lookup, true},
		{"!dns-name=*.example.com", lookup, false},
		{"dns-name=*", web, false},
		{"port=80 port=443", web, true},
		{"port=80 port=8080", web, false},
		{"port=443 protocol=udp", web, false},
		{"port=443 protocol=udp protocol=tcp", web, true},
		{"from-ip=10.0.0.9 ip=172.16.0.1", web, false},
		{"!port=443", web, false},
		{"!port=80", web, true},
		{"!port=80 !port=443", web, false},
		{"port=443 !from-ip=10.0.0.9", web, false},
		{"port=443 !from-ip=10.0.0.8", web, true},
	} {
		f, err := ParseFilter(terms(c.filter))
		if err != nil {
			t.Errorf("%q: %v", c.filter, err)
			continue
		}
		if got := f.Match(c.r); got != c.want {
			t.Errorf("%q on %v: got %v, want %v", c.filter, c.r.Key, got, c.want)
		}
	}
	if !(*Filter)(nil).Match(web) || !new(Filter).Match(web) {
		t.Error("nil and zero filter: got no match, want a match")
	}
}

func TestFilterErrorsNameTheTermAndTheMend(t *testing.T) {
	for _, c := range []struct {
		filter string
		want   []string
	}{
		{"colour=red", []string{`filter "colour"`, "from-ip", "tcp-flags"}},
		{"from-protocol=tcp", []string{`filter "from-protocol"`}},
		{"by-ip=10.0.0.1", []string{`filter "by-ip"`}},
		{"ip=10.0.0", []string{`filter ip "10.0.0"`, "10.0.0.0/8"}},
		{"ip=fe80::1%eth0", []string{`filter ip "fe80::1%eth0"`}},
		{"ip=10.0.0.0/33", []string{`filter ip "10.0.0.0/33"`}},
		{"ip=::ffff:0:0/90", []string{`filter ip "::ffff:0:0/90"`}},
		{"to-port=65536", []string{`filter to-port "65536"`, "0 to 65535"}},
		{"port=http", []string{`filter port "http"`}},
		{"protocol=256", []string{`filter protocol "256"`, "tcp"}},
		{"protocol=", []string{`filter protocol ""`}},
		{"interface=eth[", []string{`filter interface "eth["`, "eth[0-3]"}},
		{"netns=", []string{`filter netns ""`}},
		{"tcp-flags=SYN+SIN", []string{`filter tcp-flags "SYN+SIN"`, "FIN, SYN, RST"}},
		{"tcp-flags=", []string{`filter tcp-flags ""`}},
		{"retransmits=0", []string{`filter retransmits "0"`, "from 1"}},
		{"to-retransmits=x", []string{`filter to-retransmits "x"`}},
		{"rtt-over=50", []string{`filter rtt-over "50"`, "50ms"}},
		{"rtt-over=-1s", []string{`filter rtt-over "-1s"`}},
		{"failed=sad", []string{`filter failed "sad"`, "any", "refused, unanswered, half_open", "unreachable", "timed_out"}},
		{"failed=", []string{`filter failed ""`}},
		{"from-failed=any", []string{`filter "from-failed"`}},
		{"dropped=-1", []string{`filter dropped "-1"`}},
		{"drop-reason=[", []string{`filter drop-reason "["`, "NETFILTER_DROP"}},
		{"dns-rcode=NODOMAIN", []string{`filter dns-rcode "NODOMAIN"`, "NXDOMAIN"}},
		{"dns-rcode=65536", []string{`filter dns-rcode "65536"`}},
		{"dns-name=", []string{`filter dns-name ""`, "*.example.com"}},
		{"port=x !ip=y port=80", []string{`filter port "x"`, `filter ip "y"`}},
	} {
		f, err := ParseFilter(terms(c.filter))
		if err == nil || f != nil {
			t.Errorf("%q: got filter %v, error %v, want an error alone", c.filter, f, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %q, want it to say %q", c.filter, err, want)
			}
		}
	}
	if _, err := ParseFilter(make([]Term, MaxTerms+1)); err == nil || !strings.Contains(err.Error(), "at most 256") {
		t.Errorf("%d terms: got %v, want an error that says at most 256", MaxTerms+1, err)
	}
}

func TestFilterRoundTrips(t *testing.T) {
	f, err := ParseFilter(terms("ip=::ffff:10.1.2.3/104 !from-ip=2001:DB8::1 port=080 protocol=6 tcp-flags=ack,syn netns=blue interface=veth* from-retransmits=05 rtt-over=1500us !failed=RESET drop-reason=no_* dns-rcode=rcode12 dns-rcode=2 dns-name=WWW.Example.com."))
	if err != nil {
		t.Fatal(err)
	}
	want := terms("ip=10.0.0.0/8 !from-ip=2001:db8::1 port=80 protocol=tcp tcp-flags=SYN+ACK netns=blue interface=veth* from-retransmits=5 rtt-over=1.5ms !failed=reset drop-reason=NO_* dns-rcode=RCODE12 dns-rcode=SERVFAIL dns-name=www.example.com")
	if got := f.Terms(); !reflect.DeepEqual(got, want) {
		t.Errorf("terms: got %v, want %v", got, want)
	}
	if got, want := f.String(), "--ip 10.0.0.0/8 --not --from-ip 2001:db8::1 --port 80 --protocol tcp --tcp-flags SYN+ACK --netns blue --interface veth* --from-retransmits=5 --rtt-over 1.5ms --not --failed=reset --drop-reason NO_* --dns-rcode RCODE12 --dns-rcode SERVFAIL --dns-name www.example.com"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := (*Filter)(nil).Terms(); got != nil {
		t.Errorf("nil filter: got terms %v, want none", got)
	}
}

func TestEveryFilterKindHasHelpAndParses(t *testing.T) {
	good := map[string]string{"ip": "10.0.0.1", "port": "80", "protocol": "tcp", "interface": "eth0", "netns": "blue", "vlan": "7", "tcp-flags": "SYN",
		"retransmits": "5", "rtt-over": "50ms", "failed": "refused", "dropped": "2", "drop-reason": "NO_SOCKET", "dns-rcode": "NXDOMAIN", "dns-name": "example.com",
		"pod": "shop/web-*", "namespace": "shop", "workload": "deployment/web", "service": "shop/web", "container": "web", "vm": "vm1", "sandbox": "gvisor",
		"process": "nginx", "label": "app=web", "layer": "container"}
	seen := map[string]bool{}
	for _, k := range FilterKinds() {
		base := strings.TrimPrefix(strings.TrimPrefix(k.Name, "from-"), "to-")
		if seen[k.Name] || k.Help == "" || k.Value == "" {
			t.Errorf("%s: twice %v, help %q, value %q, want once and both", k.Name, seen[k.Name], k.Help, k.Value)
		}
		seen[k.Name] = true
		if _, err := ParseFilter([]Term{{Kind: k.Name, Value: good[base]}}); err != nil {
			t.Errorf("%s %s: %v", k.Name, good[base], err)
		}
		if k.Bare == "" {
			continue
		}
		if _, err := ParseFilter([]Term{{Kind: k.Name, Value: k.Bare}}); err != nil {
			t.Errorf("%s written bare: %v", k.Name, err)
		}
	}
	if len(seen) != 54 {
		t.Errorf("got %d kinds, want 54", len(seen))
	}
}

func TestMatchingAllocatesNothing(t *testing.T) {
	f, err := ParseFilter(terms("ip=10.0.0.0/8 port=80 protocol=tcp interface=veth* !netns=blue tcp-flags=SYN retransmits=1 rtt-over=1ms failed=any dropped=1 drop-reason=no_* dns-rcode=3 dns-name=*.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	r := &Record{Key: tcp("10.0.0.9:40000", "192.0.2.7:80"), TCPFlags: FlagSYN, Hops: []HopCount{{Hop: Hop{Interface: "veth1", Netns: "/run/netns/red"}}},
		Dropped: 1, DropReason: "NO_SOCKET", DNS: &DNS{Rcodes: []DNSRcode{{3, 1}}, Questions: []DNSQuestion{{Name: "www.example.com"}}},
		TCP: &TCPRecord{Source: TCPHealth{Retransmits: 1, Handshake: time.Second}, Failure: FailReset}}
	if !f.Match(r) {
		t.Fatal("got no match, want a match")
	}
	if n := testing.AllocsPerRun(100, func() { f.Match(r) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// Any value either fails with an error that names it or round-trips.
func FuzzParseFilter(f *testing.F) {
	for _, k := range FilterKinds() {
		for _, v := range []string{"", "10.0.0.1", "::ffff:10.0.0.0/104", "80", "tcp", "eth[0-3]", "SYN+ACK", "\x00[", "+,|", "50ms", "any", "NXDOMAIN", "0/25.*"} {
			f.Add(k.Name, v, false)
		}
	}
	f.Add("from-", "x", true)
	r := &Record{Key: tcp("10.0.0.9:40000", "192.0.2.7:80"), Hops: []HopCount{{Hop: Hop{Interface: "veth1"}}}}
	f.Fuzz(func(t *testing.T, kind, value string, negate bool) {
		one, err := ParseFilter([]Term{{kind, value, negate}})
		if err != nil {
			if !strings.Contains(err.Error(), "filter") {
				t.Errorf("got %q, want it to name the filter", err)
			}
			return
		}
		again, err := ParseFilter(one.Terms())
		if err != nil || !reflect.DeepEqual(one.Terms(), again.Terms()) {
			t.Fatalf("%v: parsed again got %v and %v", one.Terms(), again.Terms(), err)
		}
		opposite, err := ParseFilter([]Term{{kind, value, !negate}})
		if err != nil || one.Match(r) == opposite.Match(r) || one.Match(r) != again.Match(r) {
			t.Fatalf("%v: got %v, again %v, negated %v (%v)", one, one.Match(r), again.Match(r), opposite.Match(r), err)
		}
	})
}

func TestTermIsReadAsItIsWritten(t *testing.T) {
	for text, want := range map[string]Term{
		"from-ip 10.0.0.0/8":        {Kind: "from-ip", Value: "10.0.0.0/8"},
		"--from-ip 10.0.0.1/8":      {Kind: "from-ip", Value: "10.0.0.0/8"},
		" not port 22":              {Kind: "port", Value: "22", Negate: true},
		"--not --port=22":           {Kind: "port", Value: "22", Negate: true},
		"label app=web":             {Kind: "label", Value: "app=web"},
		"retransmits":               {Kind: "retransmits", Value: "1"},
		"--retransmits=5":           {Kind: "retransmits", Value: "5"},
		"not  failed":               {Kind: "failed", Value: "any", Negate: true},
		"dns-name *.example.com":    {Kind: "dns-name", Value: "*.example.com"},
		"to-namespace not-a-shop":   {Kind: "to-namespace", Value: "not-a-shop"},
		"not to-rtt-over 50ms     ": {Kind: "to-rtt-over", Value: "50ms", Negate: true},
	} {
		got, err := ParseTerm(text)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, error %v, want %+v", text, got, err, want)
		}
		if again, err := ParseTerm(got.Text()); err != nil || again != got {
			t.Errorf("%q: read again from %q: got %+v, error %v", text, got.Text(), again, err)
		}
	}
	for text, want := range map[string]string{
		"": "no such filter", "port": "write it with its value: port PORT", "prot 22": "no such filter", "port x": "want a port", "not": "no such filter",
	} {
		if _, err := ParseTerm(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestVLANIsTheOuterOne(t *testing.T) {
	f, err := ParseFilter([]Term{{Kind: "vlan", Value: "07"}})
	if err != nil || f.String() != "--vlan 7" {
		t.Fatalf("got %v, error %v, want --vlan 7", f, err)
	}
	in, out := &Record{Scope: Scope{VLAN: VLAN{Outer: 7}}}, &Record{Scope: Scope{VLAN: VLAN{Outer: 8, Inner: 7}}}
	if !f.Match(in) || f.Match(out) || f.Match(&Record{}) {
		t.Error("want records of VLAN 7 alone")
	}
	for _, v := range []string{"0", "4095", "x"} {
		if _, err := ParseFilter([]Term{{Kind: "vlan", Value: v}}); err == nil {
			t.Errorf("vlan %s: got no error", v)
		}
	}
}
