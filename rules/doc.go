// Package rules holds what policies talk about: the facts of a packet, which
// are the one definition of every input.* field, and the decision that comes
// out.
//
// It owns the input document and its schema. It must not know how a policy is
// evaluated (policy), where packets come from (queue, replay) or what happens
// to a decision (engine, logsink).
package rules
