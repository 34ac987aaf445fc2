package engine

import "github.com/verdictd/verdictd/rules"

// An Evaluator decides about one packet.
//
// Evaluate fills in all of d, Reads included. It must not keep f. An error
// means that the policy has no valid decision for this packet (runtime error,
// conflict, malformed decision): the failure table then decides. Evaluate is
// called by several goroutines at once.
type Evaluator interface {
	Evaluate(f *rules.Facts, d *rules.Decision) error
}

// Mode says what becomes of a decision.
type Mode uint8

// Modes.
const (
	Enforce Mode = iota // decisions are carried out
	Monitor             // everything passes; what would have been dropped is recorded
)

// String returns "enforce" or "monitor".
func (m Mode) String() string {
	if m == Monitor {
		return "monitor"
	}
	return "enforce"
}

// Snapshot is what packets are judged by: one policy and the settings that
// belong to it. It is immutable once published; each packet is judged by
// exactly one Snapshot.
type Snapshot struct {
	Policy     Evaluator
	Generation uint64 // of the policy; 1 is the first
	Hash       string // SHA-256 of the policy, hex
	Mode       Mode

	// FailOpen lets packets pass whose policy evaluation failed. The zero value
	// drops them.
	FailOpen bool

	// PassMalformed lets packets pass that could not be decoded. Who sends them
	// chooses that, so this is no part of FailOpen. The zero value drops them.
	PassMalformed bool

	// Marks are what the kernel's ruleset understands.
	Marks Marks

	// ResetDenied rejects, where the policy says drop, the packets of TCP
	// connections that began before the policy denied them.
	ResetDenied bool
}
