// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"
)

// Options says what to watch and how much it may cost. The zero value of every
// field works.
type Options struct {
	// Interfaces and Exclude are globs (path.Match) on device names. A device is
	// watched when one of Interfaces matches and none of Exclude does.
	// Empty Interfaces: all. A pattern without wildcards that names no device in any
	// watched namespace at Open or Reload is an error.
	Interfaces, Exclude []string

	// Netns lists further network namespaces: paths (/run/netns/blue), names of
	// `ip netns`, or the single word "all" for every one found in /run/netns,
	// /run/docker/netns and /proc/*/ns/net, now and later.
	Netns []string

	// Interval between drains of the flow table. 0: one second.
	Interval time.Duration

	// XDP adds an XDP program to every watched device: XDPOff, XDPNative, XDPGeneric.
	XDP XDPMode

	// Slots is the number of flow slots of all CPUs together. Each CPU has an equal
	// part, rounded up to a power of two and at least 8192 (or Slots, if that is
	// less), and lowered until MaxMemory holds. 0: 65536.
	Slots int

	// MaxMemory bounds tables, cold lines, rings and counters together, in bytes;
	// programs, about 0.3 MiB for each watched namespace, are not in it. 0: 64 MiB.
	MaxMemory int

	// MaxInterfaces bounds the devices that are watched; those over it are not, and
	// Status says so. 0: 2048, lowered on machines with many CPUs.
	MaxInterfaces int

	// TCP measures round trips, handshakes and anomalies of TCP connections from the
	// headers that pass. Off: false.
	TCP bool

	// Drops traces the packets that the kernel throws away, in all namespaces, and
	// reads the drop counters of watched devices. Off: false.
	Drops bool

	// DNS copies packets from and to port 53 out of the kernel and reads questions and
	// answers in them: [flows.Batch.DNS]. Off: false.
	DNS bool

	// Sockets asks the sockets of this host, in all namespaces, who owns them, what
	// they sent again, and how they failed. Off: false.
	Sockets bool

	// Domains, if not nil, is asked before each drain for what tells tenants apart within
	// a namespace. Nil: namespaces that veth pairs join are one domain each.
	Domains func() Domains

	// Backend forces a flow table: BackendAuto, BackendSlots, BackendHash.
	Backend Backend

	// Hooks forces how TC programs are attached: HooksAuto, HooksTCX, HooksClsact.
	Hooks Hooks

	// Log receives life-cycle lines. Nil: none.
	Log *slog.Logger
}

// Domains knows the domain of each device. It never changes: when something did,
// another one takes its place.
type Domains interface {
	// Domain is what all devices share that see the same packets and no other tenant's,
	// as [flows.Sample.Domain]; ifindex 0: of the namespace itself. 0: not known.
	Domain(netns uint64, ifindex uint32) uint64
}

// XDPMode says whether and how XDP programs are attached.
type XDPMode string

// XDP modes. Native XDP on a veth turns the peer's segmentation offload off.
const (
	XDPOff     XDPMode = "off"
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

// Backend is a kind of flow table.
type Backend string

// Backends. Slots is the per-CPU one-line-slot table; Hash is the plain BPF
// hash that is swapped and drained, for kernels that refuse the other.
const (
	BackendAuto  Backend = ""
	BackendSlots Backend = "slots"
	BackendHash  Backend = "hash"
)

// Hooks is a way of attaching TC programs.
type Hooks string

// Hooks: tcx needs Linux 6.6, clsact is everywhere. Auto is clsact without tcx; with
// it, devices that come later have clsact filters at first, which are sooner in place.
const (
	HooksAuto   Hooks = ""
	HooksTCX    Hooks = "tcx"
	HooksClsact Hooks = "clsact"
)

// ErrOptions is what an error of [Open] or [Dataplane.Reload] is when the options
// are wrong, and not the machine: a bad value, or a name that nothing has.
var ErrOptions = errors.New("wrong options")

type optionError struct{ error }

func (e optionError) Unwrap() error { return e.error }

func (optionError) Is(target error) bool { return target == ErrOptions }

// wrong is an error that is ErrOptions.
func wrong(format string, args ...any) error { return optionError{fmt.Errorf(format, args...)} }

// setDefaults fills the zero values and reports every mistake at once.
func (o *Options) setDefaults() error {
	var errs []error
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	if o.Interval < minInterval || o.Interval > maxInterval {
		errs = append(errs, wrong("interval %s: use %s to %s", o.Interval, minInterval, maxInterval))
	}
	if o.Slots == 0 {
		o.Slots = defaultSlots
	}
	if o.Slots < 64 || o.Slots > 1<<24 {
		errs = append(errs, wrong("slots %d: use 64 to %d", o.Slots, 1<<24))
	}
	if o.MaxMemory == 0 {
		o.MaxMemory = defaultMaxMemory
	}
	if o.MaxMemory < minMemory {
		errs = append(errs, wrong("maximum memory %d bytes: use at least %d", o.MaxMemory, minMemory))
	}
	if o.MaxInterfaces == 0 {
		o.MaxInterfaces = defaultInterfaces
	}
	if o.MaxInterfaces < 4 || o.MaxInterfaces > maxInterfaces {
		errs = append(errs, wrong("maximum interfaces %d: use 4 to %d", o.MaxInterfaces, maxInterfaces))
	}
	switch o.XDP {
	case "":
		o.XDP = XDPOff
	case XDPOff, XDPNative, XDPGeneric:
	default:
		errs = append(errs, wrong("xdp %q: use off, native or generic", o.XDP))
	}
	switch o.Backend {
	case BackendAuto, BackendSlots, BackendHash:
	default:
		errs = append(errs, wrong("backend %q: use slots or hash", o.Backend))
	}
	switch o.Hooks {
	case HooksAuto, HooksTCX, HooksClsact:
	default:
		errs = append(errs, wrong("hooks %q: use tcx or clsact", o.Hooks))
	}
	return errors.Join(append(errs, o.checkGlobs())...)
}

func (o *Options) checkGlobs() error {
	var errs []error
	for _, g := range append(append([]string{}, o.Interfaces...), o.Exclude...) {
		if _, err := path.Match(g, ""); err != nil {
			errs = append(errs, wrong("interface pattern %q: %w: close the bracket or escape it with a backslash", g, err))
		}
	}
	return errors.Join(errs...)
}

// wants reports whether the device is to be watched.
func wants(interfaces, exclude []string, device string) bool {
	return (len(interfaces) == 0 || matches(interfaces, device)) && !matches(exclude, device)
}

func matches(globs []string, device string) bool {
	for _, g := range globs {
		if ok, err := path.Match(g, device); ok && err == nil {
			return true
		}
	}
	return false
}
