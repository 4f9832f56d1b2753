// SPDX-License-Identifier: Apache-2.0

package flows

// Process is who owns the socket of one side of a connection, on this host: the
// one that called connect() or accept(). It may since have handed the socket on.
type Process struct {
	PID    uint32 // thread group id in the initial pid namespace, when it connected or accepted
	Comm   string // of the thread group's leader, at that time; at most 15 bytes
	Cgroup uint64 // id of its cgroup v2, at that time; 0: not known
}

// SocketSample is what sockets of this host told of one flow since the last
// drain. Counts are increments. Two connections with the same ports in one drain
// are one sample, with the later one's process and error.
//
// Sockets of all network namespaces tell, watched or not.
type SocketSample struct {
	// Key is what the socket sends: Src is its own end. Of ICMP the
	// ports are type and code of the packet that came. Dst is unspecified where the kernel does not say who sent what a UDP
	// socket had no room for (before 6.10). Zero with Overflow.
	Key Key

	// Netns is the cookie of the socket's namespace; 0: not known. Domain is as in
	// [Sample]; 0: the namespace is not watched.
	Netns, Domain uint64

	Process Process // PID 0: not known
	SocketFigures
	Events      uint64 // how many made this sample
	First, Last int64  // Unix nanoseconds

	// Overflow: figures of any number of flows, for which the kernel's table had no
	// room.
	Overflow bool
}

// SocketFigures is what a socket counts by itself.
type SocketFigures struct {
	Retransmits    uint64 // segments sent again, SYN and SYN-ACK too, as TcpRetransSegs counts them
	ResetsSent     uint64 // before 6.10 only those of a socket, not those of closed ports
	ResetsReceived uint64 // by a socket that stood or was connecting
	RcvQueueFull   uint64 // datagrams thrown away for want of room in the receive queue; before 6.10 of IPv4 only
	// Errno is the socket's error when it was closed, in Linux numbers; 0: none.
	// Failed: it was closed before it was connected, by its owner if Errno is 0.
	Errno  uint16
	Failed bool
}

// Linux numbers of the errors that tell how a connection failed (errno.h).
const (
	errnoPipe         = 32
	errnoNetDown      = 100
	errnoNetUnreach   = 101
	errnoConnReset    = 104
	errnoTimedOut     = 110
	errnoConnRefused  = 111
	errnoHostDown     = 112
	errnoHostUnreach  = 113
	errnoNoProtoOpt   = 92 // ICMP: no such protocol there
	errnoMessageLong  = 90 // ICMP: needs fragmentation
	errnoOpNotSupport = 95 // ICMP: source route failed
)

// Failure is what Errno and Failed mean.
func (f SocketFigures) Failure() Failure {
	if !f.Failed {
		switch f.Errno {
		case errnoConnReset, errnoPipe:
			return FailReset
		case errnoTimedOut:
			return FailTimedOut
		case errnoNetDown, errnoNetUnreach, errnoHostDown, errnoHostUnreach:
			return FailUnreachable
		}
		return FailNone
	}
	switch f.Errno {
	case errnoConnRefused:
		return FailRefused
	case 0, errnoTimedOut:
		return FailUnanswered
	case errnoNetDown, errnoNetUnreach, errnoHostDown, errnoHostUnreach, errnoNoProtoOpt, errnoMessageLong, errnoOpNotSupport:
		return FailUnreachable
	case errnoConnReset:
		return FailReset
	}
	return FailNone
}

// add adds what was told later.
func (f *SocketFigures) add(g SocketFigures) {
	f.Retransmits += g.Retransmits
	f.ResetsSent += g.ResetsSent
	f.ResetsReceived += g.ResetsReceived
	f.RcvQueueFull += g.RcvQueueFull
	if g.Errno != 0 || g.Failed {
		f.Errno, f.Failed = g.Errno, g.Failed
	}
}

// SocketAccount proves where everything that sockets told went. Events,
// cumulative since the agent started, of all namespaces:
// Seen = Drained + Lost + what the next drain finds, which is nothing in the
// last account; and Drained + Lost of a drain is at least the Before of the
// drain before it. Zero: sockets are not asked.
type SocketAccount struct {
	Before, Seen uint64 // counted before any table, read before and after the drain
	Drained      uint64 // in samples, Overflow ones among them
	Overflowed   uint64 // of those and Lost, counted without addresses
	Lost         uint64 // in no sample: no room even without addresses
	// Missed is how often the kernel did not run a program, since it was running on
	// that CPU already. Not in Seen.
	Missed uint64
	// Unowned is how many sockets found no room among those whose process is known.
	// Sockets, not events.
	Unowned uint64
}
