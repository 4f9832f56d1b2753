// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program builds the smallest one there is.
func program(t *testing.T, name, arch string) string {
	t.Helper()
	dir := t.TempDir()
	source, out := filepath.Join(dir, "main.go"), filepath.Join(dir, name)
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", out, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build for %s: %v\n%s", arch, err, said)
	}
	return out
}

func TestImageHoldsTheProgramsAndNothingElse(t *testing.T) {
	first, second, dir := program(t, "first", runtime.GOARCH), program(t, "second", runtime.GOARCH), t.TempDir()
	for _, out := range []string{"one.tar", "two.tar"} {
		if err := pack(filepath.Join(dir, out), "weft:1", "1", []string{first, second}); err != nil {
			t.Fatal(err)
		}
	}
	one, err := os.ReadFile(filepath.Join(dir, "one.tar"))
	two, err2 := os.ReadFile(filepath.Join(dir, "two.tar"))
	if err := errors.Join(err, err2); err != nil || !bytes.Equal(one, two) {
		t.Errorf("the same programs made two different files (%v)", err)
	}
	image, err := tarball.ImageFromPath(filepath.Join(dir, "one.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != runtime.GOARCH || config.OS != "linux" || !slices.Equal(config.Config.Entrypoint, []string{"/first"}) {
		t.Errorf("got %s/%s running %v, want linux/%s running /first", config.OS, config.Architecture, config.Config.Entrypoint, runtime.GOARCH)
	}
	files := mutate.Extract(image)
	defer files.Close()
	got := map[string]int64{}
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = h.Mode
	}
	if want := map[string]int64{"first": 0o755, "second": 0o755}; !maps.Equal(got, want) {
		t.Errorf("got files %v, want %v", got, want)
	}
}

func TestProgramsThatCannotRunInTheImageAreRefused(t *testing.T) {
	here := program(t, "here", "amd64")
	for what, programs := range map[string][]string{
		"of two architectures": {here, program(t, "there", "arm64")}, "linked with libraries": {"/bin/ls"}, "no program": {"main.go"}, "not there": {"nowhere"},
	} {
		if err := pack(filepath.Join(t.TempDir(), "x.tar"), "weft:1", "1", programs); err == nil {
			t.Errorf("%s: got an image, want an error", what)
		}
	}
}
