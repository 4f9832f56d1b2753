// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/dataplane"
)

// file is a configuration file with that text.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weft.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsNeedNoFile(t *testing.T) {
	c, err := loadConfig("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != "/run/weft/weft.sock" || c.HTTP != "127.0.0.1:9470" || c.Dataplane.Interval != time.Second {
		t.Errorf("defaults: got %+v, want those of deploy/weft.yaml", c)
	}
}

func TestEveryMistakeIsReportedAtOnceWithItsLine(t *testing.T) {
	path := file(t, `listen: {socket: weft.sock, http: "127.0.0.1", group: no-such-group}
dataplane:
  interfaces: ["eth[", "this-name-is-far-too-long"]
  intervall: 1s
  interval: 5
  xdp: of
  max_memory: 64MB
flows:
  table: lots
  idle_timeout: 10ms
  table: 5
exporter:
  otlp:
    protocol: carrier-pigeon
    headers: [a]
log: [info]
pods: yes
`)
	_, err := loadConfig(path, []string{"WEFT_LOG_LEVL=debug", "WEFT_FLOWS_STORE=-1", "WEFT_FLOWS_IDLE=3s", "WEFT_REQUIRE_BPF=1", "HOME=/"})
	if err == nil {
		t.Fatal("got no error for a file full of mistakes")
	}
	want := []string{
		":1: listen.socket: ", ":1: listen.http: ", ":1: listen.group: ",
		`:3: dataplane.interfaces: "eth[" is a malformed glob`, ":3: dataplane.interfaces: ",
		":4: unknown key dataplane.intervall; did you mean dataplane.interval?",
		`:5: dataplane.interval: "5" is not a duration`, ":6: dataplane.xdp: ", ":7: dataplane.max_memory: ",
		":9: flows.table: ", ":10: flows.idle_timeout: ", ":11: flows.table: given on line 9 already",
		":14: exporter.otlp.protocol=", ":15: exporter.otlp.headers: ",
		":16: log must be a section", ":17: unknown key pods",
		"WEFT_FLOWS_IDLE: unknown variable; did you mean WEFT_FLOWS_IDLE_TIMEOUT?",
		"WEFT_FLOWS_STORE: -1 is out of range", "WEFT_LOG_LEVL: unknown variable; did you mean WEFT_LOG_LEVEL?",
	}
	got := strings.Split(err.Error(), "\n")
	for i, line := range got {
		if i >= len(want) || !strings.HasPrefix(strings.TrimPrefix(line, path), want[i]) {
			t.Errorf("mistake %d: got %q, want %q in its place", i, line, slices.Concat(want, []string{"none"})[min(i, len(want))])
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d mistakes, want %d", len(got), len(want))
	}
}

func TestBrokenYAMLIsOneErrorWithItsLine(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"syntax":       {"listen:\n  http: [\n", `weft.yaml:\d+: not YAML: `},
		"two files":    {"log: {level: info}\n---\nlog: {level: debug}\n", `weft.yaml:\d+: a second YAML document`},
		"a list":       {"- a\n- b\n", `weft.yaml:1: the file must be a section`},
		"nested value": {"log: {level: {a: b}}\n", `weft.yaml:1: log.level: must be one value`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(file(t, c.text), nil)
			if err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line that matches %s", err, c.want)
			}
		})
	}
}

func TestBadHeaderNameHasItsLine(t *testing.T) {
	path := file(t, "exporter:\n  otlp:\n    headers: {\"bad name\": x}\n")
	_, err := loadConfig(path, nil)
	if want := path + `:3: exporter.otlp.headers: header name "bad name"`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s ...", err, want)
	}
}

func TestEnvironmentWinsOverFile(t *testing.T) {
	path := file(t, `
dataplane: {interfaces: [eth0], interval: 2s}
exporter: {otlp: {endpoint: "http://file:4317", headers: {a: "1"}}}
log: {level: warn}
`)
	c, err := loadConfig(path, []string{
		"WEFT_DATAPLANE_INTERFACES=veth*, br0", "WEFT_DATAPLANE_EXCLUDE=", "WEFT_DATAPLANE_MAX_MEMORY=32MiB",
		"WEFT_EXPORTER_OTLP_ENDPOINT=http://env:4317", "WEFT_EXPORTER_OTLP_HEADERS=b=2,c=3=4", "WEFT_LOG_FORMAT=json",
		"WEFT_DATAPLANE_XDP=generic", "WEFT_FLOWS_IDLE_TIMEOUT=20s",
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]any{
		"interfaces": {strings.Join(c.Dataplane.Interfaces, " "), "veth* br0"},
		"exclude":    {len(c.Dataplane.Exclude), 0},
		"memory":     {c.Dataplane.MaxMemory, 32 << 20},
		"endpoint":   {c.OTLP.Endpoint, "http://env:4317"},
		"headers":    {c.OTLP.Headers["b"] + c.OTLP.Headers["c"] + c.OTLP.Headers["a"], "23=4"},
		"format":     {c.JSON, true},
		"xdp":        {c.Dataplane.XDP, dataplane.XDPGeneric},
		"idle":       {c.Table.IdleTimeout, 20 * time.Second},
		"interval":   {c.Dataplane.Interval, 2 * time.Second},
		"level":      {c.Level, slog.LevelWarn},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
}

func TestNamingLoAsksForIt(t *testing.T) {
	c, err := loadConfig("", []string{"WEFT_DATAPLANE_INTERFACES=lo"})
	if err != nil || len(c.Dataplane.Exclude) != 0 {
		t.Errorf("interfaces lo: got exclude %v, error %v, want lo watched", c.Dataplane.Exclude, err)
	}
	c, err = loadConfig("", []string{"WEFT_DATAPLANE_INTERFACES=lo,eth0", "WEFT_DATAPLANE_EXCLUDE=lo"})
	if err != nil || !slices.Equal(c.Dataplane.Exclude, []string{"lo"}) {
		t.Errorf("exclude lo outright: got exclude %v, error %v, want lo left out", c.Dataplane.Exclude, err)
	}
}

// deploy/weft.yaml is the documentation of the keys: with its comments taken
// off it must hold every key, and every value must be the default.
func TestEveryKeyIsThereOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range keys {
		if seen[k.name] {
			t.Errorf("%s is there twice", k.name)
		}
		seen[k.name] = true
	}
}

func TestExampleHoldsEveryKeyWithItsDefault(t *testing.T) {
	text, err := os.ReadFile("../../deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := loadConfig(file(t, string(text)), nil); err != nil || len(c.Set) != 0 {
		t.Errorf("as it is: got %d keys set, error %v, want none", len(c.Set), err)
	}
	text = regexp.MustCompile(`(?m)^( *)#([a-z_]+:)`).ReplaceAll(text, []byte("$1$2"))
	got, err := loadConfig(file(t, string(text)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	for i := range keys {
		k := &keys[i]
		if !got.given(k.name) {
			t.Errorf("%s is not in deploy/weft.yaml", k.name)
		}
		if g, w := k.show(&got), k.show(&want); g != w && w != "" {
			t.Errorf("%s: deploy/weft.yaml has %s, the default is %s", k.name, g, w)
		}
	}
}

func TestScreenShortensOnlyWhatIsNotConfigured(t *testing.T) {
	c := defaultConfig()
	c.forScreen()
	if c.Table.ActiveTimeout != 2*time.Second || c.Table.IdleTimeout >= c.Table.ActiveTimeout || c.Dataplane.Interval > 500*time.Millisecond {
		t.Errorf("got active %s, idle %s, interval %s, want a flow on the screen within about 2s", c.Table.ActiveTimeout, c.Table.IdleTimeout, c.Dataplane.Interval)
	}
	c, err := loadConfig("", []string{"WEFT_FLOWS_ACTIVE_TIMEOUT=30s", "WEFT_FLOWS_IDLE_TIMEOUT=9s", "WEFT_DATAPLANE_INTERVAL=3s"})
	if err != nil {
		t.Fatal(err)
	}
	c.forScreen()
	if c.Table.ActiveTimeout != 30*time.Second || c.Table.IdleTimeout != 9*time.Second || c.Dataplane.Interval != 3*time.Second {
		t.Errorf("got active %s, idle %s, interval %s, want 30s, 9s, 3s as configured", c.Table.ActiveTimeout, c.Table.IdleTimeout, c.Dataplane.Interval)
	}
}

func TestSettingsHideHeaderValues(t *testing.T) {
	c, err := loadConfig("", []string{"WEFT_EXPORTER_OTLP_HEADERS=authorization=Bearer secret"})
	if err != nil {
		t.Fatal(err)
	}
	if got := keyNamed(keys, "exporter.otlp.headers").show(&c); got != "authorization" {
		t.Errorf("shown headers: got %q, want the name alone", got)
	}
}

func TestUsageMistakesExitWith2(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":    {[]string{"-bogus"}, "bogus"},
		"an argument":     {[]string{"eth0"}, `unexpected argument "eth0"`},
		"no such file":    {[]string{"-config", "/nonexistent/weft.yaml"}, "no such file"},
		"mistake in file": {[]string{"-config", file(t, "a: b\n")}, "unknown key a"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			if code := run(c.args, nil, &out, &complaint); code != exitUsage {
				t.Errorf("exit code: got %d, want %d", code, exitUsage)
			}
			if !strings.Contains(complaint.String(), c.want) || strings.Contains(complaint.String(), "goroutine") {
				t.Errorf("stderr: got %q, want it to say %q", complaint.String(), c.want)
			}
		})
	}
}

func TestHelpAndVersionExitWith0(t *testing.T) {
	for _, arg := range []string{"-h", "-help", "--help", "-version", "--version"} {
		var out, help bytes.Buffer
		if code := run([]string{arg}, nil, &out, &help); code != exitFine || out.Len()+help.Len() == 0 {
			t.Errorf("%s: got exit code %d and %d bytes, want 0 and some", arg, code, out.Len()+help.Len())
		}
	}
}
