// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// translating is a namespace where 10.96.0.1:80 is sent to 10.0.0.2:8080, as
// kube-proxy does it for a Service.
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
		own, err := netlink.ParseAddr("10.0.0.2/32")
		if err != nil {
			return err
		}
		all := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}
		if err := errors.Join(h.LinkSetUp(lo), h.AddrAdd(lo, own), h.RouteAdd(all)); err != nil {
			return err
		}
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader("table ip t { chain out { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat to 10.0.0.2:8080; }; }")
		if said, err := nft.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, said)
		}
		return nil
	})
	return ns
}

// connect opens a connection to the Service and returns its key.
func connect(t *testing.T, ns string) (k flows.Key) {
	in(t, ns, func(*netlink.Handle) error {
		c, err := net.DialTimeout("tcp4", "10.96.0.1:80", 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		from, err := netip.ParseAddrPort(c.LocalAddr().String())
		k = flows.Key{Src: from, Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: flows.ProtoTCP}
		return err
	})
	return k
}

func TestConnectionToAServiceSaysWhereItIsSent(t *testing.T) {
	ns := translating(t)
	var l net.Listener
	in(t, ns, func(*netlink.Handle) (err error) { l, err = net.Listen("tcp4", "10.0.0.2:8080"); return err })
	defer l.Close()
	early := connect(t, ns) // before anybody follows
	c := newConntrack(quiet())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with it
		fd, err := netns.GetFromPath(ns)
		if err == nil {
			err = errors.Join(netns.Set(fd), fd.Close())
		}
		if err == nil {
			c.run(ctx)
		}
		done <- err
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	check := func(k flows.Key) {
		t.Helper()
		want := netip.MustParseAddrPort("10.0.0.2:8080")
		soonEnough(t, 5*time.Second, fmt.Sprintf("known where %s is sent", k), func() bool {
			to, ok := c.sentTo(k)
			return ok && to == want
		})
		sent := k
		sent.Dst = want
		if got, ok := c.openedAs(sent); !ok || got != k {
			t.Errorf("%s: opened as %s, known %v, want %s", sent, got, ok, k)
		}
	}
	check(early)
	soonEnough(t, 5*time.Second, "told as well", func() bool { return c.status(0).Err == "" && !c.status(0).Last.IsZero() })
	check(connect(t, ns))
}

func TestTranslationsAreBounded(t *testing.T) {
	c := newConntrack(quiet())
	for i := range 3*maxTranslated + 10 {
		k := flows.Key{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), uint16(i&255)), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: 6}
		c.keep(translation{k, k})
		if _, ok := c.sentTo(k); !ok {
			t.Fatalf("connection %d is not known", i)
		}
	}
	if n := len(c.now.to) + len(c.old.to); n > 2*maxTranslated {
		t.Errorf("%d are remembered, want at most %d", n, 2*maxTranslated)
	}
}

// A client whose ports are used again is sent to ever other backends.
func TestTranslationsOfReusedPortsAreBounded(t *testing.T) {
	c := newConntrack(quiet())
	opened := flows.Key{Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: 6}
	for i := range 3*maxTranslated + 10 {
		sent := opened
		sent.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080)
		c.keep(translation{opened, sent})
		if got, ok := c.openedAs(sent); !ok || got != opened {
			t.Fatalf("connection %d: got %s, known %v, want %s", i, got, ok, opened)
		}
	}
	if n := len(c.now.from) + len(c.old.from); n > 2*maxTranslated {
		t.Errorf("%d are remembered, want at most %d", n, 2*maxTranslated)
	}
}

// Who has the addresses and ports of a connection that was sent elsewhere, and is
// not, is taken for no Service's.
func TestConnectionThatIsNotSentElsewhereIsNotTakenForAFormerOne(t *testing.T) {
	opened := tracked("10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080")
	direct := tracked("10.0.0.1:4000", "10.0.0.2:8080", "10.0.0.2:8080")
	c := newConntrack(quiet())
	for _, older := range []bool{false, true} {
		if _, err := c.take(message(opened)); err != nil {
			t.Fatal(err)
		}
		k := flows.Key{Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:8080"), Proto: 6}
		if _, ok := c.openedAs(k); !ok {
			t.Fatal("the translated one is not known")
		}
		if older {
			c.now, c.old = newTranslations(), c.now
		}
		if _, err := c.take(message(direct)); err != nil {
			t.Fatal(err)
		}
		if as, ok := c.openedAs(k); ok {
			t.Errorf("in the older generation %v: taken for %s, want for itself", older, as)
		}
	}
}

// message is body as the kernel tells of a new connection.
func message(body []byte) []byte {
	m := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	m = native.AppendUint16(m, unix.NFNL_SUBSYS_CTNETLINK<<8)
	return append(append(m, make([]byte, unix.SizeofNlMsghdr-len(m))...), body...)
}

// tracked is what the kernel says of a connection from src to dst, sent to where.
func tracked(src, dst, where string) []byte {
	tuple := func(kind uint16, src, dst string) []byte {
		attr := func(kind uint16, v []byte) []byte {
			m := native.AppendUint16(native.AppendUint16(nil, uint16(4+len(v))), kind)
			return append(append(m, v...), make([]byte, -len(v)&3)...)
		}
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		port := func(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }
		ips := append(attr(1, s.Addr().AsSlice()), attr(2, d.Addr().AsSlice())...)
		proto := append(append(attr(ctaProtoNum, []byte{6}), attr(ctaSrcPort, port(s.Port()))...), attr(ctaDstPort, port(d.Port()))...)
		return attr(kind|unix.NLA_F_NESTED, append(attr(ctaIP|unix.NLA_F_NESTED, ips), attr(ctaProto|unix.NLA_F_NESTED, proto)...))
	}
	return append([]byte{2, 0, 0, 0}, append(tuple(ctaOrig, src, dst), tuple(ctaReply, where, src)...)...)
}

func FuzzTracked(f *testing.F) {
	seed := tracked("10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080")
	if t, ok := parseTracked(seed); !ok || t.sent.Dst.String() != "10.0.0.2:8080" {
		f.Fatalf("seed: got %+v, %v", t, ok)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, m []byte) {
		if got, ok := parseTracked(m); ok && (!got.opened.Dst.IsValid() || got.opened.Dst == got.sent.Dst) {
			t.Errorf("got %+v", got)
		}
	})
}
