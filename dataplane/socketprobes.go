// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"weft/bpf"
)

// socketProbe is one program of the socket object and where it is attached.
type socketProbe struct {
	name     string   // of the program
	at       string   // tracepoint, or function
	function bool     // at is a function, and the program runs when it returns
	takes    []string // the first arguments, as the program reads them
	tells    string   // what is not known without it
	needs    string   // kernel
	later    bool     // another tells it later

	prog *ebpf.Program
	link link.Link
}

// socketProbes lists them anew: each is independent of the others.
func socketProbes() []*socketProbe {
	return []*socketProbe{
		{name: bpf.SocketProgSocketStateSet, at: "inet_sock_set_state", takes: []string{"sock*", "int", "int"},
			tells: "who connects, and failed connects", needs: "Linux 4.16"},
		{name: bpf.SocketProgSocketAccepted, at: "inet_csk_accept", function: true, takes: []string{"sock*"},
			tells: "who accepts, at once", later: true, needs: "CONFIG_FUNCTION_TRACER, BPF trampolines"},
		{name: bpf.SocketProgSocketRetransmit, at: "tcp_retransmit_skb", takes: []string{"sock*", "sk_buff*"},
			tells: "retransmits", needs: "Linux 4.15"},
		{name: bpf.SocketProgSocketRetransmitSynack, at: "tcp_retransmit_synack", takes: []string{"sock*", "request_sock*"},
			tells: "retransmits of SYN-ACK", needs: "Linux 4.16"},
		{name: bpf.SocketProgSocketResetSent, at: "tcp_send_reset", takes: []string{"sock*", "sk_buff*"},
			tells: "resets sent", needs: "Linux 4.16"},
		{name: bpf.SocketProgSocketResetReceived, at: "tcp_receive_reset", takes: []string{"sock*"},
			tells: "resets received", needs: "Linux 4.16"},
		{name: bpf.SocketProgSocketQueueFull, at: "sock_rcvqueue_full", takes: []string{"sock*", "sk_buff*"},
			tells: "full queues of ping sockets", needs: "Linux 3.1"},
		{name: bpf.SocketProgSocketUdpFull, at: "udp_fail_queue_rcv_skb", takes: []string{"int", "sock*"},
			tells: "full queues of UDP sockets", needs: "Linux 3.1"},
	}
}

// foundProbes is what the running kernel has.
type foundProbes struct {
	probes []*socketProbe
	config bpf.SocketSocketConfig
}

// findSocketProbes looks up what the kernel has by its BTF, since arguments differ
// by version. off is told of what it has not.
func findSocketProbes(kernel *btf.Spec, off func(Capability)) foundProbes {
	var f foundProbes
	for _, p := range socketProbes() {
		has, err := p.arguments(kernel)
		if err == nil && (len(has) < len(p.takes) || !slices.Equal(has[:len(p.takes)], p.takes)) {
			err = fmt.Errorf("find %s: its arguments are (%s), not (%s)", p.at, strings.Join(has, ", "), strings.Join(p.takes, ", "))
		}
		if err != nil {
			off(p.off(err))
			continue
		}
		f.probes = append(f.probes, p)
		third := ""
		if len(has) > 2 {
			third = has[2]
		}
		switch {
		case p.name == bpf.SocketProgSocketRetransmit && third == "int":
			f.config.RetransmitTellsError = 1
		case p.name == bpf.SocketProgSocketUdpFull && third == "sk_buff*":
			f.config.UdpTellsPacket = 1
		case p.name == bpf.SocketProgSocketAccepted:
			f.config.AcceptArguments = uint32(len(has))
		}
	}
	return f
}

// arguments are the types of what the tracepoint or function takes, as words.
func (p *socketProbe) arguments(kernel *btf.Spec) ([]string, error) {
	if p.function {
		var fn *btf.Func
		if err := kernel.TypeByName(p.at, &fn); err != nil {
			return nil, fmt.Errorf("find function %s: %w", p.at, err)
		}
		return typeWords(fn.Type.(*btf.FuncProto).Params), nil
	}
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+p.at, &def); err != nil {
		return nil, fmt.Errorf("find tracepoint %s: %w", p.at, err)
	}
	if ptr, ok := def.Type.(*btf.Pointer); ok {
		if proto, ok := ptr.Target.(*btf.FuncProto); ok && len(proto.Params) > 0 {
			return typeWords(proto.Params[1:]), nil // the first is the tracepoint's own
		}
	}
	return nil, fmt.Errorf("find tracepoint %s: %v is no function", p.at, def.Type)
}

func typeWords(params []btf.FuncParam) (words []string) {
	for _, p := range params {
		t, stars := btf.UnderlyingType(p.Type), ""
		for {
			ptr, ok := t.(*btf.Pointer)
			if !ok {
				break
			}
			t, stars = btf.UnderlyingType(ptr.Target), stars+"*"
		}
		words = append(words, t.TypeName()+stars)
	}
	return words
}

// open loads and attaches the probe's program alone; maps are shared.
func (p *socketProbe) open(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, types *btf.Cache) error {
	one := spec.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{p.name: one.Programs[p.name]}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: maps, Cache: types})
	if err != nil {
		return fmt.Errorf("load %s: %w", p.name, err)
	}
	p.prog = coll.DetachProgram(p.name)
	coll.Close()
	if p.link, err = link.AttachTracing(link.TracingOptions{Program: p.prog}); err != nil {
		return errors.Join(fmt.Errorf("attach to %s: %w", p.at, err), p.prog.Close())
	}
	return nil
}

func (p *socketProbe) detach() error {
	if p.link == nil {
		return nil
	}
	err := p.link.Close()
	p.link = nil
	if err != nil {
		return fmt.Errorf("detach from %s: %w", p.at, err)
	}
	return nil
}

// off names what is missing without the probe.
func (p *socketProbe) off(err error) Capability {
	kind := "tracepoint "
	if p.function {
		kind = "function "
	}
	return Capability{Name: "sockets: " + p.tells, Needs: kind + p.at + " (" + p.needs + "), kernel BTF, CAP_PERFMON", Err: err.Error(), later: p.later}
}
