// Package engine is the path of a packet: decode, find the flow, ask the
// policy, remember, log, answer.
//
// It owns the Snapshot that all workers judge by, the flow table, and Handle,
// the only way from a packet to a verdict for live queues and replays alike.
// It must not know how a policy is evaluated (it takes an Evaluator) nor
// where packets come from.
package engine
