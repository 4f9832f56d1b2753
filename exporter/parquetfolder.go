// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"golang.org/x/sys/unix"
)

// parquetFolder is the files of one [Parquet]: one that is being written, under a name
// that says how many records it has so far, and those that are finished. What it does
// can be done again when it failed.
type parquetFolder struct {
	dir  string
	keep int
	run  uint32 // random: a name of this run is of no other
	log  *slog.Logger

	lock *os.File // nil: not open yet
	file *os.File // nil: none is being written
	path string   // of file
	name string   // that the finished file gets
	next int      // number of the next file of this run
	at   int64    // bytes written
}

const (
	parquetPrefix = "weft-"
	parquetSuffix = ".parquet"
	partSuffix    = ".part"
)

// errGone says that a file is not where it was written.
var errGone = errors.New("it was removed while it was written")

// open locks the folder and sees to what an earlier run left.
func (d *parquetFolder) open() error {
	if d.lock != nil {
		return nil
	}
	if err := os.MkdirAll(d.dir, 0o750); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(d.dir, ".weft.lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another process or sink writes to the folder: %w", err), lock.Close())
	}
	if err := d.recover(); err != nil {
		return errors.Join(err, lock.Close())
	}
	d.lock = lock
	return nil
}

// recover finishes the file of an earlier run that only lacks its name, and removes one
// that has no footer: nothing can be read of it.
func (d *parquetFolder) recover() error {
	left, err := filepath.Glob(filepath.Join(d.dir, parquetPrefix+"*"+parquetSuffix+".*"+partSuffix))
	if err != nil {
		return err
	}
	for _, path := range left {
		name, count, _ := strings.Cut(strings.TrimSuffix(path, partSuffix), parquetSuffix+".")
		if rows, whole := wholeParquet(path); whole {
			if err := os.Rename(path, name+parquetSuffix); err != nil {
				return err
			}
			d.log.Info("Parquet file of an earlier run was whole and is finished", "file", filepath.Base(name)+parquetSuffix, "records", rows)
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		d.log.Warn("Parquet file of an earlier run was not finished, its records are lost", "file", filepath.Base(path), "at_least_records", count)
	}
	return nil
}

// wholeParquet reports whether a file has a footer that describes it, and of how many rows.
func wholeParquet(path string) (rows int64, whole bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false
	}
	p, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		return 0, false
	}
	return p.NumRows(), p.NumRows() > 0
}

// begin begins a file.
func (d *parquetFolder) begin() error {
	if err := d.open(); err != nil {
		return err
	}
	name, err := d.nameAt(time.Now())
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, fmt.Sprintf("%s.%d%s", name, 0, partSuffix))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640)
	if errors.Is(err, os.ErrNotExist) { // the folder was removed, with the lock in it: it is made anew
		err = errors.Join(err, d.lock.Close())
		d.lock = nil
	}
	if err != nil {
		return err
	}
	d.file, d.path, d.name, d.at = file, path, name, 0
	d.next++
	return nil
}

// parquetTime is the time in a file's name, by which files are in order.
const parquetTime = "20060102T150405Z"

// nameAt is the name of a file that is begun now. It is behind all that are finished: a
// clock that was set back must not make the newest the oldest.
func (d *parquetFolder) nameAt(now time.Time) (string, error) {
	name := func(at time.Time) string {
		return fmt.Sprintf("%s%s-%08x-%06d%s", parquetPrefix, at.UTC().Format(parquetTime), d.run, d.next, parquetSuffix)
	}
	files, err := d.finished()
	if err != nil || len(files) == 0 || filepath.Base(files[len(files)-1]) < name(now) {
		return name(now), err
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(files[len(files)-1]), parquetPrefix), "-")
	if newest, err := time.Parse(parquetTime, text); err == nil {
		return name(newest.Add(time.Second)), nil
	}
	return name(now), nil // behind a name that is not ours
}

// finished are the paths of finished files, the oldest first.
func (d *parquetFolder) finished() ([]string, error) {
	return filepath.Glob(filepath.Join(d.dir, parquetPrefix+"*"+parquetSuffix)) // in order of name
}

func (d *parquetFolder) written() int64 { return d.at }

// write adds b, of which it says how much it took.
func (d *parquetFolder) write(b []byte) (int, error) {
	n, err := d.file.WriteAt(b, d.at)
	d.at += int64(n)
	return n, err
}

// note puts how many records were written into the file's name.
func (d *parquetFolder) note(rows int) error {
	path := filepath.Join(d.dir, fmt.Sprintf("%s.%d%s", d.name, rows, partSuffix))
	if err := d.rename(path); err != nil {
		return err
	}
	d.path = path
	return nil
}

func (d *parquetFolder) rename(to string) error {
	err := os.Rename(d.path, to)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(d.path), errGone)
	}
	return err
}

// sync puts the file's content on the disk.
func (d *parquetFolder) sync() error { return d.file.Sync() }

// publish gives the file its name, and removes the oldest.
func (d *parquetFolder) publish() error {
	if to := filepath.Join(d.dir, d.name); d.path != to {
		if err := d.rename(to); err != nil {
			return err
		}
		d.path = to
	}
	if err := syncFolder(d.dir); err != nil {
		return err
	}
	err := d.file.Close()
	d.file, d.at = nil, 0
	if err != nil { // synced before: nothing of it can be lost
		d.log.Warn("Parquet file was finished, but not closed", "file", d.name, "err", err)
	}
	d.removeOldest()
	return nil
}

// removeOldest removes the oldest finished files over the number to keep.
func (d *parquetFolder) removeOldest() {
	files, err := d.finished()
	for i := 0; err == nil && i < len(files)-d.keep; i++ {
		err = os.Remove(files[i])
	}
	if err != nil {
		d.log.Warn("old Parquet files cannot be removed", "err", err)
	}
}

// giveUp removes the file that is being written.
func (d *parquetFolder) giveUp() {
	if d.file == nil {
		return
	}
	if err := errors.Join(d.file.Close(), os.Remove(d.path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn("unfinished Parquet file is left", "file", filepath.Base(d.path), "err", err)
	}
	d.file, d.at = nil, 0
}

// close gives up what is not finished and lets others have the folder.
func (d *parquetFolder) close() {
	d.giveUp()
	if d.lock != nil {
		_ = d.lock.Close() // it was only read
	}
}
