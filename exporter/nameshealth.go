// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"log/slog"
	"strings"
	"time"

	"weft/flows"
)

// The names of what was measured of a record beside its packets. Times are
// seconds, as floating point numbers that hold every nanosecond of up to 104 days.
const (
	nameFailure  = "weft.tcp.failure"
	nameResetBy  = "weft.tcp.reset_by" // source, destination, both
	nameTCPSrc   = "weft.tcp.source."  // and a name of tcp...
	nameTCPDst   = "weft.tcp.destination."
	nameDrops    = "weft.drop.packets"
	nameDropWhy  = "weft.drop.reason"
	nameQuestion = "dns.question.name" // the last one, as the next two
	nameDNSType  = "weft.dns.question.type"
	nameRcode    = "weft.dns.rcode"

	nameDNSQueries   = "weft.dns.queries"
	nameDNSRetries   = "weft.dns.retries"
	nameDNSAnswers   = "weft.dns.answers"
	nameDNSTimeouts  = "weft.dns.timeouts"
	nameDNSLatency   = "weft.dns.latency" // and .count, .mean, .min, .max
	nameDNSRcodes    = "weft.dns.rcodes"
	nameDNSQuestions = "weft.dns.questions"

	namePID     = ".process.pid" // behind source and destination, as the next one
	nameComm    = ".process.executable.name"
	nameSrcProc = "source"
	nameDstProc = "destination"
	nameCgroup  = ".cgroup.id" // behind weft.source and weft.destination
)

// The names of what a socket counts, behind weft.source.socket and weft.destination.socket.
const (
	socketRetransmits    = ".retransmits"
	socketResetsSent     = ".resets_sent"
	socketResetsReceived = ".resets_received"
	socketQueueFull      = ".receive_queue_full"
	socketError          = ".error"
)

// The names of one side's figures, behind weft.tcp.source. and weft.tcp.destination.
const (
	tcpRTT         = "rtt" // and .count, .mean, .min, .max
	tcpHandshake   = "handshake.duration"
	tcpRetransmits = "retransmits"
	tcpOutOfOrder  = "out_of_order"
	tcpLost        = "lost"
	tcpDupAcks     = "dup_acks"
	tcpZeroWindows = "zero_windows"
	tcpZeroWindow  = "zero_window.duration"
	tcpUntracked   = "untracked.packets" // then no count is there
	tcpMSS         = "mss"
	tcpWindowScale = "window_scale"
	tcpOptions     = "options" // timestamps+sack+window_scale, or none
)

func appendHealth(dst []slog.Attr, r *flows.Record) []slog.Attr {
	if t := r.TCP; t != nil {
		if f := t.Failure.String(); f != "" {
			dst = append(dst, slog.String(nameFailure, f))
		}
		if by := resetBy(t); by != "" {
			dst = append(dst, slog.String(nameResetBy, by))
		}
		dst = appendSide(dst, &sourceNames, &t.Source)
		dst = appendSide(dst, &destinationNames, &t.Destination)
	}
	if r.Dropped > 0 { // 0 may be that drops are not traced
		dst = append(dst, slog.Int64(nameDrops, signed(r.Dropped)))
		if r.DropReason != "" {
			dst = append(dst, slog.String(nameDropWhy, r.DropReason))
		}
	}
	if r.DNS != nil {
		dst = appendDNS(dst, r.DNS)
	}
	return dst
}

// appendSockets appends the attributes behind those that say who the two ends are.
func appendSockets(dst []slog.Attr, w *words, r *flows.Record) []slog.Attr {
	dst = appendProcess(dst, &sourceSocket, r.SourceProcess)
	dst = appendProcess(dst, &destinationSocket, r.DestinationProcess)
	dst = appendSocket(dst, w, &sourceSocket, r.SourceSocket)
	return appendSocket(dst, w, &destinationSocket, r.DestinationSocket)
}

// socketNames are the full names of what is known of the socket of one end, put
// together once.
type socketNames struct {
	pid, comm, cgroup                                string
	retransmits, resetsSent, resetsReceived, dropped string
	err                                              string
}

func namesOfSocket(side string) socketNames {
	prefix := "weft." + side + ".socket"
	return socketNames{
		pid: side + namePID, comm: side + nameComm, cgroup: "weft." + side + nameCgroup,
		retransmits: prefix + socketRetransmits, resetsSent: prefix + socketResetsSent,
		resetsReceived: prefix + socketResetsReceived, dropped: prefix + socketQueueFull, err: prefix + socketError,
	}
}

// appendSocket appends what the socket of one end counts by itself. Its error is
// named as errno.h does, in lower case.
func appendSocket(dst []slog.Attr, w *words, n *socketNames, s *flows.SocketFigures) []slog.Attr {
	if s == nil {
		return dst
	}
	dst = append(dst,
		slog.Int64(n.retransmits, signed(s.Retransmits)), slog.Int64(n.resetsSent, signed(s.ResetsSent)),
		slog.Int64(n.resetsReceived, signed(s.ResetsReceived)), slog.Int64(n.dropped, signed(s.RcvQueueFull)))
	if s.Errno != 0 {
		dst = append(dst, slog.String(n.err, w.errno(s.Errno)))
	}
	return dst
}

func resetBy(t *flows.TCPRecord) string {
	switch {
	case t.SourceReset && t.DestinationReset:
		return "both"
	case t.SourceReset:
		return "source"
	case t.DestinationReset:
		return "destination"
	}
	return ""
}

// sideNames are the full names of one side's figures, put together once.
type sideNames struct {
	rtt                                      rttNames
	handshake, retransmits, outOfOrder, lost string
	dupAcks, zeroWindows, zeroWindow         string
	mss, windowScale, options, untracked     string
}

type rttNames struct{ count, mean, least, most string }

func namesOfRTT(name string) rttNames {
	return rttNames{name + ".count", name + ".mean", name + ".min", name + ".max"}
}

func namesOfSide(prefix string) sideNames {
	return sideNames{
		rtt: namesOfRTT(prefix + tcpRTT), handshake: prefix + tcpHandshake,
		retransmits: prefix + tcpRetransmits, outOfOrder: prefix + tcpOutOfOrder, lost: prefix + tcpLost,
		dupAcks: prefix + tcpDupAcks, zeroWindows: prefix + tcpZeroWindows, zeroWindow: prefix + tcpZeroWindow,
		mss: prefix + tcpMSS, windowScale: prefix + tcpWindowScale, options: prefix + tcpOptions,
		untracked: prefix + tcpUntracked,
	}
}

var (
	sourceNames      = namesOfSide(nameTCPSrc)
	destinationNames = namesOfSide(nameTCPDst)
	dnsLatencyNames  = namesOfRTT(nameDNSLatency)

	sourceSocket      = namesOfSocket(nameSrcProc)
	destinationSocket = namesOfSocket(nameDstProc)
)

// measured reports whether anything is known of a side: then its counts of 0 are
// counts, else they are nothing.
func measured(h *flows.TCPHealth) bool { return *h != flows.TCPHealth{} }

// appendSide appends one side's figures.
func appendSide(dst []slog.Attr, n *sideNames, h *flows.TCPHealth) []slog.Attr {
	if !measured(h) {
		return dst
	}
	dst = appendRTT(dst, &n.rtt, h.RTT)
	if h.Handshake != 0 {
		dst = append(dst, seconds(n.handshake, h.Handshake))
	}
	dst = appendCounts(dst, n, h)
	if h.Options == 0 { // the SYN was not seen
		return dst
	}
	if h.MSS != 0 {
		dst = append(dst, slog.Int64(n.mss, int64(h.MSS)))
	}
	if h.Options&flows.TCPWindowScale != 0 {
		dst = append(dst, slog.Int64(n.windowScale, int64(h.WindowScale)))
	}
	return append(dst, slog.String(n.options, optionNames(h.Options)))
}

// appendCounts appends one side's counts; when some packets were not looked at, how many
// those were instead.
func appendCounts(dst []slog.Attr, n *sideNames, h *flows.TCPHealth) []slog.Attr {
	if h.Untracked > 0 {
		return append(dst, slog.Int64(n.untracked, signed(h.Untracked)))
	}
	dst = append(dst,
		slog.Int64(n.retransmits, signed(h.Retransmits)), slog.Int64(n.outOfOrder, signed(h.OutOfOrder)),
		slog.Int64(n.lost, signed(h.Lost)), slog.Int64(n.dupAcks, signed(h.DupAcks)),
		slog.Int64(n.zeroWindows, signed(h.ZeroWindows)))
	if h.ZeroWindow != 0 {
		dst = append(dst, seconds(n.zeroWindow, h.ZeroWindow))
	}
	return dst
}

// optionTexts are the names of every set of options, put together once. A full accept
// queue is no option: it is why the connection failed.
var optionTexts = func() (all [1 << 4]string) {
	for o := range all {
		all[o] = joinOptions(flows.TCPOptions(o))
	}
	return all
}()

func optionNames(o flows.TCPOptions) string { return optionTexts[int(o)%len(optionTexts)] }

func joinOptions(o flows.TCPOptions) string {
	var list []string
	for _, c := range []struct {
		bit  flows.TCPOptions
		name string
	}{{flows.TCPTimestamps, "timestamps"}, {flows.TCPSACK, "sack"}, {flows.TCPWindowScale, "window_scale"}} {
		if o&c.bit != 0 {
			list = append(list, c.name)
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, "+")
}

func appendRTT(dst []slog.Attr, n *rttNames, r flows.RTT) []slog.Attr {
	if r.Count == 0 {
		return dst
	}
	dst = append(dst, slog.Int64(n.count, signed(r.Count)), seconds(n.mean, r.Mean()))
	if r.Min != 0 {
		dst = append(dst, seconds(n.least, r.Min))
	}
	if r.Max != 0 {
		dst = append(dst, seconds(n.most, r.Max))
	}
	return dst
}

func appendDNS(dst []slog.Attr, d *flows.DNS) []slog.Attr {
	if len(d.Questions) > 0 {
		q := &d.Questions[0]
		dst = append(dst, slog.String(nameQuestion, q.Name), slog.String(nameDNSType, flows.DNSTypeName(q.Type)))
		if !q.Timeout {
			dst = append(dst, slog.String(nameRcode, flows.DNSRcodeName(q.Rcode)))
		}
	}
	dst = append(dst,
		slog.Int64(nameDNSQueries, signed(d.Queries)), slog.Int64(nameDNSRetries, signed(d.Retries)),
		slog.Int64(nameDNSAnswers, signed(d.Answers)), slog.Int64(nameDNSTimeouts, signed(d.Timeouts)))
	return appendRTT(dst, &dnsLatencyNames, d.Latency)
}

// appendRcode appends the fields of one code's count of answers.
func appendRcode(dst []slog.Attr, c flows.DNSRcode) []slog.Attr {
	return append(dst, slog.String("rcode", flows.DNSRcodeName(c.Rcode)), slog.Int64("count", signed(c.Count)))
}

// appendQuestion appends the fields of one question.
func appendQuestion(dst []slog.Attr, q *flows.DNSQuestion) []slog.Attr {
	dst = append(dst, slog.String("name", q.Name), slog.String("type", flows.DNSTypeName(q.Type)))
	if q.Timeout {
		return append(dst, slog.Bool("timeout", true))
	}
	dst = append(dst, slog.String("rcode", flows.DNSRcodeName(q.Rcode)), slog.Int64("records", int64(q.Records)))
	if q.Latency != 0 {
		dst = append(dst, seconds("latency", q.Latency))
	}
	return dst
}

func appendProcess(dst []slog.Attr, n *socketNames, p *flows.Process) []slog.Attr {
	if p == nil {
		return dst
	}
	if p.PID != 0 {
		dst = append(dst, slog.Int64(n.pid, int64(p.PID)))
	}
	if p.Comm != "" {
		dst = append(dst, slog.String(n.comm, p.Comm))
	}
	if p.Cgroup != 0 {
		dst = append(dst, slog.Int64(n.cgroup, signed(p.Cgroup)))
	}
	return dst
}

func seconds(name string, d time.Duration) slog.Attr { return slog.Float64(name, d.Seconds()) }
