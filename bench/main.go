// SPDX-License-Identifier: Apache-2.0

// Command bench measures what the data plane and the agent cost, as ratios in one
// run: `bench packet` the programs against their floors and against the table
// that peers use, `bench tcp` what measuring TCP adds, `bench agent` the agent on real traffic between two network
// namespaces. `make bench` runs both, and the drain's benchmark, and records the
// result with machine and kernel in bench/results.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"packet", "agent"}
	}
	if err := machine(os.Stdout); err != nil {
		return err
	}
	for _, a := range args {
		fmt.Printf("\n## %s\n\n", a)
		var err error
		switch a {
		case "packet":
			if err = packetCost(os.Stdout); err == nil {
				err = errors.Join(tcpCost(os.Stdout), dnsCost(os.Stdout))
			}
		case "tcp":
			err = tcpCost(os.Stdout)
		case "dns":
			err = dnsCost(os.Stdout)
		case "agent":
			err = agentCost(os.Stdout)
		default:
			err = fmt.Errorf("no benchmark %q: use packet, tcp, dns or agent", a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// machine prints what the figures were taken on.
func machine(w io.Writer) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	model := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if name, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	_, err := fmt.Fprintf(w, "Linux %s %s, %s, %d CPUs, %s\n", unix.ByteSliceToString(u.Release[:]),
		unix.ByteSliceToString(u.Machine[:]), model, runtime.NumCPU(), runtime.Version())
	return err
}
