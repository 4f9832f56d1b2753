// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/flows"
)

// The tests of this package run in a process that has network, mount and process
// namespaces of its own: its network namespace is "the host" of the tests, and
// "all" finds no other namespaces than theirs.
const (
	nsEnv    = "WEFT_TEST_NETNS"
	nsInside = "inside"
)

var (
	nsRefused error // why there are no such namespaces
	nsOwn     int   // fd of the host's network namespace
)

// The main thread's namespace is the process's for all to see: no test moves it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	switch role := os.Getenv(nsEnv); role {
	case "":
		os.Exit(nsOutside(m))
	case nsInside:
		nsRefused = nsPrepare()
		os.Exit(m.Run())
	default:
		os.Exit(nsChild(role))
	}
}

// nsOutside runs this program again in new namespaces, or the tests at once where
// there can be none.
func nsOutside(m *testing.M) int {
	if os.Geteuid() != 0 {
		nsRefused = errors.New("network namespaces need root")
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), nsEnv+"="+nsInside)
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL, // with this thread, which is the main one
	}
	if err := cmd.Start(); err != nil {
		nsRefused = fmt.Errorf("start in new namespaces: %w", err)
		return m.Run()
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	if err := cmd.Wait(); err != nil {
		return max(1, cmd.ProcessState.ExitCode())
	}
	return 0
}

// nsPrepare gives the new namespaces their own /proc and /run, and quiet devices.
func nsPrepare() (err error) {
	nsOwn, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return errors.Join(
		err,
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("none", "/run", "tmpfs", 0, ""),
		os.Mkdir(netnsDirs[0], 0o755),
		nsQuiet(),
		nsAnchor(),
	)
}

// nsAnchored lives as long as the process.
var nsAnchored link.Link

// nsAnchor attaches something to a device that nobody sees. The kernel patches its
// receive path when the first comes or the last goes; an emulated machine that runs
// through the patch at that moment may hang.
func nsAnchor() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread, which holds the namespace, stays
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		const lo = 1
		err := netlink.QdiscAdd(nsClsact(lo))
		if p, refused := nsLoad(ebpf.SchedCLS, asm.Mov.Imm(asm.R0, -1), asm.Return()); refused == nil { // else no test runs
			nsAnchored, _ = link.AttachTCX(link.TCXOptions{Interface: lo, Program: p, Attach: ebpf.AttachTCXIngress}) // or there is no tcx
		}
		done <- err
		select {}
	}()
	return <-done
}

// nsQuiet makes devices that the current thread's namespace will have send as
// little as possible of their own accord, and lets it forward.
func nsQuiet() error {
	var errs []error
	for key, value := range map[string]string{
		"ipv6/conf/default/accept_dad":                        "0",
		"ipv6/conf/default/dad_transmits":                     "0",
		"ipv6/conf/default/accept_ra":                         "0",
		"ipv6/conf/default/router_solicitations":              "0",
		"ipv6/conf/default/mldv1_unsolicited_report_interval": "10",
		"ipv6/conf/default/mldv2_unsolicited_report_interval": "10",
		"ipv6/conf/all/forwarding":                            "1",
		"ipv4/ip_forward":                                     "1",
	} {
		errs = append(errs, os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0))
	}
	return errors.Join(errs...)
}

// nsRequire skips the test where it cannot run, and fails it where it must.
func nsRequire(t testing.TB) {
	t.Helper()
	requireBPF(t)
	if nsRefused != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatal(nsRefused)
		}
		t.Skip(nsRefused)
	}
}

// nsProgramOf is the path of a program of Debian's package. Without it the test is
// left out on a laptop and in a guest, which has none, and fails where all must run.
func nsProgramOf(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("WEFT_REQUIRE_BPF") == "1" && !nsEmulated {
		t.Fatalf("this test needs %s: apt-get install %s", name, pkg)
	}
	t.Skipf("left out: there is no %s here (apt-get install %s)", name, pkg)
	return ""
}

// nsHooks lists the ways of attaching that this kernel has.
func nsHooks(t testing.TB) []Hooks {
	t.Helper()
	nsRequire(t)
	if nsTCX(t) {
		return []Hooks{HooksTCX, HooksClsact}
	}
	return []Hooks{HooksClsact}
}

// nsKind is a way of attaching and a flow table.
type nsKind struct {
	hooks   Hooks
	backend Backend
}

func (k nsKind) String() string { return string(k.hooks) + "/" + string(k.backend) }

// nsKinds has each of both at least once.
func nsKinds(t testing.TB) (kinds []nsKind) {
	t.Helper()
	hooks := nsHooks(t)
	for i, b := range backends {
		kinds = append(kinds, nsKind{hooks[min(i, len(hooks)-1)], b})
	}
	return kinds
}

// nsAllKinds is every kind, or nsKinds with -short.
func nsAllKinds(t testing.TB) (kinds []nsKind) {
	t.Helper()
	if testing.Short() {
		return nsKinds(t)
	}
	for _, h := range nsHooks(t) {
		for _, b := range backends {
			kinds = append(kinds, nsKind{h, b})
		}
	}
	return kinds
}

// nsSpace is a network namespace and netlink in it.
type nsSpace struct {
	t    testing.TB
	name string // of `ip netns`; empty: the host
	fd   int
	h    *netlink.Handle
	id   uint64 // its cookie, once asked
}

// nsHost is the namespace that this process runs in.
func nsHost(t testing.TB) *nsSpace {
	t.Helper()
	nsRequire(t)
	return nsOpen(t, "", "/proc/self/ns/net")
}

// nsNew makes a namespace as `ip netns add` does. It goes with the test.
func nsNew(t testing.TB, name string) *nsSpace {
	t.Helper()
	nsRequire(t)
	path := namespacePath(name)
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		made <- errors.Join(
			os.WriteFile(path, nil, 0o444),
			unix.Unshare(unix.CLONE_NEWNET),
			unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""),
			nsQuiet(),
		)
	}()
	if err := <-made; err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	n := nsOpen(t, name, path)
	t.Cleanup(func() {
		if _, err := os.Stat(path); err == nil {
			n.forget()
		}
	})
	return n
}

// forget does what `ip netns delete` does.
func (n *nsSpace) forget() {
	n.t.Helper()
	path := namespacePath(n.name)
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		n.t.Error(err)
	}
}

func nsOpen(t testing.TB, name, path string) *nsSpace {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open network namespace %s: %v", path, err)
	}
	n := &nsSpace{t: t, name: name, fd: fd}
	if n.h, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE); err != nil {
		t.Fatalf("open netlink in %s: %v", path, err)
	}
	t.Cleanup(n.close)
	return n
}

// close lets go of the namespace; it may be called twice.
func (n *nsSpace) close() {
	if n.h != nil {
		n.h.Close()
		unix.Close(n.fd)
		n.h = nil
	}
}

// do runs f on a thread in the namespace.
func (n *nsSpace) do(f func() error) {
	n.t.Helper()
	if err := inNetns(nsOwn, n.fd, f); err != nil {
		n.t.Fatal(err)
	}
}

// cookie is the namespace's identity in points.
func (n *nsSpace) cookie() uint64 {
	n.t.Helper()
	if n.id == 0 {
		n.do(func() (err error) {
			n.id, err = netnsCookie(n.fd, n.fd)
			return err
		})
	}
	return n.id
}

// add makes a link; false when the kernel has no such kind.
func (n *nsSpace) add(l netlink.Link) bool {
	n.t.Helper()
	err := n.h.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	if err != nil {
		n.t.Fatalf("add %s %s: %v", l.Type(), l.Attrs().Name, err)
	}
	n.t.Cleanup(func() {
		if n.h == nil {
			return
		}
		if l, err := n.h.LinkByName(l.Attrs().Name); err == nil { // else the test, or a peer, took it away
			_ = n.h.LinkDel(l)
		}
	})
	return true
}

// veth makes a pair, both ends down.
func (n *nsSpace) veth(name string, peer *nsSpace, peerName string, mtu int) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace, v.PeerMTU = peerName, netlink.NsFd(peer.fd), uint32(mtu)
	if !n.add(v) {
		n.t.Fatal("this kernel has no veth")
	}
}

func (n *nsSpace) link(name string) netlink.Link {
	n.t.Helper()
	l, err := n.h.LinkByName(name)
	if err != nil {
		n.t.Fatalf("find %s in %q: %v", name, n.name, err)
	}
	return l
}

func (n *nsSpace) index(name string) int {
	n.t.Helper()
	return n.link(name).Attrs().Index
}

func (n *nsSpace) mac(name string) net.HardwareAddr {
	n.t.Helper()
	return n.link(name).Attrs().HardwareAddr
}

// up sets a link up and gives it addresses, at once usable.
func (n *nsSpace) up(name string, addrs ...string) {
	n.t.Helper()
	l := n.link(name)
	if err := n.h.LinkSetUp(l); err != nil {
		n.t.Fatalf("set %s up: %v", name, err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			n.t.Fatal(err)
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.h.AddrAdd(l, a); err != nil {
			n.t.Fatalf("add %s to %s: %v", s, name, err)
		}
	}
}

// carry waits until a link that is up also sends: until the kernel's worker has given it
// its queue, which is after it has a carrier, what it sends is dropped and not counted. The
// state is unknown for good where there is no carrier to lose, and until then where there is.
func (n *nsSpace) carry(name string) {
	n.t.Helper()
	nsUntil(n.t, name+" carries", func() bool {
		l := n.link(name)
		state := l.Attrs().OperState
		if state != netlink.OperUp && (l.Type() == "veth" || state != netlink.OperUnknown || l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0) {
			return false
		}
		queues, err := n.h.QdiscList(l)
		if err != nil {
			n.t.Fatalf("list the queues of %s: %v", name, err)
		}
		return slices.ContainsFunc(queues, func(q netlink.Qdisc) bool { return q.Attrs().Parent == netlink.HANDLE_ROOT })
	})
}

// route sends what is for a network through a gateway.
func (n *nsSpace) route(network, gateway string) {
	n.t.Helper()
	_, dst, err := net.ParseCIDR(network)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.h.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)}); err != nil {
		n.t.Fatalf("route %s through %s: %v", network, gateway, err)
	}
}

// knows gives an address a permanent neighbour entry, so that nobody asks for it.
func (n *nsSpace) knows(addr, dev string, mac net.HardwareAddr) {
	n.t.Helper()
	family := netlink.FAMILY_V4
	if strings.Contains(addr, ":") {
		family = netlink.FAMILY_V6
	}
	if err := n.h.NeighSet(&netlink.Neigh{
		LinkIndex: n.index(dev), Family: family, State: netlink.NUD_PERMANENT, IP: net.ParseIP(addr), HardwareAddr: mac,
	}); err != nil {
		n.t.Fatalf("add neighbour %s of %s: %v", addr, dev, err)
	}
}

// nsCounters are an interface's own.
type nsCounters struct {
	rx, tx               flows.Count
	rxDropped, txDropped uint64
}

func (n *nsSpace) counters(name string) nsCounters {
	n.t.Helper()
	s := n.link(name).Attrs().Statistics
	return nsCounters{
		rx: flows.Count{Packets: s.RxPackets, Bytes: s.RxBytes}, tx: flows.Count{Packets: s.TxPackets, Bytes: s.TxBytes},
		rxDropped: s.RxDropped, txDropped: s.TxDropped,
	}
}

// settle waits until an interface has counted nothing for a while.
func (n *nsSpace) settle(name string) nsCounters {
	n.t.Helper()
	last, since := n.counters(name), time.Now()
	nsUntil(n.t, name+" falls silent", func() bool {
		if now := n.counters(name); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 30*time.Millisecond
	})
	return last
}

// nsUntil polls until f holds.
func nsUntil(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Offloads, by the kernel's names (net/ethtool/common.c).
var (
	nsSegmentation = []string{
		"tx-generic-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation",
		"tx-tcp-mangleid-segmentation", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation",
	}
	nsTagging = []string{"tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"}
	nsMerging = []string{"rx-gro"}
)

// offload turns features of a device on or off (ethtool -K).
func (n *nsSpace) offload(dev string, on bool, features []string) {
	n.t.Helper()
	n.do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		names, err := nsFeatures(s, dev)
		if err != nil {
			return fmt.Errorf("list features of %s: %w", dev, err)
		}
		// struct ethtool_sfeatures: cmd, blocks, then {valid, requested} for each 32
		set := make([]uint32, 2+(len(names)+31)/32*2)
		set[0], set[1] = unix.ETHTOOL_SFEATURES, uint32(len(set)/2-1)
		for _, f := range features {
			i := slices.Index(names, f)
			if i < 0 {
				return fmt.Errorf("%s has no feature %s", dev, f)
			}
			set[2+i/32*2] |= 1 << (i % 32)
			if on {
				set[3+i/32*2] |= 1 << (i % 32)
			}
		}
		if err := nsEthtool(s, dev, unsafe.Pointer(&set[0])); err != nil {
			return fmt.Errorf("set features of %s: %w", dev, err)
		}
		return nil
	})
}

func nsFeatures(s int, dev string) ([]string, error) {
	const features = 4 // ETH_SS_FEATURES
	count := struct {
		cmd, reserved uint32
		mask          uint64
		n             [1]uint32
	}{cmd: unix.ETHTOOL_GSSET_INFO, mask: 1 << features}
	if err := nsEthtool(s, dev, unsafe.Pointer(&count)); err != nil {
		return nil, err
	}
	const width = 32
	buf := make([]byte, 12+count.n[0]*width)
	head := (*[3]uint32)(unsafe.Pointer(&buf[0]))
	head[0], head[1], head[2] = unix.ETHTOOL_GSTRINGS, features, count.n[0]
	if err := nsEthtool(s, dev, unsafe.Pointer(&buf[0])); err != nil {
		return nil, err
	}
	var names []string
	for i := 12; i < len(buf); i += width {
		names = append(names, unix.ByteSliceToString(buf[i:i+width]))
	}
	return names, nil
}

// nsEthtool calls SIOCETHTOOL with a request of which the first word is the command.
func nsEthtool(s int, dev string, request unsafe.Pointer) error {
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], dev)
	ifr.data = request
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	if errno != 0 {
		return errno
	}
	_ = r // ETHTOOL_SFEATURES: bits that say what else changed with it
	return nil
}
