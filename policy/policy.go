package policy

import (
	"context"
	"errors"
	"maps"
	"sync"
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

	notCompiled error

	etag     string // of the bundle on the server
	longPoll bool   // the server offers it

	overruns, failures atomic.Uint64

	mu     sync.Mutex
	places map[string]uint64 // errors by what is to blame
}

// maxPlaces bounds the places that errors are counted by.
const maxPlaces = 100

// What errors without a place in the policy are counted by.
const (
	overBudget    = "over budget"
	wrongDecision = "decision of a wrong form"
	otherPlaces   = "other places"
)

// evaluator is what runs a policy: OPA's topdown, or what takes its place.
// It fills in all of d but Reads, and is safe for concurrent use.
type evaluator interface {
	evaluate(f *rules.Facts, d *rules.Decision) error
}

// Stats counts what went wrong in evaluations of a policy.
type Stats struct {
	Overruns uint64 // evaluations that took longer than the budget
	Errors   uint64 // all other errors: conflicts, malformed decisions

	// Places are both by what is to blame: the rule's file:line:column, or in
	// words what it was. Nil if there was no error.
	Places map[string]uint64
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
	if src.Strict {
		found, _, err := p.findings(ctx, CheckConfig{})
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			return nil, found
		}
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
	return newPolicy(ctx, p, src, old)
}

func newPolicy(ctx context.Context, p *program, src Source, old *Policy) (*Policy, error) {
	budget := src.Budget
	if budget <= 0 {
		budget = DefaultBudget
	}
	reference, err := newInterpreter(ctx, p, budget)
	if err != nil {
		return nil, Errors{fileError(p.name, err.Error(), "")}
	}
	policy := &Policy{hash: p.hash, reads: p.reads, eval: reference, origin: Origin{Revision: revision(p.files)}, program: p}
	switch {
	case src.Engine == Topdown:
		return policy, nil
	case src.Shadow.distrusts(p.hash):
		policy.notCompiled = errDistrusted
		return policy, nil
	}
	c, err := newCompiled(ctx, p, reference, old)
	if err != nil {
		policy.notCompiled = err
		return policy, ctx.Err()
	}
	c.shadow = src.Shadow
	policy.eval = c
	return policy, nil
}

// NotCompiled says why the policy runs on OPA's own evaluator although it was
// to be compiled: an error with file, line and column where there is a place
// to name. It is nil if the policy is compiled, or was not to be.
func (p *Policy) NotCompiled() error { return p.notCompiled }

// Engine returns what evaluates the policy now.
func (p *Policy) Engine() Engine {
	if c, ok := p.eval.(*compiled); ok && !c.distrusted.Load() {
		return Compiled
	}
	return Topdown
}

// Hash returns the SHA-256, in hex, of the names and contents of the policy's
// files.
func (p *Policy) Hash() string { return p.hash }

// Reads returns the fields that a decision of the policy can depend on.
func (p *Policy) Reads() rules.FieldSet { return p.reads }

// Stats returns the counters since the policy was loaded.
func (p *Policy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Overruns: p.overruns.Load(), Errors: p.failures.Load(), Places: maps.Clone(p.places)}
}

// blame counts an error by its place.
func (p *Policy) blame(place string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == nil {
		p.places = map[string]uint64{}
	}
	if _, known := p.places[place]; !known && len(p.places) >= maxPlaces {
		place = otherPlaces
	}
	p.places[place]++
}

// Evaluate decides about one packet; it implements engine.Evaluator.
//
// f is not kept. Where neither decision nor verdict is defined, the decision
// is to drop, by rule "default". d.Reads are the fields that this decision
// depends on; where OPA's own evaluator made it, all that any rule can read.
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
	place := wrongDecision
	if at, ok := errors.AsType[*Error](err); ok {
		place = at.Place()
	}
	if _, over := errors.AsType[*BudgetError](err); over {
		p.overruns.Add(1)
		place = overBudget
	} else {
		p.failures.Add(1)
	}
	p.blame(place)
	return err
}
