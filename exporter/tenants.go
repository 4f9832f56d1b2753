// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"weft/exporter/api"
	"weft/flows"
)

// Reasons for records that went on from a [Tenants].
const (
	leftRouted   = "routed"
	leftNoTenant = "no_tenant"
)

// Tenant is one of those whose records go to a sink of their own.
type Tenant struct {
	Match *flows.Filter // which records are the tenant's
	Sink  flows.Sink
}

// Tenants is a sink that gives each record to the sinks of all tenants that it
// belongs to: a record has two ends. What belongs to none goes to another sink, or is
// left out as no_tenant. It hands nothing on but records, and waits for nothing: each
// of the sinks has a queue. In its own account all that went on is left out as
// routed; the accounts of the sinks say what became of it.
type Tenants struct {
	intake  Intake
	tenants []Tenant
	other   flows.Sink
	placed  []bool // of each record at hand: a tenant has it

	mu      sync.Mutex
	account flows.SinkAccount
}

// NewTenants routes what in takes. A nil other: none. The sinks stay the caller's.
func NewTenants(name string, in Intake, tenants []Tenant, other flows.Sink) *Tenants {
	return &Tenants{
		intake: in, tenants: tenants, other: other,
		account: flows.SinkAccount{Name: name, Lost: map[string]uint64{}, LeftOut: map[string]uint64{}},
	}
}

// Name is the one it was given.
func (t *Tenants) Name() string { return t.account.Name }

// Export routes w's records. The error joins those of the sinks.
func (t *Tenants) Export(ctx context.Context, w flows.Window) error {
	if len(w.Records) == 0 {
		return nil
	}
	records, filtered, sampled := t.intake.choose(w.Records)
	t.placed = append(t.placed[:0], make([]bool, len(records))...)
	var errs []error
	for _, tenant := range t.tenants {
		var mine []flows.Record
		for i := range records {
			if tenant.Match.Match(&records[i]) {
				mine, t.placed[i] = append(mine, records[i]), true
			}
		}
		errs = append(errs, give(ctx, tenant.Sink, w, mine))
	}
	var rest []flows.Record
	for i := range records {
		if !t.placed[i] {
			rest = append(rest, records[i])
		}
	}
	lonely := uint64(len(rest))
	if t.other != nil {
		errs = append(errs, give(ctx, t.other, w, rest))
		lonely = 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.account.Offered += uint64(len(w.Records))
	for reason, n := range map[string]uint64{
		leftFiltered: filtered, leftSampled: sampled, leftNoTenant: lonely, leftRouted: uint64(len(records)) - lonely,
	} {
		if n > 0 {
			t.account.LeftOut[reason] += n
		}
	}
	return errors.Join(errs...)
}

// give hands records of w, and nothing else of it, to a sink.
func give(ctx context.Context, to flows.Sink, w flows.Window, records []flows.Record) error {
	if len(records) == 0 {
		return nil
	}
	if err := to.Export(ctx, flows.Window{End: w.End, Records: records}); err != nil {
		return fmt.Errorf("%s: %w", to.Name(), err)
	}
	return nil
}

// Account says how many records were routed and how many belong to no tenant.
func (t *Tenants) Account() flows.SinkAccount {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cloneAccount(t.account)
}

// Status is the sink for `flowctl status`.
func (t *Tenants) Status() *api.SinkStatus {
	return &api.SinkStatus{Account: AccountToWire(t.Account()), Target: fmt.Sprintf("%d tenants", len(t.tenants)), State: stateOK}
}

// Close does nothing: no record waits here.
func (t *Tenants) Close(context.Context) error { return nil }
