// SPDX-License-Identifier: Apache-2.0

package exporter

import "weft/flows"

// Reasons for records that a sink left out as it was told to.
const (
	leftFiltered = "filtered"
	leftSampled  = "sampled_out"
)

// Intake is what a sink takes of the records that it is offered. The zero value
// takes all of them as they are. What is left out is in the sink's account, by the
// reasons filtered and sampled_out.
type Intake struct {
	Filter *flows.Filter // nil: every record
	Sample Sample
	Redact *Redactor // nil: nothing is changed; of this sink alone
}

// choose is what is taken of records, and how many the filter and the sampling left
// out. What is taken is records itself, which it does not write to, or a slice of
// its own.
func (in *Intake) choose(records []flows.Record) (taken []flows.Record, filtered, sampled uint64) {
	if in.Filter == nil && !in.Sample.on() {
		return records, 0, 0
	}
	whole := true // so far, taken is the beginning of records
	for i := range records {
		r := &records[i]
		fits := in.Filter.Match(r)
		keep, rate := fits, 0.0
		if fits {
			keep, rate = in.Sample.keeps(r)
		}
		switch {
		case keep && rate == r.SamplingRate && whole:
			taken = records[:i+1]
			continue
		case whole:
			taken = append([]flows.Record(nil), records[:i]...) // a slice of its own
			whole = false
		}
		switch {
		case !fits:
			filtered++
		case !keep:
			sampled++
		default:
			taken = append(taken, *r)
			taken[len(taken)-1].SamplingRate = rate
		}
	}
	return taken, filtered, sampled
}
