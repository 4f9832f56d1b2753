// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"weft/bpf"
	"weft/flows"
)

const (
	dnsRingBytes = 1 << 20
	dnsOption    = uint32(bpf.FlowWeftOptionWEFT_OPTION_DNS)
	// maxDNSMessages bounds what one drain brings; further ones are counted as
	// [flows.DNSUnread]. About 300 bytes each.
	maxDNSMessages = 1 << 15
	dnsPacketHead  = int(unsafe.Offsetof(bpf.FlowDnsPacket{}.Payload))
	ringHead       = 8 // the ring's own, before each record
)

// dnsNeed is what [Options.DNS] takes.
const dnsNeed = "ring buffer (Linux 5.8), CAP_BPF"

// dns reads what the programs copied from port 53. One goroutine, which Close ends,
// empties the ring whenever it is a quarter full and when a drain asks, and parses;
// the drain takes the messages.
type dns struct {
	ring    *ringbuf.Reader
	counter *ebpf.Map
	points  *pointTable

	drained chan struct{} // one for each asked
	done    chan struct{}

	mu       sync.Mutex // guards what follows
	asked    bool
	now      int64 // CLOCK_MONOTONIC when asked, ns
	left     int   // bytes to read before the drain gets what there is
	streams  dnsStreams
	messages [2][]flows.DNSMessage // being filled, and with the consumer
	turn     int
	acct     flows.DNSAccount
	err      error // why the goroutine ended
}

func openDNS(o *objects, points *pointTable) (*dns, error) {
	d := &dns{
		counter: o.maps[bpf.FlowMapDnsCounters], points: points,
		drained: make(chan struct{}, 1), done: make(chan struct{}),
	}
	var err error
	if d.ring, err = ringbuf.NewReader(o.maps[bpf.FlowMapDnsPackets]); err != nil {
		return nil, fmt.Errorf("read the DNS ring: %w", err)
	}
	go d.follow()
	return d, nil
}

// follow reads until the ring is closed.
func (d *dns) follow() {
	defer close(d.done)
	var rec ringbuf.Record
	for {
		err := d.ring.ReadInto(&rec)
		d.mu.Lock()
		switch {
		case err == nil:
			d.take(rec.RawSample)
		case errors.Is(err, ringbuf.ErrFlushed):
			d.answer(d.now)
		default:
			d.err = err
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
	}
}

// take parses one record.
func (d *dns) take(raw []byte) {
	d.acct.Drained++
	var when int64
	if len(raw) >= dnsPacketHead {
		var p bpf.FlowDnsPacket
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&p)), unsafe.Sizeof(p)), raw)
		when = int64(p.KtimeNs)
		d.parse(&p, raw[dnsPacketHead:][:min(int(p.Copied), len(raw)-dnsPacketHead)])
	}
	if d.left -= len(raw) + ringHead; d.left <= 0 {
		d.answer(min(when, d.now))
	}
}

// answer lets the drain that asked go on: all that passed before that time was read.
func (d *dns) answer(read int64) {
	if d.asked {
		d.asked = false
		d.acct.Read = max(d.acct.Read, read)
		d.drained <- struct{}{}
	}
}

// drain is every message that the ring held when it was called, or if that is more,
// as much as fits into the ring; last: all. now is CLOCK_MONOTONIC before the call. They are valid until the next drain. The
// account may be read meanwhile: what is Seen and not Drained nor Lost is yet to come.
func (d *dns) drain(now int64, last bool) ([]flows.DNSMessage, flows.DNSAccount, error) {
	for {
		d.mu.Lock()
		d.asked, d.now, d.left = true, now, d.ring.BufferSize()
		d.mu.Unlock()
		if err := d.ring.Flush(); err != nil {
			return nil, d.account(), fmt.Errorf("read the DNS ring: %w", err)
		}
		select {
		case <-d.drained:
		case <-d.done:
			return nil, d.account(), fmt.Errorf("read the DNS ring: %w", d.err)
		}
		if !last || d.ring.AvailableBytes() == 0 {
			break
		}
	}
	d.mu.Lock()
	got := d.messages[d.turn]
	d.turn ^= 1
	d.messages[d.turn] = d.messages[d.turn][:0]
	d.mu.Unlock()
	acct := d.account()
	var cpus []bpf.FlowDnsSeen
	if err := d.counter.Lookup(uint32(0), &cpus); err != nil {
		return got, acct, fmt.Errorf("read the counters of DNS packets: %w", err)
	}
	acct.Seen, acct.Lost = 0, 0
	for _, c := range cpus {
		acct.Seen += c.Seen
		acct.Lost += c.Lost
	}
	return got, acct, nil
}

func (d *dns) account() flows.DNSAccount {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acct
}

// close ends the goroutine.
func (d *dns) close() error {
	err := d.ring.Close()
	<-d.done
	return err
}

// memory is the size of the ring.
func (d *dns) memory() MemoryUse { return MemoryUse{"DNS ring", uint64(d.ring.BufferSize())} }

// withoutDNS turns the option off and puts an array in the ring's place, which the
// programs then never touch: a kernel without ring buffers has arrays.
func (o *objects) withoutDNS() {
	o.config.Options &^= dnsOption
	o.size.dns = 0
	m := o.spec.Maps[bpf.FlowMapDnsPackets]
	m.Type, m.KeySize, m.ValueSize, m.MaxEntries = ebpf.Array, 4, 8, 1
}
