// SPDX-License-Identifier: Apache-2.0

package flows

import "time"

// Bounds of what exemplars take, in time and room.
const (
	maxExamples       = 512  // times that are looked at in a drain, and slower ones
	maxExemplarSeries = 2048 // histograms that have any: 200 bytes each
	maxExemplars      = 8    // of a histogram
)

// exemplars finds, for the buckets of the kernel's histograms, connections that are in
// them. What is looked at is bounded; the slowest of a drain always is.
type exemplars struct {
	tried  []example // of this drain
	series map[LatencyKey]*exampled
	closed bool // in this drain a conversation closed before its end: an index may be another's
}

// exampled is what is kept for a histogram.
type exampled struct {
	all  [maxExemplars]Exemplar // ConnectionID 0: free
	read bool
}

// example is a time that a sample brought.
type example struct {
	key          Key // the sample's: its source is the side that the time was to
	class        PointClass
	handshake    bool
	conv         uint32
	from, opener side
	of           Exemplar
}

// connection fills in which one e is of, and who opened it, if that is known by now.
func (e *example) connection(c *conversation) {
	e.of.ConnectionID, e.opener = c.connectionID(), c.opener()
}

// see looks at what s measured of the conversation with the index i. goesOn says that the
// hop had packets before: then a handshake that is news has just been.
func (t *Table) see(i uint32, s *Sample, from side, was time.Duration, goesOn bool) {
	x := &t.examples
	if len(x.tried) >= maxExamples && max(s.TCP.RTT.Max, s.TCP.Handshake) <= x.tried[0].of.Value {
		return
	}
	e := example{key: s.Key, class: s.Class, conv: i, from: from, of: Exemplar{At: s.Last}}
	e.connection(t.convs.at(i))
	if e.of.Value = s.TCP.RTT.Max; s.TCP.RTT.Count > 0 {
		x.try(&e)
	}
	if e.of.Value = s.TCP.Handshake; e.of.Value > 0 && was == 0 && (s.New || goesOn) {
		e.handshake = true
		x.try(&e)
	}
}

// try keeps e until the drain ends. The first one is the slowest.
func (x *exemplars) try(e *example) {
	switch {
	case len(x.tried) > 0 && e.of.Value > x.tried[0].of.Value:
		if len(x.tried) < maxExamples {
			x.tried = append(x.tried, x.tried[0])
		}
		x.tried[0] = *e
	case len(x.tried) < maxExamples:
		x.tried = append(x.tried, *e)
	}
}

// settleExamples ends the drain's: who opened a connection, and its identifier, are known by
// now, or never will be.
func (t *Table) settleExamples() {
	x := &t.examples
	for i := range x.tried {
		e := &x.tried[i]
		if c := t.convs.at(e.conv); e.of.ConnectionID == 0 && !x.closed && c.is(convLive) {
			e.connection(c)
		}
		if e.of.ConnectionID != 0 {
			x.keep(e.series(), e.of)
		}
	}
	x.tried, x.closed = x.tried[:0], false
}

// series is the histogram that the kernel has e's time in.
func (e *example) series() LatencyKey {
	k := LatencyKey{Server: e.key.Src, Protocol: e.key.Proto, Measure: RTTServer, Class: e.class}
	if e.from == e.opener {
		k.Server, k.Measure = e.key.Dst, RTTClient
	}
	if e.handshake {
		k.Measure += HandshakeServer - RTTServer
	}
	return k
}

// keep puts e in the place of the one in its bucket, in a free one, or in the oldest's.
func (x *exemplars) keep(k LatencyKey, e Exemplar) {
	of := x.series[k]
	if of == nil {
		if len(x.series) >= maxExemplarSeries {
			return
		}
		of = &exampled{}
		x.series[k] = of
	}
	all, at := &of.all, 0
	for i := range all {
		if all[i].ConnectionID != 0 && all[i].Bucket() == e.Bucket() {
			at = i
			break
		}
		if all[i].At < all[at].At {
			at = i
		}
	}
	all[at] = e
}

// give puts into the histograms what they have exemplars of, and forgets those of
// histograms that are not there any more.
func (x *exemplars) give(read []Latency) {
	for i := range read {
		l := &read[i]
		of := x.series[l.Key]
		if of == nil {
			continue
		}
		of.read = true
		for _, e := range of.all {
			if k := e.Bucket() - l.Offset; e.ConnectionID != 0 && e.At >= l.Start && k >= 0 && k < len(l.Counts) && l.Counts[k] > 0 {
				l.Exemplars = append(l.Exemplars, e)
			}
		}
	}
	for k, of := range x.series {
		if !of.read {
			delete(x.series, k)
		}
		of.read = false
	}
}

// Bucket is the bucket of [HistogramScale] that e is in.
func (e Exemplar) Bucket() int {
	return min(max(bucketOf(uint64(max(e.Value, 1))), lowestBucket), lowestBucket+buckets-1)
}
