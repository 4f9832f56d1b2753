// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"weft/exporter/api"
	"weft/flows"
)

func keyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func redactor(t *testing.T, c RedactConfig) *Redactor {
	t.Helper()
	c.Key = keyFile(t, "a key of more than sixteen bytes")
	r, err := NewRedactor(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// secrets makes records in which every text is another, and has what was made by field.
type secrets struct {
	r  *rand.Rand
	by [NumRedactFields][]string
}

func (s *secrets) text(f RedactField) string {
	v := fmt.Sprintf("Qz-%x", s.r.Uint64()|1<<60)
	s.by[f] = append(s.by[f], v)
	return v
}

func (s *secrets) address() netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	for i := 6; i < 16; i++ {
		b[i] = byte(1 + s.r.IntN(254))
	}
	a := netip.AddrFrom16(b)
	if s.r.IntN(2) == 0 {
		a = netip.AddrFrom4([4]byte{byte(101 + s.r.IntN(99)), byte(101 + s.r.IntN(99)), byte(101 + s.r.IntN(99)), byte(101 + s.r.IntN(99))})
	}
	s.by[RedactAddress] = append(s.by[RedactAddress], a.String(), strings.NewReplacer(".", "-", ":", "-").Replace(a.String()), string(a.AsSlice()))
	return a
}

// spread is a value of field f, in which there may be one of another.
func (s *secrets) spread(f RedactField) string {
	v := fmt.Sprintf("Qz-%x", s.r.Uint64()|1<<60)
	other := RedactField(s.r.IntN(int(NumRedactFields)))
	if n := len(s.by[other]); n > 0 && s.r.IntN(2) == 0 {
		if o := s.by[other][s.r.IntN(n)]; len(o) > 6 && utf8.ValidString(o) {
			v += "." + strings.ToUpper(o)
		}
	}
	s.by[f] = append(s.by[f], v)
	return v
}

func (s *secrets) end() *flows.Entity {
	e := &flows.Entity{
		Pod: s.text(RedactPod), PodUID: s.text(RedactPod), Namespace: s.text(RedactNamespace), Workload: s.text(RedactWorkload), WorkloadKind: "deployment",
		Service: s.text(RedactService), ContainerID: s.text(RedactContainer), Runtime: "containerd",
		VM: s.text(RedactVM), VMID: s.text(RedactVM), Sandbox: s.text(RedactSandbox), Process: s.text(RedactProcess),
		Node: s.text(RedactNode), Zone: s.text(RedactNode), Region: s.text(RedactNode), Labels: map[string]string{"app": s.text(RedactLabel)},
		Confidence: 100, PID: 77,
	}
	e.Labels["x"], e.Why, e.Unit, e.Container = s.spread(RedactLabel), "seen at "+e.Pod, s.spread(RedactUnit), s.spread(RedactContainer)
	return e
}

func (s *secrets) record() flows.Record {
	rec := tcpRecord(1)
	rec.Key.Src, rec.Key.Dst = netip.AddrPortFrom(s.address(), 1), netip.AddrPortFrom(s.address(), 2)
	rec.NAT = &flows.NAT{Source: netip.AddrPortFrom(s.address(), 3), Destination: netip.AddrPortFrom(s.address(), 4), Basis: 1}
	rec.Source, rec.Destination = s.end(), s.end()
	rec.SourceProcess = &flows.Process{PID: 7, Comm: s.text(RedactProcess), Cgroup: 8}
	rec.Hops = slices.Clone(rec.Hops)
	for i := range rec.Hops {
		rec.Hops[i].Hop = flows.Hop{Interface: s.text(RedactDevice), Netns: s.spread(RedactDevice)}
	}
	rec.DNS = &flows.DNS{Queries: 2, Questions: []flows.DNSQuestion{{Name: strings.ToLower(s.text(RedactDNS))}, {Name: strings.ToLower(s.spread(RedactDNS))}}}
	return rec
}

func TestNothingEncodedHoldsWhatWasRedacted(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var configs []RedactConfig
	for f := range NumRedactFields {
		for _, to := range []Treatment{Drop, Hash} {
			var c RedactConfig
			c.Fields[f] = to
			configs = append(configs, c)
		}
	}
	for range 40 { // and any mixture
		c := RedactConfig{IPv4: 16, IPv6: 32}
		for f := range c.Fields {
			c.Fields[f] = Treatment(r.IntN(3))
		}
		if r.IntN(3) == 0 {
			c.Fields[RedactAddress] = Truncate
		}
		configs = append(configs, c)
	}
	for _, c := range configs {
		red := redactor(t, c)
		if red == nil {
			continue
		}
		encoder, err := NewLogEncoder(nil, "")
		if err != nil {
			t.Fatal(err)
		}
		encoder.CommunityID = true
		for range 20 {
			s := &secrets{r: r}
			before := s.record()
			records := []flows.Record{before}
			untouched := AppendJSON(nil, &before)
			red.apply(records)
			if !bytes.Equal(AppendJSON(nil, &before), untouched) {
				t.Fatal("what other sinks see has changed")
			}
			otlp, n := encoder.Append(nil, records, t0)
			var m api.Record
			toWire(&m, &records[0])
			wire, err := proto.Marshal(&m)
			if err != nil || n != 1 {
				t.Fatalf("got %d records, error %v", n, err)
			}
			all := slices.Concat(otlp, wire, AppendJSON(nil, &records[0]))
			lower := bytes.ToLower(all)
			for f, values := range s.by {
				for _, v := range values {
					if c.Fields[f] != Keep && (bytes.Contains(all, []byte(v)) || len(v) > 6 && bytes.Contains(lower, []byte(strings.ToLower(v)))) {
						t.Fatalf("%+v: %s: %q is in what is sent:\n%s", c, RedactField(f), v, AppendJSON(nil, &records[0]))
					}
				}
			}
		}
	}
}

func TestHashesAreStableKeyedAndOfOneFamily(t *testing.T) {
	var c RedactConfig
	c.Fields[RedactAddress], c.Fields[RedactPod], c.Fields[RedactNamespace] = Hash, Hash, Hash
	c.Key = keyFile(t, "the first key of this test")
	make2 := func(key string) flows.Record {
		c.Key = keyFile(t, key)
		red, err := NewRedactor(c)
		if err != nil {
			t.Fatal(err)
		}
		records := []flows.Record{tcpRecord(1)}
		records[0].Source = &flows.Entity{Pod: "web", Namespace: "web", Labels: map[string]string{"app": "shop"}}
		records[0].ConnectionID = 5
		red.apply(records)
		return records[0]
	}
	a, b, other := make2("the first key of this test"), make2("the first key of this test"), make2("another key of this test")
	if a.Key != b.Key || a.Source.Pod != b.Source.Pod || a.ConnectionID != b.ConnectionID || a.ConnectionID == 0 {
		t.Errorf("got %v and %v, want the same hashes after a restart", a.Key, b.Key)
	}
	if a.Key.Src == other.Key.Src || a.Source.Pod == other.Source.Pod || a.ConnectionID == other.ConnectionID || a.ConnectionID == 5 {
		t.Errorf("got %v and %v, want others with another key", a.Key, other.Key)
	}
	if len(a.Source.Pod) != 20 || a.Source.Pod == a.Source.Namespace || a.Source.Labels["app"] != "shop" || a.Key.Src.Port() != tcpRecord(1).Key.Src.Port() {
		t.Errorf("got %+v, want 20 digits, another hash for another field, and what is not redacted as it was", a.Source)
	}
	if got := networkType(a.Key); got != "ipv4" {
		t.Errorf("network type of a hashed IPv4 address: got %q, want ipv4", got)
	}
	if text := string(AppendJSON(nil, &a)); strings.Contains(text, nameCommunityID) {
		t.Errorf("got %s, want no Community ID of addresses that did not pass", text)
	}
}

func TestTruncatedAddressKeepsItsPrefix(t *testing.T) {
	c := RedactConfig{IPv4: 20, IPv6: 48}
	c.Fields[RedactAddress] = Truncate
	red, err := NewRedactor(c)
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"10.1.255.7": "10.1.240.0", "2001:db8:1:2::3": "2001:db8:1::", "fe80::1%eth0": "fe80::"} {
		if got := red.address(netip.MustParseAddr(from)); got.String() != want {
			t.Errorf("%s: got %s, want %s", from, got, want)
		}
	}
}

func TestRedactorNeedsAKeyToHash(t *testing.T) {
	var c RedactConfig
	c.Fields[RedactPod] = Hash
	for key, want := range map[string]string{"": "missing", "/does/not/exist": "no such file", keyFile(t, "short"): "has 5 bytes, want at least 16"} {
		c.Key = key
		if _, err := NewRedactor(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("key %q: got %v, want %s", key, err, want)
		}
	}
}

func TestResourceTellsNothingThatIsRedacted(t *testing.T) {
	all := map[string]string{
		"host.name": "node-a", "host.id": "f00dfeed", "cloud.region": "north", "cloud.availability_zone": "north-1",
		"k8s.node.name": "node-a.north", "k8s.pod.name": "weft-x7", "k8s.pod.ip": "192.0.2.5", "host.ip": "192.0.2.4", "k8s.namespace.name": "observe",
		"service.instance.id": "node-a", "team": "net", "service.name": "weft", "container.id": "0123456789abcdef", "k8s.daemonset.name": "weft-ds",
	}
	for f, want := range map[RedactField]string{
		RedactNode:      "container.id k8s.daemonset.name k8s.namespace.name k8s.pod.ip k8s.pod.name service.name team",
		RedactPod:       "cloud.availability_zone cloud.region container.id host.id host.ip host.name k8s.daemonset.name k8s.namespace.name k8s.node.name service.instance.id service.name team",
		RedactAddress:   "cloud.availability_zone cloud.region container.id host.id host.name k8s.daemonset.name k8s.namespace.name k8s.node.name k8s.pod.name service.instance.id service.name team",
		RedactNamespace: "cloud.availability_zone cloud.region container.id host.id host.ip host.name k8s.daemonset.name k8s.node.name k8s.pod.ip k8s.pod.name service.instance.id service.name team",
	} {
		for _, to := range []Treatment{Drop, Hash} {
			var c RedactConfig
			c.Fields[f] = to
			attrs := maps.Clone(all)
			redactor(t, c).resource(attrs)
			left := slices.Sorted(maps.Keys(attrs))
			if to == Hash { // a hash is in its place: what was there is not
				left = slices.DeleteFunc(left, func(name string) bool { return attrs[name] != all[name] })
			}
			if got := strings.Join(left, " "); got != want {
				t.Errorf("%s, treatment %d: got %s, want %s", f, to, got, want)
			}
		}
	}
}

// What a field tells is often spelled another way in the next one.
func TestRedactedValuesAreFoundInTheirOtherSpellings(t *testing.T) {
	const container = "3f1c9a7be02d4b5566778899aabbccddeeff00112233445566778899aabbccdd"
	const uid = "8a6e0804-2bd0-4672-b79d-d97027f9071a"
	for name, c := range map[string]struct {
		field RedactField
		make  func(*flows.Record)
		leak  string
	}{
		"short container id asked for": {RedactContainer, func(r *flows.Record) {
			r.Source = &flows.Entity{ContainerID: container}
			r.DNS = &flows.DNS{Questions: []flows.DNSQuestion{{Name: container[:12] + ".lan"}}}
		}, container[:12]},
		"machine in its unit": {RedactVM, func(r *flows.Record) {
			r.Source = &flows.Entity{VM: "web-1", Unit: `machine-qemu\x2d3\x2dweb\x2d1.scope`}
		}, `web\x2d1`},
		"pod in its unit": {RedactPod, func(r *flows.Record) {
			r.Source = &flows.Entity{PodUID: uid, Unit: "kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"}
		}, strings.ReplaceAll(uid, "-", "_")},
		"machine's id without hyphens": {RedactVM, func(r *flows.Record) {
			r.Source = &flows.Entity{VMID: uid, Sandbox: strings.ReplaceAll(uid, "-", "")}
		}, strings.ReplaceAll(uid, "-", "")},
		"pod in its device's hash": {RedactPod, func(r *flows.Record) { // sha1 of shop.web-1
			r.Source = &flows.Entity{Pod: "web-1", Namespace: "shop"}
			r.Hops = []flows.HopCount{{Hop: flows.Hop{Interface: "cali751425ce827"}, Chosen: true}}
		}, "751425ce827"},
		"namespace in its device's hash": {RedactNamespace, func(r *flows.Record) {
			r.Destination = &flows.Entity{Pod: "web-1", Namespace: "shop"}
			r.Hops = []flows.HopCount{{Hop: flows.Hop{Interface: "eni751425ce827"}, Chosen: true}}
		}, "751425ce827"},
		"address of others asked for": {RedactAddress, func(r *flows.Record) {
			r.DNS = &flows.DNS{Questions: []flows.DNSQuestion{{Name: "9.113.0.203.in-addr.arpa", Type: 12}}}
		}, "203.in-addr"},
		"address backwards": {RedactAddress, func(r *flows.Record) {
			r.Key.Src = netip.MustParseAddrPort("203.0.113.9:1")
			r.Source = &flows.Entity{Node: "9-113-0-203.dsl.example"}
		}, "9-113-0-203"},
		"address in hexadecimal": {RedactAddress, func(r *flows.Record) {
			r.Key.Src = netip.MustParseAddrPort("203.0.113.9:1")
			r.Source = &flows.Entity{Node: "ip-CB007109"}
		}, "CB007109"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, to := range []Treatment{Drop, Hash} {
				var config RedactConfig
				config.Fields[c.field] = to
				records := []flows.Record{tcpRecord(1)}
				c.make(&records[0])
				if before := AppendJSON(nil, &records[0]); !bytes.Contains(before, []byte(strings.ReplaceAll(c.leak, `\`, `\\`))) {
					t.Fatalf("the test has no %s: %s", c.leak, before)
				}
				redactor(t, config).apply(records)
				if got := AppendJSON(nil, &records[0]); bytes.Contains(got, []byte(strings.ReplaceAll(c.leak, `\`, `\\`))) {
					t.Errorf("treatment %d: got %s, want no %s", to, got, c.leak)
				}
			}
		})
	}
}

func BenchmarkRedact(b *testing.B) {
	var c RedactConfig
	for f := range c.Fields {
		c.Fields[f] = Hash
	}
	path := filepath.Join(b.TempDir(), "key")
	if err := os.WriteFile(path, []byte("a key of more than sixteen bytes"), 0o600); err != nil {
		b.Fatal(err)
	}
	c.Key = path
	red, err := NewRedactor(c)
	if err != nil {
		b.Fatal(err)
	}
	s := &secrets{r: rand.New(rand.NewPCG(1, 1))}
	rec := s.record()
	records := make([]flows.Record, 1)
	b.ReportAllocs()
	for b.Loop() {
		records[0] = rec
		red.apply(records)
	}
}

// A field of a record that can name somebody is one that redaction knows.
func TestRedactionKnowsEveryTextAndAddress(t *testing.T) {
	known := strings.Fields(`Key.Src Key.Dst NAT.Source NAT.Destination DropReason DNS.Questions.Name
		Hops.Hop.Interface Hops.Hop.Netns SourceProcess.Comm DestinationProcess.Comm`)
	var end flows.Entity
	var texts []any
	for _, f := range fieldsOf(&end) {
		texts = append(texts, f.text)
	}
	for _, side := range []string{"Source.", "Destination."} {
		known = append(known, side+"Labels")
		for _, f := range reflect.VisibleFields(reflect.TypeOf(end)) {
			if f.Type.Kind() != reflect.String {
				continue
			}
			known = append(known, side+f.Name)
			value := reflect.ValueOf(&end).Elem().FieldByName(f.Name).Addr().Interface()
			if !slices.Contains(texts, value) {
				t.Errorf("Entity.%s: no field of redaction", f.Name)
			}
		}
	}
	var walk func(path string, of reflect.Type)
	walk = func(path string, of reflect.Type) {
		switch {
		case of == reflect.TypeFor[time.Time]():
		case of == reflect.TypeFor[netip.AddrPort](), of == reflect.TypeFor[netip.Addr](), of.Kind() == reflect.String, of.Kind() == reflect.Map:
			if !slices.Contains(known, path) {
				t.Errorf("Record.%s may name somebody: say in redactrecord.go what becomes of it, and here", path)
			}
		case of.Kind() == reflect.Pointer, of.Kind() == reflect.Slice:
			walk(path, of.Elem())
		case of.Kind() == reflect.Struct:
			for i := range of.NumField() {
				walk(strings.TrimPrefix(path+"."+of.Field(i).Name, "."), of.Field(i).Type)
			}
		}
	}
	walk("", reflect.TypeFor[flows.Record]())
}
