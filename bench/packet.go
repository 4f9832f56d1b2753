// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"weft/bpf"
)

const (
	placesPerCPU = 64
	rounds       = 96 // short ones: other work does not disturb the least of them
	repeat       = 62_500
)

// frame is a UDP packet; the programs rewrite its source address.
var frame = []byte{
	2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
	0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 1, 0, 1,
	0x12, 0x34, 0, 80, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
}

var programs = []variant{
	{"bench_empty", "bench_empty", frame, 0}, {"bench_parse", "bench_parse", frame, 0},
	{"bench_slots", "bench_slots", frame, 0}, {"bench_peer", "bench_peer", frame, 0},
}

// packetCost prints the cost of a packet in each program, by number of flows. In
// one run, the programs in turn, so that the ratios hold when the machine's speed
// drifts: the least of all rounds, in nanoseconds.
func packetCost(w io.Writer) error {
	fmt.Fprintf(w, "ns per packet, least of %d rounds of %d packets, programs in turn; uniform random flows\n\n", rounds, repeat)
	fmt.Fprintln(w, "| flows | slots a CPU | (a) empty | (b) parse + hash | weft | (c) HASH + spin lock | weft/b | weft/c |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")
	for _, flows := range []int{1, 1 << 10, 1 << 17, 1 << 20} {
		slots := max(65536, 2*flows)
		ns, err := costs(flows, slots, programs)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %d | %d | %.1f | %.1f | %.1f | %.1f | %.2f | %.2f |\n", flows, slots,
			ns["bench_empty"], ns["bench_parse"], ns["bench_slots"], ns["bench_peer"],
			ns["bench_slots"]/ns["bench_parse"], ns["bench_slots"]/ns["bench_peer"])
	}
	return nil
}

// segment is a TCP packet; the programs rewrite its source address and its
// sequence number.
var segment = func() []byte {
	f := make([]byte, 14+20+20+1000)
	copy(f, frame[:34])
	binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
	f[23] = unix.IPPROTO_TCP
	copy(f[34:], frame[34:38])
	f[46], f[47], f[48] = 5<<4, 16, 1 // no options, ACK, a window
	return f
}()

// tcpCost prints what measuring TCP adds: the next segment of a random connection,
// of which one direction passes and a probe is under way.
func tcpCost(w io.Writer) error {
	fmt.Fprintln(w, "\n| TCP connections | (b) parse + hash | flows only | + TCP health | adds | all/b |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, flows := range []int{1, 1 << 10, 1 << 17} {
		with := []variant{
			{"b", "bench_parse", segment, 0}, {"flows", "bench_slots", segment, 0},
			{"tcp", "bench_slots", segment, bpf.FlowWeftOptionWEFT_OPTION_TCP},
		}
		ns, err := costs(flows, max(65536, 2*flows), with)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %d | %.1f | %.1f | %.1f | %.1f | %.2f |\n", flows, ns["b"], ns["flows"], ns["tcp"], ns["tcp"]-ns["flows"], ns["tcp"]/ns["b"])
	}
	return nil
}

// question is a DNS question as it passes.
var question = func() []byte {
	message := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x03www\x07example\x03com\x00\x00\x01\x00\x01"...)
	f := append(append([]byte(nil), frame[:42]...), message...)
	binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
	binary.BigEndian.PutUint16(f[36:], 53)
	binary.BigEndian.PutUint16(f[38:], uint16(len(f)-34))
	return f
}()

// dnsCost prints what reading DNS adds to packets that are none, and to questions,
// which are copied to a reader.
func dnsCost(w io.Writer) error {
	const dns = bpf.FlowWeftOptionWEFT_OPTION_DNS
	fmt.Fprintln(w, "\n| flows | UDP, flows only | + DNS | TCP, flows only | + DNS | question, flows only | + DNS |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|")
	for _, flows := range []int{1, 1 << 10, 1 << 17} {
		ns, err := costs(flows, max(65536, 2*flows), []variant{
			{"udp", "bench_slots", frame, 0}, {"udp dns", "bench_slots", frame, dns},
			{"tcp", "bench_slots", segment, 0}, {"tcp dns", "bench_slots", segment, dns},
			{"question", "bench_slots", question, 0}, {"question dns", "bench_slots", question, dns},
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %d | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f |\n", flows,
			ns["udp"], ns["udp dns"], ns["tcp"], ns["tcp dns"], ns["question"], ns["question dns"])
	}
	return nil
}

// discard reads what comes through the ring of DNS packets until end is called.
func discard(m *ebpf.Map) (end func() error, err error) {
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("read the DNS ring: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var rec ringbuf.Record
		for {
			if err := ring.ReadInto(&rec); err != nil {
				return // closed
			}
		}
	}()
	return func() error { err := ring.Close(); <-done; return err }, nil
}

// variant is a program on a frame, with options.
type variant struct {
	name, program string
	frame         []byte
	options       bpf.FlowWeftOption
}

func costs(flows, slots int, with []variant) (least map[string]float64, err error) {
	loaded := map[bpf.FlowWeftOption]*ebpf.Collection{}
	for _, v := range with {
		if loaded[v.options] != nil {
			continue
		}
		var coll *ebpf.Collection
		if coll, err = loadPrograms(flows, slots, v.options); err != nil {
			return nil, err
		}
		defer coll.Close()
		loaded[v.options] = coll
		var end func() error
		if end, err = discard(coll.Maps["dns_packets"]); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, end()) }()
	}
	runtime.LockOSThread() // one CPU's partition, as long as the thread stays
	defer runtime.UnlockOSThread()
	var cpu unix.CPUSet
	cpu.Set(1 % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &cpu); err != nil {
		return nil, fmt.Errorf("stay on one CPU: %w", err)
	}
	least = map[string]float64{}
	for round := range rounds + 1 {
		for _, v := range with {
			n := repeat
			if round == 0 {
				n = 12 * flows // every flow has its slot before it counts
			}
			start := time.Now()
			if _, err := loaded[v.options].Programs[v.program].Run(&ebpf.RunOptions{Data: v.frame, Repeat: uint32(max(n, 1000))}); err != nil {
				return nil, fmt.Errorf("run %s: %w", v.program, err)
			}
			ns := float64(time.Since(start).Nanoseconds()) / float64(n)
			if old, ok := least[v.name]; round > 0 && (!ok || ns < old) {
				least[v.name] = ns
			}
		}
	}
	return least, nil
}

func loadPrograms(flows, slots int, options bpf.FlowWeftOption) (*ebpf.Collection, error) {
	spec, err := loadCost()
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	buckets := slots / int(bpf.FlowWeftLimitsWEFT_WAYS)
	cfg := bpf.FlowFlowConfig{
		Slots: uint32(slots), SlotShift: uint32(64 - bits.TrailingZeros(uint(slots))), PlaceMask: placesPerCPU - 1, RingWake: 1 << 20, Netns: 1, FirstPlace: 1,
		Options: uint32(options), ConvMask: uint32(buckets - 1),
	}
	var seed [40]byte
	rand.Read(seed[:]) // never fails
	for i := range cfg.HashKey {
		cfg.HashKey[i] = binary.NativeEndian.Uint64(seed[8*i:])
	}
	if err := spec.Variables["config"].Set(cfg); err != nil {
		return nil, err
	}
	if err := spec.Variables["flow_mask"].Set(uint32(flows - 1)); err != nil {
		return nil, err
	}
	for name, n := range map[string]int{
		"slots": cpus * slots, "cold_lines": cpus * buckets, "tcp_lines": cpus * buckets, "tcp_convs": buckets, "latencies": 64, "places": cpus * placesPerCPU,
		"rare": placesPerCPU * int(bpf.FlowWeftHookWEFT_HOOKS), "evicted": 4 << 20, "peer": max(flows, 65536),
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	for c := range cpus {
		at := uint32(c*placesPerCPU + 2) // first place 1 + ifindex 1
		if err := coll.Maps["places"].Put(at, bpf.FlowLinkPlace{Ifindex: 1, Netns: 1, L2Len: 14}); err != nil {
			coll.Close()
			return nil, err
		}
	}
	return coll, nil
}
