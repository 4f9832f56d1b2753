// SPDX-License-Identifier: Apache-2.0

package flows

// A slab keeps values of T by index in chunks that never move, so that it grows
// without copying and a pointer-free T costs the collector nothing. Index 0 is
// no value. It never shrinks: whoever takes from it sets the bound.
type slab[T any] struct {
	chunks []*[slabChunk]T
	free   []uint32 // indexes given back, last one first
	end    uint32   // one more than the highest index ever taken; 0 before the first
}

const slabChunk = 1 << 10

// at is the value with index i, which take has returned.
func (s *slab[T]) at(i uint32) *T { return &s.chunks[i/slabChunk][i%slabChunk] }

// take returns the index of a zero value.
func (s *slab[T]) take() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	s.end = max(s.end, 1)
	if int(s.end/slabChunk) == len(s.chunks) {
		s.chunks = append(s.chunks, new([slabChunk]T))
	}
	s.end++
	return s.end - 1
}

// give takes the value with index i back.
func (s *slab[T]) give(i uint32) {
	var zero T
	*s.at(i) = zero
	s.free = append(s.free, i)
}

// taken is the number of values in use.
func (s *slab[T]) taken() int { return int(max(s.end, 1)) - 1 - len(s.free) }
