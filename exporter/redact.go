// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"os"

	"weft/flows"
)

// Treatment is what a sink does to a field of its records.
type Treatment uint8

// The treatments.
const (
	Keep     Treatment = iota
	Drop               // the field is not there
	Hash               // a keyed hash is in its place, the same for the same value
	Truncate           // of addresses only: the prefix is left
)

// RedactField is what one treatment is for.
type RedactField uint8

// The fields. What belongs together is one: a pod's name and its UID.
const (
	RedactAddress RedactField = iota
	RedactPod
	RedactNamespace
	RedactWorkload
	RedactService
	RedactContainer
	RedactVM
	RedactSandbox
	RedactProcess // command name; with any treatment neither pid nor cgroup are there
	RedactUnit
	RedactNode   // with zone, region and the host in the resource
	RedactLabel  // the values of labels; dropped with their names
	RedactDNS    // names that were asked for
	RedactDevice // interfaces and network namespaces
	NumRedactFields
)

var redactNames = [NumRedactFields]string{"address", "pod", "namespace", "workload", "service", "container", "vm", "sandbox",
	"process", "unit", "node", "label", "dns", "device"}

// String is the field's name in configuration.
func (f RedactField) String() string { return redactNames[f] }

// RedactConfig says what a sink does to which field. The zero value keeps all.
type RedactConfig struct {
	Fields     [NumRedactFields]Treatment
	IPv4, IPv6 int    // bits of an address that Truncate keeps; 0: none
	Key        string // file with the key of hashes, at least 16 bytes; needed with Hash
}

// On reports whether anything is redacted.
func (c *RedactConfig) On() bool { return c.Fields != [NumRedactFields]Treatment{} }

// minKey is the shortest key, in bytes: all IPv4 addresses are soon tried with a short one.
const minKey = 16

// Redactor changes records for one sink; it is for one goroutine. Nothing that it
// leaves in a record contains a value of three and more bytes that it took out of
// that record: what does goes too. It has the ends that it met last, at most twice
// maxWho of them, and as many addresses.
type Redactor struct {
	c      RedactConfig
	mac    hash.Hash // nil: no key
	sum    []byte
	ends   recent[*flows.Entity, *redactedEnd]
	hashes recent[netip.Addr, netip.Addr]
	taken  []string // out of the record at hand, lower case

	spelled recent[netip.Addr, []string]
}

// NewRedactor reads the key. nil: c keeps everything.
func NewRedactor(c RedactConfig) (*Redactor, error) {
	if !c.On() {
		return nil, nil
	}
	r := &Redactor{c: c}
	hashes := false
	for _, t := range c.Fields {
		hashes = hashes || t == Hash
	}
	switch {
	case c.Key != "":
		key, err := os.ReadFile(c.Key)
		if err != nil {
			return nil, fmt.Errorf("read the key: %w", err)
		}
		if len(key) < minKey {
			return nil, fmt.Errorf("%s has %d bytes, want at least %d; make one with `openssl rand -hex 32`", c.Key, len(key), minKey)
		}
		r.mac = hmac.New(sha256.New, key)
	case hashes:
		return nil, errors.New("missing; a hash without a key is undone by trying all values: name a file, made with `openssl rand -hex 32`")
	}
	return r, nil
}

// digest is the keyed hash of a value of f.
func (r *Redactor) digest(f RedactField, value []byte) []byte {
	r.mac.Reset()
	r.mac.Write([]byte{byte(len(redactNames[f]))})
	r.mac.Write([]byte(redactNames[f])) // not its number: a hash outlives the order of fields
	r.mac.Write(value)
	r.sum = r.mac.Sum(r.sum[:0])
	return r.sum
}

// text is what is left of a value of f.
func (r *Redactor) text(f RedactField, value string) string {
	switch t := r.c.Fields[f]; {
	case t == Keep || value == "":
		return value
	case t == Hash:
		return hex.EncodeToString(r.digest(f, []byte(value))[:10])
	}
	return ""
}

// A hashed address is one of fd57:6566:7400::/40, which stands for nothing: behind
// it 4 or 6, for what it was, and 80 bits of the hash.
var hashedPrefix = [5]byte{0xfd, 'W', 'e', 'f', 't'}

// hashedFamily is 4 or 6 for a hashed address; 0: a is none.
func hashedFamily(a netip.Addr) byte {
	if b := a.As16(); a.Is6() && [5]byte(b[:5]) == hashedPrefix {
		return b[5]
	}
	return 0
}

// address is what is left of a.
func (r *Redactor) address(a netip.Addr) netip.Addr {
	if !a.IsValid() {
		return a
	}
	switch r.c.Fields[RedactAddress] {
	case Keep:
		return a
	case Truncate:
		bits := r.c.IPv6
		if a.Is4() {
			bits = r.c.IPv4
		}
		return netip.PrefixFrom(a.WithZone(""), bits).Masked().Addr()
	case Hash:
		return r.hashes.get(a, r.hashAddress)
	}
	return netip.Addr{}
}

func (r *Redactor) hashAddress(a netip.Addr) netip.Addr {
	var b [16]byte
	copy(b[:], hashedPrefix[:])
	if b[5] = 6; a.Is4() {
		b[5] = 4
	}
	copy(b[6:], r.digest(RedactAddress, a.AsSlice())) // without a zone, which names a device
	return netip.AddrFrom16(b)
}

// connection is what is left of a connection id when addresses are redacted: with a key
// one that is the same in all records that were redacted with it, and leads to no other.
func (r *Redactor) connection(id uint64) uint64 {
	if id == 0 || r.mac == nil {
		return 0
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	return max(binary.BigEndian.Uint64(r.digest(RedactAddress, b[:])), 1)
}

// recent remembers what was made of the keys that came last: two generations of
// maxWho each.
type recent[K comparable, V any] struct{ now, before map[K]V }

func (c *recent[K, V]) get(key K, of func(K) V) V {
	v, ok := c.now[key]
	if ok {
		return v
	}
	if v, ok = c.before[key]; !ok {
		v = of(key)
	}
	if c.now == nil || len(c.now) >= maxWho {
		c.now, c.before = map[K]V{}, c.now
	}
	c.now[key] = v
	return v
}
