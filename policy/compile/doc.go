// Package compile turns Rego policies into Go closures over the fields of a
// packet's facts.
//
// It owns the way from OPA's intermediate representation (IR) to code, and
// the evaluation of that code. It must not know where policies come from, what
// a decision looks like in Rego (an Entry's Decode says that) nor what becomes
// of a decision. OPA's topdown is the reference: whatever runs here gives the
// same value, or an error on which topdown is to be asked.
//
// # From text to code
//
//	modules --OPA compiler, planner--> IR      plan.go
//	IR --two runs per function--> closures     lower.go and what it calls
//	closures + facts --> decision              machine.go, compile.go
//
// The IR is a program over numbered locals. Lowering follows the flow of
// values and keeps what it knows of each local (env.go): a constant, a part of
// the input document, a field of the facts, a condition on fields. Only a
// local that is read where nothing is known of it gets a place in the frame
// (locals.go); the first run finds those, the second emits code. Most policies
// leave a few places and no allocation.
//
// # What is known early
//
//   - The input document is closed: rules.Fields is all there is. A path ends
//     in a field, which is read when the path is gone down, at most once.
//   - Data and literals are constants; so is every rule and builtin that can be
//     run without facts, which lowering tries (compiler.fold).
//   - A function is lowered anew for each set of known arguments
//     (compiler.version). If all are known it runs once per evaluation.
//   - Conditions on fields are native (native.go, fieldset.go): equality,
//     membership, order, text, CIDR. A condition that can be undefined is not
//     false: addresses with a zone are none to net.cidr_contains.
//   - A scan of constants becomes copies of its body, or finds the elements that
//     match a field by hash, longest prefix or suffix (scan.go, join.go).
//   - Bodies with conditions on fields that every packet of a flow shares are
//     found by an index (chain.go); else chains stop at the first that holds.
//   - A set of strings built by rules is a mask until it is looked at
//     (members.go).
//
// What is left are values of package ast and calls of OPA's own builtins.
//
// # Reads
//
// The fields that an evaluation read are those its decision depends on, with
// their absence: the machine notes each read, and nothing else reaches the
// facts. An index reads its fields even where the first body would decide;
// that is why it takes only fields of scope PerFlow.
//
// # Bounds
//
// Every body, turn of a loop, call and builtin counts steps; a decision that
// takes more than its budget fails with ErrBudget. What is put into large sets and
// objects takes time by how their hashes collide, so there the clock counts too: as
// much time as the budget's steps stand for. Lowering bounds the copies
// it makes; caches of a machine are bounded and belong to it. Rego has no
// recursion, so neither the stack nor the number of functions grows.
//
// # Differences from topdown
//
//   - ErrConflict, ErrKeyConflict: found more often, see there.
//   - ErrNumberKey, and *Unsupported for the form seen at compile time: data
//     looked up by a number, rules by the other spelling of one.
//   - ErrEqualKeys: {a: 1, b: 2} where a equals b.
//   - An array made of the elements of {a, b}: topdown takes equal ones twice,
//     which is *Unsupported. Everything else cannot tell.
//   - Nondeterministic builtins are *Unsupported.
//
// The proof is TestConformance, OPA's own cases, and TestDifferential, random
// policies over random facts; a long run of it is
//
//	VERDICTD_DIFFERENTIAL=10000000 VERDICTD_SEED=7000000 go test -run Differential -timeout 0 -v ./policy/compile
package compile
