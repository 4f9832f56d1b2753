// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stage is a step on a record's way out.
type Stage string

// The stages: of the agent, which has them once a drain, and of a sink, once a batch.
const (
	StageFold  Stage = "fold"  // the kernel's samples become conversations and records
	StageName  Stage = "name"  // records get who is behind their addresses
	StageOffer Stage = "offer" // every sink is offered the records; none is waited for

	StageQueue   Stage = "queue"   // the oldest record of a batch waited for its worker
	StageEncode  Stage = "encode"  // records become a request, lines or columns
	StageSpool   Stage = "spool"   // a request is compressed and put on disk
	StageUnspool Stage = "unspool" // and read from there
	StageSend    Stage = "send"    // a request of records, with its answer; each try
	StageMetrics Stage = "metrics" // the same of the ledger and the histograms
	StageWrite   Stage = "write"   // to a file or to standard output, with fsync where that is wanted
)

// Stages measures how long stages take, and how many bytes leave them:
// weft_stage_duration_seconds and weft_stage_bytes_total, by sink (empty: the agent) and
// stage. For any number of goroutines. Nothing is measured by a nil one.
type Stages struct {
	took  *prometheus.HistogramVec
	bytes *prometheus.CounterVec
}

// NewStages measures those of the sink of that name.
func NewStages(sink string) *Stages {
	of := prometheus.Labels{"sink": sink}
	return &Stages{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_stage_duration_seconds", ConstLabels: of,
			Help:    "How long a stage on the way of records took, a drain (sink empty) or a batch at a time; stage send is until the receiver's answer, queue the wait of a batch's oldest record.",
			Buckets: prometheus.ExponentialBuckets(1.0/(1<<16), 4, 11), // 15 us to 16 s
			// Native ones for who asks: at most 10 % wide, and at most 100.
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}, []string{"stage"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_stage_bytes_total", Help: "Bytes that left a stage: encoded, compressed and on disk (spool), read from there and unpacked, sent (before compression), written. Columns are counted when they are written.", ConstLabels: of,
		}, []string{"stage"}),
	}
}

// Done notes that a stage which began then is over, and that so many bytes left it.
func (s *Stages) Done(stage Stage, began time.Time, bytes int) {
	s.Took(stage, time.Since(began), bytes)
}

// Took is Done of what is timed already.
func (s *Stages) Took(stage Stage, took time.Duration, bytes int) {
	if s == nil {
		return
	}
	s.took.WithLabelValues(string(stage)).Observe(took.Seconds())
	if bytes > 0 {
		s.bytes.WithLabelValues(string(stage)).Add(float64(bytes))
	}
}

// Describe sends the descriptions of what Collect sends.
func (s *Stages) Describe(ch chan<- *prometheus.Desc) {
	s.took.Describe(ch)
	s.bytes.Describe(ch)
}

// Collect sends the stages that there were.
func (s *Stages) Collect(ch chan<- prometheus.Metric) {
	s.took.Collect(ch)
	s.bytes.Collect(ch)
}
