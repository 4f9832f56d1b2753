// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"weft/flows"
)

// spoolTally is what the folder of a spool says of the run that writes to it, so that the
// next one can tell what is missing when this one is killed: packets at points that
// were in flows and in no request on disk. A sink that gets a part of the records knows
// nothing of open conversations that will be its: what it misses is of records that it took. It is a file of some hundred bytes, renamed
// into place with each ledger and each request. Not synced: it is for a killed agent, and
// a power cut may take a second of it.
type spoolTally struct {
	Run     uint64      // of the requests that are in Safe
	Next    uint64      // number of the first request that is not
	Flows   flows.Count // drained into conversations, at all points; or in records that were taken
	Safe    flows.Count // of those, in requests that came to the disk
	Missing flows.Count // of runs before, since the folder was made
	unwatched
}

const tallyName = "tally.json"

// hopCount is what a record has of its points' counts.
func hopCount(r *flows.Record) (sum flows.Count) {
	for i := range r.Hops {
		sum.Add(flows.Count{Packets: r.Hops[i].Packets, Bytes: r.Hops[i].Bytes})
	}
	return sum
}

// flowsCount is what a ledger's points have in flows, those that went included.
func flowsCount(l *flows.Ledger) flows.Count {
	sum := l.Gone.Flows
	for i := range l.Points {
		sum.Add(l.Points[i].Flows)
	}
	return sum
}

// less is a - b, no less than nothing.
func less(a, b flows.Count) flows.Count {
	return flows.Count{Packets: a.Packets - min(a.Packets, b.Packets), Bytes: a.Bytes - min(a.Bytes, b.Bytes)}
}

// carry reads what the run before wrote and begins this run's tally. s.mu is held and
// found is what lies in the folder.
func (s *spool) carry(found []*spooled) error {
	s.tally = spoolTally{Run: s.run, Next: s.next}
	text, err := os.ReadFile(filepath.Join(s.c.Dir, tallyName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var before spoolTally
	if err == nil {
		err = json.Unmarshal(text, &before)
	}
	if err != nil {
		return fmt.Errorf("what the last run had is not known: %w", err)
	}
	for _, e := range found { // on disk, and killed before that was noted
		var number, run uint64
		if n, _ := fmt.Sscanf(e.name, "%016x-%016x", &number, &run); n == 2 && run == before.Run && number >= before.Next {
			body, err := s.read(e)
			if err != nil {
				continue // it is counted when it is taken
			}
			before.Safe.Add(requestCount(body))
		}
	}
	lost := less(before.Flows, before.Safe)
	s.tally.unwatched = before.unwatched
	s.tally.Missing = before.Missing.Plus(lost)
	s.missed.Store(s.tally.Missing.Packets)
	s.unseen.Store(s.tally.Frames)
	if lost.Packets > 0 {
		s.log.Warn("last run was killed, packets that it had for this sink are in no record", "packets", lost.Packets, "bytes", lost.Bytes,
			"since_the_spool_was_made", s.tally.Missing.Packets)
	}
	return nil
}

// requestCount is hopCount of all records of a request.
func requestCount(body []byte) (sum flows.Count) {
	var m collogs.ExportLogsServiceRequest
	if proto.Unmarshal(body, &m) != nil {
		return sum
	}
	for _, r := range m.ResourceLogs[0].ScopeLogs[0].LogRecords {
		for _, a := range r.Attributes {
			if a.Key != nameHops {
				continue
			}
			for _, hop := range a.Value.GetArrayValue().GetValues() {
				sum.Add(listedCount(hop.GetKvlistValue().GetValues()))
			}
		}
	}
	return sum
}

func listedCount(fields []*common.KeyValue) (c flows.Count) {
	for _, f := range fields {
		switch f.Key {
		case hopPackets:
			c.Packets = uint64(f.Value.GetIntValue())
		case hopBytes:
			c.Bytes = uint64(f.Value.GetIntValue())
		}
	}
	return c
}

// told notes what there is: what the ledger l has in flows, or what the records have
// that were taken.
func (s *spool) told(all flows.Count, l *flows.Ledger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally.Flows = all
	s.tellUnwatched(l)
	s.keepTally()
}

// learn is told without a write of its own: the next one has it. It is no less than before.
func (s *spool) learn(all flows.Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all.Packets > s.tally.Flows.Packets {
		s.tally.Flows = all
	}
}

// keepTally writes the tally. s.mu is held.
func (s *spool) keepTally() {
	if s.lock == nil {
		return // there is no folder, or it is another process's
	}
	text, err := json.Marshal(s.tally)
	path := filepath.Join(s.c.Dir, tallyName)
	if err == nil {
		err = os.WriteFile(path+".tmp", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	change(&s.untold, err, func() {
		s.log.Warn("spool's tally cannot be written: after a kill it will say too much is missing", "err", err)
	},
		func() { s.log.Info("spool's tally is written again") })
}

// missing is how many packets runs that were killed had and in no request. It does not
// wait for the disk.
func (s *spool) missing() uint64 { return s.missed.Load() }
