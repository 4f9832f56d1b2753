// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/flows"
)

// dockerHere is a real dockerd with a containerd and a bridge of its own, in a network namespace
// of its own.
type dockerHere struct {
	t         *testing.T
	host, dir string
}

func newDocker(t *testing.T) *dockerHere {
	testbed(t, "") // only where it was asked for
	daemon, proxy, client := needTool(t, "dockerd"), needTool(t, "docker-proxy"), needTool(t, "docker")
	dir, err := os.MkdirTemp("", "weft") // containerd's sockets take no long path
	if err != nil {
		t.Fatal(err)
	}
	d := &dockerHere{t: t, host: newNetns(t, "dhost"), dir: dir}
	in(t, d.host, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	cmd := exec.Command("nsenter", "--net="+d.host, daemon, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--host", d.socket(), "--pidfile", dir+"/pid",
		"--bip", "10.78.21.1/24", "--storage-driver", "vfs", "--userland-proxy-path", proxy)
	var log bytes.Buffer // read once it has ended
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // it ends its containerd, too
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("dockerd: %v\n%s", err, &log)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, client+" reaches dockerd", func() bool { _, err := d.call(nil, "version"); return err == nil })
	d.must(busyboxImage(t), "import", "-", "bb:1")
	return d
}

func (d *dockerHere) socket() string { return "unix://" + d.dir + "/d.sock" }

func (d *dockerHere) call(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command("docker", append([]string{"--host", d.socket()}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

func (d *dockerHere) must(stdin []byte, args ...string) string {
	d.t.Helper()
	out, err := d.call(stdin, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// start runs a container until the test ends, and returns its id and address.
func (d *dockerHere) start(name string, more ...string) (id, addr string) {
	d.t.Helper()
	id = d.must(nil, slices.Concat([]string{"run", "--detach", "--name", name}, more, []string{"bb:1", "/bin/busybox", "sleep", "100"})...)
	d.t.Cleanup(func() {
		if _, err := d.call(nil, "rm", "--force", name); err != nil {
			d.t.Error(err)
		}
	})
	return id, d.must(nil, "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
}

// busyboxImage is the file system of an image with nothing but busybox.
func busyboxImage(t *testing.T) []byte {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Write(program); err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return image.Bytes()
}

// Docker's containers have their names, not the ids by which its containerd knows them, and
// their labels, whether that containerd is asked or not; the bridge is Docker's.
func TestDockerContainersHaveTheirNames(t *testing.T) {
	d := newDocker(t)
	web, webAddr := d.start("web", "--publish", "8080:80", "--label", "team=blue")
	client, clientAddr := d.start("client")
	none := filepath.Join(d.dir, "none")
	for what, runtimes := range map[string][]string{"alone": {none}, "and its containerd": {d.dir + "/exec/containerd/containerd.sock"}} {
		m := openMirror(t, everything)
		c := OpenCensus(m.Topology, CensusOptions{Containers: true, Runtimes: runtimes, Results: none, Leases: none, Docker: d.dir + "/data/containers", Podman: none})
		t.Cleanup(c.Close)
		netns := cookieOf(t, d.host)
		var r flows.Record
		named := func() bool {
			now := time.Now()
			r = flows.Record{Scope: flows.Scope{Netns: c.topology().Domain(netns, 0)}, Start: now, End: now}
			r.Key = flows.Key{Src: addrPort(clientAddr + ":4000"), Dst: addrPort(webAddr + ":80"), Proto: flows.ProtoTCP}
			c.Annotate(&r)
			is := func(e *flows.Entity, name, id string) bool {
				return e != nil && e.Container == name && e.ContainerID == id && e.Runtime == "docker" && e.Layer == flows.LayerContainer && e.Confidence >= 95
			}
			return is(r.Source, "client", client) && is(r.Destination, "web", web) && r.Destination.Labels["team"] == "blue"
		}
		if what != "alone" { // it is asked again and again, and what it says must not take the name's place
			waitFor(t, "its containerd answers", func() bool { return !c.runtimes[0].status(0).Last.IsZero() })
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s: the last record had %+v and %+v", what, r.Source, r.Destination)
			}
		})
		waitFor(t, what+": both have their names", named)
		if n := c.named(web); n == nil || n.Name != "web" { // the next count has it
			t.Errorf("%s: got %+v, want web", what, n)
		}
		for _, s := range m.Topology().Spaces {
			for _, dev := range s.Devices {
				if dev.Name == "docker0" && s.Netns == netns && dev.Plugin() != "docker" {
					t.Errorf("docker0: got plugin %q, want docker", dev.Plugin())
				}
			}
		}
	}
}
