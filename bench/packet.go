// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/bpf"
)

const (
	placesPerCPU = 64
	rounds       = 24
	repeat       = 250_000
)

// frame is a UDP packet; the programs rewrite its source address.
var frame = []byte{
	2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
	0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 1, 0, 1,
	0x12, 0x34, 0, 80, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
}

var programs = []string{"bench_empty", "bench_parse", "bench_slots", "bench_peer"}

// packetCost prints the cost of a packet in each program, by number of flows. In
// one run, the programs in turn, so that the ratios hold when the machine's speed
// drifts: the least of all rounds, in nanoseconds.
func packetCost(w io.Writer) error {
	fmt.Fprintf(w, "ns per packet, least of %d rounds of %d packets, programs in turn; uniform random flows\n\n", rounds, repeat)
	fmt.Fprintln(w, "| flows | slots a CPU | (a) empty | (b) parse + hash | weft | (c) HASH + spin lock | weft/b | weft/c |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")
	for _, flows := range []int{1, 1 << 10, 1 << 17, 1 << 20} {
		slots := max(65536, 2*flows)
		ns, err := costs(flows, slots)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %d | %d | %.1f | %.1f | %.1f | %.1f | %.2f | %.2f |\n", flows, slots,
			ns["bench_empty"], ns["bench_parse"], ns["bench_slots"], ns["bench_peer"],
			ns["bench_slots"]/ns["bench_parse"], ns["bench_slots"]/ns["bench_peer"])
	}
	return nil
}

func costs(flows, slots int) (map[string]float64, error) {
	coll, err := loadPrograms(flows, slots)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	runtime.LockOSThread() // one CPU's partition, as long as the thread stays
	defer runtime.UnlockOSThread()
	var cpu unix.CPUSet
	cpu.Set(1 % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &cpu); err != nil {
		return nil, fmt.Errorf("stay on one CPU: %w", err)
	}
	least := map[string]float64{}
	for round := range rounds + 1 {
		for _, name := range programs {
			n := repeat
			if round == 0 {
				n = 12 * flows // every flow has its slot before it counts
			}
			start := time.Now()
			if _, err := coll.Programs[name].Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(max(n, 1000))}); err != nil {
				return nil, fmt.Errorf("run %s: %w", name, err)
			}
			ns := float64(time.Since(start).Nanoseconds()) / float64(n)
			if old, ok := least[name]; round > 0 && (!ok || ns < old) {
				least[name] = ns
			}
		}
	}
	return least, nil
}

func loadPrograms(flows, slots int) (*ebpf.Collection, error) {
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
		BucketMask: uint32(buckets - 1), PlaceMask: placesPerCPU - 1, RingWake: 1 << 20, Netns: 1, FirstPlace: 1,
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
		"slots": cpus * buckets, "cold_lines": cpus * buckets, "places": cpus * placesPerCPU,
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
