// SPDX-License-Identifier: Apache-2.0

// Flowctl asks a running agent over its unix socket: which flows, what is
// attached, does the account balance.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/exporter"
)

// version is set by the Makefile.
var version = ""

// Exit codes.
const (
	exitFine    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNothing = 3 // nothing matched
)

// errNothing is the result of a command that found nothing to show.
var errNothing = errors.New("nothing matched")

// usage marks err as a mistake on the command line.
func usage(err error) error { return fmt.Errorf("%w: %w", exporter.ErrUsage, err) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program: args without the program's name in, exit code out.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errNothing):
		fmt.Fprintln(stderr, "flowctl:", err)
		return exitNothing
	case errors.Is(err, exporter.ErrUsage):
		text := strings.TrimPrefix(err.Error(), exporter.ErrUsage.Error()+": ")
		fmt.Fprintf(stderr, "flowctl: %s\nsee `%s --help`\n", strings.ReplaceAll(text, "\n", "\nflowctl: "), cmd.CommandPath())
		return exitUsage
	case errors.Is(err, syscall.EPIPE):
		return exitFailed // the reader has left and needs no word
	}
	fmt.Fprintln(stderr, "flowctl:", err)
	return exitFailed
}

// global is what every command shares.
type global struct {
	server  string
	timeout time.Duration
	output  string // as typed
	format  exporter.Format
	noColor bool
	stdout  io.Writer
	say     func(line string) // what the client says; nil: to stderr
}

func newRoot(stdout io.Writer) *cobra.Command {
	g := &global{stdout: stdout, timeout: 5 * time.Second}
	root := &cobra.Command{
		Use:   "flowctl",
		Short: "Ask the weft agent of this host",
		Long: `Flowctl asks the weft agent of this host over its unix socket.

Exit codes: 0 fine, 1 failed, 2 usage, 3 nothing matched.`,
		Example: `  flowctl observe --follow --port 443
  flowctl observe --last 20 --from-ip 10.0.0.0/8 --not --protocol udp -o jsonl
  flowctl ledger
  flowctl status`,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.ArbitraryArgs, // unknown commands come here
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if g.format, err = exporter.ParseFormat(g.output); err != nil {
				return usage(fmt.Errorf("--output %q: want compact, wide, json, jsonl or yaml", g.output))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			msg := fmt.Sprintf("no command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				msg += "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usage(errors.New(msg))
		},
	}
	root.SuggestionsMinimumDistance = 2
	fs := root.PersistentFlags()
	fs.StringVar(&g.server, "server", "unix://"+exporter.DefaultSocket, "the agent's `address`")
	fs.StringVarP(&g.output, "output", "o", "compact", "`format`: compact, wide, json, jsonl, yaml")
	fs.Var(span{&g.timeout}, "timeout", "longest wait for the agent to answer, such as 500ms or 10s; 0: no end")
	fs.BoolVar(&g.noColor, "no-color", false, "no colour (also NO_COLOR, or when not on a terminal)")
	formats := cobra.FixedCompletions([]string{"compact", "wide", "json", "jsonl", "yaml"}, cobra.ShellCompDirectiveNoFileComp)
	if err := root.RegisterFlagCompletionFunc("output", formats); err != nil {
		panic(err) // the flag is defined just above
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(flagError(err)) })
	root.SetOut(stdout) // where the next line makes its commands write
	root.InitDefaultCompletionCmd("completion")
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Example, c.Args = "  source <(flowctl completion bash)", cobra.ArbitraryArgs
		c.RunE = func(_ *cobra.Command, args []string) error {
			return usage(fmt.Errorf("completion %s: want bash, zsh, fish or powershell", strings.Join(args, " ")))
		}
	}
	root.AddCommand(newObserve(g), newTop(g), newLedger(g), newStatus(g), newTopology(g), newVersion(g))
	return root
}

// noArguments refuses positional arguments as a usage error.
func noArguments(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usage(fmt.Errorf("%s takes no argument: %q", cmd.CommandPath(), args[0]))
	}
	return nil
}

func newVersion(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print flowctl's version",
		Example: "  flowctl version",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(g.stdout, "flowctl", ownVersion())
			return err
		},
	}
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

// colour reports whether output is for a person's terminal.
func (g *global) colour() bool {
	if g.noColor || os.Getenv("NO_COLOR") != "" {
		return false
	}
	return terminal(g.stdout)
}

// terminal reports whether f is a person's terminal that can be written all over.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// ask connects to the agent, and hangs up after f.
func (g *global) ask(cmd *cobra.Command, f func(*exporter.Client) error) error {
	if g.say == nil {
		g.say = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), "flowctl:", line) }
	}
	c, err := exporter.Dial(cmd.Context(), exporter.ClientOptions{Server: g.server, Patience: g.timeout, Say: g.say})
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}
