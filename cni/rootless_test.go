// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/flows"
)

// rootless runs a container of a user without privilege, who has one id and no systemd: $1 is his
// folder, $2 the image's file, $3 the container's name. /dev/net/tun is everybody's, as it mostly is.
const rootless = `set -e
mount --make-rprivate /
mknod -m 666 "$1/tun" c 10 200
mount --bind "$1/tun" /dev/net/tun
mkdir -p "$1/home/.config/containers" "$1/run"
cat > "$1/home/.config/containers/storage.conf" <<E
[storage]
driver = "vfs"
runroot = "$1/run/containers"
[storage.options]
ignore_chown_errors = "true"
E
cat > "$1/home/.config/containers/containers.conf" <<E
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
E
chown -R 65534:65534 "$1"
cd "$1"
export HOME="$1/home" XDG_RUNTIME_DIR="$1/run"
as() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
trap 'as podman rm --force --all --time 0; kill $(find "$XDG_RUNTIME_DIR" -name pause.pid -exec cat {} +)' EXIT # its namespaces have a process
as podman import - localhost/bb:1 < "$2"
as podman run --detach --network slirp4netns --name "$3" localhost/bb:1 /bin/busybox sleep 100
echo runs
read end
`

// A container of a user without privilege has its name, which its monitor was told, though what
// his Podman keeps is in his own folders; the packets are seen at its own device.
func TestRootlessPodmanContainerHasItsName(t *testing.T) {
	testbed(t, "") // only where it was asked for
	for _, tool := range []string{"podman", "runc", "slirp4netns", "setpriv"} {
		needTool(t, tool)
	}
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	image, name := filepath.Join(dir, "bb.tar"), fmt.Sprint("rootless-", os.Getpid())
	if err := os.WriteFile(image, busyboxImage(t), 0o644); err != nil {
		t.Fatal(err)
	}
	host := newNetns(t, "rhost")
	cmd := exec.Command("nsenter", "--net="+host, "unshare", "--mount", "bash", "-c", rootless, "bash", dir, image, name)
	var log strings.Builder // read once it has ended
	cmd.Stderr = &log
	in, err := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(in.Close(), cmd.Wait())
		if t.Failed() {
			t.Logf("%v\n%s", err, &log)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	id := ""
	for text := make([]byte, 1000); !strings.Contains(id, "runs"); {
		n, err := out.Read(text)
		if id += string(text[:n]); err != nil {
			t.Fatalf("the container does not run: %v: %s", err, id)
		}
	}
	none := filepath.Join(dir, "none")
	m := openMirror(t, everything)
	c := OpenCensus(m.Topology, CensusOptions{Containers: true, Runtimes: []string{none}, Results: none, Leases: none, Docker: none, Podman: none})
	t.Cleanup(c.Close)
	const addr = "10.0.2.100" // that every such container has
	var got *flows.Entity
	waitFor(t, "the container has its name", func() bool {
		for _, s := range m.Topology().Spaces {
			if len(s.Containers) != 1 || s.Containers[0].Name != name {
				continue
			}
			r := flows.Record{Scope: flows.Scope{Netns: m.Topology().Domain(s.Netns, 0)}, Start: time.Now(), End: time.Now()}
			r.Key = flows.Key{Src: addrPort(addr + ":4000"), Dst: addrPort("10.0.2.3:53"), Proto: flows.ProtoUDP}
			c.Annotate(&r)
			got = r.Source
			return got != nil && got.Container == name && len(got.ContainerID) == 64 && got.Runtime == "podman" && got.Layer == flows.LayerContainer && got.Confidence >= 85
		}
		return false
	})
	if c.noteNameless(time.Now().Add(namelessFor)); strings.Contains(fmt.Sprint(c.Nameless()), got.ContainerID) {
		t.Errorf("%s counts as one without a name: %+v", name, c.Nameless())
	}
}
