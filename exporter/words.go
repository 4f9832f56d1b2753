// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/flows"
)

// words holds the texts of one record that are made for it, so that they cost no
// allocation each. They are good until reset; who keeps them for longer starts with
// a zero words and drops it.
type words struct{ text []byte }

func (w *words) reset() { w.text = w.text[:0] }

// from is what was appended since w had n bytes. Nothing writes to those bytes before
// reset, also not when the array behind them is replaced by a larger one.
func (w *words) from(n int) string {
	return unsafe.String(unsafe.SliceData(w.text[n:]), len(w.text)-n)
}

// address is a as text; empty: a is none.
func (w *words) address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	n := len(w.text)
	w.text = a.AppendTo(w.text)
	return w.from(n)
}

func (w *words) community(k flows.Key) string {
	n := len(w.text)
	w.text = flows.AppendCommunityID(w.text, k, 0)
	return w.from(n)
}

// hex is v as 16 hexadecimal digits.
func (w *words) hex(v uint64) string {
	n := len(w.text)
	for shift := 60; shift >= 0; shift -= 4 {
		w.text = append(w.text, "0123456789abcdef"[v>>shift&15])
	}
	return w.from(n)
}

// errno is the name that errno.h has for e, in lower case: "etimedout", "errno4000".
func (w *words) errno(e uint16) string {
	n := len(w.text)
	for _, c := range []byte(unix.ErrnoName(syscall.Errno(e))) {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		w.text = append(w.text, c)
	}
	if len(w.text) == n {
		w.text = strconv.AppendUint(append(w.text, "errno"...), uint64(e), 10)
	}
	return w.from(n)
}
