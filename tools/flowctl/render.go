// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"weft/exporter"
	"weft/flows"
)

// table is aligned columns: numbers to the right, text to the left.
type table struct {
	head []string
	text []int // columns of words
	rows [][]string
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = visible(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) write(w io.Writer) error {
	widths := make([]int, len(t.head))
	rows := t.rows
	if strings.Join(t.head, "") != "" {
		rows = append([][]string{t.head}, rows...)
	}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line.WriteString("  ")
			}
			if slices.Contains(t.text, i) {
				line.WriteString(cell + pad)
			} else {
				line.WriteString(pad + cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// visible is s with what a terminal could obey escaped: device names may hold anything.
func visible(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// paint is text in a colour when output is for a terminal.
func (g *global) paint(colour, text string) string {
	if !g.colour() {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// tabular reports whether the format is columns for people.
func (g *global) tabular() bool { return g.format == exporter.Compact || g.format == exporter.Wide }

// document writes doc by its json tags: indented, on one line, or as a YAML
// document whose keys keep their order.
func (g *global) document(doc any) error {
	text, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	text = escaped(text)
	switch g.format {
	case exporter.JSON:
		var b bytes.Buffer
		if err := json.Indent(&b, text, "", "  "); err != nil {
			return fmt.Errorf("indent answer: %w", err)
		}
		text = b.Bytes()
	case exporter.YAML:
		var n yaml.Node
		if err := yaml.Unmarshal(text, &n); err != nil { // JSON is YAML
			return fmt.Errorf("encode answer: %w", err)
		}
		plain(&n)
		if text, err = yaml.Marshal(&n); err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		text = append([]byte("---\n"), bytes.TrimRight(text, "\n")...)
	}
	_, err = g.stdout.Write(append(text, '\n'))
	return err
}

// escaped is JSON whose strings have an escape for everything that is not a visible
// character: encoding/json lets C1 controls and changes of direction pass.
func escaped(text []byte) []byte {
	hidden := func(c rune) bool { return c >= 0x7f && !strconv.IsPrint(c) }
	if bytes.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b []byte
	for _, c := range string(text) {
		switch {
		case !hidden(c):
			b = utf8.AppendRune(b, c)
		case c > 0xffff:
			hi, lo := utf16.EncodeRune(c)
			b = fmt.Appendf(b, `\u%04x\u%04x`, hi, lo)
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return b
}

// plain takes JSON's braces and quotes off n, where YAML does not need them.
func plain(n *yaml.Node) {
	n.Style = 0
	if (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) && len(n.Content) == 0 {
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// pointName is "eth0 ingress", with the namespace when it is not the agent's own.
func pointName(p flows.Point, h flows.Hop) string {
	name := h.Interface
	if name == "" {
		name = "if" + strconv.Itoa(int(p.Ifindex))
	}
	if h.Netns != "" {
		name += "@" + path.Base(h.Netns)
	}
	return name + " " + p.Hook.String()
}
