// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"

	"weft/bpf"
	"weft/flows"
)

// What a program writes into a flow's line after a drain has counted the packet, and no
// packet follows: the next drain has it, without packets, and the one after it nothing.
func TestMeasurementsBehindTheCountComeWithTheNextDrain(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	for tries := 0; len(k.d.table.(*slotTable).late) < 2; tries++ { // both directions in the tick of the drain
		if tries == 1000 {
			t.Fatal("no drain came within a tick of the packets")
		}
		k.fromClient(flows.FlagACK, 100)
		k.fromServer(flows.FlagACK, 100)
		k.sum()
	}
	lines, packets := k.d.objs.maps[bpf.HealthMapTcpLines], k.totalFlows().Packets
	for bucket := range lines.MaxEntries() {
		var b bpf.FlowTcpBucket
		if err := lines.Lookup(bucket, &b); err != nil {
			t.Fatal(err)
		}
		for way := range b.Way {
			if b.Way[way].Mss != 0 || b.Way[way].Options != 0 { // in use
				b.Way[way].Retransmits += 3
			}
		}
		if err := lines.Put(bucket, &b); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		k.sum()
	}
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 3})
	k.counts(flows.HookEgress, flows.TCPHealth{Retransmits: 3})
	if got := k.totalFlows().Packets; got != packets {
		t.Errorf("packets: got %d, want %d as before", got, packets)
	}
}

// Acknowledgements of which one in five passes here: its probe was answered long before.
func TestAnswersThatTookAnotherWayAreNotTimed(t *testing.T) {
	bothFamilies(t, func(t *testing.T, k *talk) {
		k.open(0, 0)
		for range 4 {
			for range 5 {
				waitJiffies(t, k.harness, 2)
				k.fromClient(flows.FlagACK|flows.FlagPSH, 100)
			}
			k.fromServer(flows.FlagACK, 0)
		}
		waitJiffies(t, k.harness, 2)
		began := time.Now()
		k.fromClient(flows.FlagACK|flows.FlagPSH, 100)
		time.Sleep(10 * time.Millisecond)
		k.fromServer(flows.FlagACK, 0)
		took := time.Since(began)
		k.sum()
		rtt := k.health[flows.HookEgress].RTT
		if rtt.Count != 1 {
			t.Errorf("round trips: got %d, want the one whose own answer passed", rtt.Count)
		}
		within(t, "that", rtt.Mean(), 10*time.Millisecond, took)
		k.counts(flows.HookIngress, flows.TCPHealth{})
		k.counts(flows.HookEgress, flows.TCPHealth{})
	})
}

// A sender's first answer may have been one that we did not see.
func TestSYNWhoseAnswerTookAnotherWayIsNotTimed(t *testing.T) {
	k := newTalk(t, false)
	k.fromClient(flows.FlagSYN, 0)
	k.server = 78
	waitJiffies(t, k.harness, 2)
	k.fromClient(flows.FlagACK|flows.FlagPSH, 100)
	k.fromServer(flows.FlagACK, 0)
	k.sum()
	if h := k.health[flows.HookEgress]; h.Handshake != 0 || h.RTT.Count != 0 {
		t.Errorf("to the server: got %+v, want no times", h)
	}
}

// What somebody sends with the ports of a connection that stands changes nothing of it.
func TestStraySYNLeavesAConnectionAlone(t *testing.T) {
	for name, first := range map[string]flows.Hook{"own hooks": 0, "both hooks": flows.HookIngress} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			k.both = first
			k.open(0, 0)
			for _, client := range []bool{true, false} {
				waitJiffies(t, k.harness, 2)
				k.fromClient(flows.FlagACK, 100)
				k.segment(client, 1<<31, 0, flows.FlagSYN, 0)
				time.Sleep(10 * time.Millisecond)
				k.fromServer(flows.FlagACK, 100)
				k.fromClient(flows.FlagACK, 100)
				k.segment(false, k.server, k.client, flows.FlagACK, 0) // a challenge
			}
			k.sum()
			for _, hook := range []flows.Hook{flows.HookIngress, flows.HookEgress} {
				k.counts(hook, flows.TCPHealth{})
			}
			client, server := flows.HookIngress, flows.HookEgress
			if k.both != 0 {
				server = client
			}
			if k.health[server].RTT.Count < 2 || k.health[server].RTT.Max < 10*time.Millisecond || k.health[client].RTT.Count < 2 {
				t.Errorf("round trips: got %+v and %+v, want those of the connection", k.health[server].RTT, k.health[client].RTT)
			}
		})
	}
}

// A new connection with the same ports, whose predecessor's end did not pass: at the answer
// to its SYN, or at what its client sends next, the line is its own.
func TestReusedPortsBeginAnewWhenAnswered(t *testing.T) {
	for name, answered := range map[string]bool{"answer seen": true, "answer took another way": false} {
		t.Run(name, func(t *testing.T) {
			k := newTalk(t, false)
			k.open(0, 0)
			k.fromClient(flows.FlagACK, 100)
			k.fromServer(flows.FlagACK, 100)
			k.fromClient(flows.FlagACK, 0)
			k.sum()
			k.reset()
			k.client, k.server = 1<<20, 1<<21
			k.fromClient(flows.FlagSYN, 0)
			time.Sleep(20 * time.Millisecond)
			if answered {
				k.fromServer(flows.FlagSYN|flows.FlagACK, 0)
			} else {
				k.server++
			}
			time.Sleep(5 * time.Millisecond)
			k.fromClient(flows.FlagACK, 0)
			for range 3 {
				waitJiffies(t, k.harness, 2)
				k.fromClient(flows.FlagACK, 100)
				k.fromServer(flows.FlagACK, 100)
			}
			k.sum()
			k.counts(flows.HookIngress, flows.TCPHealth{})
			k.counts(flows.HookEgress, flows.TCPHealth{})
			h := k.health[flows.HookEgress]
			if h.RTT.Count != 3 {
				t.Errorf("round trips to the server: got %d, want 3", h.RTT.Count)
			}
			if !answered {
				return
			}
			within(t, "to the server", h.Handshake, 20*time.Millisecond, 60*time.Millisecond)
			within(t, "to the client", k.health[flows.HookIngress].Handshake, 5*time.Millisecond, 40*time.Millisecond)
		})
	}
}

// A SYN that is held and sent again: which of the two was answered is not known.
func TestHeldSYNSentAgainHasNoTime(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	k.fromClient(flows.FlagACK, 100)
	k.sum()
	k.reset()
	k.segment(true, 1<<20, 0, flows.FlagSYN, 0)
	k.segment(true, 1<<20, 0, flows.FlagSYN, 0)
	k.client, k.server = 1<<20+1, 1<<21
	k.fromServer(flows.FlagSYN|flows.FlagACK, 0)
	k.fromClient(flows.FlagACK, 0)
	k.sum()
	if got := k.health[flows.HookEgress].Handshake; got != 0 {
		t.Errorf("handshake: got %s, want none", got)
	}
	k.counts(flows.HookIngress, flows.TCPHealth{Retransmits: 1})
}

// Numbers that no window reaches are another connection's: nothing is counted, and from the
// next segment on all is in order.
func TestNumbersOfAnotherConnectionAreLearnedAnew(t *testing.T) {
	k := newTalk(t, false)
	k.open(0, 0)
	k.fromClient(flows.FlagACK, 100)
	k.client += 5 << 29
	for range 3 {
		k.fromClient(flows.FlagACK, 100)
	}
	k.client -= 5 << 28
	for range 3 {
		k.fromClient(flows.FlagACK, 100)
	}
	k.sum()
	k.counts(flows.HookIngress, flows.TCPHealth{})
}

// One connection's ports and numbers in two VLANs of one device are two connections.
func TestConnectionsOfTwoVLANsAreApart(t *testing.T) {
	k := newTalk(t, false)
	for _, n := range []int{0, 100, 100} {
		h := k.header(k.client, k.server, n)
		for vid := range uint16(3) {
			tag := []byte{0x81, 0, 0, byte(vid + 1)}
			f := frame(ethIPv4, ip4(6, len(h), func([]byte) {}), h)
			k.run(flows.HookIngress, append(append(append([]byte{}, f[:12]...), tag...), f[12:]...), 1, nil)
		}
		k.client += uint32(n)
	}
	k.sum()
	if k.samples[flows.HookIngress] != 3 {
		t.Fatalf("got %d flows, want one a VLAN", k.samples[flows.HookIngress])
	}
	k.counts(flows.HookIngress, flows.TCPHealth{})
}
