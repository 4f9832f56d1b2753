// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"slices"
	"testing"
)

// readLate tells nothing until it has read what came.
type readLate struct {
	tracking
	late  bool
	asked []int64 // of Late: nanoseconds within a second
}

func (r *readLate) Translation(s Scope, k Key, first, last int64, opens bool) (Translation, bool) {
	if r.late {
		return Translation{}, false
	}
	return r.tracking.Translation(s, k, first, last, opens)
}

func (r *readLate) Late(at int64) bool {
	r.asked = append(r.asked, at%1e9)
	return r.late
}

func TestARecordWaitsForWhatTrackingHasNotToldYet(t *testing.T) {
	for _, proto := range []uint8{ProtoUDP, ProtoTCP} {
		to := serviced(proto)
		late := &readLate{tracking: tracking{to}, late: true}
		k := newKernel(t, TableOptions{Translations: late})
		k.drain(1, flow(podIn, to.Opened, 4, 0.5), flow(eth0Out, to.Sent, 4, 0.51))
		if w := k.drain(17); len(w) != 0 {
			t.Fatalf("%s: got %d records before it is read, want none", ProtoName(proto), len(w))
		}
		late.late = false
		r := k.one(k.drain(18))
		if r.NAT == nil || r.Packets != 4 || r.EndReason != EndIdleTimeout {
			t.Errorf("%s: got %+v, want one record of both views", ProtoName(proto), r)
		}
	}
}

func TestARecordWaitsNoLongerThanThat(t *testing.T) {
	to := serviced(ProtoUDP)
	late := &readLate{tracking: tracking{to}, late: true}
	k := newKernel(t, TableOptions{Translations: late})
	k.drain(1, flow(podIn, to.Opened, 4, 0.5), flow(eth0Out, to.Sent, 4, 0.51))
	for _, s := range []float64{16, 18.9} {
		if w := k.drain(s); len(w) != 0 {
			t.Fatalf("after %v s: got %d records, want none", s, len(w))
		}
	}
	if w := k.drain(19.1); len(w) != 2 {
		t.Errorf("three seconds after it was due: got %d records, want both views", len(w))
	}
	if !slices.Contains(late.asked, 510_000_000) {
		t.Errorf("asked for %v ns, want the last packet's 510 ms among them", late.asked)
	}
}

func TestWhatGoesOnWaitsToo(t *testing.T) {
	to := serviced(ProtoUDP)
	late := &readLate{tracking: tracking{to}, late: true}
	k := newKernel(t, TableOptions{Translations: late})
	n := uint64(0)
	for s := 1.0; s <= 62; s++ {
		n += 2
		if w := k.drain(s, flow(podIn, to.Opened, n, s-0.5), flow(eth0Out, to.Sent, n, s-0.49)); len(w) != 0 {
			t.Fatalf("after %v s: got %d records, want none", s, len(w))
		}
	}
	late.late = false
	if r := k.one(k.drain(63)); r.NAT == nil || r.EndReason != EndActiveTimeout {
		t.Errorf("got %+v, want one record of both views", r)
	}
}
