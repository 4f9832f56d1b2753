// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"weft/exporter"
)

// parquetKind is Parquet files in a folder of their own.
var parquetKind = sinkKind{
	name: "parquet", folder: "dir", keys: parquetKeys,
	check:  func(_ *Config, s *sinkConfig) error { return below(s.prefix(), s.parquet.Check()) },
	target: func(s *sinkConfig) string { return "Parquet files in " + s.parquet.Dir },
	open: func(s *sinkConfig, log *slog.Logger) (outlet, error) {
		c := s.parquet
		var err error
		if c.Metadata, err = exporter.Resource(ownVersion(), os.Getenv); err != nil {
			return nil, err
		}
		c.Name, c.Intake = s.name, s.intake
		return exporter.NewParquet(c, log)
	},
}

// flightKind is an Arrow Flight service.
var flightKind = sinkKind{
	name: "flight", keys: flightKeys,
	check:  func(_ *Config, s *sinkConfig) error { return below(s.prefix(), s.flight.Check()) },
	target: func(s *sinkConfig) string { return "Arrow Flight to " + s.flight.Endpoint },
	open: func(s *sinkConfig, log *slog.Logger) (outlet, error) {
		c := s.flight
		var err error
		if c.Metadata, err = exporter.Resource(ownVersion(), os.Getenv); err != nil {
			return nil, err
		}
		c.Name, c.Intake = s.name, s.intake
		return exporter.NewFlight(c, log)
	},
}

func defaultParquet() exporter.ParquetConfig {
	return exporter.ParquetConfig{
		Size: exporter.DefaultParquetSize, Age: exporter.DefaultParquetAge, Keep: exporter.DefaultParquetKeep,
		Compression: "zstd", Queue: exporter.DefaultQueue,
	}
}

func defaultFlight() exporter.FlightConfig {
	return exporter.FlightConfig{
		Path: exporter.DefaultFlightPath, Flush: exporter.DefaultFlightFlush, Finish: exporter.DefaultFinish,
		Compression: "zstd", Queue: exporter.DefaultQueue,
	}
}

// parquetKeys are the settings of Parquet files.
func parquetKeys(prefix string, s *sinkConfig) []key {
	c := &s.parquet
	return []key{
		text(prefix+"dir", func(*Config) *string { return &c.Dir }, checkSpool),
		size(prefix+"size", func(*Config) *int { return &c.Size }, 1<<20, 1<<34),
		duration(prefix+"age", func(*Config) *time.Duration { return &c.Age }, time.Second, 24*time.Hour),
		number(prefix+"keep", func(*Config) *int { return &c.Keep }, 1, 1<<24),
		text(prefix+"compression", func(*Config) *string { return &c.Compression }, anything),
		derivedKey(prefix, &c.Derived),
		number(prefix+"queue", func(*Config) *int { return &c.Queue }, 1, 1<<24),
	}
}

// flightKeys are the settings of an Arrow Flight service.
func flightKeys(prefix string, s *sinkConfig) []key {
	c := &s.flight
	return []key{
		text(prefix+"endpoint", func(*Config) *string { return &c.Endpoint }, anything),
		text(prefix+"path", func(*Config) *string { return &c.Path }, anything),
		pairs(prefix+"headers", func(*Config) *map[string]string { return &c.Headers }),
		text(prefix+"compression", func(*Config) *string { return &c.Compression }, anything),
		text(prefix+"ca", func(*Config) *string { return &c.CA }, anything),
		text(prefix+"certificate", func(*Config) *string { return &c.Certificate }, anything),
		text(prefix+"key", func(*Config) *string { return &c.Key }, anything),
		duration(prefix+"flush", func(*Config) *time.Duration { return &c.Flush }, 10*time.Millisecond, time.Minute),
		duration(prefix+"finish", func(*Config) *time.Duration { return &c.Finish }, 10*time.Millisecond, finishAtMost),
		derivedKey(prefix, &c.Derived),
		number(prefix+"queue", func(*Config) *int { return &c.Queue }, 1, 1<<24),
	}
}

// derivedKey asks for columns that follow from others.
func derivedKey(prefix string, to *bool) key {
	return word(prefix+"derived", func(*Config) *bool { return to }, choice[bool]{"off", false}, choice[bool]{"on", true})
}

// below is each error that err joins, with prefix in front of the key it begins with.
func below(prefix string, err error) error {
	var all []error
	for _, err := range flatten(err) {
		all = append(all, fmt.Errorf("%s%w", prefix, err))
	}
	return errors.Join(all...)
}
