// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"weft/exporter/api"
	"weft/flows"
)

// DefaultStore is the number of records a store keeps unless told otherwise.
const DefaultStore = 65536

// storeRecordBytes is what a record may take of the store's memory on average:
// with its slot of 16 bytes, 65,536 records take 15 MiB. A record of an IPv4
// conversation seen at two points takes about 140, and 200 with TCP measured.
const storeRecordBytes = 224

// minStoreBytes keeps a small store able to hold a record of 64 hops.
const minStoreBytes = 64 << 10

// chunkBytes bounds what a reader copies out of the store at once.
const chunkBytes = 64 << 10

// Store keeps the newest records, the latest ledger and the latest histograms in
// memory. It is bounded
// twice, by a number of records and by 224 bytes for each of them (64 KiB at
// least); the oldest go first, which is no loss: a stored record is an acknowledged one.
//
// Records are kept encoded in one block without pointers, so the garbage
// collector never looks at them.
type Store struct {
	Live Live // what happens now, for those who watch

	id      uint64 // tells one run of the agent from another; never 0
	mu      sync.Mutex
	slots   []slot // ring, by sequence number
	block   []byte // ring of encoded records, each in one piece
	write   int    // where in block the next record goes
	first   uint64 // sequence number of the oldest record
	next    uint64 // sequence number of the next record
	account flows.SinkAccount
	ledger  flows.Ledger
	latest  Latencies
	changed chan struct{} // closed at the next Export

	message api.Record // scratch
	encoded []byte     // scratch
}

type slot struct {
	end      int64 // the record's end, Unix nanoseconds
	off, len uint32
}

// NewStore keeps up to records records; 0: [DefaultStore]. The memory is taken
// at once but not touched before it is used.
func NewStore(records int) *Store {
	if records <= 0 {
		records = DefaultStore
	}
	return &Store{
		id:      1 + rand.Uint64N(math.MaxUint64),
		slots:   make([]slot, records),
		block:   make([]byte, max(records*storeRecordBytes, minStoreBytes)),
		account: flows.SinkAccount{Name: "store", Lost: map[string]uint64{}},
		changed: make(chan struct{}),
	}
}

// Name is "store".
func (s *Store) Name() string { return s.account.Name }

// Export stores w's records and its ledger, and wakes the followers. It never
// waits for them and never fails: what cannot be stored is Lost["too_large"].
func (s *Store) Export(_ context.Context, w flows.Window) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range w.Records {
		s.put(&w.Records[i])
	}
	if !w.Ledger.At.IsZero() {
		s.ledger = w.Ledger
	}
	if w.Latencies != nil {
		s.latest = latenciesOf(w)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Account says how many records were stored; those that went out since are
// still acknowledged.
func (s *Store) Account() flows.SinkAccount {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cloneAccount(s.account)
}

// Ledger is the latest ledger, to be read only; its At is zero when there was
// none. The channel is closed when a newer one may be there.
func (s *Store) Ledger() (flows.Ledger, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger, s.changed
}

// Latencies are the latest histograms, to be read only.
func (s *Store) Latencies() Latencies {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

func (s *Store) put(r *flows.Record) {
	s.account.Offered++
	toWire(&s.message, r)
	var err error
	s.encoded, err = proto.MarshalOptions{}.MarshalAppend(s.encoded[:0], &s.message)
	n := len(s.encoded)
	if err != nil || n > len(s.block) {
		s.account.Lost["too_large"]++
		return
	}
	s.makeRoom(n)
	copy(s.block[s.write:], s.encoded)
	*s.slot(s.next) = slot{end: nanos(r.End), off: uint32(s.write), len: uint32(n)}
	s.write += n
	s.next++
	s.account.Acknowledged++
}

// makeRoom evicts the oldest records until block[write:write+n] and one slot
// are free. The records lie behind write in order of age, around the end.
func (s *Store) makeRoom(n int) {
	if s.write+n > len(s.block) {
		for s.first < s.next && int(s.slot(s.first).off) >= s.write {
			s.first++
		}
		s.write = 0
	}
	for s.first < s.next {
		oldest := int(s.slot(s.first).off)
		overlaps := oldest >= s.write && oldest < s.write+n
		if !overlaps && s.next-s.first < uint64(len(s.slots)) {
			return
		}
		s.first++
	}
}

func (s *Store) slot(seq uint64) *slot { return &s.slots[seq%uint64(len(s.slots))] }

// Query chooses records of a store.
type Query struct {
	Last   int           // the newest so many that match; 0: no limit
	Since  time.Duration // only records that ended within this time before now; 0: no limit
	Follow bool          // go on with new records; without Last and Since: only with new ones
	Terms  []flows.Term  // which records; see flows.ParseFilter

	after Cursor          // go on from here instead; zero: from the start
	stop  <-chan struct{} // closed: follow what is stored to its end, and no further
}

// Cursor is a reader's place among the records of one run of an agent. The zero
// Cursor is no place.
type Cursor struct {
	Store uint64 // which run
	Next  uint64 // sequence number of the first record not read yet
}

// emitter takes what [Store.Observe] found: records, how many were lost before
// them, and the place behind them.
type emitter func(records []flows.Record, lost uint64, next Cursor) error

// Observe hands the records that q chooses to emit, oldest first, and follows
// new ones if asked until ctx ends, which is no error; then it emits its first
// place at once and every later one, also without records. A reader that is
// slower than the store forgets does not hold it up: it is told how many records
// went out before it came to them, before filtering. The slice is valid during
// the call. Errors: a bad filter, or emit's.
func (s *Store) Observe(ctx context.Context, q Query, emit emitter) error {
	filter, err := flows.ParseFilter(q.Terms)
	if err != nil {
		return err
	}
	r := reader{store: s, match: filter.Match}
	if q.Since > 0 {
		r.after = time.Now().Add(-q.Since).UnixNano()
	}
	first, end, changed := s.state()
	switch {
	case q.after.Store == s.id:
		r.at, r.after = min(q.after.Next, end), 0
	case q.after.Store != 0:
		r.at, r.after = 0, 0 // of an earlier run: all that this one made is new
	case q.Last > 0:
		r.at = r.lastMatching(first, end, q.Last)
	case q.Follow && q.Since <= 0:
		r.at = end
	default:
		r.at = first
	}
	if q.Follow {
		if err := emit(nil, 0, Cursor{s.id, r.at}); err != nil {
			return err
		}
	}
	for last := !q.Follow; ; {
		for r.at < end && ctx.Err() == nil {
			records, lost := r.read(end)
			if len(records) > 0 || lost > 0 || q.Follow {
				if err := emit(records, lost, Cursor{s.id, r.at}); err != nil {
					return err
				}
			}
		}
		if last {
			return ctx.Err()
		}
		r.after = 0 // what is stored from here on is new, whenever it ended
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-q.stop:
			last = true
		}
		_, end, changed = s.state()
	}
}

// state is what is stored, and the channel that is closed when there is more.
func (s *Store) state() (first, next uint64, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.next, s.changed
}

// reader is one pass over a store, in chunks so that decoding and filtering
// happen outside the lock.
type reader struct {
	store *Store
	match func(*flows.Record) bool
	after int64  // records that ended before are passed over
	at    uint64 // sequence number of the next record to read

	bytes   []byte   // encoded records, end to end
	copied  []copied // what is in bytes
	message api.Record
	records []flows.Record // of those, the matching ones
	seqs    []uint64       // their sequence numbers
}

type copied struct {
	seq uint64
	end int // in bytes
}

// lastMatching is the sequence number from which n records before end match, or
// first if fewer do. It looks at the newest first and no further than it must.
func (r *reader) lastMatching(first, end uint64, n int) uint64 {
	for hi := end; hi > first; {
		lo := first
		if hi-first > 512 {
			lo = hi - 512
		}
		var matching []uint64
		for r.at = lo; r.at < hi; {
			r.read(hi)
			matching = append(matching, r.seqs...)
		}
		if len(matching) >= n {
			return matching[len(matching)-n]
		}
		n -= len(matching)
		hi = lo
	}
	return first
}

// read takes the next chunk before end: its matching records, and how many were
// lost before them.
func (r *reader) read(end uint64) (records []flows.Record, lost uint64) {
	r.bytes, r.copied, r.records, r.seqs = r.bytes[:0], r.copied[:0], r.records[:0], r.seqs[:0]
	s := r.store
	s.mu.Lock()
	if r.at < s.first {
		lost = s.first - r.at
		r.at = s.first
	}
	for ; r.at < end && len(r.bytes) < chunkBytes; r.at++ {
		if at := s.slot(r.at); at.end >= r.after {
			r.bytes = append(r.bytes, s.block[at.off:at.off+at.len]...)
			r.copied = append(r.copied, copied{r.at, len(r.bytes)})
		}
	}
	s.mu.Unlock()

	from := 0
	for _, c := range r.copied {
		if err := proto.Unmarshal(r.bytes[from:c.end], &r.message); err != nil {
			lost++ // cannot be: we wrote it
		} else if rec := fromWire(&r.message); r.match(&rec) {
			r.records = append(r.records, rec)
			r.seqs = append(r.seqs, c.seq)
		}
		from = c.end
	}
	return r.records, lost
}
