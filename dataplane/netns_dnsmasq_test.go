// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// nsMasq is a dnsmasq in a namespace, and its log.
type nsMasq struct {
	cmd *exec.Cmd
	log bytes.Buffer // read it after stop
}

// nsUpstream delays what it answers by so much.
const (
	nsUpstream     = "10.3.0.1"
	nsUpstreamPort = "5300"
	nsDelay        = 60 * time.Millisecond
)

func (n *nsSpace) dnsmasq(args ...string) *nsMasq {
	n.t.Helper()
	path := nsProgramOf(n.t, "dnsmasq", "dnsmasq-base")
	m := &nsMasq{cmd: exec.Command(path, append([]string{
		"--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--cache-size=0",
		"--log-queries=extra", "--log-facility=-",
	}, args...)...)}
	m.cmd.Stderr = &m.log
	m.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	n.do(m.cmd.Start) // a child of that thread: in its namespace
	n.t.Cleanup(func() {
		if m.stop(); n.t.Failed() {
			n.t.Log(m.log.String())
		}
	})
	return m
}

// stop ends it; it may be called twice.
func (m *nsMasq) stop() {
	if m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Signal(unix.SIGTERM) // it may have ended
		_ = m.cmd.Wait()                       // killed: that is how it ends
	}
}

// nsAsked is a question and its answer as someone told it.
type nsAsked struct {
	name    string
	kind    dnsmessage.Type
	rcode   dnsmessage.RCode
	records int
	timeout bool
}

var (
	nsMasqLine  = regexp.MustCompile(`dnsmasq\[\d+\]: (\d+) (\S+)/(\d+) (.*)$`)
	nsMasqKinds = map[string]dnsmessage.Type{
		"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "MX": dnsmessage.TypeMX, "TXT": dnsmessage.TypeTXT, "SRV": dnsmessage.TypeSRV,
	}
)

// asked is what the log says each address asked and was answered.
func (m *nsMasq) asked(t *testing.T) map[netip.AddrPort][]nsAsked {
	t.Helper()
	m.stop()
	all := map[netip.AddrPort][]nsAsked{}
	for s := bufio.NewScanner(bytes.NewReader(m.log.Bytes())); s.Scan(); {
		l := nsMasqLine.FindStringSubmatch(s.Text())
		if l == nil {
			continue
		}
		from := netip.MustParseAddrPort(net.JoinHostPort(l[2], l[3]))
		words := strings.Fields(l[4])
		if kind, ok := strings.CutPrefix(words[0], "query["); ok {
			k, known := nsMasqKinds[strings.TrimSuffix(kind, "]")]
			if !known {
				t.Fatalf("a type that the test does not know: %s", s.Text())
			}
			all[from] = append(all[from], nsAsked{name: strings.ToLower(words[1]), kind: k, timeout: true})
			continue
		}
		last := &all[from][len(all[from])-1] // an asker waits for its answer before it asks again
		switch is := words[slices.Index(words, "is")+1]; {
		case words[0] == "forwarded":
			continue
		case is == "NXDOMAIN":
			last.rcode = dnsmessage.RCodeNameError
		case is == "REFUSED":
			last.rcode = dnsmessage.RCodeRefused
		case is == "SERVFAIL":
			last.rcode = dnsmessage.RCodeServerFailure
		case strings.HasPrefix(is, "NODATA"):
		default:
			last.records++
		}
		last.timeout = false
	}
	return all
}

// nsAsk asks over a connection and waits for the answer; how long that took.
func nsAsk(t *testing.T, c net.Conn, id uint16, name string, kind dnsmessage.Type) time.Duration {
	t.Helper()
	q := nsQuestion(t, id, name, kind)
	tcp := c.LocalAddr().Network() == "tcp"
	if tcp {
		q = nsPrefixed(q)
	}
	began := time.Now()
	if _, err := c.Write(q); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if tcp {
		if _, err := io.ReadFull(c, b[:2]); err != nil {
			t.Fatal(err)
		}
		b = b[:binary.BigEndian.Uint16(b)]
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	} else if _, err := c.Read(b); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if got := binary.BigEndian.Uint16(b); got != id {
		t.Fatalf("asked %s with id %d, answered with id %d", name, id, got)
	}
	return took
}

// TestDnsmasqLogIsWhatRecordsTell compares names, types, codes and answer counts of
// records with the log of a real resolver, over UDP and TCP, IPv4 and IPv6. What the
// asker measured is the upper bound of each latency, what the upstream server waits
// the lower one of those that need it. The least of the others is under 5 ms.
func TestDnsmasqLogIsWhatRecordsTell(t *testing.T) {
	p := nsAsking(t, Options{}, flows.TableOptions{DNSTimeout: time.Second})
	masq := p.two.dnsmasq("--listen-address="+nsPodTwo4, "--listen-address="+nsPodTwo6, "--bind-interfaces", "--local=/test/",
		"--host-record=good.test,10.9.0.1,fd09::1", "--host-record=good.test,10.9.0.2", "--txt-record=text.test,hello",
		"--mx-host=good.test,mail.test,10", "--server=/slow/"+nsUpstream+"#"+nsUpstreamPort, "--server=/lame/"+nsUpstream+"#5999")
	defer p.slowly(t)()
	questions := []struct {
		name string
		kind dnsmessage.Type
		slow bool
	}{
		{"good.test", dnsmessage.TypeA, false},
		{"GOOD.test", dnsmessage.TypeAAAA, false},
		{"good.test", dnsmessage.TypeMX, false},
		{"text.test", dnsmessage.TypeTXT, false},
		{"text.test", dnsmessage.TypeA, false},           // no data
		{"missing.test", dnsmessage.TypeA, false},        // no such name
		{"elsewhere.example", dnsmessage.TypeSRV, false}, // refused
		{"name.slow", dnsmessage.TypeA, true},            // server failure, after a while
	}
	took := map[netip.AddrPort][]time.Duration{}
	for i, x := range []struct{ network, addr string }{{"udp", nsPodTwo4}, {"udp", nsPodTwo6}, {"tcp", nsPodTwo4}, {"tcp", nsPodTwo6}} {
		nsUntil(t, "dnsmasq listens", func() bool { return p.listens(x.addr) })
		c := p.one.dial(x.network, x.addr)
		from := nsPort(c.LocalAddr())
		for k, q := range questions {
			took[from] = append(took[from], nsAsk(t, c, uint16(100*i+k+1), q.name, q.kind))
		}
		c.Close()
	}
	lame := p.one.dial("udp", nsPodTwo4)
	if _, err := lame.Write(nsQuestion(t, 9, "nobody.lame", dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	p.figures("the time-out", func(f *flows.DNSFigures) bool {
		return slices.ContainsFunc(f.Resolvers, func(r flows.DNSResolver) bool { return r.Timeouts == 1 })
	})
	p.a.stop()
	log := masq.asked(t)
	if n := len(log[nsPort(lame.LocalAddr())]); n != 1 || len(log) < 5 {
		t.Fatalf("the log has %d of what was not answered and %d askers, want 1 and 5:\n%s", n, len(log), masq.log.String())
	}
	for from, want := range log {
		d := p.dnsOf(from)
		slices.Reverse(d.Questions) // newest first
		var got []nsAsked
		for i, q := range d.Questions {
			got = append(got, nsAsked{q.Name, dnsmessage.Type(q.Type), dnsmessage.RCode(q.Rcode), int(q.Records), q.Timeout})
			if q.Timeout || len(d.Questions) != len(took[from]) {
				continue
			}
			if q.Latency <= 0 || q.Latency > took[from][i] || questions[i].slow && q.Latency < nsDelay {
				t.Errorf("%s: %s took %s, the asker measured %s, the delay is %s (%v)", from, q.Name, q.Latency, took[from][i], nsDelay, questions[i].slow)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %+v\nthe log has %+v", from, got, want)
		}
		if from != nsPort(lame.LocalAddr()) && (d.Latency.Min <= 0 || d.Latency.Min > 5*time.Millisecond || d.Latency.Count != uint64(len(want))) {
			t.Errorf("%s: latencies: got %+v, want %d of which the least is under 5 ms", from, d.Latency, len(want))
		}
	}
	p.histograms(t, len(questions))
	p.balanced()
}

// listens reports whether somebody takes TCP on port 53 there.
func (p *nsPods) listens(addr string) (ok bool) {
	p.one.do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "53"), time.Second)
		if ok = err == nil; ok {
			return c.Close()
		}
		return nil
	})
	return ok
}

// slowly answers questions to the upstream server with a failure, after nsDelay.
func (p *nsPods) slowly(t *testing.T) (end func()) {
	t.Helper()
	var c net.PacketConn
	var ln net.Listener
	p.host.do(func() (err error) {
		at := net.JoinHostPort(nsUpstream, nsUpstreamPort)
		if c, err = net.ListenPacket("udp", at); err != nil {
			return err
		}
		ln, err = net.Listen("tcp", at)
		return err
	})
	var all sync.WaitGroup
	all.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return // closed
			}
			time.Sleep(nsDelay)
			if _, err := c.WriteTo(nsAnswer(b[:n], dnsmessage.RCodeServerFailure), from); err != nil {
				return
			}
		}
	})
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			all.Go(func() {
				defer c.Close()
				if err := nsServe(c, dnsmessage.RCodeServerFailure, nsDelay); err != nil {
					t.Error(err)
				}
			})
		}
	})
	return func() { c.Close(); ln.Close(); all.Wait() }
}

// histograms checks that each lookup is once in its resolver's histogram, with the
// slow ones where they belong.
func (p *nsPods) histograms(t *testing.T, lookups int) {
	t.Helper()
	type series struct {
		addr  string
		proto uint8
	}
	n := map[series]uint64{}
	for _, l := range p.a.times {
		if l.Key.Measure != flows.DNSLookup {
			continue
		}
		n[series{l.Key.Server.Addr().String(), l.Key.Protocol}] += l.Count
		var slow uint64
		for i, c := range l.Counts {
			if bucket := l.Offset + i; bucket >= -8*5 { // more than 2^-5 s, 31 ms
				slow += c
			}
		}
		if l.Key.Class != flows.ClassVeth {
			t.Errorf("%+v: want it of class veth", l.Key)
		}
		if slow != 1 || l.Sum < uint64(nsDelay) {
			t.Errorf("%+v: %d lookups over 31 ms and %d ns in all, want 1 and more than %s", l.Key, slow, l.Sum, nsDelay)
		}
	}
	for _, s := range []series{{nsPodTwo4, flows.ProtoUDP}, {nsPodTwo6, flows.ProtoUDP}, {nsPodTwo4, flows.ProtoTCP}, {nsPodTwo6, flows.ProtoTCP}} {
		if n[s] != uint64(lookups) {
			t.Errorf("%+v: got %d lookups, want %d", s, n[s], lookups)
		}
	}
}
