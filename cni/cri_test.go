// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// eventually polls until ok, or fails after the deadline with what describe says.
func soonEnough(t *testing.T, deadline time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("after %s: not %s", deadline, what)
		}
		time.Sleep(10 * time.Millisecond) // of a poll with a deadline
	}
}

func TestHangingRuntimeSocketIsToldAndBlocksNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hang.sock")
	l, err := net.Listen("unix", path) // accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newRuntimeSource(path, quiet(), func() {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	soonEnough(t, runtimeDeadline+5*time.Second, "told as an error", func() bool {
		began := time.Now()
		st := s.status(0)
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Fatalf("asking for the status took %s", took)
		}
		return st.Err != "" && !st.Absent
	})
	cancel()
	select {
	case <-done:
	case <-time.After(time.Second):
		t.Fatal("does not end within 1 s")
	}
}

func TestMissingRuntimeSocketIsNoFault(t *testing.T) {
	s := newRuntimeSource(filepath.Join(t.TempDir(), "none.sock"), quiet(), func() {})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	soonEnough(t, 5*time.Second, "told as absent", func() bool { return s.status(0).Absent })
	cancel()
	<-done
}

func TestHostileLabelsAreBounded(t *testing.T) {
	all := map[string]string{"app": "web", "big": strings.Repeat("x", 10<<10), strings.Repeat("n", 10<<10): "v", "": "v"}
	for i := range 100 {
		all["label"+string(rune('a'+i%26))+strings.Repeat("y", i)] = "v"
	}
	got := boundLabels(all)
	if len(got) > maxLabels {
		t.Errorf("got %d labels, want at most %d", len(got), maxLabels)
	}
	for k, v := range got {
		if len(k) > maxName || len(v) > maxName || k == "" {
			t.Errorf("label of %d and value of %d bytes, want at most %d", len(k), len(v), maxName)
		}
	}
	if got["app"] != "web" {
		t.Errorf("app: got %q, want web", got["app"])
	}
}
