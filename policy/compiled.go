package policy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/policy/compile"
	"github.com/verdictd/verdictd/rules"
)

// Engine says what evaluates a policy.
type Engine uint8

// Engines.
const (
	// Compiled policies run as Go closures. What cannot be compiled runs on
	// Topdown, with the same decisions.
	Compiled Engine = iota
	// Topdown is OPA's own evaluator, the reference.
	Topdown
)

// String returns the engine's name.
func (e Engine) String() string {
	if e == Topdown {
		return "topdown"
	}
	return "compiled"
}

// ParseEngine returns the engine of that name.
func ParseEngine(name string) (Engine, error) {
	for _, e := range []Engine{Compiled, Topdown} {
		if name == e.String() {
			return e, nil
		}
	}
	return 0, fmt.Errorf("engine %q: want compiled or topdown", name)
}

// errDistrusted says why a policy is not compiled although it can be.
var errDistrusted = errors.New("a decision of it, compiled, was not OPA's")

// perStep is what one step of a compiled policy is taken to cost: see
// compile.DefaultBudget.
const perStep = time.Millisecond / compile.DefaultBudget

// compiled evaluates a policy that was compiled. Errors are for topdown to
// find and to word, but for the budget's.
type compiled struct {
	program   *compile.Program
	reference *interpreter
	reads     rules.FieldSet // of any decision
	hash      string
	shadow    *Shadow // nil: nothing is compared

	// distrusted is set when a decision was not the reference's: from then on
	// the reference decides.
	distrusted atomic.Bool
}

// newCompiled compiles a policy. If it has the rules of old, which may be nil,
// and other data, only what is made of the data is made anew. The error is
// *compile.Unsupported, or tells of a fault of the compiler.
func newCompiled(ctx context.Context, p *program, reference *interpreter, old *Policy) (*compiled, error) {
	c := &compiled{reference: reference, reads: p.reads, hash: p.hash}
	if old != nil && old.program.compiler == p.compiler {
		if before, ok := old.eval.(*compiled); ok && before.reference.budget == reference.budget {
			var err error
			c.program, err = before.program.WithData(p.data)
			return c, err
		}
	}
	in := compile.Input{
		Modules: p.live, Data: p.data, Capabilities: p.caps,
		Undefined: rules.Decision{Rule: defaultRule, Log: true},
		Budget:    max(int(reference.budget/perStep), 1),
	}
	if p.hasDecision {
		in.Entries = append(in.Entries, compile.Entry{Path: "verdictd/" + decisionRule, Decode: decodeDecision})
	}
	if p.hasVerdict {
		in.Entries = append(in.Entries, compile.Entry{Path: "verdictd/" + verdictRule, Decode: decodeVerdict})
	}
	var err error
	c.program, err = compile.Compile(ctx, in, p.fields)
	return c, err
}

// evaluate implements evaluator. It sets d.Reads to what this decision depends
// on.
func (c *compiled) evaluate(f *rules.Facts, d *rules.Decision) error {
	if c.distrusted.Load() {
		return c.reference.evaluate(f, d)
	}
	err := c.program.Evaluate(f, d)
	switch {
	case err == nil:
		c.shadow.offer(c, f, d)
		return nil
	case errors.Is(err, compile.ErrBudget):
		return &BudgetError{Budget: c.reference.budget}
	}
	*d = rules.Decision{Reads: c.reads}
	return c.reference.evaluate(f, d)
}
