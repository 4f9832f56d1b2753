// SPDX-License-Identifier: Apache-2.0

// Package receivertest sends flow records to a real OpenTelemetry Collector
// receiver and compares what it decodes. It is a module of its own, so that the
// Collector's dependencies are not the agent's.
package receivertest
