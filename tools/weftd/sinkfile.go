// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"weft/exporter"
)

// fileKind is lines of JSON in a file.
var fileKind = sinkKind{
	name: "file", folder: "path",
	keys: func(prefix string, s *sinkConfig) []key {
		f := &s.file
		return []key{
			text(prefix+"path", func(*Config) *string { return &f.Path }, anything),
			lineFormat(prefix, &f.Format),
			size(prefix+"size", func(*Config) *int { return &f.Size }, 1<<20, 1<<40),
			duration(prefix+"age", func(*Config) *time.Duration { return &f.Age }, 0, 365*24*time.Hour),
			number(prefix+"keep", func(*Config) *int { return &f.Keep }, 1, 100000),
			word(prefix+"compression", func(*Config) *string { return &f.Compression },
				choice[string]{"none", "none"}, choice[string]{"gzip", "gzip"}, choice[string]{"zstd", "zstd"}),
			word(prefix+"sync", func(*Config) *bool { return &f.NoSync }, choice[bool]{"on", false}, choice[bool]{"off", true}),
			duration(prefix+"flush", func(*Config) *time.Duration { return &f.Flush }, 10*time.Millisecond, time.Minute),
			number(prefix+"queue", func(*Config) *int { return &f.Queue }, 1, 1<<24),
		}
	},
	check: func(c *Config, s *sinkConfig) error {
		for _, other := range c.allSinks() {
			if other.kind != nil && other.kind.name == "file" && other.file.Renames(s.file.Path) {
				return fmt.Errorf("%spath: %s is a name that files of %s are renamed to, so it would be packed or removed there; write another", s.prefix(), s.file.Path, other.key)
			}
		}
		if s.file.Path == "" {
			return fmt.Errorf("%spath: missing; write the file's, such as /var/log/weft/flows.jsonl", s.prefix())
		}
		return below(s.prefix(), s.file.Check())
	},
	target: func(s *sinkConfig) string { return "file " + s.file.Path },
	open: func(s *sinkConfig, log *slog.Logger) (outlet, error) {
		c := s.file
		c.Name, c.Version, c.Log, c.Intake = s.name, ownVersion(), log, s.intake
		return exporter.NewFile(c)
	},
}

// stdoutKind is lines of JSON on standard output.
var stdoutKind = sinkKind{
	name: "stdout",
	keys: func(prefix string, s *sinkConfig) []key {
		c := &s.stdout
		return []key{
			lineFormat(prefix, &c.Format),
			duration(prefix+"flush", func(*Config) *time.Duration { return &c.Flush }, 0, time.Minute),
			number(prefix+"queue", func(*Config) *int { return &c.Queue }, 1, 1<<24),
		}
	},
	check:  func(*Config, *sinkConfig) error { return nil }, // its keys say it all
	target: func(*sinkConfig) string { return "standard output" },
	open: func(s *sinkConfig, log *slog.Logger) (outlet, error) {
		c := s.stdout
		c.Name, c.Version, c.Log, c.Intake = s.name, ownVersion(), log, s.intake
		p, err := exporter.NewStdout(os.Stdout, c)
		return console{p}, err
	},
}

func lineFormat(prefix string, f *exporter.LineFormat) key {
	return word(prefix+"format", func(*Config) *exporter.LineFormat { return f },
		choice[exporter.LineFormat]{"otlp", exporter.LinesOTLP}, choice[exporter.LineFormat]{"flows", exporter.LinesFlows})
}

func defaultFile() exporter.FileConfig {
	return exporter.FileConfig{
		Format: exporter.LinesOTLP, Size: 100 << 20, Keep: 10, Compression: "none", Flush: time.Second, Queue: exporter.DefaultQueue,
	}
}

func defaultStdout() exporter.StdoutConfig {
	return exporter.StdoutConfig{Format: exporter.LinesFlows, Queue: exporter.DefaultQueue}
}

// console is standard output, whose reader may leave.
type console struct{ *exporter.Print }

// Close is the printer's; a reader that left is no error.
func (c console) Close(ctx context.Context) error { return withoutPipe(c.Print.Close(ctx)) }

// reopen lets go of files, which another program may have renamed.
func (a *agent) reopen() {
	for _, o := range a.outlets {
		if f, ok := o.(interface{ Reopen() }); ok {
			f.Reopen()
		}
	}
}
