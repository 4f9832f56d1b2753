// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"weft/exporter"
)

var nameTreatments = []choice[exporter.Treatment]{{"keep", exporter.Keep}, {"drop", exporter.Drop}, {"hash", exporter.Hash}}

// redactKeys are the settings of what a sink redacts, one a field.
func (s *sinkConfig) redactKeys() []key {
	prefix := s.key + ".redact."
	all := []key{
		text(prefix+"key", func(*Config) *string { return &s.redact.Key }, checkKeyFile),
		number(prefix+"ipv4", func(*Config) *int { return &s.redact.IPv4 }, 0, 32),
		number(prefix+"ipv6", func(*Config) *int { return &s.redact.IPv6 }, 0, 128),
		word(prefix+"names", func(*Config) *exporter.Treatment { return &s.names }, nameTreatments...),
	}
	for f := range exporter.NumRedactFields {
		choices := nameTreatments
		if f == exporter.RedactAddress {
			choices = append(choices[:len(choices):len(choices)], choice[exporter.Treatment]{"truncate", exporter.Truncate})
		}
		all = append(all, word(prefix+f.String(), func(*Config) *exporter.Treatment { return &s.redact.Fields[f] }, choices...))
	}
	return all
}

// settleRedact applies names to the fields that c does not give, and makes the redactor.
func (s *sinkConfig) settleRedact(c *Config) (err error) {
	prefix := s.key + ".redact."
	for f := range exporter.NumRedactFields {
		if f != exporter.RedactAddress && !c.given(prefix+f.String()) {
			s.redact.Fields[f] = s.names
		}
	}
	truncated := s.redact.Fields[exporter.RedactAddress] == exporter.Truncate
	for _, name := range []string{"ipv4", "ipv6"} {
		if c.given(prefix+name) && !truncated && (!c.given(prefix+"address") || s.redact.Fields[exporter.RedactAddress] != exporter.Keep) {
			return fmt.Errorf("%s%s: addresses are not truncated; write address: truncate, or take it out", prefix, name)
		}
	}
	if s.redact.Key != "" && !s.redact.On() {
		return fmt.Errorf("%skey: nothing is redacted; write what, such as address: hash, or take it out", prefix)
	}
	if s.intake.Redact, err = exporter.NewRedactor(s.redact); err != nil {
		return fmt.Errorf("%skey: %w", prefix, err)
	}
	return nil
}
