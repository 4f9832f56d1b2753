// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryFaultHasATest holds the table of faults in DESIGN.md: what it says is logged is
// what the code logs, and the tests that it names are there.
func TestEveryFaultHasATest(t *testing.T) {
	design := read(t, "DESIGN.md")
	_, table, _ := strings.Cut(design, "\n## Faults, what is logged")
	table, _, _ = strings.Cut(table, "\n## ")
	tests := read(t, "*_test.go") + read(t, "receivertest/*_test.go")
	code := read(t, "*.go")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.TrimSpace(cells[1]) == "fault" || strings.HasPrefix(cells[1], "---") {
			continue
		}
		rows++
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(cells[4], -1)
		if len(names) == 0 {
			t.Errorf("%s: got no test", cells[1])
		}
		for _, name := range names {
			if !strings.Contains(tests, "\nfunc "+name[1]+"(t *testing.T)") {
				t.Errorf("%s: got %s, want a test that there is", cells[1], name[1])
			}
		}
		for words := range strings.FieldsFuncSeq(cells[3], func(r rune) bool { return r == ';' }) {
			words, _, _ = strings.Cut(strings.TrimSpace(words), ", with ")
			words, _, _ = strings.Cut(words, ", or ")
			if !regexp.MustCompile(`log\.(Warn|Error)\("[^"]*` + regexp.QuoteMeta(words)).MatchString(code) {
				t.Errorf("%s: got %q, want words that are logged", cells[1], words)
			}
		}
	}
	if rows < 13 {
		t.Errorf("got %d faults, want 13", rows)
	}
}

// read is all files of a pattern.
func read(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: no files (%v)", pattern, err)
	}
	var all strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}
