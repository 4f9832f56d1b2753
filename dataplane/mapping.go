// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
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

func (m *mapping[T]) close() error {
	if m.mem == nil {
		return nil
	}
	err := unix.Munmap(m.mem)
	m.v, m.mem = nil, nil
	return err
}
