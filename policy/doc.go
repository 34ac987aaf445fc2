// Package policy loads, checks, tests and runs Rego policies, and watches
// them for changes.
//
// A policy is package verdictd. It says what becomes of a packet in one of
// two forms:
//
//	decision := {"verdict": "accept", "rule": "https", "log": true, "reason": "...", "mark": 7}
//	verdict := "accept"
//
// Where neither is defined, the packet is dropped by rule "default". A policy
// whose rules decide in both forms is refused. What a policy may ask is rules.Fields, below
// input. It may use deterministic builtins only, so that a decision depends on
// nothing but the fields that Decision.Reads names.
//
// A policy can also be a rules file, or have one: then rules.Ruleset is
// translated to package verdictd, makes the decision, and asks the Rego beside
// it for the rule delegated where it says so. Everything behind the
// translation is the same; errors name the place in the rules file.
//
// A policy is a file, a directory, an OPA bundle, or a bundle on a server. What
// does not depend on the data (parsing, types, compilation) is not done again
// when only the data change, so that long lists can change often.
//
// The package owns everything that knows Rego, and the HTTP client that fetches
// bundles. It must not know the sockets that packets come from, flows, modes or what happens to a decision (queue, engine, logsink).
package policy
