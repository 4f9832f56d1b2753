// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"testing"
	"time"

	"weft/bpf"
	"weft/flows"
)

// talk gives hand-made segments of one connection to the programs: the client's at
// ingress, the server's at egress of the same device.
type talk struct {
	*harness
	v6             bool
	cport, sport   uint16
	window         uint16
	client, server uint32 // next sequence numbers
	health         map[flows.Hook]*flows.TCPHealth
	samples        map[flows.Hook]int
	both           flows.Hook // every packet passes both hooks, this one first; 0: its own
	id             uint16     // IPv4
	tcpOptions     []byte
}

func newTalk(t *testing.T, v6 bool) *talk {
	k := &talk{harness: newHarness(t, Options{TCP: true}, 14), v6: v6, cport: 40000, sport: 443, window: 1000, client: 0xffffff00, server: 5}
	if !k.d.objs.size.tcp {
		t.Fatalf("TCP is not measured: %+v", k.d.off)
	}
	k.reset()
	return k
}

func (k *talk) reset() {
	k.health = map[flows.Hook]*flows.TCPHealth{flows.HookIngress: {}, flows.HookEgress: {}}
	k.samples = map[flows.Hook]int{}
}

// segment is seq, ack and flags with n bytes, from the client or from the server.
func (k *talk) segment(fromClient bool, seq, ack uint32, flags byte, n int) {
	k.t.Helper()
	h := make([]byte, 20, 80)
	src, dst, hook := k.cport, k.sport, flows.HookIngress
	if !fromClient {
		src, dst, hook = k.sport, k.cport, flows.HookEgress
	}
	binary.BigEndian.PutUint16(h[0:], src)
	binary.BigEndian.PutUint16(h[2:], dst)
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[13] = flags
	binary.BigEndian.PutUint16(h[14:], k.window)
	if flags&flows.FlagSYN != 0 {
		h = append(h, k.tcpOptions...)
	}
	h[12] = byte(len(h) / 4 << 4)
	h = append(h, make([]byte, n)...)
	hooks := []flows.Hook{hook}
	if k.both != 0 {
		hooks = []flows.Hook{k.both, flows.HookIngress + flows.HookEgress - k.both}
	}
	var ip, e []byte
	if k.v6 {
		ip, e = ip6(6, len(h)), ethIPv6
		if !fromClient {
			copy(ip[8:], dstV6[:])
			copy(ip[24:], srcV6[:])
		}
	} else {
		ip, e = ip4(6, len(h), func(h []byte) { binary.BigEndian.PutUint16(h[4:], k.id) }), ethIPv4
		if !fromClient {
			copy(ip[12:], dstV4[:])
			copy(ip[16:], srcV4[:])
		}
	}
	for _, hook := range hooks {
		k.run(hook, frame(e, ip, h), 1, nil)
	}
}

func (k *talk) fromClient(flags byte, n int) {
	k.t.Helper()
	k.segment(true, k.client, k.server, flags, n)
	k.client += uint32(n) + uint32(flags&1) + uint32(flags>>1&1)
}

func (k *talk) fromServer(flags byte, n int) {
	k.t.Helper()
	k.segment(false, k.server, k.client, flags, n)
	k.server += uint32(n) + uint32(flags&1) + uint32(flags>>1&1)
}

// sum drains and adds what each hook's samples have.
func (k *talk) sum() {
	k.t.Helper()
	k.drain()
	for _, s := range k.last {
		k.samples[s.At.Hook]++
		gainTCP(k.health[s.At.Hook], &s.TCP)
	}
}

// gainTCP adds what a sample has.
func gainTCP(h, s *flows.TCPHealth) {
	h.RTT.Count += s.RTT.Count
	h.RTT.Sum += s.RTT.Sum
	if s.RTT.Count > 0 {
		h.RTT.Min, h.RTT.Max = s.RTT.Min, max(h.RTT.Max, s.RTT.Max)
	}
	if s.Handshake != 0 {
		h.Handshake = s.Handshake
	}
	h.Retransmits += s.Retransmits
	h.OutOfOrder += s.OutOfOrder
	h.Lost += s.Lost
	h.DupAcks += s.DupAcks
	h.ZeroWindows += s.ZeroWindows
	h.ZeroWindow += s.ZeroWindow
	h.Untracked += s.Untracked
	if s.Options != 0 {
		h.MSS, h.WindowScale, h.Options = s.MSS, s.WindowScale, s.Options
	}
}

// open is the handshake with pauses before the SYN-ACK and before the ACK.
func (k *talk) open(server, client time.Duration) {
	k.t.Helper()
	k.fromClient(flows.FlagSYN, 0)
	time.Sleep(server)
	k.fromServer(flows.FlagSYN|flows.FlagACK, 0)
	time.Sleep(client)
	k.fromClient(flows.FlagACK, 0)
}

func (k *talk) counts(hook flows.Hook, want flows.TCPHealth) {
	k.t.Helper()
	got := *k.health[hook]
	got.RTT, got.Handshake, got.ZeroWindow, got.MSS, got.WindowScale, got.Options = flows.RTT{}, 0, 0, 0, 0, 0
	if got != want {
		k.t.Errorf("%s: got %+v, want %+v", hook, got, want)
	}
}

func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if nsEmulated {
		most *= 10
	}
	if got < least || got > most {
		t.Errorf("%s: got %s, want %s to %s", what, got, least, most)
	}
}

func bothFamilies(t *testing.T, f func(t *testing.T, k *talk)) {
	for name, v6 := range map[string]bool{"ipv4": false, "ipv6": true} {
		t.Run(name, func(t *testing.T) { f(t, newTalk(t, v6)) })
	}
}

func TestHandshakeIsTimedOnBothSides(t *testing.T) {
	bothFamilies(t, func(t *testing.T, k *talk) {
		k.tcpOptions = []byte{2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}
		start := time.Now()
		k.open(20*time.Millisecond, 5*time.Millisecond)
		most := time.Since(start)
		k.sum()
		within(t, "to the server", k.health[flows.HookEgress].Handshake, 20*time.Millisecond, most)
		within(t, "to the client", k.health[flows.HookIngress].Handshake, 5*time.Millisecond, most)
		for hook, h := range k.health {
			if h.MSS != 1460 || h.WindowScale != 7 || h.Options != flows.TCPSYNSeen|flows.TCPTimestamps|flows.TCPSACK|flows.TCPWindowScale {
				t.Errorf("options at %s: got %d %d %04b", hook, h.MSS, h.WindowScale, h.Options)
			}
			if h.RTT.Count != 0 {
				t.Errorf("%s: the handshake is no round trip of data, got %+v", hook, h.RTT)
			}
		}
		k.counts(flows.HookIngress, flows.TCPHealth{})
		k.counts(flows.HookEgress, flows.TCPHealth{})
	})
}

func TestRepeatedSYNHasNoTime(t *testing.T) {
	k := newTalk(t, false)
	k.segment(true, 100, 0, flows.FlagSYN, 0)
	k.segment(true, 100, 0, flows.FlagSYN, 0)
	k.client, k.server = 101, 500
	k.fromServer(flows.FlagSYN|flows.FlagACK, 0)
	k.fromClient(flows.FlagACK, 0)
	k.sum()
	if got := k.health[flows.HookEgress].Handshake; got != 0 {
		t.Errorf("handshake to the server: got %s, want none: which SYN was answered is not known", got)
	}
	if k.health[flows.HookIngress].Handshake == 0 {
		t.Error("handshake to the client: got none")
	}
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 1})
}

func TestRefusedSYNHasNoTime(t *testing.T) {
	k := newTalk(t, false)
	k.segment(true, 100, 0, flows.FlagSYN, 0)
	k.segment(false, 0, 101, flows.FlagRST|flows.FlagACK, 0)
	k.sum()
	for hook, h := range k.health {
		if *h != (flows.TCPHealth{Options: h.Options}) {
			t.Errorf("%s: got %+v, want nothing measured", hook, h)
		}
	}
}

func TestRoundTripsAreSplitByDirection(t *testing.T) {
	bothFamilies(t, func(t *testing.T, k *talk) {
		k.open(0, 0)
		for range 3 {
			waitJiffies(t, k.harness, 2) // a side is probed once a tick
			k.fromClient(flows.FlagACK|flows.FlagPSH, 100)
			time.Sleep(30 * time.Millisecond)
			k.fromServer(flows.FlagACK, 1000) // acknowledges, and is acknowledged
			time.Sleep(10 * time.Millisecond)
			k.fromClient(flows.FlagACK, 0)
		}
		k.sum()
		server, client := k.health[flows.HookEgress].RTT, k.health[flows.HookIngress].RTT
		if server.Count != 3 || client.Count != 3 {
			t.Fatalf("round trips: got %d to the server and %d to the client, want 3 and 3", server.Count, client.Count)
		}
		within(t, "to the server", server.Mean(), 30*time.Millisecond, 60*time.Millisecond)
		within(t, "to the client", client.Mean(), 10*time.Millisecond, 30*time.Millisecond)
		within(t, "least to the client", client.Min, 10*time.Millisecond, client.Mean())
		within(t, "most to the client", client.Max, client.Mean(), 40*time.Millisecond)
		k.counts(flows.HookIngress, flows.TCPHealth{})
		k.counts(flows.HookEgress, flows.TCPHealth{})
	})
}

// The longest round trip is that of the period, not of the connection.
func TestLongestRoundTripIsOfThePeriod(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	round := func(d time.Duration) time.Duration {
		waitJiffies(t, k.harness, 2)
		k.fromClient(flows.FlagACK, 10)
		time.Sleep(d)
		k.fromServer(flows.FlagACK, 0)
		waitJiffies(t, k.harness, 2)
		k.reset()
		k.sum()
		return k.health[flows.HookEgress].RTT.Max
	}
	within(t, "first period", round(60*time.Millisecond), 60*time.Millisecond, 200*time.Millisecond)
	within(t, "second period", round(5*time.Millisecond), 5*time.Millisecond, 59*time.Millisecond)
}

func TestRepeatedSegmentsAreCountedAndNotTimed(t *testing.T) {
	bothFamilies(t, func(t *testing.T, k *talk) {
		k.open(0, 0)
		waitJiffies(t, k.harness, 2)
		at := k.client // the numbers wrap inside this test
		k.fromClient(flows.FlagACK, 1000)
		k.fromClient(flows.FlagACK, 1000)
		k.segment(true, at, k.server, flows.FlagACK, 1000)
		k.segment(true, at+500, k.server, flows.FlagACK, 1000) // overlaps what was sent
		k.fromServer(flows.FlagACK, 0)
		k.sum()
		k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 2})
		if got := k.health[flows.HookEgress].RTT.Count; got != 0 {
			t.Errorf("round trips: got %d, want none: which copy was acknowledged is not known", got)
		}
	})
}

func TestGapsAreReorderingWhenSoonAndLossWhenLate(t *testing.T) {
	k := newTalk(t, false)
	began := time.Now()
	k.open(20*time.Millisecond, 20*time.Millisecond) // nothing is sent again within 40 ms
	handshake := time.Since(began)
	at := k.client
	k.segment(true, at+1000, k.server, flows.FlagACK, 1000)
	k.segment(true, at, k.server, flows.FlagACK, 1000)
	k.segment(true, at+3000, k.server, flows.FlagACK, 1000)
	time.Sleep(handshake + 20*time.Millisecond)
	k.segment(true, at+2000, k.server, flows.FlagACK, 1000)
	k.segment(true, at+4000, k.server, flows.FlagACK, 1000)
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{OutOfOrder: 1, Lost: 1})
}

// A sender that numbers its packets tells reordering from loss, however soon or late.
func TestPacketNumbersTellReorderingFromLoss(t *testing.T) {
	k := newTalk(t, false)
	k.id = 0xfffe // the numbers wrap
	k.open(0, 0)
	at := k.client
	send := func(segment uint32, id uint16) {
		k.id = id
		k.segment(true, at+1000*segment, k.server, flows.FlagACK, 1000)
	}
	send(1, 3)
	time.Sleep(20 * time.Millisecond)
	send(0, 2) // late, and yet the first time
	send(2, 4)
	send(4, 6)
	send(6, 8)
	send(5, 7)
	send(3, 9) // soon, and yet again
	send(7, 10)
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{OutOfOrder: 2, Lost: 1})
}

// What came between two holes is no hole once both are filled.
func TestWhatLayBetweenFilledGapsIsSentAgain(t *testing.T) {
	for name, order := range map[string][]uint32{"first hole first": {1, 3, 0, 2}, "last hole first": {1, 3, 2, 0}} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			k.open(0, 0)
			at := k.client
			send := func(segment uint32, id uint16) {
				k.id = id
				k.segment(true, at+1448*segment, k.server, flows.FlagACK, 1448)
			}
			for _, segment := range order {
				send(segment, uint16(10+segment))
			}
			send(1, 20)
			send(4, 21)
			k.sum()
			k.counts(flows.HookIngress, flows.TCPHealth{OutOfOrder: 2, Retransmits: 1})
		})
	}
}

func TestKeepAlivesAndWindowProbesAreNoRetransmits(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	k.fromClient(flows.FlagACK, 100)
	k.fromServer(flows.FlagACK, 0)
	for range 3 {
		k.segment(true, k.client-1, k.server, flows.FlagACK, 0)
		k.segment(true, k.client-1, k.server, flows.FlagACK, 1)
		k.segment(false, k.server, k.client, flows.FlagACK, 0)
	}
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{})
	k.counts(flows.HookEgress, flows.TCPHealth{})
}

func TestDuplicateAcknowledgementsAreCounted(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	k.fromClient(flows.FlagACK, 100)
	k.fromServer(flows.FlagACK, 0)
	at := k.client
	k.fromClient(flows.FlagACK, 1000)
	k.fromClient(flows.FlagACK, 1000)
	for range 3 {
		k.segment(false, k.server, at, flows.FlagACK, 0)
	}
	k.window++
	k.segment(false, k.server, at, flows.FlagACK, 0) // a window update
	k.sum()
	k.counts(flows.HookEgress, flows.TCPHealth{DupAcks: 3})
	k.counts(flows.HookIngress, flows.TCPHealth{})
}

func TestZeroWindowsHaveADuration(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	k.window = 0
	k.fromServer(flows.FlagACK, 0)
	time.Sleep(30 * time.Millisecond)
	k.fromServer(flows.FlagACK, 0)
	k.window = 100
	k.fromServer(flows.FlagACK, 0)
	k.fromServer(flows.FlagACK, 0)
	k.sum()
	k.counts(flows.HookEgress, flows.TCPHealth{ZeroWindows: 1})
	within(t, "closed for", k.health[flows.HookEgress].ZeroWindow, 29*time.Millisecond, 200*time.Millisecond)
}

// Traffic of which one direction passes here says what it can, and no more.
func TestOneSidedTrafficIsNotTimed(t *testing.T) {
	k := newTalk(t, false)
	k.fromClient(flows.FlagSYN, 0)
	k.server = 77
	for range 50 {
		k.fromClient(flows.FlagACK, 100)
	}
	k.segment(true, k.client-100, 77, flows.FlagACK, 100)
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 1})
	if h := k.health[flows.HookIngress]; h.RTT.Count != 0 || h.Handshake != 0 {
		t.Errorf("got %+v, want no times", h)
	}
}

func TestSimultaneousOpenAndReusedPortsStayApart(t *testing.T) {
	k := newTalk(t, false)
	k.segment(true, 100, 0, flows.FlagSYN, 0)
	k.segment(false, 900, 0, flows.FlagSYN, 0)
	k.segment(true, 100, 901, flows.FlagSYN|flows.FlagACK, 0)
	k.segment(false, 900, 101, flows.FlagSYN|flows.FlagACK, 0)
	k.client, k.server = 101, 901
	k.fromClient(flows.FlagACK, 10)
	k.fromServer(flows.FlagACK, 10)
	k.segment(true, 7000, 0, flows.FlagSYN, 0) // the next connection
	k.client, k.server = 7001, 1<<31
	k.fromServer(flows.FlagSYN|flows.FlagACK, 0)
	k.fromClient(flows.FlagACK, 0)
	k.fromClient(flows.FlagACK, 10)
	k.sum()
	for hook, h := range k.health {
		if h.OutOfOrder+h.Lost != 0 {
			t.Errorf("%s: got %+v, want no gaps between two connections", hook, h)
		}
	}
}

// More connections than lines: what is not measured is counted, and no line is shared.
func TestConnectionsWithoutALineAreCounted(t *testing.T) {
	h := newHarness(t, Options{TCP: true, Slots: 1024}, 14)
	lines := uint64(2 * h.d.objs.size.connectionPairs())
	const others = 4
	total := others * lines
	for i := range total {
		h.run(flows.HookIngress, tcpFrameOf(uint32(i)), 1, nil)
	}
	acct := h.drain()
	if acct.TCP.Untracked < total-lines || acct.TCP.Untracked >= total {
		t.Errorf("untracked: got %d of %d packets with %d lines", acct.TCP.Untracked, total, lines)
	}
	var told uint64
	for _, s := range h.last {
		told += s.TCP.Untracked
	}
	if told != acct.TCP.Untracked {
		t.Errorf("the flows say that %d packets were not measured, the account %d", told, acct.TCP.Untracked)
	}
	if got := h.totalFlows(); got.Packets != total {
		t.Errorf("flows: got %d packets, want %d", got.Packets, total)
	}
}

// tcpFrameOf is a segment of connection n.
func tcpFrameOf(n uint32) []byte {
	h := tcp(flows.FlagACK)
	return frame(ethIPv4, ip4(6, len(h), func(ip []byte) { binary.BigEndian.PutUint32(ip[12:], 11<<24|n) }), h)
}

// More servers than histograms: their times go to the overflow histogram, counted.
func TestServersWithoutRoomShareOneHistogram(t *testing.T) {
	k := newTalk(t, false)
	const more = 100
	for i := range times + more {
		k.sport = uint16(1000 + i)
		k.client, k.server = uint32(i)*1000, uint32(i)*77
		k.open(0, 0)
	}
	acct := k.drain()
	if acct.TCP.Lost != 0 || acct.TCP.Overflowed < more {
		t.Errorf("got %+v, want at least %d overflowed and none lost", acct.TCP, more)
	}
	var sum, overflow, entries uint64
	var key bpf.FlowLatencyKey
	var v bpf.FlowLatency
	for it := k.d.objs.maps[bpf.HealthMapLatencies].Iterate(); it.Next(&key, &v); {
		entries++
		for _, n := range v.Bucket {
			sum += uint64(n)
			if key.Server == ([16]byte{}) {
				overflow += uint64(n)
			}
		}
	}
	measured := times + more - acct.TCP.Untracked/3 // some find no line for any of their three packets
	if want := 2 * measured; sum != want || overflow != acct.TCP.Overflowed || entries > times {
		t.Errorf("got %d times in %d histograms, %d of them without a server; want %d in at most %d, and %d", sum, entries, overflow, want, times, acct.TCP.Overflowed)
	}
}

// A packet that passes both hooks of a device, as on loopback or on a router with one
// leg, is not sent twice, and it is timed once.
func TestPacketsAtBothHooksAreReadOnce(t *testing.T) {
	for name, first := range map[string]flows.Hook{"in and out": flows.HookIngress, "out and in": flows.HookEgress} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			k.both = first
			k.open(5*time.Millisecond, 5*time.Millisecond)
			for range 3 {
				waitJiffies(t, k.harness, 2)
				k.fromClient(flows.FlagACK, 100)
				k.fromServer(flows.FlagACK, 100)
			}
			k.fromClient(flows.FlagACK|flows.FlagFIN, 0)
			k.fromServer(flows.FlagACK|flows.FlagFIN, 0)
			k.fromClient(flows.FlagACK, 0)
			k.sum()
			sum := flows.TCPHealth{}
			for hook, h := range k.health {
				k.counts(hook, flows.TCPHealth{})
				sum.RTT.Count += h.RTT.Count
				if (h.Handshake != 0) != (hook == first) {
					t.Errorf("%s: handshake %s, want one at %s only", hook, h.Handshake, first)
				}
			}
			if sum.RTT.Count != 8 { // three messages and a FIN each way
				t.Errorf("round trips: got %d, want 8", sum.RTT.Count)
			}
		})
	}
}

// A later fragment has no TCP header: it closes no window and acknowledges nothing.
func TestLaterFragmentsAreNotMeasured(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	for id := range uint16(3) {
		numbered := func(frag uint16) func(h []byte) {
			return func(h []byte) {
				binary.BigEndian.PutUint16(h[4:], 100+id)
				binary.BigEndian.PutUint16(h[6:], frag)
			}
		}
		h := k.header(k.client, k.server, 100)
		k.run(flows.HookIngress, frame(ethIPv4, ip4(6, len(h), numbered(0x2000)), h), 1, nil)
		k.run(flows.HookIngress, frame(ethIPv4, ip4(6, 80, numbered(uint16(len(h)/8))), make([]byte, 80)), 1, nil)
		k.client += 180
		k.fromServer(flows.FlagACK, 0)
	}
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{})
	k.counts(flows.HookEgress, flows.TCPHealth{})
}

// header is a segment of n bytes from the client.
func (k *talk) header(seq, ack uint32, n int) []byte {
	h := tcp(flows.FlagACK)
	binary.BigEndian.PutUint16(h[0:], k.cport)
	binary.BigEndian.PutUint16(h[2:], k.sport)
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	binary.BigEndian.PutUint16(h[14:], k.window)
	return append(h, make([]byte, n)...)
}

// A byte that is sent again is no keep-alive: it was pushed, or not acknowledged.
func TestSingleBytesSentAgainAreCountedAndNotTimed(t *testing.T) {
	for name, flags := range map[string]byte{"pushed": flows.FlagACK | flows.FlagPSH, "not acknowledged": flows.FlagACK} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			k.open(0, 0)
			waitJiffies(t, k.harness, 2)
			k.fromClient(flags, 1)
			k.segment(true, k.client-1, k.server, flags, 1)
			k.fromServer(flows.FlagACK, 0)
			k.sum()
			k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 1})
			if got := k.health[flows.HookEgress].RTT.Count; got != 0 {
				t.Errorf("round trips: got %d, want none: which copy was acknowledged is not known", got)
			}
		})
	}
}

// What did not pass here and was acknowledged is not missing: round trips go on.
func TestAcknowledgedGapsAreForgotten(t *testing.T) {
	begin := map[string]func(k *talk){
		"segments took another way":  func(k *talk) { k.open(0, 0); k.client += 1000 },
		"a keep-alive was the first": func(k *talk) { k.segment(true, k.client-1, k.server, flows.FlagACK, 0); k.fromServer(flows.FlagACK, 0) },
	}
	for name, begin := range begin {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			begin(k)
			for range 4 {
				waitJiffies(t, k.harness, 2)
				k.fromClient(flows.FlagACK, 100)
				k.fromServer(flows.FlagACK, 0)
			}
			k.sum()
			if got := k.health[flows.HookEgress].RTT.Count; got != 3 {
				t.Errorf("round trips: got %d of 4 segments, want 3: the first was behind a gap", got)
			}
			k.counts(flows.HookIngress, flows.TCPHealth{})
		})
	}
}

// The acknowledgement that ended the probe may have been lost with what is missing.
func TestAnswersBehindAGapAreNotTimed(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	waitJiffies(t, k.harness, 2)
	k.fromClient(flows.FlagACK, 100)
	k.server += 1000
	k.fromServer(flows.FlagACK, 1000)
	k.sum()
	if got := k.health[flows.HookEgress].RTT.Count; got != 0 {
		t.Errorf("round trips: got %d, want none", got)
	}
}

// A receiver puts segments together: of such a frame, only what passed before was sent
// again, and only what was missing was lost.
func TestFramesOfOldAndNewSegmentsCountTheOld(t *testing.T) {
	k := newTalk(t, false)
	k.open(20*time.Millisecond, 20*time.Millisecond)
	send := func(seq uint32, segments int) {
		h := k.header(seq, k.server, 300*segments)
		k.run(flows.HookIngress, frame(ethIPv4, ip4(6, len(h), func([]byte) {}), h), 1, &wireContext{gsoSegs: uint32(segments), gsoSize: 300})
	}
	at := k.client
	send(at, 2)
	send(at+300, 4) // the second again, and three new ones
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 1})
	send(at+1800, 2) // one is missing
	time.Sleep(60 * time.Millisecond)
	send(at+1500, 4) // it, both after it, and a new one
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 3, Lost: 1})
}
