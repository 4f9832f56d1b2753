// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// addPairs makes n veth pairs from hub into a namespace.
func addPairs(b testing.TB, hub, there, prefix string, n int) {
	b.Helper()
	in(b, hub, func(h *netlink.Handle) error {
		far, err := netns.GetFromPath(there)
		if err != nil {
			return err
		}
		defer far.Close()
		for i := range n {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint(prefix, i)}, PeerName: fmt.Sprint(prefix, "p", i), PeerNamespace: netlink.NsFd(far)}
			if err := h.LinkAdd(v); err != nil {
				return err
			}
		}
		return nil
	})
}

// How long after the kernel made a pair it is in the snapshot with its layer, its
// far end and who is behind it: with 1,000 pairs into one namespace and into
// namespaces of their own.
func BenchmarkLinkToHop(b *testing.B) {
	for _, spaces := range []int{1, 1000} {
		b.Run(fmt.Sprintf("1000 pairs, %d namespaces", spaces), func(b *testing.B) {
			hub, far := newNetns(b, "hub"), newNetns(b, "far")
			for i := range spaces {
				ns := far
				if spaces > 1 {
					ns = newNetns(b, fmt.Sprint("n", i))
				}
				addPairs(b, hub, ns, fmt.Sprint("v", i, "x"), 1000/spaces)
			}
			c := cookieOf(b, hub)
			m := openMirror(b, everything)
			fd, err := netns.GetFromPath(far)
			if err != nil {
				b.Fatal(err)
			}
			defer fd.Close()
			var took []time.Duration
			for b.Loop() {
				in(b, hub, func(h *netlink.Handle) error {
					v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "new"}, PeerName: "newp", PeerNamespace: netlink.NsFd(fd)}
					if err := h.LinkAdd(v); err != nil {
						return err
					}
					began := time.Now()
					for deadline := began.Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
						if d := m.Topology().named(c, "new"); d != nil && d.Far != nil && d.Behind != nil && d.Layer != 0 {
							break
						}
						if time.Now().After(deadline) {
							return errors.New("the pair is not in the snapshot")
						}
					}
					took = append(took, time.Since(began))
					return h.LinkDel(v)
				})
				b.StopTimer()
				eventually(b, m, "it is gone", func(now *Topology) error {
					if now.named(c, "new") != nil {
						return errors.New("no")
					}
					return nil
				})
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/1e6, "ms-median")
			b.ReportMetric(float64(took[len(took)*99/100])/1e6, "ms-p99")
			if median := took[len(took)/2]; median > 50*time.Millisecond {
				b.Errorf("half of the pairs took longer than %s, want 50 ms", median)
			}
		})
	}
}

// What 10,000 devices cost: memory of the snapshot, reading all at once, and one
// snapshot after another.
func BenchmarkTenThousandLinks(b *testing.B) {
	hub, far := newNetns(b, "hub"), newNetns(b, "far")
	addPairs(b, hub, far, "v", 5000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	opts := everything
	opts.MaxLinks = 12000
	began := time.Now()
	m, err := read(opts)
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	defer m.Close()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := m.Topology().Links; got < 10000 {
		b.Fatalf("got %d devices, want 10,000", got)
	}
	for b.Loop() {
		m.publish()
	}
	b.ReportMetric(float64(took.Milliseconds()), "ms-to-read-all")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(m.Topology().Links), "B/link")
	runtime.KeepAlive(m)
}

// A look at the snapshot, as each record does.
func BenchmarkDevice(b *testing.B) {
	hub, far := newNetns(b, "hub"), newNetns(b, "far")
	addPairs(b, hub, far, "v", 500)
	m := openMirror(b, everything)
	c := cookieOf(b, hub)
	d := m.Topology().named(c, "v250")
	b.ReportAllocs()
	for b.Loop() {
		if m.Topology().Device(c, d.Index) == nil {
			b.Fatal("it is gone")
		}
	}
}
