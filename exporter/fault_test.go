// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryFaultHasATest holds the table of faults in DESIGN.md: the tests that it names are
// there, the code logs what it says is logged, and one of the tests looks for that.
func TestEveryFaultHasATest(t *testing.T) {
	design := read(t, "DESIGN.md")
	_, table, _ := strings.Cut(design, "\n## Faults, what is logged")
	table, _, _ = strings.Cut(table, "\n## ")
	tests := read(t, "*_test.go") + read(t, "receivertest/*_test.go") + read(t, "../tools/weftd/*_test.go")
	code := read(t, "*.go")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.TrimSpace(cells[1]) == "fault" || strings.HasPrefix(cells[1], "---") {
			continue
		}
		rows++
		bodies := ""
		for _, name := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(cells[4], -1) {
			_, body, there := strings.Cut(tests, "\nfunc "+name[1]+"(t *testing.T)")
			if body, _, _ = strings.Cut(body, "\n}\n"); !there {
				t.Errorf("%s: got %s, want a test that there is", cells[1], name[1])
			}
			bodies += body
		}
		for words := range strings.SplitSeq(cells[3], ";") {
			words = strings.TrimSpace(words)
			if !regexp.MustCompile(`log\.(Warn|Error)\("` + regexp.QuoteMeta(words) + `"`).MatchString(code) {
				t.Errorf("%s: got %q, want words that are logged", cells[1], words)
			}
			if !strings.Contains(bodies, words) {
				t.Errorf("%s: got no test that looks for %q", cells[1], words)
			}
		}
	}
	if rows < 13 {
		t.Errorf("got %d faults, want 13", rows)
	}
}

// says wants these words in log, once.
func says(t *testing.T, what, log, words string) {
	t.Helper()
	if n := strings.Count(log, words); n != 1 {
		t.Errorf("%s: got %q %d times in the log, want it once:\n%s", what, words, n, log)
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
