// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMemoryIsWhatTheKernelCharges holds the sizes of Status, which keep the bound,
// against the kernel's own account of every map that an agent with all options has.
// An entry of a hash costs 64 bytes beside its key and value: 48 and its bucket.
func TestMemoryIsWhatTheKernelCharges(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) { memoryIsCharged(t, b) })
	}
}

func memoryIsCharged(t *testing.T, b Backend) {
	nsHost(t)
	before := mapsCharged(t)
	a := nsStart(t, Options{Backend: b, TCP: true, Drops: true, DNS: true, Sockets: true})
	var charged, stated uint64
	for id, m := range mapsCharged(t) {
		if _, was := before[id]; !was {
			charged += m.bytes
			t.Logf("%s: %d KiB", m.what, m.bytes>>10)
		}
	}
	for _, m := range a.d.Status().Memory {
		if m.Name != "programs" {
			stated += m.Bytes
			t.Logf("stated %s: %d KiB", m.Name, m.Bytes>>10)
		}
	}
	t.Logf("charged %d KiB, stated %d KiB", charged>>10, stated>>10)
	if charged == 0 || charged > stated || charged > defaultMaxMemory {
		t.Errorf("got %d bytes of maps, want at most the %d that Status states, and the bound of %d", charged, stated, defaultMaxMemory)
	}
}

type chargedMap struct {
	what  string
	bytes uint64
}

// mapsCharged is every map that this process has open, by id.
func mapsCharged(t *testing.T) map[uint32]chargedMap {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	maps := map[uint32]chargedMap{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(text), "\nmap_type:") {
			continue // closed meanwhile, or no map
		}
		var id, kind, entries uint32
		var bytes uint64
		for line := range strings.Lines(string(text)) {
			for name, to := range map[string]any{"map_id:": &id, "map_type:": &kind, "max_entries:": &entries, "memlock:": &bytes} {
				if value, ok := strings.CutPrefix(line, name); ok {
					if _, err := fmt.Sscan(value, to); err != nil {
						t.Fatalf("%s: %q: %v", f, line, err)
					}
				}
			}
		}
		maps[id] = chargedMap{fmt.Sprintf("map %d of type %d, %d entries", id, kind, entries), bytes}
	}
	return maps
}
