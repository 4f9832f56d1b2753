// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// needRoot skips a laptop's test run and fails CI's.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
		t.Fatal("needs root for network namespaces")
	}
	t.Skip("needs root for network namespaces")
}

// newNetns makes a named network namespace that ends with the test.
func newNetns(t testing.TB, name string) string {
	t.Helper()
	needRoot(t)
	name = fmt.Sprintf("weft-cni-%d-%s", os.Getpid(), name)
	path := "/run/netns/" + name
	onThread(t, func() error { // bound by hand: not every machine has ip
		if err := os.MkdirAll("/run/netns", 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Close(), unix.Unshare(unix.CLONE_NEWNET)); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	t.Cleanup(func() { dropNetns(t, path) })
	return path
}

// dropNetns takes a namespace's name away; that it is away already is fine.
func dropNetns(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// onThread runs f on a thread of its own, that ends with it.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// in runs f in a namespace; empty: the test's own.
func in(t testing.TB, path string, f func(*netlink.Handle) error) {
	t.Helper()
	onThread(t, func() error {
		if path != "" {
			fd, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			if err := errors.Join(netns.Set(fd), fd.Close()); err != nil {
				return err
			}
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

// cookieOf is a namespace's cookie.
func cookieOf(t testing.TB, path string) (cookie uint64) {
	t.Helper()
	in(t, path, func(*netlink.Handle) (err error) {
		cookie, err = cookieHere()
		return err
	})
	return cookie
}

// lacking reports whether the kernel has no such kind of device.
func lacking(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) }

// pairUp makes a veth pair between two namespaces.
func pairUp(t testing.TB, here, name, there, peer string) {
	t.Helper()
	in(t, here, func(h *netlink.Handle) error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: peer}
		far, err := netns.GetFromPath(there)
		if err != nil {
			return err
		}
		defer far.Close()
		v.PeerNamespace = netlink.NsFd(far)
		return h.LinkAdd(v)
	})
	for ns, dev := range map[string]string{here: name, there: peer} {
		in(t, ns, func(h *netlink.Handle) error {
			l, err := h.LinkByName(dev)
			if err != nil {
				return err
			}
			return h.LinkSetUp(l)
		})
	}
}

// addAddress gives a device an address.
func addAddress(t testing.TB, ns, dev, prefix string) {
	t.Helper()
	in(t, ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		ip, n, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		n.IP = ip
		return h.AddrAdd(l, &netlink.Addr{IPNet: n})
	})
}

// openMirror follows until the test ends.
func openMirror(t testing.TB, opts Options) *Mirror {
	t.Helper()
	needRoot(t)
	m, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

var everything = Options{Containers: true, VMs: true, Sandboxes: true}

// eventually polls the mirror until check is content, for at most 20 seconds.
func eventually(t testing.TB, m *Mirror, what string, check func(*Topology) error) *Topology {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now := m.Topology()
		if err = check(now); err == nil {
			return now
		}
	}
	t.Fatalf("%s: not within 20 s: %v", what, err)
	return nil
}

// named is a device of a namespace by its name; nil: not there.
func (t *Topology) named(netns uint64, name string) *Device {
	s := t.Space(netns)
	if s == nil {
		return nil
	}
	for _, d := range s.Devices {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// waitFor polls until check is content, for at most 20 seconds.
func waitFor(t testing.TB, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}
