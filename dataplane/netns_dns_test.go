// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weft/flows"
)

const (
	nsPodTwo4 = "10.3.0.12"
	nsPodTwo6 = "fd03::12"
)

// nsQuestion is a DNS question of one name.
func nsQuestion(t testing.TB, id uint16, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// nsAnswer turns a question into its answer.
func nsAnswer(question []byte, rcode dnsmessage.RCode) []byte {
	b := slices.Clone(question)
	b[2] |= 0x80
	b[3] |= byte(rcode)
	return b
}

// nsPrefixed is messages as they follow each other over TCP.
func nsPrefixed(messages ...[]byte) (b []byte) {
	for _, m := range messages {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

// nsDeaf takes datagrams on port 53 of a namespace and answers only when told.
type nsDeaf struct {
	net.PacketConn
	t testing.TB
}

func (n *nsSpace) deaf(addr string) *nsDeaf {
	n.t.Helper()
	d := &nsDeaf{t: n.t}
	n.do(func() (err error) {
		d.PacketConn, err = net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
		return err
	})
	n.t.Cleanup(func() { _ = d.Close() }) // or the test has
	return d
}

// next is the next datagram that came.
func (d *nsDeaf) next() ([]byte, net.Addr) {
	d.t.Helper()
	b := make([]byte, 1500)
	if err := d.SetReadDeadline(time.Now().Add(nsPatience)); err != nil {
		d.t.Fatal(err)
	}
	n, from, err := d.ReadFrom(b)
	if err != nil {
		d.t.Fatal(err)
	}
	return b[:n], from
}

// only answers the first datagram that is question and ignores those before it.
func (d *nsDeaf) only(question []byte) error {
	b := make([]byte, 1500)
	for {
		n, from, err := d.ReadFrom(b)
		if err != nil {
			return err
		}
		if string(b[:n]) == string(question) {
			_, err := d.WriteTo(nsAnswer(question, dnsmessage.RCodeSuccess), from)
			return err
		}
	}
}

func (d *nsDeaf) say(b []byte, to net.Addr) {
	d.t.Helper()
	if _, err := d.WriteTo(b, to); err != nil {
		d.t.Fatal(err)
	}
}

// dial connects from the namespace.
func (n *nsSpace) dial(network, addr string) (c net.Conn) {
	n.t.Helper()
	n.do(func() (err error) {
		c, err = net.DialTimeout(network, net.JoinHostPort(addr, "53"), nsPatience)
		return err
	})
	n.t.Cleanup(func() { _ = c.Close() }) // or the test has
	if err := c.SetDeadline(time.Now().Add(nsPatience)); err != nil {
		n.t.Fatal(err)
	}
	return c
}

// nsAsking is nsBridged with DNS.
func nsAsking(t *testing.T, o Options, fold flows.TableOptions) *nsPods {
	t.Helper()
	o.DNS = true
	p := nsBridgedFolding(t, o, 1500, fold)
	for _, c := range p.a.d.Status().Off {
		if c.Name == "dns" {
			t.Fatalf("dns is off: %s", c.Err)
		}
	}
	return p
}

func nsPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// figures waits until f holds of the figures of all resolvers.
func (p *nsPods) figures(what string, f func(*flows.DNSFigures) bool) {
	p.a.t.Helper()
	nsUntil(p.a.t, what, func() bool {
		p.a.mu.Lock()
		defer p.a.mu.Unlock()
		return p.a.asked != nil && f(p.a.asked)
	})
}

// dnsOf sums up the records of what an address asked. The agent has stopped.
func (p *nsPods) dnsOf(from netip.AddrPort) (sum flows.DNS) {
	p.a.t.Helper()
	for _, r := range p.folded() {
		if r.DNS == nil || r.Key.Src != from {
			continue
		}
		if sum.Queries != 0 {
			p.a.t.Errorf("%s asked in more than one record", from)
		}
		sum = *r.DNS
	}
	return sum
}

// TestDNSRetriesAndTimeOutsAreTold asks a server that answers when the test says. What
// passes four points and a bridge is told once.
func TestDNSRetriesAndTimeOutsAreTold(t *testing.T) {
	for _, k := range nsKinds(t) {
		t.Run(k.String(), func(t *testing.T) {
			p := nsAsking(t, Options{Hooks: k.hooks, Backend: k.backend}, flows.TableOptions{DNSTimeout: 300 * time.Millisecond})
			server := p.two.deaf(nsPodTwo4)
			ask := func(c net.Conn, q []byte) net.Addr {
				if _, err := c.Write(q); err != nil {
					t.Fatal(err)
				}
				_, from := server.next()
				return from
			}
			never, twice, late, once := p.one.dial("udp", nsPodTwo4), p.one.dial("udp", nsPodTwo4), p.one.dial("udp", nsPodTwo4), p.one.dial("udp", nsPodTwo4)
			q := nsQuestion(t, 7, "never.Test", dnsmessage.TypeA)
			for range 3 {
				ask(never, q)
			}
			q = nsQuestion(t, 8, "late.test", dnsmessage.TypeAAAA)
			to := ask(late, q)
			p.figures("two time-outs", func(f *flows.DNSFigures) bool { return len(f.Resolvers) == 1 && f.Resolvers[0].Timeouts == 2 })
			server.say(nsAnswer(q, dnsmessage.RCodeSuccess), to)
			server.say(nsAnswer(nsQuestion(t, 99, "nobody.test", dnsmessage.TypeA), dnsmessage.RCodeSuccess), to)
			q = nsQuestion(t, 9, "twice.test", dnsmessage.TypeA)
			ask(twice, q)
			server.say(nsAnswer(q, dnsmessage.RCodeServerFailure), ask(twice, q))
			q = nsQuestion(t, 10, "once.test", dnsmessage.TypeTXT)
			server.say(nsAnswer(q, dnsmessage.RCodeNameError), ask(once, q))
			p.figures("all answers", func(f *flows.DNSFigures) bool {
				r := f.Resolvers[0]
				return r.Rcodes[2] == 1 && r.Rcodes[3] == 1 && r.Late == 1 && f.Unasked == 4
			})
			p.a.stop()
			want := flows.DNSResolver{
				Server: netip.MustParseAddrPort(nsPodTwo4 + ":53"), Protocol: flows.ProtoUDP,
				Queries: 4, Retries: 3, Timeouts: 2, Late: 1, Rcodes: [16]uint64{2: 1, 3: 1},
			}
			if got := p.a.asked.Resolvers[0]; got != want {
				t.Errorf("resolver: got %+v, want %+v", got, want)
			}
			for _, x := range []struct {
				c                                   net.Conn
				queries, retries, answers, timeouts uint64
				measured                            uint64
				question                            flows.DNSQuestion
			}{
				{never, 1, 2, 0, 1, 0, flows.DNSQuestion{Name: "never.test", Type: 1, Timeout: true}},
				{late, 1, 0, 0, 1, 0, flows.DNSQuestion{Name: "late.test", Type: 28, Timeout: true}},
				{twice, 1, 1, 1, 0, 0, flows.DNSQuestion{Name: "twice.test", Type: 1, Rcode: 2}},
				{once, 1, 0, 1, 0, 1, flows.DNSQuestion{Name: "once.test", Type: 16, Rcode: 3}},
			} {
				d := p.dnsOf(nsPort(x.c.LocalAddr()))
				if d.Queries != x.queries || d.Retries != x.retries || d.Answers != x.answers || d.Timeouts != x.timeouts || d.Latency.Count != x.measured {
					t.Errorf("%s: got %+v, want %+v", x.question.Name, d, x)
				}
				if len(d.Questions) != 1 {
					t.Errorf("%s: got questions %+v, want one", x.question.Name, d.Questions)
					continue
				}
				got := d.Questions[0]
				if measured := got.Latency > 0; measured != (x.measured > 0) {
					t.Errorf("%s: took %s", x.question.Name, got.Latency)
				}
				if got.Latency = 0; got != x.question {
					t.Errorf("got %+v, want %+v", got, x.question)
				}
			}
			p.balanced()
		})
	}
}

// balanced checks that every packet from and to port 53 was read or counted as lost.
func (p *nsPods) balanced() {
	p.a.t.Helper()
	if a := p.a.asked.Account; a.Seen != a.Drained+a.Lost || a.Seen == 0 {
		p.a.t.Errorf("packets of port 53: %d seen, %d read, %d lost: want the sum", a.Seen, a.Drained, a.Lost)
	}
}

// TestDNSOverTCPIsReadFromItsSegments sends messages one by one, together, behind
// their prefix and in pieces.
func TestDNSOverTCPIsReadFromItsSegments(t *testing.T) {
	p := nsAsking(t, Options{}, flows.TableOptions{})
	var ln net.Listener
	p.two.do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(nsPodTwo6, "53"))
		return err
	})
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			defer c.Close()
			err = nsServe(c, dnsmessage.RCodeSuccess, 0)
		}
		served <- err
	}()
	c := p.one.dial("tcp", nsPodTwo6)
	q := func(id uint16, name string) []byte { return nsQuestion(t, id, name, dnsmessage.TypeA) }
	long := nsPrefixed(q(5, "in-pieces.test"))
	for _, segment := range [][]byte{
		nsPrefixed(q(1, "alone.test")),
		nsPrefixed(q(2, "first.test"), q(3, "second.test")),
		{0, byte(len(q(4, "apart.test")))}, q(4, "apart.test"),
		long[:20], long[20:],
		nsPrefixed(q(6, "after.test")),
	} {
		if _, err := c.Write(segment); err != nil { // TCP_NODELAY: a segment each
			t.Fatal(err)
		}
	}
	for answers := 0; answers < 6; answers++ {
		b := make([]byte, 2)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(b))); err != nil {
			t.Fatal(err)
		}
	}
	from := nsPort(c.LocalAddr())
	c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	p.a.drained()
	p.a.stop()
	d := p.dnsOf(from)
	var names []string
	for _, x := range d.Questions {
		names = append(names, x.Name)
	}
	slices.Sort(names)
	if want := []string{"after.test", "alone.test", "apart.test", "first.test", "second.test"}; !slices.Equal(names, want) || d.Answers != 5 || d.Latency.Count != 5 {
		t.Errorf("got %v of %+v, want %v, all answered and timed", names, d, want)
	}
	if a := p.a.asked.Account; a.Faults[flows.DNSSplit] == 0 || a.Messages != 4*11 {
		t.Errorf("got %+v, want 11 messages at 4 points, and the one in pieces as split", a)
	}
	p.balanced()
}

// nsServe answers what comes over a connection, in one segment each, after a while.
func nsServe(c net.Conn, rcode dnsmessage.RCode, after time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(nsPatience)); err != nil {
		return err
	}
	for {
		b := make([]byte, 2)
		if _, err := io.ReadFull(c, b); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		m := make([]byte, binary.BigEndian.Uint16(b))
		if _, err := io.ReadFull(c, m); err != nil {
			return err
		}
		time.Sleep(after)
		if _, err := c.Write(nsPrefixed(nsAnswer(m, rcode))); err != nil {
			return err
		}
	}
}

// TestGarbageToPort53DoesNoHarm sends 100,000 random datagrams, and a good question
// after them.
func TestGarbageToPort53DoesNoHarm(t *testing.T) {
	p := nsAsking(t, Options{}, flows.TableOptions{DNSTimeout: 300 * time.Millisecond})
	server := p.two.deaf(nsPodTwo4)
	good := nsQuestion(t, 77, "good.after.all", dnsmessage.TypeA)
	served := make(chan error, 1)
	go func() { served <- server.only(good) }()
	for i := range p.a.truths {
		p.a.truths[i].lossy = true
	}
	c := p.one.dial("udp", nsPodTwo4)
	random := rand.New(rand.NewPCG(1, 2))
	sound := nsQuestion(t, 3, "some.name.test", dnsmessage.TypeA)
	count := 100_000
	if testing.Short() {
		count = 10_000
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range count {
		b := make([]byte, random.IntN(600))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if random.IntN(2) == 0 { // half of them get further
			b = append(b[:0], sound...)
			b[random.IntN(len(b))] ^= byte(random.Uint32())
			b[0], b[1] = byte(random.Uint32()), byte(random.Uint32())
		}
		if _, err := c.Write(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	p.figures("everything was read", func(f *flows.DNSFigures) bool {
		return f.Account.Seen >= uint64(4*count*9/10) && f.Account.Seen == f.Account.Drained+f.Account.Lost
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 48<<20 {
		t.Errorf("the heap grew by %d MiB, want at most 48", grown>>20)
	}
	p.figures("nothing is outstanding", func(f *flows.DNSFigures) bool { return f.Outstanding == 0 })
	asker := p.one.dial("udp", nsPodTwo4)
	if _, err := asker.Write(good); err != nil {
		t.Fatal(err)
	}
	if _, err := asker.Read(make([]byte, 1500)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	p.a.drained()
	p.a.stop()
	if d := p.dnsOf(nsPort(asker.LocalAddr())); d.Answers != 1 || d.Latency.Count != 1 {
		t.Errorf("after the garbage: got %+v, want an answer", d)
	}
	p.balanced()
	f := p.a.asked
	t.Logf("heap grew by %d KiB; %+v, overflow %d", int64(after.HeapAlloc-before.HeapAlloc)>>10, f.Account, f.Overflow)
}
