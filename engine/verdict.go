package engine

import (
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Reasons why a packet got its verdict. They are constants, so that a verdict
// can carry one for free.
const (
	ReasonPolicy      = "policy"       // the policy decided, for this packet or earlier for its flow
	ReasonEstablished = "established"  // reply direction of a flow that the policy accepted
	ReasonRelated     = "related"      // ICMP error about such a flow
	ReasonMalformed   = "malformed"    // could not be decoded as the kernel would
	ReasonPolicyError = "policy_error" // the policy ended in an error
	ReasonNotIP       = "not_ip"       // in a capture: not a packet that the hooks would see
	ReasonNoPolicy    = "no_policy"    // no policy has been published yet
)

// Outcome explains the last verdict of a worker.
type Outcome struct {
	Packet   *packet.Packet  // lent: valid until the next Handle
	Decision *rules.Decision // what the policy said; nil if it had no say
	Reason   string          // one of the Reason constants
	Error    error           // why the policy had no decision, if it was asked for this packet
	Flow     uint64          // id of the flow, 0 if none
	Action   packet.Action   // what happened; in monitor mode not what Decision says
	Monitor  bool            // Action is Accept because the mode is monitor
}

// Outcome explains the verdict that Handle returned last. It is lent: valid
// until the next Handle.
func (w *Worker) Outcome() *Outcome { return &w.out }

// explain notes the outcome; in monitor mode everything is accepted.
func (w *Worker) explain(d *rules.Decision, action packet.Action, reason string) {
	w.out.Decision, w.out.Reason, w.out.Action, w.out.Monitor = d, reason, action, false
	if w.now != nil && w.now.Mode == Monitor && action != packet.Accept {
		w.out.Action, w.out.Monitor = packet.Accept, true
	}
}

// finish notes the outcome, counts it and makes the verdict.
func (w *Worker) finish(d *rules.Decision, action packet.Action, reason string) packet.Verdict {
	w.explain(d, action, reason)
	if w.out.Monitor {
		w.counts.WouldDrop++
	}
	v := packet.Verdict{Action: w.out.Action}
	switch v.Action {
	case packet.Accept:
		w.counts.Accepted++
	case packet.Reject:
		w.counts.Rejected++
	default:
		w.counts.Dropped++
	}
	if d != nil && d.SetMark && reason == ReasonPolicy && v.Action == packet.Accept {
		v.SetMark, v.Mark = true, d.Mark
	}
	return v
}

// failAction is what happens to packets that nothing could be decided about.
func (w *Worker) failAction() packet.Action {
	if w.now.FailOpen {
		return packet.Accept
	}
	return packet.Drop
}
