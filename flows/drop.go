// SPDX-License-Identifier: Apache-2.0

package flows

// DropSample is what the kernel threw away of one flow, at one interface, for
// one reason, in one function, since the last drain. Packets and Bytes are
// increments.
//
// The kernel traces drops of all network namespaces, watched or not.
type DropSample struct {
	// Key is zero when it was no IP packet (Proto 0: no addresses), and when
	// Overflow is set.
	Key Key

	// At has no hook. Netns is 0 when neither the packet's device, its socket nor
	// its route told the namespace. Ifindex is the device that had the packet, or,
	// once the stack has forgotten that, the one that received it; 0: neither.
	At Point

	// Domain is as in [Sample]; 0: At.Netns alone.
	Domain uint64

	Reason   string // the running kernel's name without its prefix: NO_SOCKET, NETFILTER_DROP
	Class    DropClass
	Location string // the function that dropped it, with its module; an address if that has no name

	// Packets on the wire: a GSO frame counts its segments.
	Packets uint64
	// Bytes of IP packets from the IP header on, since at many places a packet has
	// no link header: not comparable with the L2 bytes of a [Sample]. The headers of
	// a GSO frame count once. Of other packets: what was there.
	Bytes uint64

	First, Last int64 // Unix nanoseconds; Last to the kernel's tick

	// Overflow: drops of any number of flows, for which the kernel's table had no
	// room. Without addresses and location.
	Overflow bool
}

// DropClass tells drops that hurt from those that do not.
type DropClass string

// The classes.
const (
	DropLoss        DropClass = "loss"        // someone wanted the packet and did not get it
	DropNoise       DropClass = "noise"       // nobody misses it: a copy, or of a connection that is over
	DropUnspecified DropClass = "unspecified" // the kernel does not say: the location may
)

// notLosses are the kernel's reasons that are no loss, by name.
var notLosses = map[string]DropClass{
	"CONSUMED":        DropNoise,       // used up
	"NOT_DROPPED_YET": DropUnspecified, // the kernel forgot to say
	"NOT_SPECIFIED":   DropUnspecified,

	// The owner went away, and what it had not read or sent goes with it.
	"SOCKET_CLOSE":    DropNoise,
	"UNIX_DISCONNECT": DropNoise,
	"QUEUE_PURGE":     DropNoise,

	// TCP has these bytes or this news already: a repetition.
	"TCP_OLD_DATA":     DropNoise,
	"TCP_OFOMERGE":     DropNoise,
	"TCP_OFO_DROP":     DropNoise,
	"TCP_OLD_ACK":      DropNoise,
	"TCP_OLD_SEQUENCE": DropNoise,
	"TCP_RFC7323_PAWS": DropNoise, // a late copy, by its timestamp
	"DUP_FRAG":         DropNoise,

	// The packet has done its work: it ended the connection, or came after its end.
	"TCP_RESET": DropNoise,
	"TCP_CLOSE": DropNoise,

	// Not meant for this host: other stations' frames, our own multicast come back,
	// link protocols that nothing here speaks, what a socket's own filter declines.
	"OTHERHOST":       DropNoise,
	"LOCAL_MAC":       DropNoise,
	"UNHANDLED_PROTO": DropNoise,
	"SOCKET_FILTER":   DropNoise,
	"TAP_FILTER":      DropNoise,
	"UNIX_SKIP_OOB":   DropNoise,
}

// DropClassOf is the class of a reason as in [DropSample]. What is not known to
// be harmless is a loss.
func DropClassOf(reason string) DropClass {
	if c, ok := notLosses[reason]; ok {
		return c
	}
	return DropLoss
}

// DropAccount proves where every traced drop went. Packets, cumulative since
// the agent started, of all namespaces:
// Seen = Drained + Lost + what the next drain finds, which is nothing in the
// last account; and Drained + Lost of a drain is at least the Before of the
// drain before it. Zero: drops are not traced.
type DropAccount struct {
	Before, Seen uint64 // counted before any table, read before and after the drain
	Drained      uint64 // in samples, Overflow ones among them
	Overflowed   uint64 // of those and Lost, counted without addresses
	Lost         uint64 // in no sample: no room even without addresses
	// Missed is how often the kernel did not run the program, since it was running
	// on that CPU already. Events, not packets; not in Seen.
	Missed uint64
}

// DeviceDrops is what a watched device and its root queueing discipline say they
// dropped, in packets, since the device was made. Source: netlink link and
// queueing discipline statistics (rtnl_link_stats64, gnet_stats_queue), read
// once a second. Many of them are traced as drops too: do not add the two up.
type DeviceDrops struct {
	At        Point // without a hook
	Hop       Hop
	RxDropped uint64 // received, and nobody took it or there was no room
	TxDropped uint64 // given to the device, and not sent
	RxMissed  uint64 // the device had no buffer
	RxFIFO    uint64 // receiver overrun
	TxFIFO    uint64 // transmitter underrun
	Qdisc     uint64 // dropped by the root queueing discipline, with its children
}

// DeviceFrames is how many frames of both directions a watched device has counted since it was made. Source:
// rtnl_link_stats64.
type DeviceFrames struct {
	At      Point // without a hook
	Counted uint64
	// Segments: of what it received and of what it sent, whether it counts each segment of a GSO frame, as network
	// cards do whose driver puts frames together after it counted them. It is found by watching, and so may change once.
	Segments [2]bool
	// Unseen is how many of those no TC point of this agent saw: those from before it watched, and those that the
	// device counts and TC never has (see LIMITATIONS.md), less those that its queueing discipline dropped.
	Unseen int64
}
