// SPDX-License-Identifier: Apache-2.0

package flows

import "time"

// DNS is what a record's conversation asked and was answered, in the period, at
// its chosen point.
type DNS struct {
	Queries   uint64 // questions, each counted once however often it was sent
	Retries   uint64 // of them sent again
	Answers   uint64 // questions that were answered
	Timeouts  uint64 // questions that were not, within the time-out
	Latency   RTT    // question to answer; of questions sent once
	Rcodes    []DNSRcode
	Questions []DNSQuestion // the last few, newest first: at most maxQuestions
}

// DNSRcode counts answers of one code.
type DNSRcode struct {
	Rcode uint16
	Count uint64
}

// DNSQuestion is one question and what became of it.
type DNSQuestion struct {
	Name    string // as asked, lower case, without the last dot; bytes that do not print are \DDD
	Type    uint16
	Rcode   uint16        // meaningless with Timeout
	Records uint16        // in the answer section
	Latency time.Duration // 0: not measured
	Timeout bool
}
