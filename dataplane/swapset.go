// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// swapSet is two hash maps, one of which the programs fill while the other is
// drained. The swap waits until no program uses the set that was taken out (the
// kernel does, for maps in maps), so nothing is lost. K and V have the layouts of
// the maps' keys and values.
type swapSet[K, V any] struct {
	name    string
	outer   *ebpf.Map // outer[at] is the set that the programs fill
	at      uint32
	sets    [2]*ebpf.Map // sets[filling] is in outer
	filling int
	keys    []K
	values  []V
}

// openSwapSet makes both sets as spec says and puts one in place. chunk entries
// are read at a time.
func openSwapSet[K, V any](name string, outer *ebpf.Map, at uint32, spec *ebpf.MapSpec, chunk int) (*swapSet[K, V], error) {
	s := &swapSet[K, V]{name: name, outer: outer, at: at, keys: make([]K, chunk), values: make([]V, chunk)}
	for i := range s.sets {
		var err error
		if s.sets[i], err = ebpf.NewMap(spec); err != nil {
			return nil, errors.Join(fmt.Errorf("create %s set (%d entries): %w", name, spec.MaxEntries, err), s.close())
		}
	}
	if err := outer.Put(at, s.sets[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("put the %s set in place: %w", name, err), s.close())
	}
	return s, nil
}

// drain swaps the sets, calls emit for every entry of the one taken out, and
// empties it. It returns the number of entries.
func (s *swapSet[K, V]) drain(emit func(*K, *V)) (entries int, err error) {
	full := s.sets[s.filling]
	if err := s.outer.Put(s.at, s.sets[s.filling^1]); err != nil {
		return 0, fmt.Errorf("swap the %s set: %w", s.name, err)
	}
	s.filling ^= 1
	var cursor ebpf.MapBatchCursor
	for {
		n, err := full.BatchLookup(&cursor, s.keys, s.values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return entries, fmt.Errorf("read the %s set: %w", s.name, err)
		}
		for i := range n {
			emit(&s.keys[i], &s.values[i])
		}
		entries += n
		if err != nil {
			return entries, s.clear(full)
		}
	}
}

// clear empties a set that no program uses.
func (s *swapSet[K, V]) clear(set *ebpf.Map) error {
	for {
		var cursor ebpf.MapBatchCursor
		n, err := set.BatchLookup(&cursor, s.keys, s.values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty the %s set: %w", s.name, err)
		}
		if n == 0 {
			return nil
		}
		if _, err := set.BatchDelete(s.keys[:n], nil); err != nil {
			return fmt.Errorf("empty the %s set: %w", s.name, err)
		}
	}
}

func (s *swapSet[K, V]) close() error {
	var errs []error
	for _, m := range s.sets {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
