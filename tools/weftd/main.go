// SPDX-License-Identifier: Apache-2.0

// Weftd is the agent: it opens the data plane, folds what it drains into flow
// records, and hands them to the store, the exporters and the terminal. It is
// the only place that sees the whole house.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/dataplane"
	"weft/flows"
)

// version is set by the Makefile.
var version = ""

// Exit codes.
const (
	exitFine   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// The agent's live heap is small and its garbage short-lived: collecting at
	// 50 % growth instead of 100 halves what lies around between collections.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	config                string
	check, version, print bool
}

var errUsage = errors.New("usage")

// parseFlags tells stderr what is wrong.
func parseFlags(args []string, stderr io.Writer) (options, error) {
	var f options
	fs := flag.NewFlagSet("weftd", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&f.config, "config", "", "read settings from `FILE` (YAML; deploy/weft.yaml lists every key)")
	fs.BoolFunc("check", "load, attach, detach, and report what works here and what does not; exit 0, 1, or 2 for what the configuration has wrong", boolean(&f.check))
	fs.BoolFunc("print", "write flows to standard output as they end; flows show within about two seconds unless time-outs are configured", boolean(&f.print))
	fs.BoolFunc("version", "print the version", boolean(&f.version))
	fs.Usage = func() {
		fmt.Fprintln(stderr, "Usage: weftd [-config FILE] [-check] [-version] [-print]")
		fs.PrintDefaults()
		fmt.Fprintln(stderr, "WEFT_ environment variables override the file, such as WEFT_EXPORTER_OTLP_ENDPOINT; OTEL_ variables are honoured.\n"+
			"SIGHUP reloads, SIGTERM and SIGINT stop. Exit codes: 0 fine, 1 failed, 2 usage or configuration.")
	}
	if err := fs.Parse(args); err != nil {
		return f, err
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "unexpected argument %q: weftd takes flags only\n", fs.Arg(0))
		fs.Usage()
		return f, errUsage
	}
	return f, nil
}

// boolean sets to from a flag's value.
func boolean(to *bool) func(string) error {
	return func(s string) (err error) {
		if *to, err = strconv.ParseBool(s); err != nil {
			return errors.New("want true, false or no value")
		}
		return nil
	}
}

// run is the whole program: its arguments and environment in, its exit code out.
// Further sinks are a test's.
func run(args, environ []string, stdout, stderr io.Writer, sinks ...flows.Sink) int {
	f, err := parseFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitFine
	case err != nil:
		return exitUsage // parseFlags has told why
	case f.version:
		fmt.Fprintln(stdout, "weftd", ownVersion())
		return exitFine
	}
	var got chan os.Signal
	if !f.check {
		got = catchSignals() // a reload must not kill an agent that is starting
	}
	cfg, err := loadConfig(f.config, environ)
	if err != nil {
		complain(stderr, err)
		return exitUsage
	}
	if f.check {
		return check(cfg, stdout, stderr)
	}
	if f.print {
		cfg.forScreen()
	}
	level := &slog.LevelVar{}
	level.Set(cfg.Level)
	a := &agent{cfg: cfg, log: newLogger(cfg, level, stderr), level: level, sinks: sinks, got: got}
	a.reload = func() (Config, error) {
		next, err := loadConfig(f.config, environ)
		if f.print {
			next.forScreen()
		}
		return next, err
	}
	if f.print {
		a.out = newScreen(stdout)
	}
	if err := caught("weftd", func() error { return a.run(context.Background()) }); err != nil {
		complain(stderr, err)
		return failure(err)
	}
	return exitFine
}

// failure is the exit code for err: a name in the configuration that nothing on
// this machine has is a mistake of the configuration.
func failure(err error) int {
	if errors.Is(err, dataplane.ErrOptions) {
		return exitUsage
	}
	return exitFailed
}

// terminal reports whether w is a person's terminal that wants colour.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// complain prints err on lines of its own, each with the program's name.
func complain(stderr io.Writer, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(stderr, "weftd:", line)
	}
}

func newLogger(cfg Config, level slog.Leveler, stderr io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if cfg.JSON {
		return slog.New(slog.NewJSONHandler(stderr, o))
	}
	return slog.New(slog.NewTextHandler(stderr, o))
}

// ownVersion is what the Makefile set, else what the Go tool recorded.
func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unversioned"
}
