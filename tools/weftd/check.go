// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"weft/dataplane"
)

// check is -check: load, attach, detach, and tell what works here and what does
// not. The exit code is 0 when the agent could work with cfg, 2 when cfg names what is not there. It needs no socket
// and may run beside an agent.
func check(cfg Config, stdout, stderr io.Writer) int {
	if err := checkPlane(cfg, stdout); err != nil {
		complain(stderr, err)
		return failure(err)
	}
	return exitFine
}

func checkPlane(cfg Config, out io.Writer) error {
	plane, err := dataplane.Open(cfg.Dataplane)
	if err != nil {
		return err
	}
	s := plane.Status()
	if err := plane.Close(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return report(out, &cfg, s)
}

// report prints s; the error is why the agent could not work.
func report(out io.Writer, cfg *Config, s dataplane.Status) error {
	var memory uint64
	for _, u := range s.Memory {
		memory += u.Bytes
	}
	fmt.Fprintf(out, "kernel      Linux %s\n", s.Kernel)
	fmt.Fprintf(out, "flow table  %s, %d CPUs x %d slots\n", s.Backend, s.CPUs, s.Slots)
	fmt.Fprintf(out, "hooks       %s\n", s.Hooks)
	fmt.Fprintf(out, "memory      %.1f MiB of %s in the kernel\n", float64(memory)/(1<<20), sizeText(cfg.Dataplane.MaxMemory))
	attached := 0
	for _, p := range s.Points {
		name := p.Hop.Interface + " " + p.At.Hook.String()
		if p.Hop.Netns != "" {
			name += " in " + p.Hop.Netns
		}
		if !p.Attached {
			fmt.Fprintf(out, "refused     %s: %s\n", name, p.Err)
			continue
		}
		attached++
		fmt.Fprintf(out, "attached    %s\n", name)
	}
	if len(s.Points) == 0 {
		fmt.Fprintln(out, "attached    nothing: no device matches dataplane.interfaces now")
	}
	for _, c := range s.Off {
		fmt.Fprintf(out, "off         %s: needs %s: %s\n", c.Name, c.Needs, c.Err)
	}
	for _, text := range exportTexts(cfg) {
		fmt.Fprintf(out, "export      %s\n", text)
	}
	if attached == 0 && len(s.Points) > 0 {
		return errors.New("no observation point could be attached; the lines above say why")
	}
	fmt.Fprintln(out, "detached; the agent works here")
	return nil
}

// exportTexts is each sink with where it leads to.
func exportTexts(cfg *Config) []string {
	var texts []string
	if cfg.OTLP.Wanted() {
		texts = append(texts, "OTLP (the endpoint is not contacted by -check)")
	}
	for _, s := range cfg.allSinks() {
		if s.kind == nil {
			texts = append(texts, fmt.Sprintf("%s: %d tenants", s.name, len(s.tenants)))
			continue
		}
		texts = append(texts, fmt.Sprintf("%s: %s (not contacted by -check)", s.name, s.kind.target(s)))
	}
	if texts == nil {
		return []string{"nowhere: set exporter.otlp.endpoint, OTEL_EXPORTER_OTLP_ENDPOINT or exporter.sinks"}
	}
	return texts
}
