package policy

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/rules"
)

// DefaultBudget is the time that one decision may take unless Source says
// otherwise. A decision takes some ten microseconds.
const DefaultBudget = 50 * time.Millisecond

// Policy is a loaded policy. It is immutable but for its counters and safe for
// concurrent use. It needs no closing.
type Policy struct {
	hash   string
	reads  rules.FieldSet
	eval   evaluator
	origin Origin

	program *program // what eval runs; a policy with other data is made of it

	etag     string // of the bundle on the server
	longPoll bool   // the server offers it

	overruns, failures atomic.Uint64
}

// evaluator is what runs a policy: OPA's topdown, or what takes its place.
// It fills in all of d but Reads, and is safe for concurrent use.
type evaluator interface {
	evaluate(f *rules.Facts, d *rules.Decision) error
}

// Stats counts what went wrong in evaluations of a policy.
type Stats struct {
	Overruns uint64 // evaluations that took longer than the budget
	Errors   uint64 // all other errors: conflicts, malformed decisions
}

// Load reads, checks and tests the policy at src. A policy whose own tests
// fail is refused unless src says to skip them.
//
// A bundle of a server that is good is kept, if src says where. If the server
// has no good bundle, the one that was kept is loaded, and Origin says so.
//
// The error is Errors, except where ctx ends the tests early, or a *ServerError
// where a server cannot be asked.
func Load(ctx context.Context, src Source) (*Policy, error) {
	if src.isRemote() {
		return loadRemote(ctx, src)
	}
	files, errs := src.read()
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	return load(ctx, src, files, nil)
}

// load makes a policy of files, which were read from src. If only the data
// differ from those of the policy old, which may be nil, old's rules serve
// again.
func load(ctx context.Context, src Source, files []file, old *Policy) (*Policy, error) {
	p, errs := makeProgram(ctx, src, files, old)
	if len(errs) > 0 {
		return nil, errs
	}
	if !src.SkipTests {
		results, _, err := p.runTests(ctx)
		if err != nil {
			return nil, err
		}
		if errs := failures(results); len(errs) > 0 {
			return nil, errs.sorted()
		}
	}
	return newPolicy(ctx, p, src.Budget)
}

func newPolicy(ctx context.Context, p *program, budget time.Duration) (*Policy, error) {
	if budget <= 0 {
		budget = DefaultBudget
	}
	eval, err := newInterpreter(ctx, p, budget)
	if err != nil {
		return nil, Errors{fileError(p.name, err.Error(), "")}
	}
	return &Policy{hash: p.hash, reads: p.reads, eval: eval, origin: Origin{Revision: revision(p.files)}, program: p}, nil
}

// Hash returns the SHA-256, in hex, of the names and contents of the policy's
// files.
func (p *Policy) Hash() string { return p.hash }

// Reads returns the fields that a decision of the policy can depend on.
func (p *Policy) Reads() rules.FieldSet { return p.reads }

// Stats returns the counters since the policy was loaded.
func (p *Policy) Stats() Stats {
	return Stats{Overruns: p.overruns.Load(), Errors: p.failures.Load()}
}

// Evaluate decides about one packet; it implements engine.Evaluator.
//
// f is not kept. Where neither decision nor verdict is defined, the decision
// is to drop, by rule "default". d.Reads is the same for every decision of a
// policy: all fields that any of its rules can read.
//
// An error means that the policy makes no decision about this packet, and d
// drops it. It is an *Error where the policy has a place to blame, such as
// rules that conflict, and a *BudgetError where the evaluation took too long.
func (p *Policy) Evaluate(f *rules.Facts, d *rules.Decision) error {
	*d = rules.Decision{Reads: p.reads}
	err := p.eval.evaluate(f, d)
	if err == nil {
		return nil
	}
	*d = rules.Decision{Reads: p.reads}
	if _, over := errors.AsType[*BudgetError](err); over {
		p.overruns.Add(1)
	} else {
		p.failures.Add(1)
	}
	return err
}
