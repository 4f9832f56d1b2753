// SPDX-License-Identifier: Apache-2.0

// Package exporter owns everything that leaves the agent: the names of what is
// exported, OTLP logs and metrics, Prometheus, the store of recent records with
// the local API over it, and the lines a person reads. It decides nothing about
// what a flow is.
//
// [Store], [OTLP] and [Print] are flows.Sinks: Export queues and returns, and
// Account says where every record is. They keep the records of a window and
// never write to them, so one window may go to several sinks.
package exporter
