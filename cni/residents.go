// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"time"

	"weft/flows"
)

// resident is who was last told to be in a namespace.
type resident struct {
	who    *flows.Entity
	inside map[string]time.Time // as inhabitants
	at     time.Time
	since  map[spot]int64 // of each address; 0: always
}

// inhabitants are the containers and the sandbox in a namespace, by id, and since when.
func inhabitants(s *Space) map[string]time.Time {
	in := map[string]time.Time{}
	for i := range s.Containers {
		in[s.Containers[i].ID] = s.Containers[i].Since
	}
	if s.Entity.Sandbox != "" && !s.guestSince.IsZero() {
		in[s.Entity.Sandbox] = s.guestSince
	}
	return in
}

// handedOver is since when others are in s than were in it; 0: they are the same, or
// were not known. Who was there at the last look stayed until then at least.
func (r *resident) handedOver(s *Space, at time.Time) int64 {
	now := inhabitants(s)
	was, last := r.inside, r.at
	r.inside, r.at = now, at
	since, same := at, len(was) == len(now)
	for id, began := range now {
		if _, there := was[id]; !there {
			same = false
			if began.Before(since) {
				since = began
			}
		}
	}
	if same || len(was) == 0 {
		return 0
	}
	if since.Before(last) {
		since = last
	}
	return since.UnixNano()
}
