// SPDX-License-Identifier: Apache-2.0

package flows

// Process is who owns the socket of one side of a connection, on this host.
type Process struct {
	PID    uint32 // thread group id in the initial pid namespace, when the socket was made or connected
	Comm   string // at most 15 bytes
	Cgroup uint64 // id of its cgroup v2; 0: not known
}
