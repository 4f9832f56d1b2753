// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxTerms bounds a filter: more terms are an error.
const MaxTerms = 256

// Term is one condition on a record in the form that flags, configuration and
// the API share: the flag --not --from-ip 10.0.0.0/8 is
// Term{Kind: "from-ip", Value: "10.0.0.0/8", Negate: true}.
type Term struct {
	Kind   string // a name of [FilterKinds]
	Value  string // as the kind spells it
	Negate bool   // records for which the condition holds are refused
}

// String is the term as flags: "--not --from-ip 10.0.0.0/8", "--retransmits=5".
func (t Term) String() string {
	space := " "
	if k, _ := kindOf(t.Kind); k != nil && k.bare != "" {
		space = "="
	}
	s := "--" + t.Kind + space + t.Value
	if t.Negate {
		return "--not " + s
	}
	return s
}

// Text is the term as configuration has it: "not from-ip 10.0.0.0/8",
// "retransmits 5". It is what [ParseTerm] reads.
func (t Term) Text() string {
	s := t.Kind + " " + t.Value
	if t.Negate {
		return "not " + s
	}
	return s
}

// ParseTerm reads a term as [Term.Text] writes it, or as flags: with dashes, with =
// before the value, and without a value where the kind has one for that. The error
// says what would be right.
func ParseTerm(text string) (Term, error) {
	var t Term
	rest := strings.TrimSpace(text)
	for _, not := range []string{"not ", "--not "} {
		if after, ok := strings.CutPrefix(rest, not); ok {
			t.Negate, rest = true, strings.TrimSpace(after)
			break
		}
	}
	rest = strings.TrimPrefix(rest, "--")
	end := strings.IndexAny(rest, " =")
	if end < 0 {
		end = len(rest)
	}
	t.Kind = rest[:end]
	if k, _ := kindOf(t.Kind); k != nil {
		if t.Value = k.bare; end < len(rest) {
			t.Value = strings.TrimSpace(rest[end+1:])
		}
		if t.Value == "" {
			return t, fmt.Errorf("filter %q: write it with its value: %s %s", t.Kind, t.Kind, k.value)
		}
	}
	value, _, err := parseTerm(t)
	if err == nil {
		t.Value = value
	}
	return t, err
}

// Filter chooses records. Terms of one kind are alternatives, kinds restrict
// each other, and each negated term refuses on its own:
//
//	--port 80 --port 443 --protocol tcp --not --ip 10.0.0.1
//
// is (port 80 or port 443) and TCP and not 10.0.0.1. The zero and the nil
// Filter match every record. A Filter is never written after [ParseFilter], so
// any number of goroutines may use it.
type Filter struct {
	terms  []Term
	groups [][]test // every group needs one test that holds
	refuse []test   // none of these may hold
}

// test is whether one condition holds for a record.
type test func(*Record) bool

// ParseFilter makes a filter of terms. The error names every term that is
// wrong and what would be right.
func ParseFilter(terms []Term) (*Filter, error) {
	if len(terms) > MaxTerms {
		return nil, fmt.Errorf("parse filter: %d terms, at most %d", len(terms), MaxTerms)
	}
	f := &Filter{}
	var errs []error
	group := map[string]int{}
	for _, t := range terms {
		value, holds, err := parseTerm(t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t.Value = value
		f.terms = append(f.terms, t)
		if t.Negate {
			f.refuse = append(f.refuse, holds)
			continue
		}
		if _, ok := group[t.Kind]; !ok {
			group[t.Kind] = len(f.groups)
			f.groups = append(f.groups, nil)
		}
		g := &f.groups[group[t.Kind]]
		*g = append(*g, holds)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return f, nil
}

// Match reports whether r passes. It does not allocate.
func (f *Filter) Match(r *Record) bool {
	if f == nil {
		return true
	}
	for _, g := range f.groups {
		if !slices.ContainsFunc(g, func(holds test) bool { return holds(r) }) {
			return false
		}
	}
	return !slices.ContainsFunc(f.refuse, func(holds test) bool { return holds(r) })
}

// Terms are the terms f was made of, in their order, values in one canonical
// spelling: ParseFilter(f.Terms()) is f again.
func (f *Filter) Terms() []Term {
	if f == nil {
		return nil
	}
	return slices.Clone(f.terms)
}

// String is the filter as flags; empty when it matches all.
func (f *Filter) String() string {
	var s []string
	for _, t := range f.Terms() {
		s = append(s, t.String())
	}
	return strings.Join(s, " ")
}

// parseTerm finds t's kind and returns its value's canonical spelling and test.
func parseTerm(t Term) (string, test, error) {
	k, side := kindOf(t.Kind)
	if k == nil {
		return "", nil, fmt.Errorf("filter %q: no such filter; there are %s", t.Kind, strings.Join(kindNames(), ", "))
	}
	if k.record != nil {
		value, holds, err := k.record(t.Value)
		if err != nil {
			return "", nil, fmt.Errorf("filter %s %q: %w", t.Kind, t.Value, err)
		}
		return value, holds, nil
	}
	value, end, err := k.end(t.Value)
	if err != nil {
		return "", nil, fmt.Errorf("filter %s %q: %w", t.Kind, t.Value, err)
	}
	switch side {
	case "from":
		return value, func(r *Record) bool { return end(r, true) }, nil
	case "to":
		return value, func(r *Record) bool { return end(r, false) }, nil
	}
	return value, func(r *Record) bool { return end(r, true) || end(r, false) }, nil
}
