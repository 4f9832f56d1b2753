// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells a service manager how the agent is, by the protocol of
// sd_notify(3). The zero notifier, of an agent that nobody manages, tells nobody.
type notifier struct {
	socket string        // NOTIFY_SOCKET
	every  time.Duration // half the watchdog's patience; 0: no watchdog
	last   time.Time
}

// newNotifier reads what the service manager put into the environment.
func newNotifier() notifier {
	n := notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if pid := os.Getenv("WATCHDOG_PID"); err == nil && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.every = time.Duration(usec) * time.Microsecond / 2
	}
	return n
}

// tell sends a state such as READY=1.
func (n *notifier) tell(state string) error {
	if n.socket == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", n.socket) // a leading @ is an abstract socket, as in the protocol
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// alive feeds the watchdog, if there is one and it is time.
func (n *notifier) alive(now time.Time) error {
	if n.every == 0 || now.Sub(n.last) < n.every {
		return nil
	}
	n.last = now
	return n.tell("WATCHDOG=1")
}
