// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
)

// Where Docker and Podman, for root, keep what containers they have.
const (
	DefaultDocker = "/var/lib/docker/containers"
	DefaultPodman = "/var/lib/containers/storage"
)

// maxStorage bounds containers/storage's list of all containers, in bytes.
const maxStorage = 16 << 20

// onDisk reads the names that Docker and Podman write down: there need be no daemon,
// and one that hangs holds up nobody. For one goroutine; find is for all.
type onDisk struct {
	docker, podman string
	health
	known atomic.Pointer[map[string]*contained] // by id; at most 2*maxNamed
	read  map[string]diskFile                   // by path
}

type diskFile struct {
	as   os.FileInfo // when it was read
	said []*contained
}

// same reports whether a file is as it was. The time alone does not tell: the kernel's has
// 4 ms, in which some write twice.
func same(was, now os.FileInfo) bool {
	return was != nil && was.ModTime().Equal(now.ModTime()) && was.Size() == now.Size() && os.SameFile(was, now)
}

func newOnDisk(docker, podman string) *onDisk {
	d := &onDisk{docker: docker, podman: podman, health: health{name: "names on disk " + docker + " and " + podman}}
	d.known.Store(&map[string]*contained{})
	return d
}

// find is what is written down of a container; nil: nothing.
func (d *onDisk) find(id string) *contained { return (*d.known.Load())[id] }

// list reads what changed since it was last called; false: nothing did.
func (d *onDisk) list(log *slog.Logger) bool {
	next, errs := map[string]diskFile{}, []error(nil)
	// Of each storage driver two: what `podman run --rm` makes is listed apart from Podman 4.4 on.
	lists, err := filepath.Glob(filepath.Join(d.podman, "*-containers", "*containers.json"))
	errs = append(errs, err)
	for _, path := range lists {
		errs = append(errs, d.file(path, maxStorage, next, parseStorage))
	}
	dirs, err := os.ReadDir(d.docker)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for i, dir := range dirs {
		if i >= maxNamed {
			errs = append(errs, fmt.Errorf("read %s: %d containers are there, and at most %d are named", d.docker, len(dirs), maxNamed))
			break
		}
		errs = append(errs, d.file(filepath.Join(d.docker, dir.Name(), "config.v2.json"), maxCNIFile, next, parseDocker))
	}
	if len(dirs) == 0 && len(lists) == 0 && errors.Join(errs...) == nil {
		errs = append(errs, errAbsent)
	}
	d.say(log, errors.Join(errs...))
	unchanged := maps.EqualFunc(d.read, next, func(a, b diskFile) bool { return a.as == b.as })
	if d.read = next; unchanged {
		return false
	}
	known := map[string]*contained{}
	for _, f := range next {
		for _, c := range f.said {
			if len(known) < 2*maxNamed {
				known[c.ID] = c
			}
		}
	}
	d.known.Store(&known)
	return true
}

// file reads one file if it changed. One that is gone is no error; of one that cannot
// be read, what it said before holds.
func (d *onDisk) file(path string, most int64, next map[string]diskFile, parse func([]byte) ([]*contained, error)) error {
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	was := d.read[path]
	if same(was.as, info) {
		next[path] = was
		return nil
	}
	text, err := readRegular(path, most)
	var said []*contained
	if err == nil {
		said, err = parse(text)
	}
	if err != nil {
		if was.as != nil {
			next[path] = was
		}
		return fmt.Errorf("read %s: %w", path, err)
	}
	next[path] = diskFile{info, said}
	return nil
}

// readRegular reads a file that is no pipe or device, which could be waited for.
func readRegular(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("it is no plain file of at most %d bytes", most)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// parseStorage reads the list of containers/storage. CRI-O writes into such one too:
// its containers have another runtime's cgroup, and the CRI says more.
func parseStorage(text []byte) ([]*contained, error) {
	var list []struct {
		ID    string
		Names []string
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if len(list) > maxNamed {
		return nil, fmt.Errorf("%d containers are there, and at most %d are named", len(list), maxNamed)
	}
	var all []*contained
	for _, c := range list {
		if c.ID == "" || len(c.Names) == 0 {
			continue
		}
		all = append(all, byPodman(bounded(c.ID), bounded(c.Names[0])))
	}
	return all, nil
}

// byPodman is a container of Podman's with its name.
func byPodman(id, name string) *contained {
	n := &contained{ID: id, Name: name, Runtime: "podman"}
	if infraForm.MatchString(name) {
		n.Sandbox = id
	}
	return n
}

// infraForm is what Podman calls the container that holds a pod's namespaces, unless it is
// told another name: after the pod's id.
var infraForm = regexp.MustCompile(`^[0-9a-f]{12}-infra$`)

// parseDocker reads what Docker keeps of one container.
func parseDocker(text []byte) ([]*contained, error) {
	var c struct {
		ID, Name string
		Config   struct{ Labels map[string]string }
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	if c.ID == "" {
		return nil, errors.New("it names no container")
	}
	l := c.Config.Labels
	n := &contained{
		ID: bounded(c.ID), Name: bounded(strings.TrimPrefix(c.Name, "/")), Runtime: "docker", Labels: boundLabels(l),
		Pod: bounded(l[labelPod]), Namespace: bounded(l[labelPodNS]), PodUID: bounded(l[labelPodUID]),
	}
	if name := l[labelContainer]; name != "" {
		n.Name = bounded(name)
	}
	return []*contained{n}, nil
}
