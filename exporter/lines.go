// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"weft/flows"
)

// LineFormat is what a line of a file or of standard output holds. Both are JSON.
type LineFormat string

// The formats: of LinesOTLP a line is one ExportLogsServiceRequest of up to 128
// records, as the Collector's file exporter writes and its otlpjsonfile receiver
// reads it; of LinesFlows a line is one record, as [AppendJSON] has it.
const (
	LinesOTLP  LineFormat = "otlp"
	LinesFlows LineFormat = "flows"
)

// ParseLineFormat is the format called s; the error lists them all.
func ParseLineFormat(s string) (LineFormat, error) {
	switch f := LineFormat(s); f {
	case LinesOTLP, LinesFlows:
		return f, nil
	}
	return "", fmt.Errorf("lines of %q: want otlp or flows", s)
}

// What a line holds at most. Longer ones than a MiB are cut by the Collector's
// receiver of files, and what is cut is no JSON.
const (
	maxLine        = 1 << 20 // bytes, its line break among them
	maxLineRecords = 128
)

// liner makes lines of records. It is for one goroutine.
type liner struct {
	format  LineFormat
	encoder *LogEncoder
	run     uint64 // random, and
	lines   uint64 // how many were made: both make the id of a line
	body    []byte
}

func newLiner(format LineFormat, version string, getenv func(string) string, hide *Redactor) (*liner, error) {
	c := OTLPConfig{Version: version, Getenv: getenv}
	resource, err := c.resource(c.getenv())
	if err != nil {
		return nil, err
	}
	hide.resource(resource)
	l := &liner{format: format, run: rand.Uint64()}
	l.encoder, err = NewLogEncoder(resource, version)
	return l, err
}

// append appends lines of the first n of records to dst. n is 0 when not even one
// fits on a line.
func (l *liner) append(dst []byte, records []flows.Record) (_ []byte, n int, _ error) {
	if l.format == LinesFlows {
		for i := range records {
			dst = append(AppendJSON(dst, &records[i]), '\n')
		}
		return dst, len(records), nil
	}
	l.encoder.Batch(batchID(l.lines, l.run))
	l.lines++
	for most := min(len(records), maxLineRecords); most > 0; most = n / 2 {
		if l.body, n = l.encoder.Append(l.body[:0], records[:most], time.Now()); n == 0 {
			break
		}
		text, err := jsonLogs().append(dst, l.body)
		if err != nil {
			return dst, 0, fmt.Errorf("write own request as JSON: %w", err)
		}
		if len(text)-len(dst) < maxLine {
			return append(text, '\n'), n, nil
		}
	}
	return dst, 0, nil
}

// appendLines appends lines of the first n of records to dst: n is 0 when the first
// cannot be on any.
type appendLines func(dst []byte, records []flows.Record) (_ []byte, n int, _ error)

// writeLines is the work of a sink of lines: until the queue ends, it takes records
// and hands over their lines to write, which settles them.
func writeLines(q *queue, lines appendLines, linger time.Duration, log *slog.Logger, write func(text []byte, n int)) {
	var text []byte
	for {
		records, ok := q.next(maxLineRecords, linger)
		if !ok {
			return
		}
		for len(records) > 0 {
			began := time.Now()
			b, n, err := lines(text[:0], records)
			text = b
			q.stages.Load().Done(StageEncode, began, len(b))
			switch {
			case err != nil:
				log.Error("records cannot be written as JSON", "records", len(records), "err", err)
				n = len(records)
				q.settle(0, n, "refused")
			case n == 0:
				n = 1
				q.settle(0, 1, "too_large")
			default:
				began = time.Now()
				write(text, n)
				q.stages.Load().Done(StageWrite, began, len(text))
			}
			records = records[n:]
		}
		if cap(text) > 2*maxLine {
			text = nil
		}
	}
}
