// SPDX-License-Identifier: Apache-2.0

package flows

import "testing"

func TestEverySkipReasonHasItsOwnName(t *testing.T) {
	reasons := map[string]SkipReason{}
	for r := range NumSkip {
		name := r.String()
		if other, taken := reasons[name]; taken {
			t.Errorf("reasons %d and %d are both called %q", other, r, name)
		}
		if reasons[name] = r; name == "" || name == NumSkip.String() {
			t.Errorf("reason %d is called %q, want a name of its own", r, name)
		}
	}
}
