// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"bytes"
	"cmp"
	"net/netip"
)

// socketEnd is what the socket of one side told: 72 bytes, no pointers. Only sides
// with a socket on this host that told anything have one.
type socketEnd struct {
	figures SocketFigures // since the last record
	cgroup  uint64
	pid     uint32 // 0: the process is not known
	events  uint32 // that made figures
	comm    [16]byte
}

// process is who owns the socket; nil: not known.
func (e *socketEnd) process() *Process {
	if e.pid == 0 {
		return nil
	}
	comm, _, _ := bytes.Cut(e.comm[:], []byte{0})
	return &Process{PID: e.pid, Comm: string(comm), Cgroup: e.cgroup}
}

// foldSockets adds what sockets told to the conversations of the drain. What none
// is held for, because no watched device saw its packets, is counted.
func (t *Table) foldSockets(samples []SocketSample) {
	for i := range samples {
		s := &samples[i]
		c, from := t.conversationOf(s)
		if c == nil {
			t.unmatched += s.Events
			continue
		}
		if c.socket[from] == 0 {
			c.socket[from] = t.sockets.take()
		}
		e := t.sockets.at(c.socket[from])
		e.figures.add(s.SocketFigures)
		e.events += uint32(s.Events)
		if s.Process.PID != 0 {
			e.pid, e.cgroup, e.comm = s.Process.PID, s.Process.Cgroup, [16]byte{}
			copy(e.comm[:], s.Process.Comm)
		}
	}
}

// conversationOf is the conversation that a socket belongs to and its side; nil:
// none is held. What stays in a namespace is not in that namespace's domain.
func (t *Table) conversationOf(s *SocketSample) (*conversation, side) {
	if s.Overflow || !s.Key.Src.IsValid() {
		return nil, 0
	}
	var key convKey
	flow := Sample{Key: s.Key, At: Point{Netns: s.Netns}, Domain: s.Domain}
	if s.Key.ICMP() { // of the packet that came
		flow.Key.Src = netip.AddrPortFrom(s.Key.Dst.Addr(), s.Key.Src.Port())
		flow.Key.Dst = netip.AddrPortFrom(s.Key.Src.Addr(), s.Key.Dst.Port())
	}
	from := key.pack(&flow)
	if s.Key.ICMP() {
		from = 1 - from
	}
	i := t.convs.find(&key, t.convs.hashOf(&key))
	if i == 0 && key.netns != s.Netns {
		key.netns = s.Netns
		i = t.convs.find(&key, t.convs.hashOf(&key))
	}
	var c *conversation
	if i != 0 {
		c = t.convs.at(i)
	}
	domain := cmp.Or(s.Domain, s.Netns)
	if c, from = t.held(c, from, Scope{Netns: domain}, s.Key, s.First, s.Last); c == nil && domain != s.Netns {
		c, from = t.held(nil, 0, Scope{Netns: s.Netns}, s.Key, s.First, s.Last) // sent on to a loopback address
	}
	return c, from
}

// recordSockets puts what both sides' sockets told since the last record into r. Each
// end has one socket, which knows the addresses of one view.
func (t *Table) recordSockets(r *Record, v *views) {
	for _, w := range v.all() {
		t.takeSocket(w.c.socket[w.src], &r.SourceProcess, &r.SourceSocket)
		t.takeSocket(w.c.socket[1-w.src], &r.DestinationProcess, &r.DestinationSocket)
	}
	for _, f := range []*SocketFigures{r.SourceSocket, r.DestinationSocket} {
		if f != nil && r.TCP != nil && r.TCP.Failure == FailNone {
			r.TCP.Failure = f.Failure()
		}
	}
}

func (t *Table) takeSocket(i uint32, p **Process, f **SocketFigures) {
	if i == 0 {
		return
	}
	e := t.sockets.at(i)
	if *p == nil {
		*p = e.process()
	}
	if *f == nil {
		*f = &SocketFigures{}
	}
	(*f).add(e.figures)
	e.figures, e.events = SocketFigures{}, 0
}

// forgetSockets lets go of what the sockets of a conversation told. What came after
// its last record is in none.
func (t *Table) forgetSockets(c *conversation) {
	for from, i := range c.socket {
		if i == 0 {
			continue
		}
		t.unmatched += uint64(t.sockets.at(i).events)
		t.sockets.give(i)
		c.socket[from] = 0
	}
}
