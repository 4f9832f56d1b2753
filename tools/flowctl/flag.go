// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"
)

// flagError is err with the flag, the value and what is accepted.
func flagError(err error) error {
	var value *pflag.InvalidValueError
	var none *pflag.ValueRequiredError
	switch {
	case errors.As(err, &value) && value.GetFlag().Value.Type() == "bool" && value.GetFlag().Name != "not":
		return fmt.Errorf("--%s %q: want true, false or no value", value.GetFlag().Name, value.GetValue())
	case errors.As(err, &value):
		return fmt.Errorf("--%s %q: %w", value.GetFlag().Name, value.GetValue(), errors.Unwrap(value))
	case errors.As(err, &none):
		kind, what := pflag.UnquoteUsage(none.GetFlag())
		return fmt.Errorf("--%s needs a value: %s: %s", none.GetFlag().Name, kind, what)
	}
	return err
}

// whole is a flag that takes a whole number from 0.
type whole struct{ to *int }

func (w whole) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return errors.New("want a whole number from 0 to 2147483647")
	}
	*w.to = int(n)
	return nil
}

func (whole) Type() string     { return "number" }
func (w whole) String() string { return strconv.Itoa(*w.to) }

// span is a flag that takes a time that is not negative.
type span struct{ to *time.Duration }

func (p span) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("want a time that is not negative, such as 500ms, 90s, 5m or 2h")
	}
	*p.to = d
	return nil
}

func (span) Type() string { return "time" }
func (p span) String() string {
	if *p.to == 0 {
		return "0" // a default that help need not show
	}
	return p.to.String()
}
