// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/flows"
)

// minTaken is the length from which a value that was taken out is looked for in what
// is left: shorter ones are in everything.
const minTaken = 3

// redactedEnd is an end as it is sent on.
type redactedEnd struct {
	end   *flows.Entity
	taken []string // values that are not in it any more, lower case
	kept  string   // all its texts, lower case
}

// apply redacts records in place. Nothing that they share with others is written to.
func (r *Redactor) apply(records []flows.Record) {
	if r == nil {
		return
	}
	for i := range records {
		r.record(&records[i])
	}
}

func (r *Redactor) record(x *flows.Record) {
	r.taken = r.taken[:0]
	source, destination := r.end(x.Source), r.end(x.Destination)
	r.taken = append(append(r.taken, source.taken...), destination.taken...)
	r.addresses(x)
	x.SourceProcess, x.DestinationProcess = r.process(x.SourceProcess), r.process(x.DestinationProcess)
	r.devices(x)
	r.questions(x)
	x.Source, x.Destination = r.scrubEnd(source), r.scrubEnd(destination)
	r.scrubRest(x)
}

// shortID is how many digits of a container's id its host name and most tools show.
const shortID = 12

var (
	systemdEscape = strings.NewReplacer("-", `\x2d`)
	cgroupEscape  = strings.NewReplacer("-", "_")
	noHyphens     = strings.NewReplacer("-", "")
)

// take notes that value is not to be in the record, in no spelling that units, groups,
// host names and devices have for it.
func take(list []string, value string) []string {
	if len(value) < minTaken {
		return list
	}
	lower := strings.ToLower(value)
	list = append(list, lower)
	if strings.Contains(lower, "-") {
		list = append(list, systemdEscape.Replace(lower), cgroupEscape.Replace(lower))
	}
	if bare := noHyphens.Replace(lower); len(bare) >= 32 && isHex(bare) { // an id: 32 digits of a UUID, 64 of a container
		list = append(list, bare, bare[:shortID])
	}
	return list
}

func isHex(text string) bool {
	return strings.Trim(text, "0123456789abcdef") == ""
}

// takePod notes what network plugins make of a pod's name for that of its device: the
// first digits of a hash without a key, which all names are soon tried against.
func takePod(list []string, namespace, pod string) []string {
	if pod == "" {
		return list
	}
	sum := sha1.Sum([]byte(namespace + "." + pod)) //nolint:gosec // theirs, not ours
	return append(list, hex.EncodeToString(sum[:])[:podDigits])
}

// podDigits is how many digits fit behind "cali" and "eni" (Calico, Amazon's plugin)
// in the 15 bytes of a device's name.
const podDigits = 11

// holds reports whether text, in lower case, contains what was taken out.
func (r *Redactor) holds(lower string) bool {
	return slices.ContainsFunc(r.taken, func(v string) bool { return strings.Contains(lower, v) })
}

func (r *Redactor) tells(text string) bool { return text != "" && r.holds(strings.ToLower(text)) }

func (r *Redactor) addresses(x *flows.Record) {
	if r.c.Fields[RedactAddress] == Keep {
		return
	}
	for _, end := range [2]*netip.AddrPort{&x.Key.Src, &x.Key.Dst} {
		r.taken = append(r.taken, r.spelled.get(end.Addr(), spellings)...)
		*end = netip.AddrPortFrom(r.address(end.Addr()), end.Port())
	}
	if x.NAT != nil {
		n := *x.NAT
		for _, end := range [2]*netip.AddrPort{&n.Source, &n.Destination} {
			r.taken = append(r.taken, r.spelled.get(end.Addr(), spellings)...)
			if *end = netip.AddrPortFrom(r.address(end.Addr()), end.Port()); !end.IsValid() {
				*end = netip.AddrPort{}
			}
		}
		x.NAT = &n
	}
	x.ConnectionID, x.Redacted = r.connection(x.ConnectionID), true
}

// spellings are the ways in which names spell an address.
func spellings(a netip.Addr) (list []string) {
	switch {
	case a.Is4():
		b := a.As4()
		text, back := a.String(), netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}).String()
		for _, other := range []string{".", "-", "_"} {
			list = append(list, strings.ReplaceAll(text, ".", other), strings.ReplaceAll(back, ".", other))
		}
		return append(list, hex.EncodeToString(b[:]), fmt.Sprintf("%03d-%03d-%03d-%03d", b[0], b[1], b[2], b[3]))
	case a.IsValid():
		b := a.As16()
		back := []byte(hex.EncodeToString(b[:]))
		slices.Reverse(back)
		text, long := a.WithZone("").String(), a.WithZone("").StringExpanded()
		list = append(list, text, long, strings.ReplaceAll(text, ":", "-"), strings.ReplaceAll(long, ":", "-"))
		return append(list, strings.Join(strings.Split(string(back), ""), "."))
	}
	return nil
}

// process is p without what is redacted of it.
func (r *Redactor) process(p *flows.Process) *flows.Process {
	if p == nil || r.c.Fields[RedactProcess] == Keep {
		return p
	}
	r.taken = take(r.taken, p.Comm)
	if comm := r.text(RedactProcess, p.Comm); comm != "" {
		return &flows.Process{Comm: comm}
	}
	return nil
}

func (r *Redactor) devices(x *flows.Record) {
	if len(x.Hops) == 0 || r.c.Fields[RedactDevice] == Keep {
		return
	}
	x.Hops = slices.Clone(x.Hops)
	for i := range x.Hops {
		h := &x.Hops[i]
		r.taken = take(take(r.taken, h.Hop.Interface), h.Hop.Netns)
		h.Hop.Interface, h.Hop.Netns = r.text(RedactDevice, h.Hop.Interface), r.text(RedactDevice, h.Hop.Netns)
	}
}

func (r *Redactor) questions(x *flows.Record) {
	if x.DNS == nil || r.c.Fields[RedactDNS] == Keep {
		return
	}
	d := *x.DNS
	d.Questions = nil
	for _, q := range x.DNS.Questions {
		r.taken = take(r.taken, q.Name)
		if q.Name = r.text(RedactDNS, q.Name); q.Name != "" {
			d.Questions = append(d.Questions, q)
		}
	}
	x.DNS = &d
}

// scrubRest takes out of what was kept beside the ends what tells something that was
// taken out elsewhere.
func (r *Redactor) scrubRest(x *flows.Record) {
	if !r.hashed(RedactDevice) && slices.ContainsFunc(x.Hops, func(h flows.HopCount) bool { return r.tells(h.Hop.Interface) || r.tells(h.Hop.Netns) }) {
		x.Hops = slices.Clone(x.Hops)
		for i := range x.Hops {
			h := &x.Hops[i].Hop
			h.Interface, h.Netns = r.quiet(h.Interface), r.quiet(h.Netns)
		}
	}
	asked := func(q flows.DNSQuestion) bool {
		return r.tells(q.Name) || r.c.Fields[RedactAddress] != Keep && reverseName(q.Name)
	}
	if x.DNS != nil && !r.hashed(RedactDNS) && slices.ContainsFunc(x.DNS.Questions, asked) {
		d := *x.DNS
		d.Questions = slices.DeleteFunc(slices.Clone(d.Questions), asked)
		x.DNS = &d
	}
	for _, p := range [2]**flows.Process{&x.SourceProcess, &x.DestinationProcess} {
		if *p != nil && !r.hashed(RedactProcess) && r.tells((*p).Comm) {
			*p = nil
		}
	}
}

// reverseName reports whether a name that was asked for is an address.
func reverseName(name string) bool {
	return strings.HasSuffix(name, ".in-addr.arpa") || strings.HasSuffix(name, ".ip6.arpa")
}

// quiet is text, or nothing if it tells what was taken out.
func (r *Redactor) quiet(text string) string {
	if r.tells(text) {
		return ""
	}
	return text
}

var noEnd redactedEnd

// end is e as far as it depends on nothing else of the record.
func (r *Redactor) end(e *flows.Entity) *redactedEnd {
	if e == nil {
		return &noEnd
	}
	return r.ends.get(e, r.redactEnd)
}

// fieldsOf are the texts of e, each with its field; NumRedactFields: one that is
// redacted only when it tells something else.
func fieldsOf(e *flows.Entity) [20]struct {
	field RedactField
	text  *string
} {
	const other = NumRedactFields
	return [...]struct {
		field RedactField
		text  *string
	}{
		{RedactPod, &e.Pod}, {RedactPod, &e.PodUID}, {RedactNamespace, &e.Namespace}, {RedactWorkload, &e.Workload},
		{RedactService, &e.Service}, {RedactContainer, &e.Container}, {RedactContainer, &e.ContainerID},
		{RedactVM, &e.VM}, {RedactVM, &e.VMID}, {RedactSandbox, &e.Sandbox}, {RedactProcess, &e.Process}, {RedactUnit, &e.Unit},
		{RedactNode, &e.Node}, {RedactNode, &e.Zone}, {RedactNode, &e.Region},
		{other, &e.WorkloadKind}, {other, &e.Runtime}, {other, &e.Hypervisor}, {other, &e.SandboxRuntime}, {other, &e.Why},
	}
}

func (r *Redactor) redactEnd(e *flows.Entity) *redactedEnd {
	x := &redactedEnd{}
	out := *e
	for _, f := range fieldsOf(&out) {
		if f.field < NumRedactFields && r.c.Fields[f.field] != Keep {
			x.taken = take(x.taken, *f.text)
			*f.text = r.text(f.field, *f.text)
		}
	}
	if r.c.Fields[RedactProcess] != Keep {
		out.PID = 0
	}
	if r.c.Fields[RedactPod] != Keep || r.c.Fields[RedactNamespace] != Keep {
		x.taken = takePod(x.taken, e.Namespace, e.Pod)
	}
	out.Why = "" // words that name whatever the evidence was
	switch r.c.Fields[RedactLabel] {
	case Drop:
		for name, v := range e.Labels {
			x.taken = take(take(x.taken, v), name)
		}
		out.Labels = nil
	case Hash:
		out.Labels = maps.Clone(e.Labels)
		for name, v := range out.Labels {
			x.taken = take(x.taken, v)
			out.Labels[name] = r.text(RedactLabel, v)
		}
	}
	x.end = &out
	x.kept = r.texts(&out)
	return x
}

// hashed reports whether f is a hash, which tells nothing, whatever is in it by chance.
func (r *Redactor) hashed(f RedactField) bool { return f < NumRedactFields && r.c.Fields[f] == Hash }

// texts are all texts of e but hashes, in lower case.
func (r *Redactor) texts(e *flows.Entity) string {
	var b strings.Builder
	for _, f := range fieldsOf(e) {
		if !r.hashed(f.field) {
			b.WriteString(*f.text + "\x00")
		}
	}
	for name, v := range e.Labels {
		b.WriteString(name + "\x00")
		if !r.hashed(RedactLabel) {
			b.WriteString(v + "\x00")
		}
	}
	return strings.ToLower(b.String())
}

// scrubEnd is the end of x without the texts that tell what was taken out of the
// record. It is another Entity only when there is such a text, which is rare.
func (r *Redactor) scrubEnd(x *redactedEnd) *flows.Entity {
	if x.end == nil || !r.holds(x.kept) {
		return x.end
	}
	out := *x.end
	for _, f := range fieldsOf(&out) {
		if !r.hashed(f.field) {
			*f.text = r.quiet(*f.text)
		}
	}
	out.Labels = maps.Clone(out.Labels)
	maps.DeleteFunc(out.Labels, func(name, v string) bool {
		return r.tells(name) || !r.hashed(RedactLabel) && r.tells(v)
	})
	return &out
}
