// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft/exporter/api"
	"weft/flows"
)

// SetTopology says what [Server.Topology] answers with. Any goroutine may call f,
// several at once.
func (s *Server) SetTopology(f func() *api.TopologyResponse) { s.topology.Store(&f) }

// Topology answers with the devices of this host.
func (s *Server) Topology(context.Context, *api.TopologyRequest) (*api.TopologyResponse, error) {
	f := s.topology.Load()
	if f == nil {
		return nil, status.Error(codes.Unavailable, "the agent has not read the devices yet")
	}
	m := (*f)()
	validText(m.ProtoReflect())
	return m, nil
}

// Topology is the devices of the agent's host and who is behind them.
func (c *Client) Topology(ctx context.Context) (*api.TopologyResponse, error) {
	ctx, clock := c.hurry(ctx, c.patience)
	defer clock.cancel(nil)
	clock.start()
	m, err := c.weft.Topology(ctx, &api.TopologyRequest{})
	if err != nil {
		return nil, c.explain(ctx, "read topology", err)
	}
	return m, nil
}

// EntityToWire is e as it is sent; nil for nil.
func EntityToWire(e *flows.Entity) *api.Entity { return entityToWire(e) }

// EntityFromWire is the entity that m is; nil for nil.
func EntityFromWire(m *api.Entity) *flows.Entity { return entityFromWire(m) }
