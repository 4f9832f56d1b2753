// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"sync/atomic"

	"weft/flows"
)

// audit is the agent's own check that the ledger balances: a line when that
// changes, and a count of the ledgers that did not.
type audit struct {
	broken bool // the last one did not; the drain goroutine's
	failed atomic.Uint64
}

func (a *audit) check(l *flows.Ledger, log *slog.Logger) {
	err := l.Check()
	switch {
	case err != nil && !a.broken:
		log.Error("ledger does not balance", "err", err)
	case err == nil && a.broken:
		log.Info("ledger balances again", "unbalanced", a.failed.Load())
	}
	if a.broken = err != nil; a.broken {
		a.failed.Add(1)
	}
}
