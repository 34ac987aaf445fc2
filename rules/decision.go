package rules

import "github.com/verdictd/verdictd/packet"

// Decision is what a policy says about a packet. The zero value drops.
type Decision struct {
	Action packet.Action
	Rule   string // name of the rule that decided; never empty in a decision made by a policy
	Reason string // free text of the policy's author, may be empty
	Log    bool   // write an audit record

	SetMark bool   // Mark replaces the packet's mark
	Mark    uint32 // valid iff SetMark

	// Reads are the fields that the evaluation depended on: two packets that
	// agree on them get the same decision.
	Reads FieldSet
}
