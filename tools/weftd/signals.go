// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

// screen is where -print writes. The pipe breaks when its reader leaves, as
// `weftd -print | head` does: gone says so.
type screen struct {
	out  io.Writer
	once sync.Once
	gone chan struct{}
}

func newScreen(out io.Writer) *screen { return &screen{out: out, gone: make(chan struct{})} }

func (s *screen) Write(p []byte) (int, error) {
	n, err := s.out.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		s.once.Do(func() { close(s.gone) })
	}
	return n, err
}

// left reports whether the reader has left; false without a screen.
func (s *screen) left() bool {
	select {
	case <-s.reader():
		return true
	default:
		return false
	}
}

// reader is closed when the reader has left; nil without a screen.
func (s *screen) reader() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.gone
}

// catchSignals keeps what arrives from now on for [agent.signals]. SIGPIPE says
// nothing, because any client's socket raises it.
func catchSignals() chan os.Signal {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGPIPE)
	return got
}

// signals obeys until ctx ends: SIGHUP reloads, when open is closed and not
// before; SIGTERM, SIGINT and a reader of -print that has left stop; from then on
// a second SIGTERM or SIGINT ends the process at once.
func (a *agent) signals(ctx context.Context, open <-chan struct{}, stop func()) error {
	reload := false // asked for and not done yet
	for {
		select {
		case <-ctx.Done():
			go a.secondSignal()
			return nil
		case <-a.out.reader():
			a.log.Info("stopping", "reason", "nobody reads -print any more")
			stop()
			go a.secondSignal()
			return nil
		case <-open:
			if open = nil; reload {
				a.reloadConfig()
			}
		case s := <-a.got:
			switch {
			case s != syscall.SIGHUP:
				a.log.Info("stopping", "reason", s.String())
				stop()
			case open != nil:
				a.log.Info("reload waits until the agent has started")
				reload = true
			default:
				a.reopen()
				a.reloadConfig()
			}
		}
	}
}

// secondSignal ends the process while it is stopping, if it is asked again. It
// lives until the process ends.
func (a *agent) secondSignal() {
	for s := range a.got {
		if s == syscall.SIGTERM || s == syscall.SIGINT {
			a.log.Error("stopped at once", "reason", s.String())
			os.Exit(exitFailed)
		}
	}
}

// reloadConfig applies what changed and can change, and says what cannot. A
// configuration with a mistake changes nothing.
func (a *agent) reloadConfig() {
	next, err := a.reload()
	if err != nil {
		a.log.Error("configuration not reloaded", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var applied []string
	for i := range keys {
		k := &keys[i]
		switch {
		case k.same(&a.cfg, &next):
		case k.live:
			applied = append(applied, k.name)
		default:
			a.log.Warn("key needs a restart", "key", k.name, "in_force", k.show(&a.cfg), "configured", k.show(&next))
		}
	}
	a.reloadSinks(&next)
	if err := a.plane.Load().Reload(next.Dataplane.Interfaces, next.Dataplane.Exclude); err != nil {
		a.log.Error("configuration not reloaded", "err", err)
		return
	}
	a.level.Set(next.Level)
	a.cfg.Level = next.Level
	a.cfg.Dataplane.Interfaces, a.cfg.Dataplane.Exclude = next.Dataplane.Interfaces, next.Dataplane.Exclude
	a.log.Info("configuration reloaded", "applied", strings.Join(applied, ","))
}
