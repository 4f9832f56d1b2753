// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"cmp"
	"net/netip"

	"weft/flows"
)

// translated is one connection.
type translated struct {
	opened, sent packed

	zone   uint16
	began  times
	ended  times     // never: it stands
	older  [3]uint32 // the next older one with the same ends, before, between and after
	listed uint32    // the last list that it was in

	// unheard: it is known by a list alone. From 5.19 on the kernel may tell the ends of those
	// connections only that began while somebody listened (net.netfilter.nf_conntrack_events 2).
	unheard bool
	// crossed: a connection that is not translated may have the ends between the translations.
	crossed bool
	alone   bool // nobody is known to have had its ends for a lag before it: began is that much earlier
	told    bool // that it ended; else what came in its place says so
}

// times are between which two something happened, Unix nanoseconds.
type times struct{ after, before int64 }

var stands = times{never, never}

// ends are by what e is found; zero where it is by an earlier one.
func (e *translated) ends() (all [3]packed) {
	between := e.opened
	between.dst, between.dstPort = e.sent.dst, e.sent.dstPort
	all[0], all[2] = e.opened.unsided(), e.sent.unsided()
	if between != e.opened && between != e.sent {
		all[1] = between.unsided()
	}
	if all[2] == all[0] {
		all[2] = packed{}
	}
	return all
}

// between reports whether e has the ends k between its translations alone.
func (e *translated) between(k packed) bool { return e.ends()[1] == k }

// next is the next older one than e with the same ends k.
func (e *translated) next(k packed) *uint32 {
	for i, own := range e.ends() {
		if own == k {
			return &e.older[i]
		}
	}
	return nil
}

// seen is when it had begun at the latest, by its word alone.
func (e *translated) seen() int64 {
	if e.alone {
		return e.began.before + lag
	}
	return e.began.before
}

// packed is a flows.Key without pointers, IPv4 in its mapped form. proto 0: none.
type packed struct {
	src, dst         [16]byte
	srcPort, dstPort uint16
	proto            uint8
	v4               bool
}

func pack(k flows.Key) packed {
	return packed{k.Src.Addr().As16(), k.Dst.Addr().As16(), k.Src.Port(), k.Dst.Port(), k.Proto, k.Src.Addr().Is4()}
}

func (p *packed) key() flows.Key {
	end := func(a [16]byte, port uint16) netip.AddrPort {
		addr := netip.AddrFrom16(a)
		if p.v4 {
			addr = addr.Unmap()
		}
		return netip.AddrPortFrom(addr, port)
	}
	return flows.Key{Src: end(p.src, p.srcPort), Dst: end(p.dst, p.dstPort), Proto: p.proto}
}

// unsided is p or its reverse, the same for both.
func (p packed) unsided() packed {
	if cmp.Or(bytes.Compare(p.src[:], p.dst[:]), cmp.Compare(p.srcPort, p.dstPort)) > 0 {
		p.src, p.dst, p.srcPort, p.dstPort = p.dst, p.src, p.dstPort, p.srcPort
	}
	return p
}
