// Package rules holds what policies talk about: the facts of a packet, which
// are the one definition of every input.* field, and the decision that comes
// out. And it holds plain rules: policy as a YAML list, which becomes Rego.
//
// It owns the input document and its schema; the rules file (see Ruleset), its
// schema, analysis and translation. It must not know how a policy is
// evaluated (policy), where packets come from (queue, replay) or what happens
// to a decision (engine, logsink).
package rules
