// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// natRules send what goes to the address of a Service elsewhere, as kube-proxy does;
// what goes to the second one in another's name too, and what leaves for 192.0.2.0/24.
const natRules = `
table inet t {
	chain out { type nat hook output priority -100;
		ip daddr 10.96.0.1 meta l4proto { tcp, udp } dnat ip to 10.0.0.2:8080
		ip6 daddr fd00:96::1 meta l4proto { tcp, udp } dnat ip6 to [fd00::2]:8080
		ip daddr 10.96.0.2 meta l4proto { tcp, udp } dnat ip to 10.0.0.2:8080
	}
	chain post { type nat hook postrouting priority 100;
		ct original ip daddr { 10.96.0.2, 192.0.2.1 } snat ip to 10.0.0.3
	}
}`

// translating is a namespace with natRules in which everything that is sent comes back.
func translating(t *testing.T) string {
	ns := newNetns(t, "nat")
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatal("needs nft (nftables)")
		}
		t.Skip("needs nft (nftables)")
	}
	in(t, ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		errs := []error{h.LinkSetUp(lo)}
		for _, a := range []string{"10.0.0.2/32", "10.0.0.3/32", "192.0.2.1/32", "fd00::2/128"} {
			own, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			errs = append(errs, h.AddrAdd(lo, own))
		}
		for _, all := range []*net.IPNet{{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}} {
			errs = append(errs, h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all}))
		}
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(natRules)
		if said, err := nft.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("nft: %w: %s", err, said))
		}
		return errors.Join(errs...)
	})
	return ns
}

// reaches sends something to an address and returns its key.
func reaches(t *testing.T, ns, network, to string) (k flows.Key) {
	t.Helper()
	in(t, ns, func(*netlink.Handle) error {
		c, err := net.DialTimeout(network, to, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		k = flows.Key{Src: netip.MustParseAddrPort(c.LocalAddr().String()), Dst: netip.MustParseAddrPort(to), Proto: flows.ProtoTCP}
		if strings.HasPrefix(network, "udp") {
			k.Proto = flows.ProtoUDP
		}
		_, err = c.Write([]byte("x"))
		return err
	})
	return k
}

// following follows the connection tracking of a namespace.
func following(t *testing.T, ns string) *conntrack {
	ino, err := inodeOf(ns)
	if err != nil {
		t.Fatal(err)
	}
	space := &Space{Netns: cookieOf(t, ns), Path: ns, ino: ino}
	c := newConntrack(quiet(), func() []*Space { return []*Space{space} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

func anywhere(uint64) bool { return true }

// TestTranslationsAreKnown, of connections of every kind that began before anybody
// followed, and after.
func TestTranslationsAreKnown(t *testing.T) {
	ns := translating(t)
	for _, a := range []string{"10.0.0.2:8080", "192.0.2.1:8080", "[fd00::2]:8080"} {
		var l net.Listener
		in(t, ns, func(*netlink.Handle) (err error) { l, err = net.Listen("tcp", a); return err })
		defer l.Close()
	}
	var c *conntrack
	for _, when := range []string{"before anybody follows", "after"} {
		for _, x := range []struct{ network, to, sent, as string }{
			{"tcp4", "10.96.0.1:80", "10.0.0.2:8080", ""},
			{"udp4", "10.96.0.1:80", "10.0.0.2:8080", ""},
			{"tcp6", "[fd00:96::1]:80", "[fd00::2]:8080", ""},
			{"udp6", "[fd00:96::1]:80", "[fd00::2]:8080", ""},
			{"tcp4", "10.96.0.2:80", "10.0.0.2:8080", "10.0.0.3"},
			{"udp4", "192.0.2.1:8080", "192.0.2.1:8080", "10.0.0.3"},
		} {
			first := time.Now().UnixNano()
			k := reaches(t, ns, x.network, x.to)
			if c == nil {
				c = following(t, ns)
			}
			soonEnough(t, 5*time.Second, fmt.Sprintf("known where %s is sent, %s", k, when), func() bool {
				now := time.Now().UnixNano()
				to, ok := c.find(anywhere, k, first, now, false)
				if !ok {
					return false
				}
				if to.Opened != k || to.Sent.Dst.String() != x.sent || x.as == "" && to.Sent.Src != k.Src || x.as != "" && to.Sent.Src.Addr().String() != x.as {
					t.Fatalf("%s: got %+v, want sent to %s as %q", k, to, x.sent, x.as)
				}
				for _, as := range []flows.Key{k.Reverse(), to.Sent, to.Sent.Reverse(), {Src: k.Dst, Dst: k.Src, Proto: k.Proto}} {
					if got, ok := c.find(anywhere, as, first, now, false); !ok || got != to {
						t.Errorf("%s as %s: got %+v, %v, want %+v", k, as, got, ok, to)
					}
				}
				if got, ok := c.find(func(uint64) bool { return false }, k, first, now, false); ok {
					t.Errorf("%s, of no namespace that is asked for: got %+v", k, got)
				}
				return true
			})
		}
	}
	if s := c.state(); s.Err != "" || s.Known < 12 {
		t.Errorf("status: got %+v, want at least 12 and no error", s)
	}
}

// A namespace that has gone is not followed any more.
func TestConnectionTrackingOfANamespaceThatGoesIsLetGo(t *testing.T) {
	ns := translating(t)
	ino, err := inodeOf(ns)
	if err != nil {
		t.Fatal(err)
	}
	spaces := []*Space{{Netns: cookieOf(t, ns), Path: ns, ino: ino}}
	c := newConntrack(quiet(), func() []*Space { return spaces })
	c.follow(time.Now())
	if len(c.trackers) != 1 || c.trackers[0].fd < 0 || c.trackers[0].err != nil {
		t.Fatalf("got %+v, want one that is open", c.trackers)
	}
	one := c.trackers[0]
	spaces = nil
	if c.follow(time.Now()); len(c.trackers) != 0 || len(*c.known.Load()) != 0 || one.fd != -1 {
		t.Errorf("got %d, %d known, descriptor %d, want none", len(c.trackers), len(*c.known.Load()), one.fd)
	}
}

// TestTheEndOfAConnectionOlderThanTheAgentIsFound, which the kernel tells nobody: it is
// listed again.
func TestTheEndOfAConnectionOlderThanTheAgentIsFound(t *testing.T) {
	ns := translating(t)
	k := reaches(t, ns, "udp4", "10.96.0.1:80")
	ino, err := inodeOf(ns)
	if err != nil {
		t.Fatal(err)
	}
	spaces := []*Space{{Netns: cookieOf(t, ns), Path: ns, ino: ino}}
	c := newConntrack(quiet(), func() []*Space { return spaces })
	reads := func(now time.Time, what string, want int) {
		c.follow(now)
		one, buffer := c.trackers[0], make([]byte, 1<<16)
		soonEnough(t, 5*time.Second, what, func() bool {
			if err := one.receive(buffer); err != nil {
				t.Fatal(err)
			}
			return !one.dumping && len(one.asks) == 0 && one.standing() == want
		})
	}
	reads(time.Now(), "the list has it", 1)
	defer c.trackers[0].close()
	in(t, ns, func(h *netlink.Handle) error { return h.ConntrackTableFlush(netlink.ConntrackTable) })
	reads(time.Now().Add(2*listAgain), "the next list does not", 0)
	now := time.Now().UnixNano()
	if got, ok := c.find(anywhere, k, now-1, now+1, false); ok {
		t.Errorf("after its end: got %+v, want no answer", got)
	}
}

// TestADirectConnectionIsNotTakenForATranslatedOne: a client sends to a server and, from
// the same port, to a Service that the server is behind. The kernel gives the latter
// another port; what goes to the server is between its translations by its addresses alone.
func TestADirectConnectionIsNotTakenForATranslatedOne(t *testing.T) {
	ns := translating(t)
	c := following(t, ns)
	var direct, service flows.Key
	in(t, ns, func(*netlink.Handle) error {
		one, err := net.ListenPacket("udp4", "10.0.0.2:4000")
		if err != nil {
			return err
		}
		defer one.Close()
		for _, to := range []string{"10.0.0.2:8080", "10.96.0.1:80"} {
			if _, err := one.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
				return err
			}
		}
		from := netip.MustParseAddrPort("10.0.0.2:4000")
		direct = flows.Key{Src: from, Dst: netip.MustParseAddrPort("10.0.0.2:8080"), Proto: flows.ProtoUDP}
		service = flows.Key{Src: from, Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: flows.ProtoUDP}
		return nil
	})
	soonEnough(t, 5*time.Second, "the Service's translation", func() bool {
		now := time.Now().UnixNano()
		to, ok := c.find(anywhere, service, now-1, now, false)
		if !ok {
			return false
		}
		if to.Sent.Dst != direct.Dst || to.Sent.Src.Port() == direct.Src.Port() {
			t.Fatalf("sent as %s, want to %s from another port than %d: this proves nothing", to.Sent, direct.Dst, direct.Src.Port())
		}
		if got, ok := c.find(anywhere, direct, now-1, now, false); ok {
			t.Errorf("what goes to the server: got %+v, want no translation", got)
		}
		return true
	})
}

// message is body as the kernel tells of a connection.
func message(body []byte, kind, flags uint16) []byte {
	m := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	m = native.AppendUint16(m, unix.NFNL_SUBSYS_CTNETLINK<<8|kind)
	m = native.AppendUint16(m, flags)
	return append(append(m, make([]byte, unix.SizeofNlMsghdr-len(m))...), body...)
}

// tracked is what the kernel says of a connection from src to dst, sent to where.
func tracked(src, dst, where string, zone uint16) []byte {
	return trackedAs(src, dst, where, src, zone)
}

// trackedAs is the same of one that is sent in another's name.
func trackedAs(src, dst, where, as string, zone uint16) []byte {
	attr := func(kind uint16, v []byte) []byte {
		m := native.AppendUint16(native.AppendUint16(nil, uint16(4+len(v))), kind)
		return append(append(m, v...), make([]byte, -len(v)&3)...)
	}
	tuple := func(kind uint16, src, dst string) []byte {
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		port := func(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }
		ips := append(attr(1, s.Addr().AsSlice()), attr(2, d.Addr().AsSlice())...)
		proto := append(append(attr(ctaProtoNum, []byte{6}), attr(ctaSrcPort, port(s.Port()))...), attr(ctaDstPort, port(d.Port()))...)
		return attr(kind|unix.NLA_F_NESTED, append(attr(ctaIP|unix.NLA_F_NESTED, ips), attr(ctaProto|unix.NLA_F_NESTED, proto)...))
	}
	m := append([]byte{2, 0, 0, 0}, append(tuple(ctaOrig, src, dst), tuple(ctaReply, where, as)...)...)
	if zone != 0 {
		m = append(m, attr(ctaZone, binary.BigEndian.AppendUint16(nil, zone))...)
	}
	return m
}

func FuzzTracked(f *testing.F) {
	seed := tracked("10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080", 7)
	if t, zone, ok := parseTracked(seed); !ok || zone != 7 || t.Sent.Dst.String() != "10.0.0.2:8080" {
		f.Fatalf("seed: got %+v, zone %d, %v", t, zone, ok)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, m []byte) {
		if got, _, ok := parseTracked(m); ok && (!got.Opened.Dst.IsValid() || got.Opened == got.Sent) {
			t.Errorf("got %+v", got)
		}
	})
}
