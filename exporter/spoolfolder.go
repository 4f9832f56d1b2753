// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const spoolSuffix = ".otlp.zst"

// open locks the folder and finds what an earlier run left.
func (s *spool) open() error {
	if s.lock != nil {
		return nil
	}
	if err := os.MkdirAll(s.c.Dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.c.Dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another process or sink has the spool: %w", err), lock.Close())
	}
	found, err := s.scan()
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	if !s.carried { // else the folder was gone meanwhile, and this run knows better
		if err := s.carry(found); err != nil {
			s.log.Warn("cannot read the spool's tally", "err", err)
		}
		s.carried = true
	}
	s.lock, s.entries = lock, append(found, s.entries...)
	s.keepTally()
	s.signal()
	return nil
}

// scan lists the folder in order of the names and removes what was half written.
func (s *spool) scan() ([]*spooled, error) {
	files, err := os.ReadDir(s.c.Dir)
	if err != nil {
		return nil, err
	}
	var found []*spooled
	waiting, future, bytes, next := 0, 0, 0, s.next
	for _, f := range files { // in order of name, so in that of their making
		if strings.HasSuffix(f.Name(), spoolSuffix+".tmp") {
			if err := os.Remove(filepath.Join(s.c.Dir, f.Name())); err != nil {
				return nil, err
			}
			continue
		}
		number, records, ours := parseSpoolName(f.Name())
		if !ours {
			continue
		}
		e := &spooled{name: f.Name(), recovered: true, records: records}
		if slices.ContainsFunc(s.entries, func(known *spooled) bool { return known.name == e.name }) {
			continue // of this run: the folder was gone for a while
		}
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		e.size = int(info.Size())
		age := time.Since(info.ModTime())
		if age < 0 {
			future++
			age = 0
		}
		e.since = time.Now().Add(-age)
		bytes += e.size
		next = max(next, number+1)
		waiting += e.records
		found = append(found, e)
	}
	s.bytes, s.next = s.bytes+bytes, next
	if found, err = s.whole(found); err != nil {
		return nil, err
	}
	if len(found) > 0 {
		s.log.Info("requests of an earlier run wait in the spool", "requests", len(found), "records", waiting)
	}
	if future > 0 {
		s.log.Warn("clock was set back: spooled requests are from the future and count as new", "requests", future)
	}
	return found, nil
}

// write makes a file that is there whole or not at all.
func (s *spool) write(name string, content []byte) error {
	if err := s.open(); err != nil {
		return err
	}
	path := filepath.Join(s.c.Dir, name)
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if errors.Is(err, os.ErrNotExist) { // the folder was removed, with the lock in it: it is made anew
		err = errors.Join(err, s.lock.Close())
		s.lock = nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && !s.c.NoSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		_ = os.Remove(path + ".tmp") // the disk's first error is what counts; the next start removes it
		return err
	}
	if s.c.NoSync {
		return nil
	}
	if err = syncFolder(s.c.Dir); err != nil {
		return errors.Join(err, os.Remove(path)) // it is held in memory, and must not come back after a restart
	}
	return nil
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// errDamaged says that a file will never be read: it is gone, or not what was written.
var errDamaged = errors.New("it is not what was written")

func (s *spool) read(e *spooled) ([]byte, error) {
	if e.held != nil {
		return e.held, nil
	}
	packed, err := os.ReadFile(filepath.Join(s.c.Dir, e.name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	body, err := unzstd(packed)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	case len(body) == 0:
		return nil, fmt.Errorf("%w: the file is empty", errDamaged)
	}
	return body, nil
}

// unlink takes e's file away.
func (s *spool) unlink(e *spooled) error {
	if e.held == nil {
		if err := os.Remove(filepath.Join(s.c.Dir, e.name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	s.bytes -= e.size
	return nil
}

// drop takes away the file of e, which has been accounted for; while the disk lets nothing be removed, it is tried
// again each time. If the agent is restarted before, e is sent once more, under the same id.
func (s *spool) drop(e *spooled) {
	s.dropped = slices.DeleteFunc(append(s.dropped, e), func(e *spooled) bool {
		err := s.unlink(e)
		if err != nil {
			s.note(fmt.Errorf("a request that was sent is there again after a restart: %w", err))
		}
		return err == nil
	})
}

// note logs when the disk stops or starts to take requests.
func (s *spool) note(err error) {
	change(&s.fault, err, func() { s.log.Warn("spool cannot be written, requests wait in memory", "err", err) },
		func() { s.log.Info("spool is written again") })
}
