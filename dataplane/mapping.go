// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapping is an array map's memory, shared with the kernel. T has the layout of
// the map's value.
type mapping[T any] struct {
	v   []T
	mem []byte
}

// mapArray maps the values of a BPF_F_MMAPABLE array.
func mapArray[T any](m *ebpf.Map, prot int) (mapping[T], error) {
	var zero T
	n := int(m.MaxEntries())
	if int(m.ValueSize()) != int(unsafe.Sizeof(zero)) {
		return mapping[T]{}, fmt.Errorf("map array %s: values have %d bytes, want %d", m, m.ValueSize(), unsafe.Sizeof(zero))
	}
	page := unix.Getpagesize()
	size := (n*int(unsafe.Sizeof(zero)) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, prot, unix.MAP_SHARED)
	if err != nil {
		return mapping[T]{}, fmt.Errorf("map array %s (%d bytes): %w", m, size, err)
	}
	return mapping[T]{v: unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), n), mem: mem}, nil
}

// lazyMapping is an array map's memory, of which each part is mapped when it is first
// read: what is mapped counts as the agent's own, used or not. T divides the map's
// value.
type lazyMapping[T any] struct {
	m     *ebpf.Map
	parts []mapping[T] // of lazyPart values of T each, the last may have fewer
	n     int
	err   error // of the first part that could not be mapped; its values read as zero
	none  T
}

// lazyPart is a multiple of the page size for every T of 16 bytes or more.
const lazyPart = 4096

// mapLazily prepares the n values of T in m.
func mapLazily[T any](m *ebpf.Map, n int) lazyMapping[T] {
	return lazyMapping[T]{m: m, parts: make([]mapping[T], (n+lazyPart-1)/lazyPart), n: n}
}

// at is value i, or, with err set, a zero.
func (l *lazyMapping[T]) at(i int) *T {
	p := &l.parts[i/lazyPart]
	if p.mem == nil {
		if err := l.mapPart(i / lazyPart); err != nil {
			l.err = cmp.Or(l.err, err)
			return &l.none
		}
	}
	return &p.v[i%lazyPart]
}

func (l *lazyMapping[T]) mapPart(part int) error {
	var zero T
	size, page := int(unsafe.Sizeof(zero)), unix.Getpagesize()
	n := min(lazyPart, l.n-part*lazyPart)
	bytes := (n*size + page - 1) / page * page
	mem, err := unix.Mmap(l.m.FD(), int64(part*lazyPart*size), bytes, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a part of array %s (%d bytes): %w", l.m, bytes, err)
	}
	l.parts[part] = mapping[T]{v: unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), n), mem: mem}
	return nil
}

func (l *lazyMapping[T]) close() error {
	var errs []error
	for i := range l.parts {
		errs = append(errs, l.parts[i].close())
	}
	return errors.Join(errs...)
}

func (m *mapping[T]) close() error {
	if m.mem == nil {
		return nil
	}
	err := unix.Munmap(m.mem)
	m.v, m.mem = nil, nil
	return err
}
