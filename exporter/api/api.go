// SPDX-License-Identifier: Apache-2.0

// Package api is the wire form of the agent's local API: generated messages and
// the gRPC service, nothing else. Use [weft/exporter.Client] to speak it.
package api

//go:generate sh generate.sh
