// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"slices"
	"strconv"
)

// Translations knows how the kernel translates the addresses of connections. One
// implementation follows connection tracking, another is a capture's word.
type Translations interface {
	// Translation is that of the connection to which the packets with k, or its reverse,
	// belonged that scope saw from first to last (Unix nanoseconds): all of them, or the
	// answer is false. So it is where nothing was translated, where that is not known, and
	// where k may have meant two connections in that time. opens: the packet that opened it
	// is among them. It must not block.
	Translation(scope Scope, k Key, first, last int64, opens bool) (Translation, bool)
	// Late reports whether the translation of packets of that time (Unix nanoseconds) may
	// become known soon, since not all that came has been read. It must not block.
	Late(at int64) bool
}

// Translation is a connection as who opened it sent it, and as it was sent on at last. All
// are keys of the opener's direction.
type Translation struct {
	Opened, Sent Key
	// Via is what the first of two translations in a row made of it; zero: there is one.
	Via Key
}

// maxViews is how many keys a connection may have that is translated twice.
const maxViews = 5

// keys are the connection as it is seen before, between and after its translations. The
// packet that opens it has its destination translated first. What is equal to another
// one is zero.
func (t *Translation) keys() (all [maxViews]Key) {
	between := func(a, b Key) Key {
		if k := (Key{Src: a.Src, Dst: b.Dst, Proto: a.Proto}); k != a && k != b {
			return k
		}
		return Key{}
	}
	all[0], all[maxViews-1] = t.Opened, t.Sent
	if t.Via == (Key{}) {
		all[1] = between(t.Opened, t.Sent)
		return all
	}
	all[1], all[2], all[3] = between(t.Opened, t.Via), t.Via, between(t.Via, t.Sent)
	for i := 1; i < maxViews-1; i++ { // as where the second one undoes a part of the first
		if all[i] == t.Sent || slices.Contains(all[:i], all[i]) {
			all[i] = Key{}
		}
	}
	return all
}

// stageOf is the stage of the key with index i.
func stageOf(i int) NATStage {
	switch i {
	case 0:
		return NATBefore
	case maxViews - 1:
		return NATAfter
	}
	return NATBetween
}

// ends is the connection between those who really talk.
func (t *Translation) ends() Key {
	return Key{Src: t.Opened.Src, Dst: t.Sent.Dst, Proto: t.Opened.Proto}
}

// NAT is what a conversation's ends know each other as, where that is not their own
// address. [Record.Key] has their own.
type NAT struct {
	// Source is the source as the destination knows it, Destination is where the source
	// sends to, as the address of a Service. Zero: its own address.
	Source, Destination netip.AddrPort
	Basis               NATBasis
}

// nat is what t tells of a record.
func (t *Translation) nat(by NATBasis) *NAT {
	n := &NAT{Basis: by}
	if t.Sent.Src != t.Opened.Src {
		n.Source = t.Sent.Src
	}
	if t.Opened.Dst != t.Sent.Dst {
		n.Destination = t.Opened.Dst
	}
	return n
}

// NATBasis says how a translation is known.
type NATBasis uint8

// The bases.
const (
	NATTracked    NATBasis = 1 // the kernel's connection tracking says so
	NATConnection NATBasis = 2 // both have the same ConnectionID, and one saw the SYN first
)

// String is the name exported as weft.nat.evidence.
func (b NATBasis) String() string {
	switch b {
	case 0:
		return ""
	case NATTracked:
		return "conntrack"
	case NATConnection:
		return "connection_id"
	}
	return "basis" + strconv.Itoa(int(b))
}

// NATStage says which addresses the packets of a hop had.
type NATStage uint8

// The stages, in the order in which the source's packets pass them; the destination's
// pass them the other way.
const (
	NATNone    NATStage = iota // the conversation is not translated, or that is not known
	NATBefore                  // those that the source uses
	NATBetween                 // the destination translated, the source not yet; or between two translations in a row
	NATAfter                   // those that the destination sees
)

// String is the name exported as a hop's nat; empty: not translated.
func (s NATStage) String() string {
	switch s {
	case NATNone:
		return ""
	case NATBefore:
		return "before"
	case NATBetween:
		return "between"
	case NATAfter:
		return "after"
	}
	return "stage" + strconv.Itoa(int(s))
}

// SocketKey is the conversation as the socket of one end has it: its own address first.
func (r *Record) SocketKey(source bool) Key {
	k := r.Key
	if r.NAT != nil && source && r.NAT.Destination.IsValid() {
		k.Dst = r.NAT.Destination
	}
	if r.NAT != nil && !source && r.NAT.Source.IsValid() {
		k.Src = r.NAT.Source
	}
	if !source {
		k.Src, k.Dst = k.Dst, k.Src
	}
	return k
}

// known is the address by which the other end knows one end, if that is another than its own.
func (r *Record) known(source bool) netip.AddrPort {
	switch {
	case r.NAT == nil:
		return netip.AddrPort{}
	case source:
		return r.NAT.Source
	}
	return r.NAT.Destination
}
