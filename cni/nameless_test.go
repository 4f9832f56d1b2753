// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// namelessCensus is a census that has met containers at a time.
func namelessCensus(t *testing.T, met time.Time, containers ...Container) *Census {
	c := &Census{opts: CensusOptions{Containers: true}, disk: newOnDisk(t.TempDir(), t.TempDir()), asked: map[string]time.Time{}}
	c.last = &Topology{Spaces: []*Space{{Containers: containers}, {}}}
	for _, ct := range containers {
		c.asked[ct.ID] = met
	}
	return c
}

func TestContainersWithoutANameAreToldOnlyWhenItLasts(t *testing.T) {
	met := time.Now()
	c := namelessCensus(t, met, Container{ID: "c1"}, Container{ID: "c2"}, Container{ID: "c1"})
	c.attached = map[string][]*attachment{"c2": {{ContainerID: "c2", Pod: "web-1"}}}
	c.noteNameless(met.Add(namelessFor - time.Millisecond))
	if got := c.Nameless(); len(got) != 0 {
		t.Errorf("before anybody could tell: got %+v, want none", got)
	}
	c.noteNameless(met.Add(namelessFor))
	if got := c.Nameless(); len(got) != 1 || got[0].ID != "c1" {
		t.Errorf("got %+v, want c1 alone: CNI tells of c2", got)
	}
	delete(c.asked, "c1") // as when it has a name
	c.noteNameless(met.Add(2 * namelessFor))
	if got := c.Nameless(); len(got) != 0 {
		t.Errorf("once it has a name: got %+v, want none", got)
	}
}

func TestWhyAContainerHasNoNameIsTold(t *testing.T) {
	met := time.Now()
	c := namelessCensus(t, met, Container{ID: "c1"})
	here, away := newRuntimeSource("/run/here.sock", quiet(), func() {}), newRuntimeSource("/run/away.sock", quiet(), func() {})
	c.runtimes = []*runtimeSource{here, away}
	for _, step := range []struct {
		what         string
		here, away   error
		want, absent string
	}{
		{"no socket is here", errAbsent, errAbsent, "no runtime's socket at /run/here.sock or /run/away.sock", "list it"},
		{"one may not be spoken to", os.ErrPermission, errAbsent, "permission denied", "/run/away.sock"},
		{"one answers", nil, errAbsent, "/run/here.sock answers and does not list it", "/run/away.sock"},
		{"one answers, one fails", nil, errors.New("away is broken"), "answers and does not list it; away is broken", "no runtime"},
	} {
		here.say(c.runtimes[0].log, step.here)
		away.say(c.runtimes[1].log, step.away)
		c.noteNameless(met.Add(namelessFor))
		got := c.Nameless()
		if len(got) != 1 || !strings.Contains(got[0].Why, step.want) || strings.Contains(got[0].Why, step.absent) {
			t.Errorf("%s: got %+v, want %q and not %q", step.what, got, step.want, step.absent)
		}
	}
}

func TestSocketThatIsNotAskedIsTold(t *testing.T) {
	met := time.Now()
	s, ok := shimArgs("containerd-shim", []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "c1", "-address", "/run/other.sock"})
	if !ok {
		t.Fatal("no shim by its arguments")
	}
	ct := Container{ID: "c1"}
	ct.confirm(s)
	c := namelessCensus(t, met, ct)
	asked := newRuntimeSource("/run/here.sock", quiet(), func() {})
	asked.say(quiet(), nil)
	c.runtimes = []*runtimeSource{asked}
	why := func() string {
		c.noteNameless(met.Add(namelessFor))
		return c.Nameless()[0].Why
	}
	if got, want := why(), "/run/here.sock answers and does not list it; its shim is of /run/other.sock"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	asked.socket = "/run/other.sock"
	if got, want := why(), "/run/other.sock answers and does not list it"; got != want {
		t.Errorf("once it is asked: got %q, want %q", got, want)
	}
}

func TestWhyDockersContainerHasNoNameIsTold(t *testing.T) {
	met := time.Now()
	c := namelessCensus(t, met, Container{ID: "c1", Runtime: "docker"})
	why := func() string {
		c.disk.list(quiet())
		c.noteNameless(met.Add(namelessFor))
		return c.Nameless()[0].Why
	}
	if got := why(); !strings.Contains(got, "keeps nothing in "+c.disk.docker) {
		t.Errorf("an empty folder: got %q", got)
	}
	config := filepath.Join(c.disk.docker, "c9", "config.v2.json")
	if err := errors.Join(os.Mkdir(filepath.Dir(config), 0o700), os.WriteFile(config, []byte(`{"ID":"c9","Name":"/web"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := why(); !strings.Contains(got, "do not have it") {
		t.Errorf("another one's file: got %q", got)
	}
	if err := os.WriteFile(config, []byte(`{"ID":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := why(); !strings.Contains(got, config) {
		t.Errorf("a file that cannot be read: got %q, want its name", got)
	}
}
