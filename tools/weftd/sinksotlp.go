// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"weft/exporter"
)

// otlpKeys are the settings of a receiver.
func otlpKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		text(prefix+"endpoint", func(c *Config) *string { return &of(c).Endpoint }, anything),
		text(prefix+"protocol", func(c *Config) *string { return &of(c).Protocol }, anything),
		pairs(prefix+"headers", func(c *Config) *map[string]string { return &of(c).Headers }),
		text(prefix+"compression", func(c *Config) *string { return &of(c).Compression }, anything),
		word(prefix+"temporality", func(c *Config) *exporter.Temporality { return &of(c).Temporality },
			choice[exporter.Temporality]{"cumulative", exporter.Cumulative}, choice[exporter.Temporality]{"delta", exporter.Delta},
			choice[exporter.Temporality]{"lowmemory", exporter.LowMemory}, choice[exporter.Temporality]{"", ""}),
		word(prefix+"community_id", func(c *Config) *bool { return &of(c).CommunityID }, choice[bool]{"off", false}, choice[bool]{"on", true}),
		text(prefix+"ca", func(c *Config) *string { return &of(c).CA }, anything),
		text(prefix+"certificate", func(c *Config) *string { return &of(c).Certificate }, anything),
		text(prefix+"key", func(c *Config) *string { return &of(c).Key }, anything),
	}
}

// spoolKeys are the settings of where requests wait on disk.
func spoolKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		text(prefix+"dir", func(c *Config) *string { return &of(c).Spool.Dir }, checkSpool),
		size(prefix+"size", func(c *Config) *int { return &of(c).Spool.Size }, 16<<20, 1<<40),
		duration(prefix+"age", func(c *Config) *time.Duration { return &of(c).Spool.Age }, time.Minute, 365*24*time.Hour),
		word(prefix+"sync", func(c *Config) *bool { return &of(c).Spool.NoSync }, choice[bool]{"on", false}, choice[bool]{"off", true}),
	}
}

// paceKeys are how long records gather, and how long a closing sink waits.
func paceKeys(prefix string, of func(*Config) *exporter.OTLPConfig) []key {
	return []key{
		duration(prefix+"flush", func(c *Config) *time.Duration { return &of(c).Flush }, 10*time.Millisecond, time.Minute),
		duration(prefix+"finish", func(c *Config) *time.Duration { return &of(c).Finish }, 10*time.Millisecond, finishAtMost),
	}
}
