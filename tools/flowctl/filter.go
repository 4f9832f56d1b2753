// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"weft/flows"
)

// terms collects the filter flags in the order they were written, because
// --not negates the one that follows it.
type terms struct {
	list []flows.Term
	not  bool // --not was read and waits for its filter
}

// addTo defines every kind of filter, and --not, as flags. All are repeatable.
func (t *terms) addTo(fs *pflag.FlagSet) {
	fs.Var(notFlag{t}, "not", "negate the next filter")
	fs.Lookup("not").NoOptDefVal = "true"
	for _, k := range flows.FilterKinds() {
		fs.Var(termFlag{t, k}, k.Name, k.Help)
		fs.Lookup(k.Name).NoOptDefVal = k.Bare
	}
}

// filter is the collected terms, checked.
func (t *terms) filter() ([]flows.Term, error) {
	if t.not {
		return nil, errors.New("--not negates the filter that follows it, and none does")
	}
	var errs []error
	for _, term := range t.list {
		if _, err := flows.ParseFilter([]flows.Term{term}); err != nil {
			cause := strings.TrimPrefix(err.Error(), fmt.Sprintf("filter %s %q: ", term.Kind, term.Value))
			errs = append(errs, fmt.Errorf("--%s %q: %s", term.Kind, term.Value, cause))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	_, err := flows.ParseFilter(t.list)
	return t.list, err
}

// termFlag is one filter flag; every use of it adds a term.
type termFlag struct {
	to   *terms
	kind flows.FilterKind
}

func (f termFlag) Set(value string) error {
	f.to.list = append(f.to.list, flows.Term{Kind: f.kind.Name, Value: value, Negate: f.to.not})
	f.to.not = false
	return nil
}

func (f termFlag) Type() string { return f.kind.Value }
func (termFlag) String() string { return "" }

// notFlag is --not.
type notFlag struct{ to *terms }

func (f notFlag) Set(value string) error {
	if value != "true" { // what pflag makes of --not alone
		return errors.New("it takes no value")
	}
	if f.to.not {
		return errors.New("it is there twice before one filter")
	}
	f.to.not = true
	return nil
}

func (notFlag) Type() string     { return "bool" } // so that help shows no value
func (notFlag) String() string   { return "" }
func (notFlag) IsBoolFlag() bool { return true }
