// Package logsink keeps the audit log: what was decided, what the kernel
// logged (NFLOG) and what was lost.
//
// It owns Event, the ring between a packet worker and the log, the NFLOG
// reader, the EVE JSON encoder and the files it is written to. Putting an
// event never blocks: when the ring is full the event is counted as lost, and
// the loss itself is logged. It must not know how a verdict came about
// (engine, policy).
package logsink
