// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

const dnsSecond = int64(time.Second)

var (
	dnsAsker  = netip.MustParseAddrPort("10.0.0.7:40000")
	dnsServer = netip.MustParseAddrPort("10.0.0.53:53")
	dnsNear   = Point{Netns: 1, Ifindex: 2, Hook: HookEgress}
	dnsFar    = Point{Netns: 1, Ifindex: 3, Hook: HookIngress}
)

// asks is a question as it passes at, at that time; its answer passes the other hook.
func asks(at Point, id uint16, name string, when int64) DNSMessage {
	return DNSMessage{Key: Key{Src: dnsAsker, Dst: dnsServer, Proto: ProtoUDP}, At: at, When: when, ID: id, Name: name, Type: 1}
}

func answers(at Point, id uint16, name string, when int64, rcode uint16) DNSMessage {
	m := asks(at.opposite(), id, name, when)
	m.Key.Src, m.Key.Dst, m.Response, m.Rcode = m.Key.Dst, m.Key.Src, true, rcode
	return m
}

// dnsRun is what a matcher makes of messages, and of silence until a time.
func dnsRun(until int64, messages ...DNSMessage) (*dnsMatcher, DNS) {
	d := newDNSMatcher(0)
	for i := range messages {
		d.expire(messages[i].When, 0)
		d.message(&messages[i], 0)
	}
	d.expire(until, 0)
	var k convKey
	k.pack(&Sample{Key: Key{Src: dnsAsker, Dst: dnsServer, Proto: ProtoUDP}, At: dnsNear})
	if p := d.take(&k); p != nil {
		return &d, *p
	}
	return &d, DNS{}
}

func TestAnswersMeetTheirQuestions(t *testing.T) {
	const ms = int64(time.Millisecond)
	otherType := answers(dnsNear, 1, "a", 9*ms, 0)
	otherType.Type = 28
	asksBack := asks(dnsNear, 1, "a", 0)
	asksBack.Key.Src, asksBack.Key.Dst = dnsServer, dnsServer
	for name, x := range map[string]struct {
		messages                            []DNSMessage
		queries, retries, answers, timeouts uint64
		latency                             []int64 // of those that were measured, ms
		unasked, late, duplicates           uint64
	}{
		"one": {messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "a", 9*ms, 0)}, queries: 1, answers: 1, latency: []int64{9}},
		"seen twice, counted once, timed at the first": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), asks(dnsFar, 1, "a", 3*ms), answers(dnsFar, 1, "a", 8*ms, 0), answers(dnsNear, 1, "a", 9*ms, 0),
			},
			queries: 1, answers: 1, latency: []int64{9},
		},
		"answer lost behind the second point": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), asks(dnsFar, 1, "a", 3*ms), answers(dnsFar, 1, "a", 8*ms, 0)},
			queries:  1, timeouts: 1,
		},
		"answer by another device": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsFar, 1, "a", 8*ms, 0)},
			queries:  1, answers: 1,
		},
		"no answer": {messages: []DNSMessage{asks(dnsNear, 1, "a", 0)}, queries: 1, timeouts: 1},
		"two with one id, answered the other way round": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "b", 2*ms), answers(dnsNear, 1, "b", 3*ms, 0), answers(dnsNear, 1, "a", 9*ms, 3),
			},
			queries: 2, answers: 2, latency: []int64{1, 9},
		},
		"answer without question, to the only one": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "", 4*ms, 1)},
			queries:  1, answers: 1, latency: []int64{4},
		},
		"answer without question, to which of two": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "b", 0), answers(dnsNear, 1, "", 4*ms, 1)},
			queries:  2, timeouts: 2, unasked: 1,
		},
		"only answers": {messages: []DNSMessage{answers(dnsNear, 1, "a", 9*ms, 0), answers(dnsNear, 2, "b", 9*ms, 0)}, unasked: 2},
		"other id":     {messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 2, "a", 9*ms, 0)}, queries: 1, timeouts: 1, unasked: 1},
		"other name":   {messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "b", 9*ms, 0)}, queries: 1, timeouts: 1, unasked: 1},
		"other type":   {messages: []DNSMessage{asks(dnsNear, 1, "a", 0), otherType}, queries: 1, timeouts: 1, unasked: 1},
		"retried: whose answer it is is not known": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "a", 5*ms), answers(dnsNear, 1, "a", 9*ms, 0)},
			queries:  1, retries: 1, answers: 1,
		},
		"retried, seen twice": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), asks(dnsFar, 1, "a", ms), asks(dnsNear, 1, "a", 5*ms), asks(dnsFar, 1, "a", 6*ms), answers(dnsNear, 1, "a", 9*ms, 0),
			},
			queries: 1, retries: 1, answers: 1,
		},
		"asked again later, and answered slowly": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "a", 9*ms, 0), asks(dnsNear, 1, "a", 4*dnsSecond), answers(dnsNear, 1, "a", 8*dnsSecond, 0),
			},
			queries: 2, answers: 2, latency: []int64{9, 4000},
		},
		"retried, both answered, then asked again": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "a", 5*ms), answers(dnsNear, 1, "a", 9*ms, 0), answers(dnsNear, 1, "a", 10*ms, 0),
				asks(dnsNear, 1, "a", 20*ms), answers(dnsNear, 1, "a", 22*ms, 0),
			},
			queries: 2, retries: 1, answers: 2, duplicates: 1, latency: []int64{2},
		},
		"retried, one answer, asked again: the second may be the first's": {
			messages: []DNSMessage{
				asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "a", 5*ms), answers(dnsNear, 1, "a", 9*ms, 0),
				asks(dnsNear, 1, "a", 20*ms), answers(dnsNear, 1, "a", 22*ms, 0),
			},
			queries: 2, retries: 1, answers: 2,
		},
		"answered twice": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "a", 9*ms, 0), answers(dnsNear, 1, "a", 10*ms, 0)},
			queries:  1, answers: 1, duplicates: 1, latency: []int64{9},
		},
		"late": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "a", 6*dnsSecond, 0)},
			queries:  1, timeouts: 1, late: 1,
		},
		"so late that nobody remembers": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), answers(dnsNear, 1, "a", 17*dnsSecond, 0)},
			queries:  1, timeouts: 1, unasked: 1,
		},
		"sent again after the time-out: whose answer it is is not known": {
			messages: []DNSMessage{asks(dnsNear, 1, "a", 0), asks(dnsNear, 1, "a", 6*dnsSecond), answers(dnsNear, 1, "a", 6*dnsSecond+ms, 0)},
			queries:  2, timeouts: 1, answers: 1,
		},
		"the kernel's clock went back": { // it never does: but no time is below zero
			messages: []DNSMessage{asks(dnsNear, 1, "a", 9*ms), answers(dnsNear, 1, "a", 0, 0)},
			queries:  1, answers: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, got := dnsRun(100*dnsSecond, x.messages...)
			want := RTT{}
			for _, l := range x.latency {
				took := time.Duration(l * ms)
				want.add(RTT{Count: 1, Sum: took, Min: took, Max: took})
			}
			if got.Queries != x.queries || got.Retries != x.retries || got.Answers != x.answers || got.Timeouts != x.timeouts || got.Latency != want {
				t.Errorf("got %+v, want %+v", got, x)
			}
			for _, q := range got.Questions {
				if q.Latency < 0 || q.Timeout && q.Latency != 0 {
					t.Errorf("got %+v", q)
				}
			}
			var timed uint64
			for _, l := range d.resolvers.latencies(time.Time{}) {
				timed += l.Count
			}
			if timed != want.Count+x.late {
				t.Errorf("histograms: got %d, want %d: those of the record and the late ones", timed, want.Count+x.late)
			}
			f := d.show(DNSAccount{Seen: 1})
			var late uint64
			for _, r := range f.Resolvers {
				late += r.Late
			}
			if f.Unasked != x.unasked || f.Duplicates != x.duplicates || late != x.late || f.Outstanding != 0 || f.Overflow != 0 {
				t.Errorf("figures: got %+v, late %d, want %+v", f, late, x)
			}
			if d.questions.taken() != 0 || len(d.index) != 0 || d.waiting.n != 0 || d.done.n != 0 {
				t.Errorf("%d questions, %d keys, %d waiting, %d done are left, want none", d.questions.taken(), len(d.index), d.waiting.n, d.done.n)
			}
		})
	}
}

// TestLookupIsOnceInTheHistogramOfAClass times it at four devices of two classes.
func TestLookupIsOnceInTheHistogramOfAClass(t *testing.T) {
	var messages []DNSMessage
	at := func(i int) (Point, PointClass) {
		return Point{Netns: 1, Ifindex: uint32(i), Hook: HookIngress}, []PointClass{ClassVeth, ClassVeth, ClassNIC, ClassNIC}[i-1]
	}
	for i := 1; i <= 4; i++ {
		p, class := at(i)
		m := asks(p, 1, "a", int64(i)*1000)
		m.Class = class
		messages = append(messages, m)
	}
	for i := 4; i >= 1; i-- {
		p, class := at(i)
		m := answers(p, 1, "a", int64(20-i)*1000, 0)
		m.Class = class
		messages = append(messages, m)
	}
	d, _ := dnsRun(0, messages...)
	got := d.resolvers.latencies(time.Unix(7, 0))
	for i := range got {
		got[i].Offset, got[i].Counts = 0, nil
	}
	key := LatencyKey{Server: dnsServer, Protocol: ProtoUDP, Measure: DNSLookup}
	nic, veth := key, key
	nic.Class, veth.Class = ClassNIC, ClassVeth
	want := []Latency{{Key: nic, Start: 7e9, Count: 1, Sum: 14000}, {Key: veth, Start: 7e9, Count: 1, Sum: 18000}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestFloodOfQuestionsIsBounded asks more than fits, of more servers than fit.
func TestFloodOfQuestionsIsBounded(t *testing.T) {
	d := newDNSMatcher(0)
	good := asks(dnsNear, 1, "good", 0)
	reply := answers(dnsNear, 1, "good", 5, 0)
	d.message(&good, 0)
	d.message(&reply, 0)
	const flood = 3*maxDNSQuestions + maxDNSPeriods
	for i := range flood {
		m := asks(dnsNear, uint16(i), fmt.Sprint("name", i), int64(i)*dnsSecond/1000)
		m.Key.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}), 53)
		if i > 2*maxDNSQuestions { // until then nothing times out, and there is no room
			d.expire(m.When, 0)
		}
		d.message(&m, 0)
	}
	f := d.show(DNSAccount{})
	if f.Outstanding > maxDNSQuestions || d.questions.taken() > maxDNSQuestions || len(d.periods) > maxDNSPeriods {
		t.Errorf("got %d outstanding, %d questions, %d periods: over the bounds", f.Outstanding, d.questions.taken(), len(d.periods))
	}
	var queries, timeouts uint64
	for _, r := range f.Resolvers {
		queries += r.Queries
		timeouts += r.Timeouts
	}
	if queries+f.Overflow != flood+1 || f.Overflow != maxDNSQuestions+1 || timeouts+uint64(f.Outstanding)+1 != queries {
		t.Errorf("%d questions and %d not followed of %d, %d time-outs, %d outstanding, want the sum, %d not followed, and all others timed out",
			queries, f.Overflow, flood+1, timeouts, f.Outstanding, maxDNSQuestions+1)
	}
	if len(f.Resolvers) != maxResolvers/2+2 {
		t.Errorf("got %d resolvers, want %d that never answered, one that did and the overflow", len(f.Resolvers), maxResolvers/2)
	}
	late := asks(dnsNear, 9, "good", int64(time.Hour))
	d.expire(late.When, 0)
	d.message(&late, 0)
	if s := d.resolvers.known[resolverKey{dnsServer, ProtoUDP}]; s == nil || s.Queries != 2 {
		t.Errorf("the one that answers: got %+v, want its own figures still", s)
	}
	d.sweep(int64(time.Hour), int64(time.Minute))
	if len(d.periods) != 0 || d.figures.Unrecorded < timeouts/2 {
		t.Errorf("%d periods are left and %d results were in no record, want 0 and those of the flood", len(d.periods), d.figures.Unrecorded)
	}
}

// TestAlikeQuestionsAreBounded: names without end under the same ports and id cost no
// search through all of them, and those that are done give way.
func TestAlikeQuestionsAreBounded(t *testing.T) {
	d := newDNSMatcher(0)
	const flood = 1000
	ask := func(i int, when int64) {
		m := asks(dnsNear, 7, fmt.Sprint("name", i), when)
		d.message(&m, 0)
	}
	for i := range flood {
		ask(i, int64(i))
	}
	if n, over := d.questions.taken(), d.figures.Overflow; n != maxDNSAlike || over != flood-maxDNSAlike {
		t.Errorf("got %d followed and %d not, want %d and %d", n, over, maxDNSAlike, flood-maxDNSAlike)
	}
	d.expire(6*dnsSecond, 0) // all are done, and known for a while
	for i := range 10 {
		ask(flood+i, 6*dnsSecond)
	}
	reply := answers(dnsNear, 7, fmt.Sprint("name", flood), 6*dnsSecond+5, 0)
	d.message(&reply, 0)
	if n, over := d.questions.taken(), d.figures.Overflow; n != maxDNSAlike || over != flood-maxDNSAlike || d.figures.Unasked != 0 {
		t.Errorf("after they timed out: got %d followed, %d not and %d answers unasked, want %d, %d and 0", n, over, d.figures.Unasked, maxDNSAlike, flood-maxDNSAlike)
	}
}

// TestRecordTellsDNSOfItsPeriod goes through the table.
func TestRecordTellsDNSOfItsPeriod(t *testing.T) {
	at := time.Unix(1000, 0)
	table := NewTable(TableOptions{ActiveTimeout: time.Minute, IdleTimeout: 10 * time.Second})
	packet := Sample{Key: Key{Src: dnsAsker, Dst: dnsServer, Proto: ProtoUDP}, At: dnsNear, Packets: 1, Bytes: 80, First: at.UnixNano(), Last: at.UnixNano()}
	fold := func(after time.Duration, read int64, messages []DNSMessage, samples ...Sample) Window {
		w, done := table.Fold(Batch{At: at.Add(after), Final: true, Flows: samples, DNS: messages, Seen: Account{DNS: DNSAccount{Seen: 2, Read: read}}})
		if !done {
			t.Fatal("a final batch makes no window")
		}
		return w
	}
	var messages []DNSMessage
	for i := range uint16(maxQuestions + 3) {
		messages = append(messages, asks(dnsNear, i, fmt.Sprint("name", i), int64(i)*10), answers(dnsNear, i, fmt.Sprint("name", i), int64(i)*10+3, i%2*3))
	}
	first := fold(time.Second, 1000, messages, packet)
	second := fold(30*time.Second, 2000, nil)
	if first.Records != nil || len(second.Records) != 1 || second.Records[0].DNS == nil {
		t.Fatalf("got records %+v and %+v, want one with DNS, in the second window", first.Records, second.Records)
	}
	d := second.Records[0].DNS
	if d.Queries != maxQuestions+3 || d.Answers != maxQuestions+3 || len(d.Questions) != maxQuestions || d.Questions[0].Name != fmt.Sprint("name", maxQuestions+2) {
		t.Errorf("got %+v, want %d and the last %d of them, newest first", d, maxQuestions+3, maxQuestions)
	}
	if want := []DNSRcode{{0, 6}, {3, 5}}; !reflect.DeepEqual(d.Rcodes, want) {
		t.Errorf("codes: got %+v, want %+v", d.Rcodes, want)
	}
	if len(first.Latencies) != 1 || first.Latencies[0].Count != maxQuestions+3 || second.Latencies != nil {
		t.Errorf("latencies: got %+v and then %+v, want one histogram of %d, and none while nothing is new", first.Latencies, second.Latencies, maxQuestions+3)
	}
	if second.DNS == nil || second.DNS.Account.Read != 2000 {
		t.Errorf("figures: got %+v", second.DNS)
	}
	kernels := Latency{Key: LatencyKey{Server: dnsServer, Protocol: ProtoTCP}, Count: 1, Offset: 100, Counts: []uint64{1}}
	w, _ := table.Fold(Batch{At: at.Add(31 * time.Second), Final: true, Latencies: []Latency{kernels}})
	more := fold(32*time.Second, 3000, messages[:2])
	if len(w.Latencies) != 2 || len(more.Latencies) != 2 || !reflect.DeepEqual(more.Latencies[0], kernels) {
		t.Errorf("with the kernel's: got %+v and then %+v, want both kinds in both", w.Latencies, more.Latencies)
	}
}
