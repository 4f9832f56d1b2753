// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// The labels that containerd's clients give what they make.
const (
	labelNerdctl   = "nerdctl/name"
	labelPod       = "io.kubernetes.pod.name"
	labelPodNS     = "io.kubernetes.pod.namespace"
	labelPodUID    = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
	labelKind      = "io.cri-containerd.kind"
	kubeGroup      = "k8s.io" // the namespace of containerd that CRI uses
	dockerGroup    = "moby"   // the one that Docker uses, which keeps the names to itself: onDisk has them
	maxGroups      = 64       // namespaces of containerd that are looked into
)

// Of containerd's own interface two calls and five fields are used, decoded by hand:
// its Go module would bring a second RPC system along, and decode each container's
// whole specification.
const (
	callNamespaces = "/containerd.services.namespaces.v1.Namespaces/List"
	callContainers = "/containerd.services.containers.v1.Containers/List"

	fieldItem     = 1 // of both answers
	fieldName     = 1 // of a namespace, of a runtime, and a container's id
	fieldLabels   = 2
	fieldRuntime  = 4
	fieldSandbox  = 11
	fieldMapKey   = 1
	fieldMapValue = 2
)

// container is what containerd says of one.
type container struct {
	id, handler, sandbox string
	labels               map[string]string
}

// listContainerd asks by containerd's own interface, which also knows what ctr and
// nerdctl made. Without those that CRI has told.
func listContainerd(ctx context.Context, conn *grpc.ClientConn, into map[string]*contained, haveCRI bool) error {
	groups, err := callRaw(ctx, conn, callNamespaces)
	if err != nil {
		return fmt.Errorf("containerd namespaces: %w", short(err))
	}
	looked := 0
	return eachField(groups, fieldItem, func(item []byte) error {
		group, err := text(item, fieldName)
		if err != nil || group == dockerGroup || group == kubeGroup && haveCRI {
			return err
		}
		if looked++; looked > maxGroups {
			return fmt.Errorf("containerd has more than the %d namespaces that are looked into", maxGroups)
		}
		all, err := callRaw(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", group), conn, callContainers)
		if err != nil {
			return fmt.Errorf("containerd containers in %s: %w", group, short(err))
		}
		return eachField(all, fieldItem, func(item []byte) error {
			c, err := parseContainer(item)
			if err == nil && c.id != "" {
				into[c.id] = c.contained()
			}
			return err
		})
	})
}

func parseContainer(m []byte) (c container, err error) {
	c.labels = map[string]string{}
	for len(m) > 0 {
		number, value, rest, err := nextField(m)
		if err != nil {
			return c, err
		}
		m = rest
		switch number {
		case fieldName:
			c.id = string(value)
		case fieldSandbox:
			c.sandbox = string(value)
		case fieldRuntime:
			if c.handler, err = text(value, fieldName); err != nil {
				return c, err
			}
		case fieldLabels:
			k, err := text(value, fieldMapKey)
			v, err2 := text(value, fieldMapValue)
			if err := errors.Join(err, err2); err != nil {
				return c, err
			}
			c.labels[k] = v
		}
	}
	return c, nil
}

// contained is what the labels say; the id, as people gave it to ctr, where they say nothing.
func (c *container) contained() *contained {
	l := c.labels
	n := &contained{
		ID: c.id, Runtime: "containerd", Native: true, Handler: bounded(c.handler),
		Pod: bounded(l[labelPod]), Namespace: bounded(l[labelPodNS]), PodUID: bounded(l[labelPodUID]),
		Name: bounded(l[labelContainer]), Sandbox: c.sandbox, Labels: boundLabels(l),
	}
	if l[labelKind] == "sandbox" {
		n.Sandbox = c.id
	} else if n.Name == "" {
		if n.Name = bounded(l[labelNerdctl]); n.Name == "" {
			n.Name = bounded(c.id)
		}
	}
	return n
}

// callRaw asks with an empty request and returns the answer's bytes.
func callRaw(ctx context.Context, conn *grpc.ClientConn, method string) ([]byte, error) {
	var answer []byte
	err := conn.Invoke(ctx, method, &[]byte{}, &answer, grpc.ForceCodecV2(rawCodec{}))
	return answer, err
}

// rawCodec leaves messages as they are.
type rawCodec struct{}

var _ encoding.CodecV2 = rawCodec{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("encode %T: want *[]byte", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*m)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("decode %T: want *[]byte", v)
	}
	*m = data.Materialize()
	return nil
}

// nextField is the first field of a protobuf message and what follows it; value is
// nil for one that is not length-delimited.
func nextField(m []byte) (number protowire.Number, value, rest []byte, err error) {
	number, kind, n := protowire.ConsumeTag(m)
	if n < 0 {
		return 0, nil, nil, protowire.ParseError(n)
	}
	m = m[n:]
	if kind == protowire.BytesType {
		value, n = protowire.ConsumeBytes(m)
	} else {
		n = protowire.ConsumeFieldValue(number, kind, m)
	}
	if n < 0 {
		return 0, nil, nil, protowire.ParseError(n)
	}
	return number, value, m[n:], nil
}

// eachField calls f with every value of a repeated field.
func eachField(m []byte, want protowire.Number, f func([]byte) error) error {
	for len(m) > 0 {
		number, value, rest, err := nextField(m)
		if err != nil {
			return fmt.Errorf("decode containerd's answer: %w", err)
		}
		if number == want {
			if err := f(value); err != nil {
				return err
			}
		}
		m = rest
	}
	return nil
}

// text is a string field; empty when it is not there.
func text(m []byte, want protowire.Number) (s string, err error) {
	err = eachField(m, want, func(v []byte) error { s = string(v); return nil })
	return s, err
}
