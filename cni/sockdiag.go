// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socketKey is where a socket of a namespace is bound and connected to. An address
// of zeros: any of its family; no remote: it listens, or is not connected.
type socketKey struct {
	space         uint64 // cookie
	local, remote socketEnd
	proto         uint8
}

// socketEnd is an address and a port; IPv4 in its mapped form.
type socketEnd struct {
	addr [16]byte
	port uint16
}

func endOf(a netip.AddrPort) socketEnd { return socketEnd{a.Addr().As16(), a.Port()} }

// socketID is a socket for as long as the machine runs: its inode may be another's
// later, its cookie never.
type socketID struct {
	cookie uint64
	inode  uint32
}

// Of struct inet_diag_msg and inet_diag_req_v2 (linux/inet_diag.h).
const (
	diagMessage = 72
	diagRequest = 56
	diagSKV6    = 11 // INET_DIAG_SKV6ONLY

	tcpListens   = 1 << 10
	tcpConnected = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11 // with an owner: not TIME_WAIT, CLOSE, SYN_RECV of a listener's queue
	anyState     = 1<<32 - 1
)

// diagOf is one question to the kernel.
type diagOf struct {
	family, proto uint8
	states        uint32
}

var (
	diagBound     = []diagOf{{unix.AF_INET, unix.IPPROTO_TCP, tcpListens}, {unix.AF_INET6, unix.IPPROTO_TCP, tcpListens}, {unix.AF_INET, unix.IPPROTO_UDP, anyState}, {unix.AF_INET6, unix.IPPROTO_UDP, anyState}}
	diagConnected = []diagOf{{unix.AF_INET, unix.IPPROTO_TCP, tcpConnected}, {unix.AF_INET6, unix.IPPROTO_TCP, tcpConnected}}
)

// listSockets calls f with every socket of the thread's namespace until it returns
// false. Sockets that no descriptor leads to are left out.
func listSockets(space uint64, questions []diagOf, f func(socketKey, socketID) bool) error {
	s, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("open sock_diag: %w", err)
	}
	defer s.Close()
	wait := unix.NsecToTimeval(netlinkDeadline.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&wait), s.SetReceiveTimeout(&wait)); err != nil {
		return fmt.Errorf("set a deadline for sock_diag: %w", err)
	}
	for _, q := range questions {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}
		var ask [diagRequest]byte
		ask[0], ask[1] = q.family, q.proto
		native.PutUint32(ask[4:8], q.states)
		req.AddRawData(ask[:])
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(m []byte) bool {
			keys, id := parseSocket(m, space, q.proto)
			for _, k := range keys {
				if !f(k, id) {
					return false
				}
			}
			return true
		})
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) { // no such family here
			return fmt.Errorf("list sockets by sock_diag: %w", err)
		}
	}
	return nil
}

// parseSocket reads one struct inet_diag_msg. A socket that serves both families has
// a key for each; none: no descriptor leads to it.
func parseSocket(m []byte, space uint64, proto uint8) ([]socketKey, socketID) {
	if len(m) < diagMessage {
		return nil, socketID{}
	}
	id := socketID{uint64(native.Uint32(m[44:48])) | uint64(native.Uint32(m[48:52]))<<32, native.Uint32(m[68:72])}
	if id.inode == 0 {
		return nil, id
	}
	k := socketKey{space: space, proto: proto}
	k.local.port, k.remote.port = binary.BigEndian.Uint16(m[4:6]), binary.BigEndian.Uint16(m[6:8])
	k.local.addr, k.remote.addr = diagAddress(m[0], m[8:24]), diagAddress(m[0], m[24:40])
	if k.remote.port != 0 {
		return []socketKey{k}, id
	}
	k.remote = socketEnd{}
	all := []socketKey{k}
	if k.local.addr == ([16]byte{}) && !onlyV6(m[diagMessage:]) {
		k.local.addr = any4
		all = append(all, k)
	}
	return all, id
}

// any4 is 0.0.0.0 in its mapped form.
var any4 = netip.IPv4Unspecified().As16()

func diagAddress(family uint8, from []byte) [16]byte {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(from)).As16()
	}
	return [16]byte(from)
}

// onlyV6 reports whether a socket's attributes say that it takes no IPv4.
func onlyV6(attrs []byte) bool {
	for len(attrs) >= unix.SizeofRtAttr {
		n := int(native.Uint16(attrs[0:2]))
		if n < unix.SizeofRtAttr || n > len(attrs) {
			return false
		}
		if native.Uint16(attrs[2:4]) == diagSKV6 && n > unix.SizeofRtAttr {
			return attrs[unix.SizeofRtAttr] != 0
		}
		attrs = attrs[min(len(attrs), (n+3)&^3):]
	}
	return false
}
