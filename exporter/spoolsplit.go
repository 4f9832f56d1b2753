// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A file is named by the id of its request, which says its place in the order, and by its records:
//
//	NUMBER-RUN-RECORDS.otlp.zst      a request
//	NUMBER-RUN.0-RECORDS.otlp.zst    a half of it, which may have halves too: NUMBER-RUN.0.1-...
//
// so that even of a file whose content is damaged it is known what was in it.
func spoolName(id string, records int) string {
	return fmt.Sprintf("%s-%d%s", id, records, spoolSuffix)
}

var spoolNames = regexp.MustCompile(`^([0-9a-f]{16})-[0-9a-f]{16}(?:\.[01])*-([1-9][0-9]{0,8})` + regexp.QuoteMeta(spoolSuffix) + `$`)

// parseSpoolName is the number and the records of a file's name; false: it is none of ours.
func parseSpoolName(name string) (number uint64, records int, ours bool) {
	m := spoolNames.FindStringSubmatch(name)
	if m == nil {
		return 0, 0, false
	}
	number, err := strconv.ParseUint(m[1], 16, 64)
	records, err2 := strconv.Atoi(m[2])
	return number, records, err == nil && err2 == nil
}

// spoolID is the id of the request in a file of that name.
func spoolID(name string) string { return name[:strings.LastIndexByte(name, '-')] }

// split puts the halves of a request that is being sent in its place, each with a file and an id of its
// own: one that was sent is not sent again in the whole, whenever the agent is killed. False: it
// waits in memory, or the disk takes no halves.
func (s *spool) split(e *spooled, halves []batch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.Index(s.entries, e)
	if at < 0 || e.held != nil {
		return false
	}
	var parts []*spooled
	for i, h := range halves {
		part := &spooled{
			name: spoolName(fmt.Sprintf("%s.%d", spoolID(e.name), i), h.records), records: h.records, since: e.since, recovered: e.recovered,
		}
		packed, err := packers["zstd"](h.body)
		if err == nil {
			err = s.write(part.name, packed)
		}
		if err == nil {
			part.size = len(packed)
			s.bytes += part.size
			parts = append(parts, part)
			since := time.Now().Add(-time.Since(e.since)) // by the wall clock
			err = os.Chtimes(filepath.Join(s.c.Dir, part.name), since, since)
		}
		if err != nil {
			return s.noHalves(parts, err)
		}
	}
	if err := s.unlink(e); err != nil { // until it has gone, the halves do not count: see whole
		return s.noHalves(parts, err)
	}
	s.entries = slices.Replace(s.entries, at, at+1, parts...)
	s.signal()
	return true
}

// whole is what is there of requests that a killed run was about to split: while the request is there, its halves
// are not complete or not needed yet, and go.
func (s *spool) whole(found []*spooled) ([]*spooled, error) {
	there := map[string]bool{}
	for _, e := range found {
		there[spoolID(e.name)] = true
	}
	var left []*spooled
	for _, e := range found {
		id := spoolID(e.name)
		if dot := strings.LastIndexByte(id, '.'); dot < 0 || !there[id[:dot]] {
			left = append(left, e)
			continue
		}
		if err := s.unlink(e); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// noHalves takes back the halves that were written; false.
func (s *spool) noHalves(parts []*spooled, err error) bool {
	s.note(err)
	for _, p := range parts {
		s.drop(p)
	}
	return false
}
