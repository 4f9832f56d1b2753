// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os/user"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/dataplane"
	"weft/exporter"
)

// shape is what a key's value looks like in YAML.
type shape int

const (
	scalar  shape = iota // one word or number
	listing              // a list of words; in the environment comma separated
	mapping              // name: value pairs; in the environment k=v,k=v
)

// key is one setting: the only place that knows its name, how it is read,
// what is wrong with it, and whether SIGHUP applies it.
type key struct {
	name  string
	shape shape
	live  bool // SIGHUP applies it without a restart

	scalar func(c *Config, text string) error
	items  func(c *Config) *[]string
	item   func(text string) error // checks one item of a list
	some   bool                    // the list must have an item
	pairs  func(c *Config) *map[string]string
	field  func(c *Config) any // pointer to what the key fills
	show   func(c *Config) string
}

// keys is every key of the configuration file and, with WEFT_ in front and
// underscores for dots, of the environment. Those of exporter.sinks, which only the
// file has, are [sinkConfig.keys].
var keys = slices.Concat([]key{
	text("listen.socket", func(c *Config) *string { return &c.Socket }, checkSocket),
	text("listen.group", func(c *Config) *string { return &c.Group }, checkGroup),
	text("listen.http", func(c *Config) *string { return &c.HTTP }, checkHTTP),

	reloaded(some(list("dataplane.interfaces", func(c *Config) *[]string { return &c.Dataplane.Interfaces }, checkGlob))),
	reloaded(list("dataplane.exclude", func(c *Config) *[]string { return &c.Dataplane.Exclude }, checkGlob)),
	list("dataplane.netns", func(c *Config) *[]string { return &c.Dataplane.Netns }, checkNetns),
	duration("dataplane.interval", func(c *Config) *time.Duration { return &c.Dataplane.Interval }, 10*time.Millisecond, 10*time.Second),
	word("dataplane.xdp", func(c *Config) *dataplane.XDPMode { return &c.Dataplane.XDP },
		choice[dataplane.XDPMode]{"off", dataplane.XDPOff}, choice[dataplane.XDPMode]{"native", dataplane.XDPNative}, choice[dataplane.XDPMode]{"generic", dataplane.XDPGeneric}),
	word("dataplane.backend", func(c *Config) *dataplane.Backend { return &c.Dataplane.Backend },
		choice[dataplane.Backend]{"auto", dataplane.BackendAuto}, choice[dataplane.Backend]{"slots", dataplane.BackendSlots}, choice[dataplane.Backend]{"hash", dataplane.BackendHash}),
	word("dataplane.hooks", func(c *Config) *dataplane.Hooks { return &c.Dataplane.Hooks },
		choice[dataplane.Hooks]{"auto", dataplane.HooksAuto}, choice[dataplane.Hooks]{"tcx", dataplane.HooksTCX}, choice[dataplane.Hooks]{"clsact", dataplane.HooksClsact}),
	size("dataplane.max_memory", func(c *Config) *int { return &c.Dataplane.MaxMemory }, 2<<20, 1<<40),
	word("dataplane.tcp", func(c *Config) *bool { return &c.Dataplane.TCP }, choice[bool]{"on", true}, choice[bool]{"off", false}),
	word("dataplane.dns", func(c *Config) *bool { return &c.Dataplane.DNS }, choice[bool]{"off", false}, choice[bool]{"on", true}),
	word("dataplane.drops", func(c *Config) *bool { return &c.Dataplane.Drops }, choice[bool]{"off", false}, choice[bool]{"on", true}),
	word("dataplane.sockets", func(c *Config) *bool { return &c.Dataplane.Sockets }, choice[bool]{"on", true}, choice[bool]{"off", false}),
	number("dataplane.max_interfaces", func(c *Config) *int { return &c.Dataplane.MaxInterfaces }, 4, 8192),

	duration("flows.active_timeout", func(c *Config) *time.Duration { return &c.Table.ActiveTimeout }, 100*time.Millisecond, 24*time.Hour),
	duration("flows.idle_timeout", func(c *Config) *time.Duration { return &c.Table.IdleTimeout }, 100*time.Millisecond, 24*time.Hour),
	number("flows.table", func(c *Config) *int { return &c.Dataplane.Slots }, 256, 1<<24),
	number("flows.conversations", func(c *Config) *int { return &c.Table.MaxConversations }, 1024, 1<<26),
	word("flows.join", func(c *Config) *bool { return &c.Table.Apart }, choice[bool]{"on", false}, choice[bool]{"off", true}),
	number("flows.store", func(c *Config) *int { return &c.Store }, 1, 1<<24),

	autoOff("cni.kubernetes", func(c *Config) *bool { return &c.CNI.kubernetes }),
	autoOff("cni.containers", func(c *Config) *bool { return &c.CNI.containers }),
	autoOff("cni.vms", func(c *Config) *bool { return &c.CNI.vms }),
	autoOff("cni.sandboxes", func(c *Config) *bool { return &c.CNI.sandboxes }),
	autoOff("cni.processes", func(c *Config) *bool { return &c.CNI.processes }),
	text("cni.node", func(c *Config) *string { return &c.CNI.node }, anything),
	list("cni.runtimes", func(c *Config) *[]string { return &c.CNI.runtimes }, checkSocket),
	text("cni.results", func(c *Config) *string { return &c.CNI.results }, checkFolder),
	text("cni.kubeconfig", func(c *Config) *string { return &c.CNI.kubeconfig }, checkFileOrNone),
	text("cni.leases", func(c *Config) *string { return &c.CNI.leases }, checkFolder),
}, otlpKeys("exporter.otlp.", ownOTLP), spoolKeys("exporter.spool.", ownOTLP), paceKeys("exporter.", ownOTLP), []key{
	number("exporter.prometheus.pairs", func(c *Config) *int { return &c.Pairs }, 0, 65536),
	reloaded(word("log.level", func(c *Config) *slog.Level { return &c.Level },
		choice[slog.Level]{"debug", slog.LevelDebug}, choice[slog.Level]{"info", slog.LevelInfo},
		choice[slog.Level]{"warn", slog.LevelWarn}, choice[slog.Level]{"error", slog.LevelError})),
	word("log.format", func(c *Config) *bool { return &c.JSON }, choice[bool]{"text", false}, choice[bool]{"json", true}),
})

func ownOTLP(c *Config) *exporter.OTLPConfig { return &c.OTLP }

// autoOff is a key for what is used when it is there, or never.
func autoOff(name string, f func(*Config) *bool) key {
	return word(name, f, choice[bool]{"auto", true}, choice[bool]{"off", false})
}

// same reports whether a and b agree on k.
func (k key) same(a, b *Config) bool { return k.agrees(a, k, b) }

// agrees reports whether k in a is what other is in b.
func (k key) agrees(a *Config, other key, b *Config) bool {
	return reflect.DeepEqual(k.field(a), other.field(b))
}

// reloaded marks a key that SIGHUP applies.
func reloaded(k key) key { k.live = true; return k }

func some(k key) key { k.some = true; return k }

// checkLength is about a list as it was written.
func (k *key) checkLength(items int) error {
	if k.some && items == 0 {
		return errors.New("an empty list would watch nothing; name devices or patterns, or leave the key out for all of them")
	}
	return nil
}

func text(name string, f func(*Config) *string, check func(string) error) key {
	return key{name: name, field: func(c *Config) any { return f(c) }, show: func(c *Config) string { return *f(c) }, scalar: func(c *Config, s string) error {
		if err := check(s); err != nil {
			return err
		}
		*f(c) = s
		return nil
	}}
}

func list(name string, f func(*Config) *[]string, check func(string) error) key {
	return key{name: name, shape: listing, field: func(c *Config) any { return f(c) }, items: f, item: check,
		show: func(c *Config) string { return strings.Join(*f(c), ",") }}
}

func pairs(name string, f func(*Config) *map[string]string) key {
	return key{name: name, shape: mapping, field: func(c *Config) any { return f(c) }, pairs: f, show: func(c *Config) string {
		names := slices.Sorted(maps.Keys(*f(c)))
		return strings.Join(names, ",") // the values may be secrets
	}}
}

// choice is a word of the file and what it means.
type choice[T comparable] struct {
	word string
	is   T
}

func word[T comparable](name string, f func(*Config) *T, choices ...choice[T]) key {
	shown := func(c *Config) string {
		for _, ch := range choices {
			if ch.is == *f(c) {
				return ch.word
			}
		}
		return fmt.Sprint(*f(c))
	}
	return key{name: name, field: func(c *Config) any { return f(c) }, show: shown, scalar: func(c *Config, s string) error {
		var names []string
		for _, ch := range choices {
			if ch.word == s {
				*f(c) = ch.is
				return nil
			}
			if ch.word != "" {
				names = append(names, ch.word)
			}
		}
		return fmt.Errorf("%q is not one of %s", s, strings.Join(names, ", "))
	}}
}

func duration(name string, f func(*Config) *time.Duration, least, most time.Duration) key {
	return key{name: name, field: func(c *Config) any { return f(c) }, show: func(c *Config) string { return f(c).String() }, scalar: func(c *Config, s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration; write a number with a unit, such as 500ms, 15s or 2m", s)
		}
		if d < least || d > most {
			return fmt.Errorf("%s is out of range; write %s to %s", s, least, most)
		}
		*f(c) = d
		return nil
	}}
}

func number(name string, f func(*Config) *int, least, most int) key {
	return key{name: name, field: func(c *Config) any { return f(c) }, show: func(c *Config) string { return strconv.Itoa(*f(c)) }, scalar: func(c *Config, s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%q is not a whole number; write %d to %d", s, least, most)
		}
		if n < least || n > most {
			return fmt.Errorf("%d is out of range; write %d to %d", n, least, most)
		}
		*f(c) = n
		return nil
	}}
}

// fraction is a share of records.
func fraction(name string, f func(*Config) *float64) key {
	show := func(c *Config) string { return strconv.FormatFloat(*f(c), 'g', -1, 64) }
	return key{name: name, field: func(c *Config) any { return f(c) }, show: show, scalar: func(c *Config, s string) error {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v > 0 && v <= 1) {
			return fmt.Errorf("%q is no share; write a number over 0 and up to 1, such as 0.1", s)
		}
		*f(c) = v
		return nil
	}}
}

// sizeUnits are the suffixes of a size, longest first.
var sizeUnits = []choice[int]{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"", 1}}

func size(name string, f func(*Config) *int, least, most int) key {
	return key{name: name, field: func(c *Config) any { return f(c) }, show: func(c *Config) string { return sizeText(*f(c)) }, scalar: func(c *Config, s string) error {
		for _, u := range sizeUnits {
			digits, ok := strings.CutSuffix(s, u.word)
			if !ok {
				continue
			}
			n, err := strconv.Atoi(strings.TrimSpace(digits))
			if err != nil {
				return fmt.Errorf("%q is not a size; write bytes or a number with KiB, MiB or GiB, such as 64MiB", s)
			}
			if n > most/u.is || n*u.is < least {
				return fmt.Errorf("%s is out of range; write %s to %s", s, sizeText(least), sizeText(most))
			}
			*f(c) = n * u.is
			return nil
		}
		return nil
	}}
}

// sizeText is n bytes in the largest unit that divides it.
func sizeText(n int) string {
	for _, u := range []choice[int]{sizeUnits[2], sizeUnits[1], sizeUnits[0]} {
		if n%u.is == 0 && n > 0 {
			return strconv.Itoa(n/u.is) + u.word
		}
	}
	return strconv.Itoa(n)
}

// anything is for values that the room they belong to checks, in settle.
func anything(string) error { return nil }

func checkSocket(s string) error {
	switch {
	case !filepath.IsAbs(s):
		return fmt.Errorf("%q is not an absolute path; write one such as /run/weft/weft.sock", s)
	case len(s) > 107: // sizeof(sockaddr_un.sun_path) less the NUL
		return fmt.Errorf("the path has %d bytes and a unix socket allows 107; write a shorter one", len(s))
	}
	return nil
}

func checkFileOrNone(s string) error {
	if s != "" && !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path; write one such as /etc/weft/kubeconfig, or leave the key out in a pod", s)
	}
	return nil
}

func checkKeyFile(s string) error {
	if s != "" && !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path; write one such as /etc/weft/redact.key", s)
	}
	return nil
}

func checkFolder(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path; write one such as /var/lib/cni/results", s)
	}
	return nil
}

// checkSpool is checkFolder, or none.
func checkSpool(s string) error {
	if s == "" {
		return nil
	}
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path; write one such as /var/lib/weft/spool", s)
	}
	return nil
}

func checkGroup(s string) error {
	if s == "" {
		return nil
	}
	if _, err := strconv.ParseUint(s, 10, 32); err == nil {
		return nil // a group id
	}
	if _, err := user.LookupGroup(s); err != nil {
		return fmt.Errorf("no group %q on this machine; add it with groupadd, or leave the key out for root alone", s)
	}
	return nil
}

func checkHTTP(s string) error {
	if s == "" || s == "off" {
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port; write one such as 127.0.0.1:9470, or off", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	return nil // port 0: the kernel chooses, and the log says which
}

func checkGlob(s string) error {
	if s == "" {
		return errors.New("an empty name matches no device; take it out")
	}
	if _, err := path.Match(s, ""); err != nil {
		return fmt.Errorf("%q is a malformed glob; write one such as eth* or veth[0-9]*", s)
	}
	if !strings.ContainsAny(s, `*?[\`) && (len(s) > 15 || strings.Contains(s, "/")) {
		return fmt.Errorf("%q cannot be a device: names have at most 15 bytes and no slash", s)
	}
	return nil
}

func checkNetns(s string) error {
	if s == "" {
		return errors.New("an empty name is no namespace; write a path, a name of `ip netns`, or all")
	}
	return nil
}
