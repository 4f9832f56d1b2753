// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// Bounds of what is followed of the connection tracking.
const (
	maxTranslated   = 65536 // connections, as opened and as sent, in each of two generations; at the bound the older is forgotten
	conntrackBuffer = 4 << 20
)

// conntrack follows which connections of a network namespace the kernel sends
// elsewhere than where they were opened to, as kube-proxy has it do for Services.
type conntrack struct {
	log *slog.Logger
	health
	count atomic.Int64

	mu       sync.Mutex
	now, old translations
}

// translations are by the connection as it is seen, from who opened it.
type translations struct {
	to   map[flows.Key]netip.AddrPort // opened to an address: where it is sent
	from map[flows.Key]flows.Key      // as sent: as it was opened
}

func newTranslations() translations {
	return translations{map[flows.Key]netip.AddrPort{}, map[flows.Key]flows.Key{}}
}

func newConntrack(log *slog.Logger) *conntrack {
	return &conntrack{log: log, health: health{name: "conntrack"}, now: newTranslations(), old: newTranslations()}
}

// sentTo is where the connection k is sent.
func (c *conntrack) sentTo(k flows.Key) (netip.AddrPort, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to, ok := c.now.to[k]; ok {
		return to, true
	}
	to, ok := c.old.to[k]
	return to, ok
}

// openedAs is the connection k as it was opened.
func (c *conntrack) openedAs(k flows.Key) (flows.Key, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.now.from[k]; ok {
		return a, true
	}
	a, ok := c.old.from[k]
	return a, ok
}

func (c *conntrack) keep(t translation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if max(len(c.now.to), len(c.now.from)) >= maxTranslated {
		c.now, c.old = newTranslations(), c.now
	}
	c.now.to[t.opened] = t.sent.Dst
	c.now.from[t.sent] = t.opened
	c.count.Store(int64(len(c.now.to) + len(c.old.to)))
}

// forget is told of a connection that is not sent elsewhere: one that had its
// addresses and ports before was another.
func (c *conntrack) forget(k flows.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range []translations{c.now, c.old} {
		delete(t.to, k)
		delete(t.from, k)
	}
	c.count.Store(int64(len(c.now.to) + len(c.old.to)))
}

// run follows the namespace of the thread that calls it until ctx ends: first what is
// there, then what comes. Events that were lost are answered by looking again.
func (c *conntrack) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		c.say(c.log, err)
		again := kubeAgain
		if errors.Is(err, unix.ENOBUFS) { // what was lost meanwhile is in the next list
			again = time.Second
		}
		if !pause(ctx, again) {
			return
		}
	}
}

func (c *conntrack) follow(ctx context.Context) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open a socket for connection tracking: %w", err)
	}
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, conntrackBuffer) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, conntrackBuffer) // the kernel's own limit holds then
	}
	err = errors.Join(err,
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_CONNTRACK_NEW - 1)}))
	if err != nil {
		return fmt.Errorf("subscribe to connection tracking (CAP_NET_ADMIN): %w", err)
	}
	families, dumping := []uint8{unix.AF_INET, unix.AF_INET6}, false
	buffer := make([]byte, 1<<16)
	for ctx.Err() == nil {
		if !dumping && len(families) > 0 { // the kernel does one at a time
			if err := unix.Sendto(fd, dumpConntrack(families[0]), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return fmt.Errorf("list tracked connections: %w", err)
			}
			families, dumping = families[1:], true
		}
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read tracked connections: %w", err)
		}
		done, err := c.take(buffer[:n])
		if err != nil {
			return err
		}
		if dumping = dumping && !done; done && len(families) == 0 {
			c.say(c.log, nil)
		}
	}
	return nil
}

// take reads the messages of one datagram; done: it ended a dump.
func (c *conntrack) take(m []byte) (done bool, err error) {
	for len(m) >= unix.SizeofNlMsghdr {
		n, kind := int(native.Uint32(m[0:4])), native.Uint16(m[4:6])
		if n < unix.SizeofNlMsghdr || n > len(m) {
			return done, errors.New("read tracked connections: a message is cut off")
		}
		body := m[unix.SizeofNlMsghdr:n]
		switch {
		case kind == unix.NLMSG_DONE:
			done = true
		case kind == unix.NLMSG_ERROR && len(body) >= 4 && int32(native.Uint32(body)) != 0:
			return done, fmt.Errorf("list tracked connections: %w", unix.Errno(-int32(native.Uint32(body))))
		case kind>>8 == unix.NFNL_SUBSYS_CTNETLINK:
			if t, ok := parseTracked(body); ok {
				c.keep(t)
			} else if t.opened.Dst.IsValid() {
				c.forget(t.opened)
			}
		}
		m = m[min(len(m), (n+3)&^3):]
	}
	return done, nil
}

// dumpConntrack asks for all that a family has, of those that are sent elsewhere
// where the kernel can choose.
func dumpConntrack(family uint8) []byte {
	m := make([]byte, unix.SizeofNlMsghdr+4, 64)
	native.PutUint16(m[4:6], unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet)
	native.PutUint16(m[6:8], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	m[unix.SizeofNlMsghdr] = family
	for _, kind := range []uint16{ctaStatus, ctaStatusMask} {
		m = native.AppendUint16(native.AppendUint16(m, 8), kind)
		m = binary.BigEndian.AppendUint32(m, statusDstNAT)
	}
	native.PutUint32(m[0:4], uint32(len(m)))
	return m
}

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctGet         = 1 // IPCTNL_MSG_CT_GET
	ctaOrig       = 1
	ctaReply      = 2
	ctaStatus     = 3
	ctaStatusMask = 26
	ctaIP         = 1
	ctaProto      = 2
	ctaProtoNum   = 1
	ctaSrcPort    = 2
	ctaDstPort    = 3
	statusDstNAT  = 1 << 5
	attrType      = 0x3fff // NLA_TYPE_MASK
)

// translation is one connection that is sent elsewhere.
type translation struct{ opened, sent flows.Key }

// parseTracked reads one tracked connection; false: it is sent where it was opened to.
func parseTracked(m []byte) (t translation, ok bool) {
	if len(m) < 4 {
		return t, false
	}
	var reply flows.Key
	eachAttr(m[4:], func(kind uint16, value []byte) {
		switch kind {
		case ctaOrig:
			t.opened = parseTuple(value)
		case ctaReply:
			reply = parseTuple(value)
		}
	})
	t.sent = reply.Reverse()
	return t, t.opened.Dst.IsValid() && t.sent.Dst.IsValid() && t.opened.Dst != t.sent.Dst
}

func parseTuple(m []byte) (k flows.Key) {
	var ends [2]netip.Addr
	var ports [2]uint16
	eachAttr(m, func(kind uint16, value []byte) {
		eachAttr(value, func(of uint16, v []byte) {
			switch {
			case kind == ctaIP && of >= 1 && of <= 4: // of IPv4 the source and destination, of IPv6 the same
				if a, good := netip.AddrFromSlice(v); good {
					ends[(of-1)&1] = a.Unmap()
				}
			case kind == ctaProto && of == ctaProtoNum && len(v) == 1:
				k.Proto = v[0]
			case kind == ctaProto && (of == ctaSrcPort || of == ctaDstPort) && len(v) == 2:
				ports[of-ctaSrcPort] = binary.BigEndian.Uint16(v)
			}
		})
	})
	if ends[0].IsValid() && ends[1].IsValid() {
		k.Src, k.Dst = netip.AddrPortFrom(ends[0], ports[0]), netip.AddrPortFrom(ends[1], ports[1])
	}
	return k
}

// eachAttr calls f with each netlink attribute of m.
func eachAttr(m []byte, f func(kind uint16, value []byte)) {
	for len(m) >= unix.SizeofNlAttr {
		n := int(native.Uint16(m[0:2]))
		if n < unix.SizeofNlAttr || n > len(m) {
			return
		}
		f(native.Uint16(m[2:4])&attrType, m[unix.SizeofNlAttr:n])
		m = m[min(len(m), (n+3)&^3):]
	}
}
