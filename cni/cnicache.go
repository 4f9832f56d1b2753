// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Where libcni and the host-local plugin keep what they did, unless told otherwise.
const (
	DefaultResults = "/var/lib/cni/results"
	DefaultLeases  = "/var/lib/cni/networks"
)

// Bounds of what is read of those directories. What is over is not read, and the
// status says so.
const (
	maxCNIFiles = 16384
	maxCNIFile  = 1 << 20 // bytes
)

// attachment is one container's attachment to one network, as libcni or an IPAM
// plugin wrote it down.
type attachment struct {
	ContainerID, Network, Interface string
	Plugin                          string // that the network's configuration begins with; empty: not told
	Sandbox                         string // path of its network namespace; empty: not told
	Addrs                           []netip.Addr
	Pod, Namespace, PodUID          string // that Kubernetes gave as arguments
	Since                           time.Time
}

// cacheEntry is what of a cached result is read. containerd leaves netns null; the
// interfaces of the result name it.
type cacheEntry struct {
	Kind, ContainerID, IfName, NetworkName, NetNS string
	Config                                        []byte // of the network: JSON, in base64
	CNIArgs                                       [][]string
	Result                                        struct {
		Interfaces []struct{ Name, Sandbox string }
		IPs        []struct{ Address string }
		IP4, IP6   struct{ IP string } // of CNI 0.2
	}
}

// readCache reads one cached result.
func readCache(text []byte) (attachment, error) {
	var e cacheEntry
	if err := json.Unmarshal(text, &e); err != nil {
		return attachment{}, err
	}
	if e.Kind != "cniCacheV1" || e.ContainerID == "" {
		return attachment{}, fmt.Errorf("kind %.20q is not cniCacheV1, or it names no container", e.Kind)
	}
	a := attachment{ContainerID: bounded(e.ContainerID), Network: bounded(e.NetworkName), Interface: bounded(e.IfName), Sandbox: e.NetNS, Plugin: pluginType(e.Config)}
	for _, i := range e.Result.Interfaces {
		if i.Sandbox != "" && (a.Sandbox == "" || i.Name == e.IfName) {
			a.Sandbox = i.Sandbox
		}
	}
	for _, i := range e.Result.IPs {
		a.take(i.Address)
	}
	a.take(e.Result.IP4.IP)
	a.take(e.Result.IP6.IP)
	for _, arg := range e.CNIArgs {
		if len(arg) != 2 {
			continue
		}
		switch v := bounded(arg[1]); arg[0] {
		case "K8S_POD_NAME":
			a.Pod = v
		case "K8S_POD_NAMESPACE":
			a.Namespace = v
		case "K8S_POD_UID":
			a.PodUID = v
		}
	}
	return a, nil
}

func (a *attachment) take(prefix string) {
	if p, err := netip.ParsePrefix(prefix); err == nil && len(a.Addrs) < maxAddresses {
		a.Addrs = append(a.Addrs, p.Addr().Unmap())
	}
}

// cniFiles reads what is in the directories, and only what changed since.
type cniFiles struct {
	results, leases string
	health
	count atomic.Int64       // attachments that were last read
	read  map[string]cniFile // by path
}

type cniFile struct {
	as   os.FileInfo // when it was read
	said *attachment
}

// list is every attachment there is on disk. The error is of what could not be
// read; errAbsent: neither directory is there.
func (c *cniFiles) list() ([]*attachment, error) {
	next := map[string]cniFile{}
	_, errResults := os.Stat(c.results)
	_, errLeases := os.Stat(c.leases)
	if errors.Is(errResults, os.ErrNotExist) && errors.Is(errLeases, os.ErrNotExist) {
		c.read = next
		return nil, errAbsent
	}
	err := errors.Join(
		c.folder(c.results, next, func(_ string, text []byte) (attachment, error) { return readCache(text) }),
		c.networks(next))
	c.read = next
	var all []*attachment
	for _, f := range next {
		if f.said != nil {
			all = append(all, f.said)
		}
	}
	return all, err
}

// networks reads the leases: one folder for each network.
func (c *cniFiles) networks(next map[string]cniFile) error {
	nets, err := os.ReadDir(c.leases)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, n := range nets {
		if n.IsDir() {
			errs = append(errs, c.folder(filepath.Join(c.leases, n.Name()), next, func(name string, text []byte) (attachment, error) {
				return readLease(n.Name(), name, text)
			}))
		}
	}
	return errors.Join(errs...)
}

// readLease reads one lease: the file's name is the address, its first line the
// container, its second the device. What else lies there is no error: nil.
func readLease(network, name string, text []byte) (attachment, error) {
	address, err := netip.ParseAddr(name)
	if err != nil {
		return attachment{}, errNoLease
	}
	id, device, _ := strings.Cut(string(text), "\n")
	a := attachment{ContainerID: bounded(strings.TrimSpace(id)), Network: bounded(network), Interface: bounded(strings.TrimSpace(device)), Addrs: []netip.Addr{address.Unmap()}}
	if a.ContainerID == "" {
		return attachment{}, errNoLease
	}
	return a, nil
}

var errNoLease = errors.New("no lease")

// folder reads the files of dir that changed since they were last read. One that
// goes, or is half written, is read the next time.
func (c *cniFiles) folder(dir string, next map[string]cniFile, parse func(name string, text []byte) (attachment, error)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if len(next) >= maxCNIFiles {
			return errors.Join(append(errs, fmt.Errorf("read %s: more than %d files", dir, maxCNIFiles))...)
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > maxCNIFile {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if was, ok := c.read[path]; ok && same(was.as, info) {
			next[path] = was
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		a, err := parse(e.Name(), text)
		switch {
		case errors.Is(err, errNoLease):
			next[path] = cniFile{info, nil}
		case err != nil:
			errs = append(errs, fmt.Errorf("read %s: %w", path, err))
		default:
			a.Since = info.ModTime()
			next[path] = cniFile{info, &a}
		}
	}
	return errors.Join(errs...)
}
