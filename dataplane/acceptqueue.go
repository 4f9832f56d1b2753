// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

const acceptQueueNeeds = "kernel BTF, bpf_skc_to_tcp_sock (Linux 5.9), CAP_PERFMON"

// findAcceptQueue tells the programs where a listening socket's accept queue is, if sockets
// are asked at all: a SYN that finds it full is dropped without a word of the kernel's.
func (o *objects) findAcceptQueue(off func(Capability)) {
	if !o.size.tcp || o.size.sockets == 0 {
		return
	}
	kernel, err := btf.LoadKernelSpec()
	if err == nil {
		o.config.AckBacklog, o.config.MaxAckBacklog, err = acceptQueueIn(kernel)
	}
	if err != nil {
		off(Capability{Name: "full accept queues", Needs: acceptQueueNeeds, Err: err.Error()})
	}
}

// acceptQueueIn is where struct sock has the length and the bound of the queue, in bytes.
func acceptQueueIn(kernel *btf.Spec) (length, bound uint16, err error) {
	var sock *btf.Struct
	if err := kernel.TypeByName("sock", &sock); err != nil {
		return 0, 0, fmt.Errorf("find struct sock in the kernel's BTF: %w", err)
	}
	for _, m := range sock.Members {
		switch m.Name {
		case "sk_ack_backlog":
			length = uint16(m.Offset.Bytes())
		case "sk_max_ack_backlog":
			bound = uint16(m.Offset.Bytes())
		}
	}
	if length == 0 || bound == 0 {
		return 0, 0, errors.New("this kernel's struct sock has no accept queue")
	}
	return length, bound, nil
}
