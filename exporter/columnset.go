// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"

	"github.com/apache/arrow-go/v18/arrow"

	"weft/flows"
)

// nameTime is the end of a record's period: LogRecord.time_unix_nano in OTLP.
const nameTime = "time_unix_nano"

type (
	moments = fixed[arrow.Timestamp]
	counts  = fixed[int64]
)

var momentType = &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "UTC"}

func newCounts(name string) *counts { return newFixed[int64](name, arrow.PrimitiveTypes.Int64) }

// columnSet is every column there can be. Those of a record's own fields are set
// directly, the others by the attributes that names.go makes of it.
type columnSet struct {
	all    []vector       // in the order of export
	titles []string       // of all
	places map[string]int // in all, by name
	after  []int          // the column that was set behind each of all, the last time
	prev   int            // that was set last

	end, start             *moments
	schema                 *fixed[uint8]
	src, dst               *addresses
	srcPort, dstPort       *fixed[uint16]
	transport, network     *enum
	iface, netns           *names
	direction, hook, layer *enum
	endReason, basis       *enum
	community              *plainTexts
	fragment               *bits
	rate                   *fixed[float64]
	connection, scope      *fixed[uint64]
	vlan, innerVLAN        *fixed[uint16]
	icmpType, icmpCode     *fixed[uint16]
	flags, reverseFlags    *enum
	dscp                   *fixed[uint8]
	totals                 [len(totals)]*counts
	source, destination    *ends
	hops                   *listed
	hopInterface, hopNetns *names
	hopDirection, hopHook  *enum
	hopLayer, hopNAT       *enum
	hopPackets, hopBytes   *counts
	hopReverse, hopChosen  *bits
	lists                  [numLists]*listed
	names                  []interface{ forget() }          // the dictionaries that can be replaced
	common                 []interface{ reserve(rows int) } // those that fill may set
}

// newColumnSet is every column, empty, with names' dictionaries counted in d.
func newColumnSet(d *budget) *columnSet {
	s := &columnSet{places: map[string]int{}}
	s.addCore(d)
	s.addHealth(d)
	s.source, s.destination = s.addWho(&sourceWho, d), s.addWho(&destinationWho, d)
	s.addSockets(&sourceSocket, d)
	s.addSockets(&destinationSocket, d)
	for i, t := range totals {
		s.totals[i] = add(s, newCounts(t.otlp))
	}
	s.start = add(s, newFixed[arrow.Timestamp](nameStart, momentType))
	s.rate = add(s, newFixed[float64](nameSamplingRate, arrow.PrimitiveTypes.Float64))
	s.addLists(d)
	s.common = []interface{ reserve(rows int) }{s.end, s.start, s.schema, s.src, s.dst, s.srcPort, s.dstPort,
		s.transport, s.network, s.direction, s.hook, s.layer, s.endReason, s.basis, s.flags, s.reverseFlags, s.dscp}
	for _, c := range s.totals {
		s.common = append(s.common, c)
	}
	return s
}

// add adds c to s and returns it.
func add[C vector](s *columnSet, c C) C {
	name := c.field().Name
	s.places[name] = len(s.all)
	s.all, s.titles, s.after = append(s.all, c), append(s.titles, name), append(s.after, 0)
	if f, ok := vector(c).(interface{ forget() }); ok {
		if _, fixed := vector(c).(*enum); !fixed {
			s.names = append(s.names, f)
		}
	}
	return c
}

func (s *columnSet) addCore(d *budget) {
	u8, u16, u64 := arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint64
	s.end = add(s, newFixed[arrow.Timestamp](nameTime, momentType))
	s.schema = add(s, newFixed[uint8](nameSchema, u8))
	s.src = add(s, newAddresses(nameSrcAddr, d))
	s.srcPort = add(s, newFixed[uint16](nameSrcPort, u16))
	s.dst = add(s, newAddresses(nameDstAddr, d))
	s.dstPort = add(s, newFixed[uint16](nameDstPort, u16))
	s.addTexts(d, nameSrcNATAddr)
	s.addCounts(nameSrcNATPort)
	s.addTexts(d, nameDstNATAddr)
	s.addCounts(nameDstNATPort)
	s.addTexts(d, nameNATEvidence)
	s.transport = add(s, newEnum(nameTransport, flows.ProtoName))
	s.network = add(s, newEnum(nameNetworkType, func(v uint8) string { return map[uint8]string{4: "ipv4", 6: "ipv6"}[v] }))
	s.iface = add(s, newNames(nameInterface, d))
	s.direction = add(s, newEnum(nameDirection, hookDirection))
	s.hook = add(s, newEnum(nameHook, hookName))
	s.layer = add(s, newEnum(nameLayer, func(v uint8) string { return flows.Layer(v).String() }))
	s.netns = add(s, newNames(nameNetns, d))
	s.endReason = add(s, newEnum(nameEndReason, func(v uint8) string { return flows.EndReason(v).String() }))
	s.basis = add(s, newEnum(nameInitiator, func(v uint8) string { return flows.InitiatorBasis(v).String() }))
	s.community = add(s, newPlainTexts(nameCommunityID))
	s.fragment = add(s, newBits(nameFragment))
	s.connection = add(s, newFixed[uint64](nameConnection, u64))
	s.scope = add(s, newFixed[uint64](nameScopeNetns, u64))
	s.vlan = add(s, newFixed[uint16](nameScopeVLAN, u16))
	s.innerVLAN = add(s, newFixed[uint16](nameScopeInnerVLAN, u16))
	s.icmpType = add(s, newFixed[uint16](nameICMPType, u16))
	s.icmpCode = add(s, newFixed[uint16](nameICMPCode, u16))
	s.flags = add(s, newEnum(nameTCPFlags, flows.FlagNames))
	s.reverseFlags = add(s, newEnum(nameReverseTCPFlags, flows.FlagNames))
	s.dscp = add(s, newFixed[uint8](nameDSCP, u8))
}

func hookName(v uint8) string      { return flows.Hook(v).String() }
func hookDirection(v uint8) string { return direction(flows.Hook(v)) }

// addTexts, addCounts and addSeconds add columns that attributes fill.
func (s *columnSet) addTexts(d *budget, all ...string) {
	for _, name := range all {
		add(s, newNames(name, d))
	}
}

func (s *columnSet) addCounts(all ...string) {
	for _, name := range all {
		add(s, newCounts(name))
	}
}

func (s *columnSet) addSeconds(all ...string) {
	for _, name := range all {
		add(s, newFixed[float64](name, arrow.PrimitiveTypes.Float64))
	}
}

func (s *columnSet) addRTT(n *rttNames) {
	s.addCounts(n.count)
	s.addSeconds(n.mean, n.least, n.most)
}

func (s *columnSet) addHealth(d *budget) {
	s.addTexts(d, nameFailure, nameResetBy)
	for _, n := range []*sideNames{&sourceNames, &destinationNames} {
		s.addRTT(&n.rtt)
		s.addSeconds(n.handshake)
		s.addCounts(n.untracked, n.retransmits, n.outOfOrder, n.lost, n.dupAcks, n.zeroWindows)
		s.addSeconds(n.zeroWindow)
		s.addCounts(n.mss, n.windowScale)
		s.addTexts(d, n.options)
	}
	s.addCounts(nameDrops)
	s.addTexts(d, nameDropWhy, nameQuestion, nameDNSType, nameRcode)
	s.addCounts(nameDNSQueries, nameDNSRetries, nameDNSAnswers, nameDNSTimeouts)
	s.addRTT(&dnsLatencyNames)
}

// addSockets adds what a socket tells. Its owner's columns are those of the end.
func (s *columnSet) addSockets(n *socketNames, d *budget) {
	s.addCounts(n.cgroup, n.retransmits, n.resetsSent, n.resetsReceived, n.dropped)
	s.addTexts(d, n.err)
}

func (s *columnSet) addLists(d *budget) {
	s.lists[listRcodes] = add(s, newListed(nameDNSRcodes, newNames("rcode", d), newCounts("count")))
	s.lists[listQuestions] = add(s, newListed(nameDNSQuestions, newNames("name", d), newNames("type", d), newBits("timeout"),
		newNames("rcode", d), newCounts("records"), newFixed[float64]("latency", arrow.PrimitiveTypes.Float64)))

	s.hopInterface, s.hopNetns = newNames(hopInterface, d), newNames(hopNetns, d)
	s.hopDirection, s.hopHook = newEnum(hopDirection, hookDirection), newEnum(hopHook, hookName)
	s.hopPackets, s.hopBytes = newCounts(hopPackets), newCounts(hopBytes)
	s.hopReverse, s.hopChosen = newBits(hopReverse), newBits(hopChosen)
	s.hopLayer = newEnum(hopLayer, func(v uint8) string { return flows.Layer(v).String() })
	s.hopNAT = newEnum(hopNAT, func(v uint8) string { return flows.NATStage(v).String() })
	s.hops = add(s, newListed("weft.flow.hops", s.hopInterface, s.hopDirection, s.hopHook, s.hopNetns,
		s.hopPackets, s.hopBytes, s.hopReverse, s.hopChosen, s.hopLayer, s.hopNAT))
	s.lists[listHops] = s.hops
}

// forget begins all dictionaries of names anew.
func (s *columnSet) forget() {
	for _, c := range s.names {
		c.forget()
	}
	s.source.forget()
	s.destination.forget()
}

// listed is how many rows all lists of the batch have.
func (s *columnSet) listed() int {
	return s.hops.n + s.lists[listQuestions].n + s.lists[listRcodes].n + s.source.labels.n + s.destination.labels.n
}

// put sets a row to what attributes say. They come in the same order in most records,
// so the column that followed the last time is tried first.
func (s *columnSet) put(row int, attrs []slog.Attr) {
	for i := range attrs {
		a := &attrs[i]
		at := s.after[s.prev]
		if s.titles[at] != a.Key {
			var ok bool
			if at, ok = s.places[a.Key]; !ok {
				continue // a test finds those that have no column
			}
			s.after[s.prev] = at
		}
		s.all[at].put(row, a.Value)
		s.prev = at
	}
}

// named is the column of a name; nil: there is none.
func (s *columnSet) named(name string) vector {
	if at, ok := s.places[name]; ok {
		return s.all[at]
	}
	return nil
}
