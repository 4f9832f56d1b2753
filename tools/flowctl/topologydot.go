// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
)

// dot is the topology for Graphviz: a cluster for each namespace, a node for each
// device, an edge to what it hangs on. Loopbacks are left out.
func (d *topologyDocument) dot() []byte {
	var b, edges bytes.Buffer
	b.WriteString("graph topology {\n\trankdir=LR;\n\tnode [shape=box, fontname=\"sans-serif\"];\n")
	for i := range d.Namespaces {
		n := &d.Namespaces[i]
		fmt.Fprintf(&b, "\tsubgraph cluster_%d {\n\t\tlabel=%s;\n", n.Netns, quoted(n.title()))
		for j := range n.Devices {
			dev := &n.Devices[j]
			if dev.Loopback {
				continue
			}
			label := dev.Interface
			if about := d.about(n, dev); len(about) > 0 {
				label += "\n" + strings.Join(about, "\n")
			}
			fmt.Fprintf(&b, "\t\t%s [label=%s, tooltip=%s];\n", node(n.Netns, dev.Ifindex), quoted(label+"\n"+dev.Layer+percent(dev.Confidence)), quoted(dev.Reason))
			d.edges(&edges, n, dev)
		}
		b.WriteString("\t}\n")
	}
	b.Write(edges.Bytes())
	b.WriteString("}\n")
	return b.Bytes()
}

// edges writes each pair once.
func (d *topologyDocument) edges(b *bytes.Buffer, n *namespaceDocument, dev *linkDocument) {
	me := node(n.Netns, dev.Ifindex)
	if dev.Master != 0 && d.device(&placeDocument{n.Netns, dev.Master}) != nil {
		fmt.Fprintf(b, "\t%s -- %s [style=dashed];\n", me, node(n.Netns, dev.Master))
	}
	if under := d.device(dev.Under); under != nil {
		fmt.Fprintf(b, "\t%s -- %s;\n", me, node(under.netns, under.Ifindex))
	}
	far := d.device(dev.Far)
	switch {
	case far != nil && (far.netns > n.Netns || far.netns == n.Netns && far.Ifindex > dev.Ifindex):
		fmt.Fprintf(b, "\t%s -- %s [style=bold];\n", me, node(far.netns, far.Ifindex))
	case far == nil && dev.Behind != nil:
		fmt.Fprintf(b, "\t%s_who [shape=ellipse, label=%s, tooltip=%s];\n", me, quoted(dev.Behind.who()), quoted(dev.Behind.Reason))
		fmt.Fprintf(b, "\t%s -- %s_who;\n", me, me)
	}
}

func node(netns uint64, ifindex uint32) string { return fmt.Sprintf("n%d_%d", netns, ifindex) }

// quoted is s as Graphviz reads it. Lines stay lines; what else is not to be seen
// comes escaped, so that a name cannot end the text.
func quoted(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.ReplaceAll(visible(l), `\`, `\\`), `"`, `\"`)
	}
	return `"` + strings.Join(lines, `\n`) + `"`
}
