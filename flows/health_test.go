// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"testing"
	"time"
)

// tcpSample is a segment's flow: client to server, or back.
func tcpSample(back bool, at int64, flags uint8, seq, ack uint32) Sample {
	s := Sample{
		Key: key(ProtoTCP, "10.0.0.1", 40000, "10.0.0.2", 443), At: veth, Packets: 1, Bytes: 60,
		First: at, Last: at, TCPFlags: flags, FirstFlags: flags, New: true, SeqNumber: seq, AckNumber: ack,
	}
	if back {
		s.Key = key(ProtoTCP, "10.0.0.2", 443, "10.0.0.1", 40000)
	}
	return s
}

func TestFailuresHaveOneWord(t *testing.T) {
	const syn, ack, rst, fin = FlagSYN, FlagACK, FlagRST, FlagFIN
	for _, c := range []struct {
		name         string
		asked, reply uint8
		active       bool // closed by the active time-out: it may go on
		want         Failure
	}{
		{"answered", syn | ack | fin, syn | ack | fin, false, FailNone},
		{"still open", syn | ack, syn | ack, true, FailNone},
		{"idle", syn | ack, syn | ack, false, FailNone},
		{"refused", syn, rst | ack, false, FailRefused},
		{"unanswered", syn, 0, false, FailUnanswered},
		{"unanswered with ECN", syn | FlagECE | FlagCWR, 0, false, FailUnanswered},
		{"not answered yet", syn, 0, true, FailNone},
		{"answered where we do not see", syn | ack, 0, false, FailNone},
		{"half open", syn, syn | ack, false, FailHalfOpen},
		{"aborted", syn | rst, syn | ack, false, FailAborted},
		{"reset by the server", syn | ack, syn | ack | rst, false, FailReset},
		{"reset by the client", syn | ack | rst, syn | ack, false, FailReset},
		{"reset after both were done", syn | ack | fin | rst, syn | ack | fin, false, FailNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := NewTable(TableOptions{ActiveTimeout: time.Minute, IdleTimeout: time.Minute})
			s := []Sample{tcpSample(false, 1, syn, 100, 0)}
			s[0].TCPFlags = c.asked
			if c.reply != 0 {
				r := tcpSample(true, 2, syn|ack, 900, 101)
				r.FirstFlags, r.TCPFlags = c.reply&^fin, c.reply
				s = append(s, r)
			}
			table.Fold(Batch{At: second(0), Flows: s})
			var w Window
			if c.active {
				w, _ = table.Fold(Batch{At: second(61), Flows: s[:1], Final: true})
			} else {
				w = table.Close(second(1))
			}
			if len(w.Records) != 1 || w.Records[0].TCP == nil {
				t.Fatalf("got %+v, want one TCP record", w.Records)
			}
			if got := w.Records[0].TCP.Failure; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A connect that nobody answered is the server's fault when its accept queue was full, at
// whichever point that was seen.
func TestFullAcceptQueueIsWhyNobodyAnswered(t *testing.T) {
	other := veth
	other.Ifindex++
	for _, reply := range []bool{false, true} {
		table := NewTable(TableOptions{ActiveTimeout: time.Minute, IdleTimeout: time.Minute})
		s := []Sample{tcpSample(false, 1, FlagSYN, 100, 0), tcpSample(false, 1, FlagSYN, 100, 0)}
		s[1].At, s[1].TCP = other, TCPHealth{Options: TCPSYNSeen | TCPQueueFull}
		want := FailBacklog
		if reply { // to a SYN that was sent again
			s, want = append(s, tcpSample(true, 2, FlagSYN|FlagACK, 900, 101)), FailHalfOpen
		}
		table.Fold(Batch{At: second(0), Flows: s})
		w := table.Close(second(1))
		if len(w.Records) != 1 || w.Records[0].TCP == nil || w.Records[0].TCP.Failure != want {
			t.Errorf("answered %v: got %+v, want one record that failed with %q", reply, w.Records, want)
		}
	}
}

// What was measured is the chosen point's, by side, and a period's own.
func TestHealthIsOfTheChosenPointAndThePeriod(t *testing.T) {
	table := NewTable(TableOptions{ActiveTimeout: 10 * time.Second, IdleTimeout: time.Minute})
	other := veth
	other.Ifindex++
	sample := func(back bool, at Point, rtt time.Duration, again uint64) Sample {
		s := tcpSample(back, 5, FlagACK, 0, 0)
		s.At = at
		s.TCP = TCPHealth{RTT: RTT{1, rtt, rtt, rtt}, Handshake: 7, Retransmits: again}
		return s
	}
	later := sample(false, other, time.Hour, 100)
	later.First, later.Last = 9, 9
	table.Fold(Batch{At: second(0), Flows: []Sample{
		sample(false, veth, 10, 1), sample(true, veth, 20, 2), later, sample(false, veth, 30, 3),
	}})
	w, _ := table.Fold(Batch{At: second(11), Final: true})
	if len(w.Records) != 1 {
		t.Fatalf("got %d records, want 1", len(w.Records))
	}
	got := w.Records[0].TCP
	want := TCPRecord{
		Source:      TCPHealth{RTT: RTT{2, 40, 10, 30}, Handshake: 7, Retransmits: 4},
		Destination: TCPHealth{RTT: RTT{1, 20, 20, 20}, Handshake: 7, Retransmits: 2},
	}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	next := sample(false, veth, 50, 0)
	next.TCP.Handshake = 0
	table.Fold(Batch{At: second(12), Flows: []Sample{next}, Final: true})
	w = table.Close(second(13))
	if got, want := w.Records[0].TCP.Source, (TCPHealth{RTT: RTT{1, 50, 50, 50}, Handshake: 7}); got != want {
		t.Errorf("second period: got %+v, want %+v", got, want)
	}
	if n := table.health.taken(); n != 0 {
		t.Errorf("an empty table keeps %d", n)
	}
}

func TestDropsReachTheirConversation(t *testing.T) {
	table := NewTable(TableOptions{ActiveTimeout: 10 * time.Second, IdleTimeout: time.Minute})
	s := tcpSample(false, 5, FlagACK, 0, 0)
	s.Domain = 99
	drop := DropSample{Key: s.Key, At: Point{Netns: s.At.Netns + 1, Ifindex: 8}, Domain: 99, Class: DropLoss, Reason: "NETFILTER_DROP", Packets: 3}
	noise, other, rare := drop, drop, drop
	noise.Class, noise.Packets = DropNoise, 1000
	other.Domain, other.Packets = 98, 500
	rare.Reason, rare.Packets = "NO_SOCKET", 1
	back := drop
	back.Key = Key{Src: s.Key.Dst, Dst: s.Key.Src, Proto: ProtoTCP}
	table.Fold(Batch{At: second(0), Flows: []Sample{s}, Drops: []DropSample{rare, drop, noise, other, back}, Final: true})
	r := table.Close(second(1)).Records
	if len(r) != 1 || r[0].Dropped != 7 || r[0].DropReason != "NETFILTER_DROP" {
		t.Fatalf("got %+v, want 7 dropped by NETFILTER_DROP", r)
	}
	if n := table.troubles.taken(); n != 0 {
		t.Errorf("an empty table keeps %d", n)
	}
}

// TestMeasurementsWithoutPacketsJoinTheirConversation, and begin none.
func TestMeasurementsWithoutPacketsJoinTheirConversation(t *testing.T) {
	table := NewTable(TableOptions{})
	s := tcpSample(false, 1, FlagSYN, 100, 0)
	table.Fold(Batch{At: second(0), Flows: []Sample{s}, Final: true})
	later, stranger := s, tcpSample(true, 2, FlagACK, 0, 0)
	later.Packets, later.Bytes, later.New, later.TCP = 0, 0, false, TCPHealth{Retransmits: 2}
	stranger.Packets, stranger.Bytes, stranger.New, stranger.TCP = 0, 0, false, TCPHealth{Retransmits: 9}
	stranger.Key.Src = socketServer
	table.Fold(Batch{At: second(1), Flows: []Sample{later, stranger}, Final: true})
	w := table.Close(second(2))
	if len(w.Records) != 1 || w.Records[0].TCP.Source.Retransmits != 2 || w.Records[0].TCP.Destination.Retransmits != 0 {
		t.Fatalf("got %+v, want one record whose source sent 2 segments again", w.Records)
	}
}
