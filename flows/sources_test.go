// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"strings"
	"testing"
)

// What was counted by one drain must be found by the next one.
func TestSourcesAreInTheLedger(t *testing.T) {
	for _, c := range []struct {
		name  string
		first DropAccount
		then  DropAccount
		want  SourceAccount
	}{
		{"found", DropAccount{Before: 10, Seen: 12, Drained: 10}, DropAccount{Before: 20, Seen: 21, Drained: 18, Lost: 2, Missed: 6},
			SourceAccount{Name: "drops", Seen: 21, Drained: 18, Lost: 2, Pending: 1, Missed: 6}},
		{"forgotten", DropAccount{Before: 10, Seen: 10, Drained: 10}, DropAccount{Before: 10, Seen: 10, Drained: 7},
			SourceAccount{Name: "drops", Seen: 10, Drained: 7, Unaccounted: 3}},
		{"counted twice", DropAccount{Before: 1, Seen: 1, Drained: 1}, DropAccount{Before: 5, Seen: 5, Drained: 6},
			SourceAccount{Name: "drops", Seen: 5, Drained: 6, Unaccounted: -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := NewTable(TableOptions{})
			table.Fold(Batch{At: second(0), Final: true, Seen: Account{Drops: c.first}})
			w, _ := table.Fold(Batch{At: second(1), Final: true, Seen: Account{Drops: c.then}})
			if len(w.Ledger.Sources) != 1 || w.Ledger.Sources[0] != c.want {
				t.Errorf("got %+v, want %+v", w.Ledger.Sources, c.want)
			}
			if err := w.Ledger.Check(); (err != nil) != (c.want.Unaccounted != 0) || err != nil && !strings.Contains(err.Error(), "drops") {
				t.Errorf("check: got %v", err)
			}
		})
	}
}
