// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Container is what a process's cgroups and ancestors say of the container that it
// is in. Empty: they do not say.
type Container struct {
	ID      string // as the runtime names it: mostly 64 hexadecimal digits
	Runtime string // containerd, cri-o, docker, podman
	Group   string // the namespace of containerd, such as k8s.io or moby
	PodUID  string // of Kubernetes
	Unit    string // the innermost systemd unit: a service or a scope
	Sandbox string // the id that the runtime's shim was started for: of the pod's first container
	Address string // of the containerd that the shim tells of: a socket
	Name    string // by which Podman's shim was told of it; empty: another runtime's

	Since time.Time // when the oldest process in there that tells of it began, to the kernel's tick of 10 ms

	// Confidence in percent that ID is right, and Why: the evidence in words.
	Confidence uint8
	Why        string
}

// containerOf says which container a process is in. The zero Container, but for
// its unit, says: in none. errGone when the process ended meanwhile.
func containerOf(p process) (Container, error) {
	text, err := readProc(p.PID, "cgroup")
	if err != nil {
		return Container{}, err
	}
	c := parseCgroups(string(text))
	if s, ok := shimOf(p, c.ID); ok {
		c.confirm(s)
	}
	if !p.alive() { // what was read may be another's
		return Container{}, errGone
	}
	return c, nil
}

// parseCgroups reads /proc/PID/cgroup: one line for each hierarchy of version 1,
// one for version 2. The hierarchies of a hybrid host need not agree.
func parseCgroups(text string) Container {
	var c Container
	var told []string // the hierarchies that name c.ID
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		hierarchy := parts[1]
		if parts[0] == "0" && hierarchy == "" {
			hierarchy = "unified"
		}
		one := parseCgroupPath(parts[2])
		if one.Unit != "" && (c.Unit == "" || hierarchy == "name=systemd" || hierarchy == "unified") {
			c.Unit = one.Unit
		}
		switch {
		case one.ID == "":
		case c.ID == "":
			one.Unit = c.Unit
			c, told = one, []string{hierarchy}
		case c.ID == one.ID:
			told = append(told, hierarchy)
		default: // somebody moved the process in one of them
			c.Confidence = min(c.Confidence, 50)
			c.Why += "; the " + hierarchy + " cgroup names " + shortID(one.ID)
		}
	}
	if len(told) > 0 {
		c.Why += " (" + told[0]
		if len(told) > 1 {
			c.Why += " and others"
		}
		c.Why += ")"
	}
	return c
}

// The forms of a path's element that name a container, with the runtime that
// writes them. A scope is what the systemd driver makes, the rest is of cgroupfs.
var containerForms = []struct {
	form    *regexp.Regexp
	runtime string
}{
	{regexp.MustCompile(`^docker-([0-9a-f]{64})\.scope$`), "docker"},
	{regexp.MustCompile(`^libpod-([0-9a-f]{64})(?:\.scope)?$`), "podman"},
	{regexp.MustCompile(`^crio-([0-9a-f]{64})(?:\.scope)?$`), "cri-o"},
	{regexp.MustCompile(`^(?:cri-containerd|nerdctl)-([0-9a-f]{64})\.scope$`), "containerd"},
	{regexp.MustCompile(`^(?:.*:)?cri-containerd:([0-9a-f]{64})$`), "containerd"},
}

var (
	hexID        = regexp.MustCompile(`^[0-9a-f]{64}$`)
	podForm      = regexp.MustCompile(`^(?:kubepods(?:-\w+)?-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
	unitForm     = regexp.MustCompile(`\.(?:service|scope)$`)
	monitorForms = regexp.MustCompile(`^(?:libpod|crio)-conmon-`) // who watches a container is not in it
)

// parseCgroupPath reads one path. The innermost container wins: a node may itself
// be one.
func parseCgroupPath(path string) Container {
	var c Container
	elements := strings.Split(path, "/")
	for i, e := range elements {
		if m := podForm.FindStringSubmatch(e); m != nil {
			c.PodUID = strings.ReplaceAll(m[1], "_", "-")
		}
		if unitForm.MatchString(e) {
			c.Unit = e
		}
		if monitorForms.MatchString(e) {
			c.ID, c.Runtime, c.Why, c.Confidence = "", "", "", 0
			continue
		}
		for _, f := range containerForms {
			if m := f.form.FindStringSubmatch(e); m != nil {
				c.ID, c.Runtime, c.Confidence, c.Why = m[1], f.runtime, 95, "cgroup "+f.runtime+" form"
			}
		}
		if !hexID.MatchString(e) || i == 0 {
			continue
		}
		switch parent := elements[i-1]; {
		case parent == "docker":
			c.ID, c.Runtime, c.Confidence, c.Why = e, "docker", 95, "cgroup under docker"
		case podForm.MatchString(parent):
			c.ID, c.Runtime, c.Confidence, c.Why = e, "", 90, "cgroup under a pod's"
		default: // containerd's own form is /namespace/id; others look alike
			c.ID, c.Runtime, c.Confidence, c.Why = e, "", 70, "cgroup with an id's form"
		}
	}
	return c
}

// shim is a runtime's process that watches over containers and is their ancestor.
type shim struct {
	runtime string // containerd, docker, podman, cri-o
	group   string // containerd's namespace
	id      string // of the container or pod that it was started for
	sandbox string // gvisor, kata: the runtime that it speaks to; empty: none
	address string // the socket of its containerd
	name    string // of the container, as Podman says it
	comm    string
}

// maxAncestors bounds how far up a shim is looked for: exec in a container and its
// own children add levels.
const maxAncestors = 16

// shimOf looks for the shim that p descends from. Any program can be called like
// one, so those within the container do not count.
func shimOf(p process, container string) (shim, bool) {
	within, err := p.pidns()
	if err != nil {
		return shim{}, false
	}
	for range maxAncestors {
		if p.Parent <= 1 {
			return shim{}, false
		}
		parent, err := readProcess(p.Parent)
		if err != nil || parent.Start > p.Start { // a parent is older: this one has its PID now
			return shim{}, false
		}
		p = parent
		s, ok := parseShim(parent)
		if !ok {
			continue
		}
		if outside(parent, within, container) {
			return s, true
		}
	}
	return shim{}, false
}

// outside reports whether a process that is called like a shim is out of reach of
// the container: in another PID namespace, or the host's root's and in no container.
func outside(p process, within inode, container string) bool {
	text, err := readProc(p.PID, "cgroup")
	if err != nil {
		return false
	}
	id := parseCgroups(string(text)).ID
	if ns, err := p.pidns(); err != nil || ns != within {
		return err == nil && (container == "" || id != container)
	}
	var owner unix.Stat_t
	return id == "" && unix.Stat(procPath(p.PID, ""), &owner) == nil && owner.Uid == 0 && p.alive()
}

func parseShim(p process) (shim, bool) {
	if !strings.HasPrefix(p.Comm, "containerd-shim") && p.Comm != "conmon" && p.Comm != "conmonrs" {
		return shim{}, false
	}
	args, err := p.args()
	if err != nil {
		return shim{}, false
	}
	if exe := p.exe(); !strings.HasPrefix(exe, "containerd-shim") && !strings.HasPrefix(exe, "conmon") {
		return shim{}, false
	}
	return shimArgs(p.Comm, args)
}

// shimArgs reads a shim's command line; false: it names no container.
func shimArgs(comm string, args []string) (shim, bool) {
	s := shim{comm: comm}
	if strings.HasPrefix(comm, "conmon") {
		s.runtime, s.id = "podman", option(args, "-c", "--cid")
		// Podman passes its own name to be called at the end; CRI-O does not.
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(a, "podman") }) {
			s.runtime = "cri-o"
		} else {
			s.name = bounded(option(args, "-n", "--name"))
		}
		return s, s.id != ""
	}
	s.runtime, s.group, s.id = "containerd", option(args, "-namespace", "--namespace"), option(args, "-id", "--id")
	s.address = bounded(option(args, "-address", "--address"))
	if s.group == "moby" {
		s.runtime = "docker"
	}
	switch name := filepath.Base(args[0]); {
	case strings.Contains(name, "runsc"):
		s.sandbox = "gvisor"
	case strings.Contains(name, "kata"):
		s.sandbox = "kata"
	}
	return s, s.id != ""
}

// confirm adds what the shim above the process says.
func (c *Container) confirm(s shim) {
	c.Group, c.Sandbox, c.Address = s.group, s.id, s.address
	if c.ID == "" || c.ID == s.id { // not of a container within that one
		c.Name = s.name
	}
	switch {
	case c.ID == "": // --ignore-cgroups, or a cgroup that the user chose
		c.ID, c.Runtime, c.Confidence, c.Why = s.id, s.runtime, 85, "child of "+s.comm+", cgroup silent"
	case c.Runtime == "" || c.Runtime == s.runtime || c.Runtime == "docker" && s.runtime == "containerd":
		if c.Runtime == "" {
			c.Runtime = s.runtime
		}
		if c.Confidence >= 70 {
			c.Confidence = 99
		}
		c.Why += ", child of " + s.comm
	default: // a container in a container: the cgroup is closer
		c.Confidence = min(c.Confidence, 80)
		c.Why += ", under " + s.comm + " of " + s.runtime
	}
}

// option is the value of an option of several spellings, "" when it is not there.
func option(args []string, names ...string) string {
	for i, a := range args {
		name, value, joined := strings.Cut(a, "=")
		if !slices.Contains(names, name) {
			continue
		}
		if joined {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// shortID is an id as people write it: 12 digits.
func shortID(id string) string {
	if hexID.MatchString(id) {
		return id[:12]
	}
	return id
}
