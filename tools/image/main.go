// SPDX-License-Identifier: Apache-2.0

// Image packs static programs into a container image of nothing else, with neither a
// registry nor a container engine: `make image`. What it writes is what docker load,
// podman load, ctr image import and kind load image-archive read. The same programs
// make the same file.
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	out := flag.String("o", "", "`file` to write")
	tag := flag.String("tag", "", "`name` of the image, such as weft:1.0")
	version := flag.String("version", "", "what the image's labels say")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: image -o FILE -tag NAME [-version V] PROGRAM...\nThe first program is the one that runs.")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *out == "" || *tag == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := pack(*out, *tag, *version, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// pack writes the image of programs to the file out.
func pack(out, tag, version string, programs []string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("read the name %q: %w", tag, err)
	}
	arch, err := architecture(programs)
	if err != nil {
		return err
	}
	files, err := archive(programs)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	if err != nil {
		return fmt.Errorf("make a layer: %w", err)
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{
		Entrypoint: []string{"/" + filepath.Base(programs[0])},
		Labels:     map[string]string{"org.opencontainers.image.title": "weft", "org.opencontainers.image.version": version, "org.opencontainers.image.licenses": "Apache-2.0"},
	}})
	if err == nil {
		image, err = mutate.AppendLayers(image, layer)
	}
	if err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	if err := tarball.WriteToFile(out, ref, image); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return nil
}

// architecture is what all the programs are for, as images call it. A program that
// would need libraries is an error: there are none.
func architecture(programs []string) (string, error) {
	names := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}
	arch := ""
	for _, p := range programs {
		f, err := elf.Open(p)
		if err != nil {
			return "", fmt.Errorf("read the program %s: %w", p, err)
		}
		is := names[f.Machine]
		libraries, err := f.ImportedLibraries()
		switch err = errors.Join(err, f.Close()); {
		case err != nil:
			return "", fmt.Errorf("read the program %s: %w", p, err)
		case len(libraries) > 0:
			return "", fmt.Errorf("%s needs %s: build it with CGO_ENABLED=0", p, libraries[0])
		case is == "" || arch != "" && is != arch:
			return "", fmt.Errorf("%s is for %s: want amd64 or arm64, and the same for all", p, f.Machine)
		}
		arch = is
	}
	return arch, nil
}

// archive is the layer: the programs in /, executable, and nothing that another build
// of the same would have otherwise.
func archive(programs []string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range programs {
		text, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("pack: %w", err)
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.Base(p), Mode: 0o755, Size: int64(len(text)), Format: tar.FormatUSTAR}); err != nil {
			return nil, fmt.Errorf("pack %s: %w", p, err)
		}
		if _, err := w.Write(text); err != nil {
			return nil, fmt.Errorf("pack %s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return b.Bytes(), nil
}
