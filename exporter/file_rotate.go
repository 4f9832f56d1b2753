// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// rotated is the file at a path, and those that it was before. Everything known of the
// latter is in their names, so that the next start goes on where this one ended.
type rotated struct {
	c    FileConfig
	log  *slog.Logger
	stem string // of the path, without
	ext  string // its ending

	again                     atomic.Bool // let go of the file before the next write
	written, renamed, removed atomic.Uint64

	mu    sync.Mutex
	file  *os.File // nil: not open
	size  int64    // bytes
	begun time.Time

	tidy chan struct{} // one token: a file was renamed; closed by close
	done chan struct{}
}

func newRotated(ctx context.Context, c FileConfig, log *slog.Logger) *rotated {
	r := &rotated{c: c, log: log, ext: filepath.Ext(c.Path), tidy: make(chan struct{}, 1), done: make(chan struct{})}
	r.stem = strings.TrimSuffix(c.Path, r.ext)
	r.tidy <- struct{}{} // what an earlier run left
	go func() {
		defer close(r.done)
		for range r.tidy {
			if err := r.tidyUp(ctx); err != nil && ctx.Err() == nil {
				r.log.Warn("renamed files stay as they are until the next is renamed", "err", err)
			}
		}
	}()
	return r
}

// write puts text, whole lines, behind what the file has. With an error it is not
// there, unless even that could not be undone: then its first part is cut off at the
// next opening, and a whole one stays and comes again under the same id.
func (r *rotated) write(text []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ready(int64(len(text))); err != nil {
		return errors.Join(err, r.letGo())
	}
	_, err := r.file.Write(text)
	if err == nil && !r.c.NoSync {
		err = r.file.Sync()
	}
	if err == nil {
		r.size += int64(len(text))
		r.written.Add(uint64(len(text)))
		return nil
	}
	return errors.Join(err, r.file.Truncate(r.size), r.letGo())
}

// ready opens what must be opened and renames what is full, so that n bytes can be
// written.
func (r *rotated) ready(n int64) error {
	if r.file != nil && (r.again.Load() || r.moved()) {
		if err := r.letGo(); err != nil {
			return err
		}
	}
	r.again.Store(false)
	if r.file == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.size == 0 || r.size+n <= int64(r.c.Size) && (r.c.Age <= 0 || time.Since(r.begun) < r.c.Age) {
		return nil
	}
	if err := errors.Join(r.rename(), r.letGo()); err != nil {
		return err
	}
	return r.open()
}

// moved reports whether the path is no longer the open file: another program renamed
// or removed it. It also learns of a size that another one changed.
func (r *rotated) moved() bool {
	here, err := r.file.Stat()
	there, err2 := os.Lstat(r.c.Path)
	if err != nil || err2 != nil || !os.SameFile(here, there) {
		return true
	}
	r.size = here.Size()
	return false
}

func (r *rotated) reopen() {
	r.again.Store(true)
	if r.mu.TryLock() { // else a write is going on, and the next one does it
		defer r.mu.Unlock()
		if err := r.letGo(); err != nil {
			r.log.Warn("file was not closed well", "err", err)
		}
	}
}

func (r *rotated) letGo() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

// open opens or makes the file. What stands there already must be lines of JSON, which
// no other process writes; a last line without its end is cut off, since it was never
// acknowledged.
func (r *rotated) open() (err error) {
	found, err := os.Lstat(r.c.Path)
	switch {
	case err == nil && !found.Mode().IsRegular():
		return fmt.Errorf("open %s: it is no file but %s", r.c.Path, found.Mode().Type())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	file, err := os.OpenFile(r.c.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: another process or sink writes it: %w", r.c.Path, err)
	}
	now, err := file.Stat()
	if err != nil {
		return err
	}
	r.begun = time.Now()
	if found != nil {
		r.begun = r.begun.Add(-max(0, time.Since(made(file, now))))
	} else if !r.c.NoSync {
		if err := syncFolder(filepath.Dir(r.c.Path)); err != nil {
			return err
		}
	}
	if r.size, err = r.mend(file, now.Size()); err != nil {
		return err
	}
	r.file = file
	return nil
}

// made is when a file was, or last written on a file system that does not tell that.
func made(file *os.File, now fs.FileInfo) time.Time {
	var s unix.Statx_t
	err := unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &s)
	if err != nil || s.Mask&unix.STATX_BTIME == 0 {
		return now.ModTime()
	}
	return time.Unix(s.Btime.Sec, int64(s.Btime.Nsec))
}

// mend cuts off a last line that is not whole and returns the size that is left.
func (r *rotated) mend(file *os.File, size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	tail := make([]byte, min(size, 2*maxLine))
	first := make([]byte, 1)
	if _, err := file.ReadAt(first, 0); err != nil {
		return 0, fmt.Errorf("read %s: %w", r.c.Path, err)
	}
	if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, fmt.Errorf("read the end of %s: %w", r.c.Path, err)
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if first[0] != '{' || end == 0 && int64(len(tail)) < size {
		return 0, fmt.Errorf("open %s: it holds something else than lines of records; move it away or write another path", r.c.Path)
	}
	if torn := int64(len(tail) - end); torn > 0 {
		size -= torn
		if err := file.Truncate(size); err != nil {
			return 0, fmt.Errorf("cut the torn last line of %s: %w", r.c.Path, err)
		}
		r.log.Warn("last line was torn and is cut off; its records were not acknowledged", "bytes", torn)
	}
	return size, nil
}

// rename makes the file the last of those that it was.
func (r *rotated) rename() error {
	old, err := r.old()
	if err != nil {
		return err
	}
	number := 1
	if len(old) > 0 {
		number = old[len(old)-1].number + 1
	}
	if err := os.Rename(r.c.Path, fmt.Sprintf("%s.%06d%s", r.stem, number, r.ext)); err != nil {
		return err
	}
	r.renamed.Add(1)
	select {
	case r.tidy <- struct{}{}:
	default:
	}
	return nil
}

// oldFile is a file that was renamed.
type oldFile struct {
	path   string
	number int
	packed bool
	part   bool // packing it was cut short
}

// old lists them, in order.
func (r *rotated) old() ([]oldFile, error) {
	dir := filepath.Dir(r.c.Path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []oldFile
	for _, e := range entries {
		if f, ok := r.c.old(e.Name()); ok && e.Type().IsRegular() {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b oldFile) int { return a.number - b.number })
	return all, nil
}

// old is the renamed file with a name; false: that is another's.
func (c FileConfig) old(name string) (f oldFile, ok bool) {
	ext := filepath.Ext(c.Path)
	middle, ok := strings.CutPrefix(name, strings.TrimSuffix(filepath.Base(c.Path), ext)+".")
	if !ok {
		return f, false
	}
	f.path = filepath.Join(filepath.Dir(c.Path), name)
	middle, f.part = strings.CutSuffix(middle, ".part")
	for _, c := range compressors {
		if plain, ok := strings.CutSuffix(middle, c.ext); ok {
			middle, f.packed = plain, true
		}
	}
	if middle, ok = strings.CutSuffix(middle, ext); !ok || len(middle) < 6 {
		return f, false
	}
	var err error
	f.number, err = strconv.Atoi(middle)
	return f, err == nil && f.number > 0
}

// tidyUp removes those that are too many and compresses the others.
func (r *rotated) tidyUp(ctx context.Context) error {
	old, err := r.old()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there is nothing to tidy; writing says that the folder is gone
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range old {
		if f.part {
			errs = append(errs, os.Remove(f.path))
		}
	}
	old = slices.DeleteFunc(old, func(f oldFile) bool { return f.part })
	for _, f := range old[:max(0, len(old)-r.c.Keep)] {
		err := os.Remove(f.path)
		if err == nil {
			r.removed.Add(1)
		}
		errs = append(errs, err)
	}
	c, wanted := compressors[r.c.Compression]
	for _, f := range old[max(0, len(old)-r.c.Keep):] {
		if wanted && !f.packed && ctx.Err() == nil {
			errs = append(errs, c.pack(ctx, f.path))
		}
	}
	return errors.Join(errs...)
}

// close waits for the tidying and lets go of the file.
func (r *rotated) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tidy != nil {
		close(r.tidy)
		<-r.done
		r.tidy = nil
	}
	return r.letGo()
}

// compressor packs files.
type compressor struct {
	ext  string
	open func(io.Writer) (io.WriteCloser, error)
}

var compressors = map[string]compressor{
	"gzip": {".gz", func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzipLevel) }},
	"zstd": {".zst", func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	}},
}

// pack replaces the file at path by a compressed one. It is written aside and renamed
// when it is whole and on the disk, and the first is only removed then.
func (c compressor) pack(ctx context.Context, path string) (err error) {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	aside := path + c.ext + ".part"
	to, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	err = c.copy(ctx, to, from)
	if err = errors.Join(err, to.Close()); err == nil {
		err = os.Rename(aside, path+c.ext)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", path, err), os.Remove(aside))
	}
	return errors.Join(syncFolder(filepath.Dir(path)), os.Remove(path))
}

func (c compressor) copy(ctx context.Context, to *os.File, from io.Reader) error {
	w, err := c.open(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, untilDone{ctx, from})
	return errors.Join(err, w.Close(), to.Sync())
}

// untilDone reads no further once its context ended.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

// Read is the reader's, or the context's error.
func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}
