// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML fills c from the text of file and returns every mistake in it.
func readYAML(c *Config, file string, text []byte) mistakes {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // empty, or comments only
	} else if err != nil {
		return mistakes{syntax(file, err)}
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil {
		return mistakes{{origin{file, more.Line}, "a second YAML document; keep one and take out the --- line"}}
	} else if !errors.Is(err, io.EOF) {
		return mistakes{syntax(file, err)}
	}
	r := yamlReader{c: c, file: file, known: keys, lines: map[string]int{}}
	r.section("", doc.Content[0])
	return r.bad
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax is the YAML parser's error with its line in our place.
func syntax(file string, err error) mistake {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	m := mistake{origin{where: file}, "not YAML: " + text}
	if at := yamlLine.FindStringSubmatch(text); at != nil {
		m.line, _ = strconv.Atoi(at[1]) // digits by the expression
		m.text = "not YAML: " + text[len(at[0]):]
	}
	return m
}

// yamlReader walks one document.
type yamlReader struct {
	c     *Config
	file  string
	known []key          // that may come now
	group *sinkConfig    // that is read now; nil: none
	lines map[string]int // where each key was seen
	bad   mistakes
}

func (r *yamlReader) fail(n *yaml.Node, format string, a ...any) {
	r.bad = append(r.bad, mistake{origin{r.file, n.Line}, fmt.Sprintf(format, a...)})
}

// section reads the mapping n, whose keys are prefixed with prefix.
func (r *yamlReader) section(prefix string, n *yaml.Node) {
	n = target(n)
	if empty(n) {
		return // every key below it is commented out
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a section of `key: value` lines", cmp.Or(strings.TrimSuffix(prefix, "."), "the file"))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		full := prefix + name.Value
		if at, twice := r.lines[full]; twice {
			r.fail(name, "%s: given on line %d already; keep one", full, at)
			continue
		}
		r.lines[full] = name.Line
		if k := keyNamed(r.known, full); k != nil {
			r.value(k, value)
		} else if full == sinksKey {
			r.sinks(value)
		} else if r.member(full, name, value) {
			continue
		} else if isSection(r.known, full) {
			r.section(full+".", value)
		} else {
			r.fail(name, "unknown key %s%s", full, suggest(full, append(keyNames(r.known), r.kinds(prefix)...)))
		}
	}
}

// value reads n into k's field.
func (r *yamlReader) value(k *key, n *yaml.Node) {
	n = target(n)
	if empty(n) {
		return // `key:` alone leaves the default
	}
	switch {
	case k.shape == scalar && n.Kind == yaml.ScalarNode:
		if err := k.scalar(r.c, n.Value); err != nil {
			r.fail(n, "%s: %v", k.name, err)
		}
	case k.shape == listing && n.Kind == yaml.SequenceNode:
		if err := k.checkLength(len(n.Content)); err != nil {
			r.fail(n, "%s: %v", k.name, err)
		}
		r.listing(k, n.Content)
	case k.shape == listing && n.Kind == yaml.ScalarNode:
		r.listing(k, []*yaml.Node{n})
	case k.shape == mapping && n.Kind == yaml.MappingNode:
		r.mapping(k, n.Content)
	default:
		r.fail(n, "%s: %s", k.name, [...]string{
			"must be one value", `must be a list, such as ["eth*", "ens*"]`, "must be name: value pairs",
		}[k.shape])
		return
	}
	r.c.Set[k.name] = origin{r.file, n.Line}
}

func (r *yamlReader) listing(k *key, nodes []*yaml.Node) {
	items := []string{}
	for _, n := range nodes {
		n = target(n)
		if n.Kind != yaml.ScalarNode {
			r.fail(n, "%s: an item must be one word", k.name)
		} else if err := k.item(n.Value); err != nil {
			r.fail(n, "%s: %v", k.name, err)
		} else {
			items = append(items, n.Value)
		}
	}
	*k.items(r.c) = items
}

func (r *yamlReader) mapping(k *key, nodes []*yaml.Node) {
	m := map[string]string{}
	for i := 0; i+1 < len(nodes); i += 2 {
		name, value := nodes[i], target(nodes[i+1])
		if value.Kind != yaml.ScalarNode {
			r.fail(value, "%s: the value of %s must be one word", k.name, name.Value)
			continue
		}
		m[name.Value] = value.Value
	}
	*k.pairs(r.c) = m
}

// target is what n stands for: the anchored node when it is an alias.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// empty reports whether nothing is written after the colon.
func empty(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// notKeys are the WEFT_ variables that are no configuration key: the house's
// own test switch.
var notKeys = []string{"WEFT_REQUIRE_BPF"}

// readEnviron fills c from the WEFT_ variables of environ ("NAME=value") and
// returns every mistake in them. A set but empty variable is an empty value.
func readEnviron(c *Config, environ []string) mistakes {
	var bad mistakes
	names := make([]string, len(keys))
	for i := range keys {
		names[i] = keys[i].variable()
	}
	environ = slices.Sorted(slices.Values(environ))
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "WEFT_") || slices.Contains(notKeys, name) {
			continue
		}
		i := slices.Index(names, name)
		if i < 0 {
			bad = append(bad, mistake{origin{where: name}, "unknown variable" + suggest(name, names)})
			continue
		}
		for _, err := range keys[i].environ(c, value) {
			bad = append(bad, mistake{origin{where: name}, err.Error()})
		}
		c.Set[keys[i].name] = origin{where: name}
	}
	return bad
}

// variable is the environment's name of k.
func (k *key) variable() string {
	return "WEFT_" + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// environ reads k from the text of a variable.
func (k *key) environ(c *Config, text string) []error {
	var bad []error
	switch k.shape {
	case scalar:
		if err := k.scalar(c, text); err != nil {
			bad = append(bad, err)
		}
	case listing:
		items := splitList(text)
		if err := k.checkLength(len(items)); err != nil {
			bad = append(bad, err)
		}
		for _, s := range items {
			if err := k.item(s); err != nil {
				bad = append(bad, err)
			}
		}
		*k.items(c) = items
	case mapping:
		m := map[string]string{}
		for _, s := range splitList(text) {
			name, value, ok := strings.Cut(s, "=")
			if !ok {
				bad = append(bad, fmt.Errorf("%q is not name=value; write name=value,name=value", s))
			}
			m[name] = value
		}
		*k.pairs(c) = m
	}
	return bad
}

// splitList splits at commas, without the space around items. Empty: no item.
func splitList(text string) []string {
	items := []string{}
	if strings.TrimSpace(text) == "" {
		return items
	}
	for s := range strings.SplitSeq(text, ",") {
		items = append(items, strings.TrimSpace(s))
	}
	return items
}

func keyNamed(in []key, name string) *key {
	for i := range in {
		if in[i].name == name {
			return &in[i]
		}
	}
	return nil
}

func keyNames(in []key) []string {
	names := make([]string, len(in))
	for i := range in {
		names[i] = in[i].name
	}
	return names
}

// isSection reports whether keys live below name.
func isSection(in []key, name string) bool {
	return slices.ContainsFunc(in, func(k key) bool { return strings.HasPrefix(k.name, name+".") })
}

// suggest is the mend for an unknown name: a known one that begins with it, cut
// short at a word's end, else the nearest, if any is near.
func suggest(name string, known []string) string {
	best, nearest := "", 4
	for _, k := range known {
		if strings.HasPrefix(k, name+"_") {
			return "; did you mean " + k + "?"
		}
		if d := distance(name, k); d < nearest {
			best, nearest = k, d
		}
	}
	if best != "" {
		return "; did you mean " + best + "?"
	}
	return "; deploy/weft.yaml lists every key"
}

// distance is the number of single-byte edits between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
