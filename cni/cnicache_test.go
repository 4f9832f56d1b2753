// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// As containerd 2.4 and the plugins of Debian 12 leave it: netns null, the sandbox
// in the interfaces.
const cachedResult = `{"kind":"cniCacheV1","containerId":"c1d2","config":"e30=","ifName":"eth0","networkName":"podnet",
"netns":null,"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-1"],["K8S_POD_INFRA_CONTAINER_ID","c1d2"],["K8S_POD_UID","u-1"]],
"result":{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01"},{"name":"veth1","mac":"02:00:00:00:00:02"},
{"name":"eth0","mac":"02:00:00:00:00:03","sandbox":"/var/run/netns/cni-1"}],"ips":[{"address":"10.88.0.7/16","gateway":"10.88.0.1","interface":2},{"address":"fd00::7/64"}]}}`

func TestCachedResultAndLeaseSayWhoHasTheAddress(t *testing.T) {
	dir := t.TempDir()
	c := &cniFiles{results: filepath.Join(dir, "results"), leases: filepath.Join(dir, "networks")}
	if _, err := c.list(); !errors.Is(err, errAbsent) {
		t.Errorf("without the directories: got %v, want %v", err, errAbsent)
	}
	write := func(text string, path ...string) {
		t.Helper()
		file := filepath.Join(append([]string{dir}, path...)...)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(cachedResult, "results", "podnet-c1d2-eth0")
	write("c3\r\neth0", "networks", "podnet", "10.88.0.9")
	write("10.88.0.9", "networks", "podnet", "last_reserved_ip.0")
	write("", "networks", "podnet", "lock")
	all, err := c.list()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b *attachment) int { return strings.Compare(a.ContainerID, b.ContainerID) })
	if len(all) != 2 {
		t.Fatalf("got %d attachments, want 2", len(all))
	}
	if a := all[0]; a.ContainerID != "c1d2" || a.Pod != "web-1" || a.Namespace != "shop" || a.PodUID != "u-1" || a.Sandbox != "/var/run/netns/cni-1" ||
		!slices.Equal(a.Addrs, []netip.Addr{addrOf("10.88.0.7"), addrOf("fd00::7")}) {
		t.Errorf("cached result: got %+v", a)
	}
	if a := all[1]; a.ContainerID != "c3" || a.Interface != "eth0" || !slices.Equal(a.Addrs, []netip.Addr{addrOf("10.88.0.9")}) {
		t.Errorf("lease: got %+v", a)
	}
	lease, name := filepath.Join(dir, "networks", "podnet", "10.88.0.10"), "10.88.0.10"
	write("", "networks", "podnet", name)
	before, err := os.Stat(lease)
	if err != nil {
		t.Fatal(err)
	}
	if all, err = c.list(); len(all) != 2 || err != nil {
		t.Errorf("with an empty lease: got %d attachments and error %v, want 2 and none", len(all), err)
	}
	write("c4\r\neth0", "networks", "podnet", name) // as host-local does it, in the same tick of the file system's clock
	if err := os.Chtimes(lease, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if all, err = c.list(); len(all) != 3 || err != nil {
		t.Errorf("with the lease written: got %d attachments and error %v, want 3 and none", len(all), err)
	}
	os.Remove(lease)
	write(`{"kind":"cniCacheV1","conta`, "results", "half")
	all, err = c.list()
	if len(all) != 2 || err == nil {
		t.Errorf("with a half-written file: got %d attachments and error %v, want 2 and an error", len(all), err)
	}
	os.Remove(filepath.Join(dir, "results", "half"))
	os.Remove(filepath.Join(dir, "networks", "podnet", "10.88.0.9"))
	if all, err = c.list(); len(all) != 1 || err != nil {
		t.Errorf("after both are gone: got %d attachments and error %v, want 1 and none", len(all), err)
	}
}

func FuzzReadCache(f *testing.F) {
	f.Add([]byte(cachedResult))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := readCache(text)
		if err == nil && (a.ContainerID == "" || len(a.Pod) > maxName || len(a.Addrs) > maxAddresses) {
			t.Errorf("got %+v", a)
		}
	})
}
