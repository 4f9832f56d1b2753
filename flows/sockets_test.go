// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"testing"
	"time"
)

var (
	socketClient = netip.MustParseAddrPort("10.0.0.1:40000")
	socketServer = netip.MustParseAddrPort("10.0.0.2:80")
	socketStart  = time.Unix(1000, 0)
)

// socketFlow is a packet of a connection from client to server.
func socketFlow(domain uint64, flags uint8, at time.Time) Sample {
	return Sample{
		Key: Key{Src: socketClient, Dst: socketServer, Proto: ProtoTCP}, At: Point{Netns: 3, Ifindex: 2, Hook: HookEgress},
		Domain: domain, Packets: 1, Bytes: 60, First: at.UnixNano(), Last: at.UnixNano(), New: true, FirstFlags: flags, TCPFlags: flags, SeqNumber: 1,
	}
}

func socketOf(src, dst netip.AddrPort, netns, domain uint64, pid uint32, f SocketFigures) SocketSample {
	s := SocketSample{Key: Key{Src: src, Dst: dst, Proto: ProtoTCP}, Netns: netns, Domain: domain, SocketFigures: f, Events: 1}
	if pid != 0 {
		s.Process = Process{PID: pid, Comm: "fifteen-letters", Cgroup: 9}
	}
	return s
}

// TestSocketsBelongToTheirSide: whichever of the two ends has the lower address, and
// in whichever namespace of the domain it is.
func TestSocketsBelongToTheirSide(t *testing.T) {
	table := NewTable(TableOptions{})
	table.Fold(Batch{At: socketStart, Flows: []Sample{socketFlow(2, FlagSYN, socketStart)}})
	table.Fold(Batch{At: socketStart, Final: true, Sockets: []SocketSample{
		socketOf(socketClient, socketServer, 3, 2, 11, SocketFigures{Retransmits: 4}),
		socketOf(socketServer, socketClient, 7, 2, 22, SocketFigures{ResetsSent: 1}),
	}})
	r := table.Close(socketStart.Add(time.Second)).Records[0]
	if p := r.SourceProcess; p == nil || *p != (Process{11, "fifteen-letters", 9}) {
		t.Errorf("source process: got %+v, want pid 11", p)
	}
	if p := r.DestinationProcess; p == nil || p.PID != 22 {
		t.Errorf("destination process: got %+v, want pid 22", p)
	}
	if s := r.SourceSocket; s == nil || *s != (SocketFigures{Retransmits: 4}) {
		t.Errorf("source socket: got %+v, want 4 retransmits", s)
	}
	if s := r.DestinationSocket; s == nil || *s != (SocketFigures{ResetsSent: 1}) {
		t.Errorf("destination socket: got %+v, want a reset", s)
	}
}

// TestProcessStaysAndFiguresAreOfThePeriod, and a new connection with the same ports
// inherits neither.
func TestProcessStaysAndFiguresAreOfThePeriod(t *testing.T) {
	table := NewTable(TableOptions{ActiveTimeout: 1500 * time.Millisecond})
	fold := func(after time.Duration, flow Sample, sockets ...SocketSample) []Record {
		at := socketStart.Add(after)
		flow.First, flow.Last = at.UnixNano(), at.UnixNano()
		w, _ := table.Fold(Batch{At: at, Final: true, Flows: []Sample{flow}, Sockets: sockets})
		return w.Records
	}
	syn, data := socketFlow(0, FlagSYN, socketStart), socketFlow(0, FlagACK, socketStart)
	data.New = false
	fold(0, syn, socketOf(socketClient, socketServer, 3, 0, 11, SocketFigures{Retransmits: 1}))
	first := fold(2*time.Second, data)
	fold(3*time.Second, data, socketOf(socketClient, socketServer, 3, 0, 0, SocketFigures{Retransmits: 2}))
	end := data
	end.TCPFlags = FlagRST
	second := fold(5*time.Second, end)
	for i, rs := range [][]Record{first, second} {
		if len(rs) != 1 || rs[0].SourceProcess == nil || rs[0].SourceProcess.PID != 11 || rs[0].SourceSocket.Retransmits != uint64(i+1) {
			t.Fatalf("period %d: got %+v, want pid 11 and %d retransmits", i, rs, i+1)
		}
	}
	again := syn
	again.SeqNumber = 5
	fold(6*time.Second, again)
	r := table.Close(socketStart.Add(7 * time.Second)).Records
	if len(r) != 1 || r[0].SourceProcess != nil || r[0].SourceSocket != nil {
		t.Errorf("the next connection: got %+v, want no process and no socket", r)
	}
	if got := table.sockets.taken(); got != 0 {
		t.Errorf("got %d sockets held, want none", got)
	}
}

// TestUnmatchedSocketsAreCounted: no conversation, another scope, no address, or no
// record after.
func TestUnmatchedSocketsAreCounted(t *testing.T) {
	table := NewTable(TableOptions{})
	elsewhere := socketOf(socketClient, socketServer, 8, 0, 11, SocketFigures{})
	unknown := socketOf(socketServer, socketServer, 3, 0, 11, SocketFigures{})
	overflow := SocketSample{Netns: 3, Events: 5, Overflow: true}
	w, _ := table.Fold(Batch{
		At: socketStart, Final: true, Flows: []Sample{socketFlow(0, FlagSYN, socketStart)},
		Sockets: []SocketSample{elsewhere, unknown, overflow, socketOf(socketClient, socketServer, 3, 0, 11, SocketFigures{})},
	})
	if got := w.Ledger.SocketsUnmatched; got != 7 {
		t.Errorf("unmatched: got %d, want 7", got)
	}
	w = table.Close(socketStart.Add(time.Second))
	if w.Ledger.SocketsUnmatched != 7 || w.Records[0].SourceProcess == nil {
		t.Errorf("got %d unmatched and process %+v, want 7 and pid 11", w.Ledger.SocketsUnmatched, w.Records[0].SourceProcess)
	}
}

// TestLoopbackSocketsAreFoundInTheirOwnNamespace: what stays in a namespace is not in
// its domain.
func TestLoopbackSocketsAreFoundInTheirOwnNamespace(t *testing.T) {
	table := NewTable(TableOptions{})
	table.Fold(Batch{At: socketStart, Final: true, Flows: []Sample{socketFlow(0, FlagSYN, socketStart)},
		Sockets: []SocketSample{socketOf(socketClient, socketServer, 3, 2, 11, SocketFigures{})}})
	if r := table.Close(socketStart.Add(time.Second)).Records[0]; r.SourceProcess == nil {
		t.Error("got no process, want pid 11")
	}
}

// TestPingSocketIsTheOneThatThePacketCameTo, not the one that it came from.
func TestPingSocketIsTheOneThatThePacketCameTo(t *testing.T) {
	table := NewTable(TableOptions{})
	request := socketFlow(0, 0, socketStart)
	request.Key = Key{Src: netip.AddrPortFrom(socketClient.Addr(), 8), Dst: netip.AddrPortFrom(socketServer.Addr(), 0), Proto: ProtoICMP}
	reply := socketOf(netip.AddrPortFrom(socketClient.Addr(), 0), netip.AddrPortFrom(socketServer.Addr(), 0), 3, 0, 0, SocketFigures{RcvQueueFull: 1})
	reply.Key.Proto = ProtoICMP
	table.Fold(Batch{At: socketStart, Final: true, Flows: []Sample{request}, Sockets: []SocketSample{reply}})
	r := table.Close(socketStart.Add(time.Second)).Records[0]
	if r.SourceSocket == nil || r.DestinationSocket != nil {
		t.Errorf("got %+v and %+v, want the full queue at the source", r.SourceSocket, r.DestinationSocket)
	}
}

// TestSocketErrorsHaveOneWord each, and none where none is certain.
func TestSocketErrorsHaveOneWord(t *testing.T) {
	for _, c := range []struct {
		errno  uint16
		failed bool
		want   Failure
	}{
		{111, true, FailRefused}, {110, true, FailUnanswered}, {0, true, FailUnanswered}, {113, true, FailUnreachable},
		{101, true, FailUnreachable}, {104, false, FailReset}, {32, false, FailReset}, {110, false, FailTimedOut}, {113, false, FailUnreachable}, {0, false, FailNone},
	} {
		if got := (SocketFigures{Errno: c.errno, Failed: c.failed}).Failure(); got != c.want {
			t.Errorf("errno %d, failed %v: got %q, want %q", c.errno, c.failed, got, c.want)
		}
	}
}
