// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"weft/flows"
)

// Format is a way of writing records: the value of -o.
type Format string

// The formats. JSON is one indented object a record, JSONL one line a record,
// YAML one item of a sequence a record; Compact and Wide are aligned columns.
const (
	Compact Format = "compact"
	Wide    Format = "wide"
	JSON    Format = "json"
	JSONL   Format = "jsonl"
	YAML    Format = "yaml"
)

// ParseFormat is the format called s; the error lists them all.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Compact, Wide, JSON, JSONL, YAML:
		return f, nil
	}
	return "", fmt.Errorf("output format %q: want compact, wide, json, jsonl or yaml", s)
}

// Formatter writes records in one format. Columns grow with what they hold and
// never shrink, so lines written one after the other stay aligned. It is for one
// goroutine. The zero value of every field but Format works.
type Formatter struct {
	Format Format
	Color  bool           // ANSI colours in compact and wide; honour NO_COLOR before setting it
	Zone   *time.Location // of the times in compact and wide; nil: local

	widths [24]int
}

// column is one cell: the colour is an SGR parameter, empty for none. It starts
// as wide as least, what an IPv4 conversation needs.
type column struct {
	title, text, colour string
	least               int
	right               bool
}

const (
	dim    = "2"
	red    = "31"
	yellow = "33"
	cyan   = "36"
)

// Header is the line of column titles with its line break, or empty when the
// format has none.
func (f *Formatter) Header() []byte {
	if f.Format != Compact && f.Format != Wide {
		return nil
	}
	cols := f.columns(&flows.Record{})
	for i := range cols {
		cols[i].text, cols[i].colour = cols[i].title, dim
	}
	return f.appendLine(nil, cols)
}

// Append appends r with its line break. Names are escaped where a terminal
// could take them for commands.
func (f *Formatter) Append(dst []byte, r *flows.Record) []byte {
	switch f.Format {
	case JSON:
		buf := bytes.NewBuffer(dst)
		if err := json.Indent(buf, AppendJSON(nil, r), "", "  "); err != nil {
			return append(AppendJSON(dst, r), '\n') // cannot be: AppendJSON is valid
		}
		return append(buf.Bytes(), '\n')
	case JSONL:
		return append(AppendJSON(dst, r), '\n')
	case YAML:
		return appendYAML(dst, r)
	}
	return f.appendLine(dst, f.columns(r))
}

func (f *Formatter) columns(r *flows.Record) []column {
	zone, layout := f.Zone, "15:04:05.000"
	if zone == nil {
		zone = time.Local
	}
	if f.Format == Wide {
		layout = "2006-01-02T15:04:05.000000Z07:00"
	}
	reason, colour := r.EndReason.String(), ""
	if r.EndReason == flows.EndForced || r.EndReason == flows.EndLackOfResources {
		colour = yellow
	}
	flagColour := ""
	if (r.TCPFlags|r.ReverseTCPFlags)&flows.FlagRST != 0 {
		flagColour = red
	}
	cols := []column{
		{title: "END", least: len(layout), text: r.End.In(zone).Format(layout), colour: dim},
		{title: "SOURCE", least: 21, text: f.end(r, true), colour: cyan},
		{title: "", least: 2, text: "->", colour: dim},
		{title: "DESTINATION", least: 21, text: f.end(r, false), colour: cyan},
		{title: "PROTO", least: 5, text: flows.ProtoName(r.Key.Proto)},
		{title: "PKTS", least: 5, text: strconv.FormatUint(r.Packets, 10), right: true},
		{title: "BYTES", least: 6, text: f.bytes(r.Bytes), right: true},
		{title: "R-PKTS", least: 6, text: strconv.FormatUint(r.ReversePackets, 10), right: true},
		{title: "R-BYTES", least: 7, text: f.bytes(r.ReverseBytes), right: true},
		{title: "DURATION", least: 8, text: duration(r.End.Sub(r.Start)), right: true},
		{title: "FLAGS", least: 9, text: shortFlags(r), colour: flagColour},
		{title: "ENDED", least: 14, text: reason, colour: colour},
	}
	if f.Format == Wide {
		cols = append(cols, healthColumns(r)...)
		return append(cols,
			column{title: "FROM", least: 4, text: who(r.Source, true), colour: cyan},
			column{title: "TO", least: 4, text: who(r.Destination, true), colour: cyan},
			column{title: "INITIATOR", least: 10, text: r.Initiator.String()},
			column{title: "CONNECTION", least: 16, text: connection(r.ConnectionID)},
			column{title: "SCOPE", least: 8, text: scope(r.Scope)},
			column{title: "HOPS", text: hopList(r.Hops)})
	}
	wrong, colour := trouble(r)
	return append(cols,
		column{title: "INTERFACE", least: 9, text: hopSummary(r)},
		column{title: "TROUBLE", text: wrong, colour: colour})
}

func (f *Formatter) appendLine(dst []byte, cols []column) []byte {
	for cols[len(cols)-1].text == "" {
		cols = cols[:len(cols)-1]
	}
	for i, c := range cols {
		if i > 0 {
			dst = append(dst, ' ', ' ')
		}
		n := utf8.RuneCountInString(c.text)
		f.widths[i] = max(f.widths[i], n, c.least)
		pad := strings.Repeat(" ", f.widths[i]-n)
		if i == len(cols)-1 {
			pad = ""
		}
		if c.right {
			dst, pad = append(dst, pad...), ""
		}
		if f.Color && c.colour != "" {
			dst = fmt.Appendf(dst, "\x1b[%sm%s\x1b[0m", c.colour, c.text)
		} else {
			dst = append(dst, c.text...)
		}
		dst = append(dst, pad...)
	}
	return append(dst, '\n')
}

// end is one end of a record and what the other end knows it by. Short, a name that is one entity's stands for
// the address, and one that many may have (a process, a runtime) behind it.
func (f *Formatter) end(r *flows.Record, source bool) string {
	e, a, word := r.Destination, r.Key.Dst, " via "
	if source {
		e, a, word = r.Source, r.Key.Src, " as "
	}
	text := endpoint(r, a)
	switch name := who(e, false); {
	case name == "" || f.Format == Wide:
	case cmp.Or(e.Pod, e.Service, e.VM, e.Container, e.ContainerID) == "":
		text += " (" + name + ")"
	default:
		text = name
		if hasPorts(r) {
			text += ":" + strconv.Itoa(int(a.Port()))
		}
	}
	return text + known(r, word, source)
}

// who is what an end is called, by the first of: the pod, the Service, the machine, the container, the sandbox's runtime, the
// unit or process. All is its layer, pod, Service, container and process together.
func who(e *flows.Entity, all bool) string {
	if e == nil {
		return ""
	}
	var names []string
	add := func(kind, name string) {
		switch {
		case name == "":
		case all:
			names = append(names, kind+"="+name)
		default:
			names = append(names, name)
		}
	}
	inside := func(name string) string {
		if name != "" && e.Namespace != "" {
			return e.Namespace + "/" + name
		}
		return name
	}
	if all {
		add("layer", e.Layer.String())
	}
	add("pod", inside(e.Pod))
	add("service", inside(e.Service))
	add("vm", e.VM)
	add("container", cmp.Or(e.Container, e.ContainerID[:min(len(e.ContainerID), 12)]))
	add("sandbox", cmp.Or(e.SandboxRuntime, e.Sandbox))
	add("unit", e.Unit)
	add("process", e.Process)
	if all { // one of many on a node is not told by its name
		add("node", e.Node)
	}
	if len(names) > 0 && !all {
		names = names[:1]
	}
	return Printable(strings.Join(names, " "))
}

// endpoint is address:port, or the address alone when there is no port to know.
func endpoint(r *flows.Record, a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return "-"
	}
	if hasPorts(r) {
		return Printable(a.String())
	}
	return Printable(a.Addr().String())
}

// known is behind word the address by which the other end knows an end; empty: its own.
func known(r *flows.Record, word string, source bool) string {
	if r.NAT == nil {
		return ""
	}
	a := r.NAT.Destination
	if source {
		a = r.NAT.Source
	}
	if !a.IsValid() {
		return ""
	}
	return word + endpoint(r, a)
}

// bytes is exact when wide, else three digits and a decimal prefix.
func (f *Formatter) bytes(n uint64) string {
	if f.Format == Wide || n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	v, unit := float64(n), 0
	for ; v >= 999.5 && unit < len("kMGTPE"); unit++ {
		v /= 1000
	}
	digits := 0
	if v < 9.95 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + "kMGTPE"[unit-1:unit]
}

func duration(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// shortFlags is one letter a flag, source/destination, with a dot for none;
// ICMP's type/code; "frag" for fragments whose ports are not known.
func shortFlags(r *flows.Record) string {
	letters := func(flags uint8) string {
		var b []byte
		for i, c := range []byte("FSRPAUEC") {
			if flags&(1<<i) != 0 {
				b = append(b, c)
			}
		}
		if b == nil {
			return "."
		}
		return string(b)
	}
	switch {
	case r.Fragment:
		return "frag"
	case r.Key.ICMP():
		return fmt.Sprintf("%d/%d", r.Key.Src.Port(), r.Key.Dst.Port())
	case r.Key.Proto == flows.ProtoTCP:
		return letters(r.TCPFlags) + "/" + letters(r.ReverseTCPFlags)
	}
	return "-"
}

func connection(id uint64) string {
	if id == 0 {
		return "-"
	}
	return fmt.Sprintf("%016x", id)
}

func scope(s flows.Scope) string {
	text := strconv.FormatUint(s.Netns, 10)
	if s.VLAN.Outer != 0 {
		text += "/" + strconv.Itoa(int(s.VLAN.Outer))
	}
	if s.VLAN.Inner != 0 {
		text += "." + strconv.Itoa(int(s.VLAN.Inner))
	}
	return text
}

// hopSummary is the device of the chosen point and how many other devices saw
// the conversation.
func hopSummary(r *flows.Record) string {
	h := chosenHop(r)
	if h == nil {
		return "-"
	}
	type device struct {
		netns   uint64
		ifindex uint32
	}
	others := map[device]bool{}
	for i := range r.Hops {
		others[device{r.Hops[i].At.Netns, r.Hops[i].At.Ifindex}] = true
	}
	delete(others, device{h.At.Netns, h.At.Ifindex})
	if len(others) == 0 {
		return place(h)
	}
	return place(h) + "+" + strconv.Itoa(len(others))
}

// hopList is every hop: device, hook, and which way the packets went.
func hopList(hops []flows.HopCount) string {
	var list []string
	for i := range hops {
		h, way := &hops[i], ">"
		if h.Reverse {
			way = "<"
		}
		if h.Chosen {
			way += "*"
		}
		list = append(list, fmt.Sprintf("%s:%s%s%d/%d", place(h), h.At.Hook, way, h.Packets, h.Bytes))
	}
	return strings.Join(list, " ")
}

func place(h *flows.HopCount) string {
	name := h.Hop.Interface
	if name == "" {
		name = "if" + strconv.Itoa(int(h.At.Ifindex))
	}
	if h.Hop.Netns != "" {
		name += "@" + h.Hop.Netns[strings.LastIndexByte(h.Hop.Netns, '/')+1:]
	}
	return Printable(name)
}

// Printable is s with everything escaped that is not a visible character: what a
// name of the kernel, or a remote answer, must go through on its way to a terminal.
func Printable(s string) string {
	hidden := func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b []byte
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		switch {
		case c == utf8.RuneError && n == 1 || c < 0x80 && hidden(c):
			b = fmt.Appendf(b, `\x%02x`, s[0])
		case hidden(c):
			b = fmt.Appendf(b, `\u{%x}`, c)
		default:
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return string(b)
}

func appendYAML(dst []byte, r *flows.Record) []byte {
	var room [96]slog.Attr
	doc := yamlMapping(appendDocument(room[:0], r))
	for l := range numLists {
		if !l.inJSON(r) {
			continue
		}
		rows := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range l.len(r) {
			rows.Content = append(rows.Content, yamlMapping(l.appendRow(room[:0], r, i)))
		}
		name, _ := l.names()
		doc.Content = append(doc.Content, yamlString(name), rows)
	}
	text, err := yaml.Marshal([]*yaml.Node{doc})
	if err != nil {
		return fmt.Appendf(dst, "# %q\n", err) // cannot be: only printable scalars
	}
	return append(dst, text...)
}

func yamlMapping(attrs []slog.Attr) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, a := range attrs {
		v := yamlString(Printable(a.Value.String()))
		switch a.Value.Kind() {
		case slog.KindString:
		case slog.KindFloat64:
			v.Tag, v.Value = "", strconv.FormatFloat(a.Value.Float64(), 'f', -1, 64)
		default:
			v.Tag = ""
		}
		m.Content = append(m.Content, yamlString(a.Key), v)
	}
	return m
}

func yamlString(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}
