package compile

import (
	"errors"
	"math"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// builtinSteps is what a call of a builtin counts, in steps, beside what its
// arguments weigh.
const builtinSteps = 8

// builtin lowers the call of a builtin: as a condition on fields, as a
// constant, or as a call of OPA's implementation.
func (g *gen) builtin(s *ir.CallStmt, e *env) (o op, ends bool) {
	b := &builtinCall{name: s.Func, impl: topdown.GetBuiltin(s.Func), short: newShortcut(s.Func)}
	if b.impl == nil {
		g.unsupported(s, "builtin %s is not known to OPA's evaluator", s.Func)
		return always(leave), true
	}
	if decl, ok := g.c.decls[s.Func]; ok && decl.Decl != nil {
		b.void = decl.Decl.Result() == nil
	}
	if decl, ok := ast.BuiltinMap[s.Func]; ok {
		b.relation, b.impure = decl.Relation, decl.Nondeterministic
	}
	if b.impure && !g.c.generic {
		g.unsupported(s, "builtin %s is not deterministic", s.Func)
		return always(leave), true
	}
	ks := make([]known, len(s.Args))
	constants := !b.impure && !b.void
	for i, a := range s.Args {
		ks[i] = g.knownOf(a, e)
		constants = constants && ks[i].form == constant
		if l, ok := value(a).(ir.Local); ok {
			e.share(l)
		}
	}
	if p, ok := g.native(s.Func, ks); ok {
		return g.testResult(s.Result, p, e), false
	}
	for _, a := range s.Args {
		b.args = append(b.args, g.get(a, e))
	}
	if constants {
		return g.foldBuiltin(b, s.Result, e)
	}
	return storeResult(b.run, g.store(s.Result, e)), false
}

// testResult makes l the outcome of p. Where p has none the block is
// undefined.
func (g *gen) testResult(l ir.Local, p predicate, e *env) op {
	set := g.set(l, known{form: test, test: p}, e)
	if p.defined == nil {
		return set
	}
	return sequence(some(require(p.defined, true), set))
}

func (g *gen) foldBuiltin(b *builtinCall, l ir.Local, e *env) (o op, ends bool) {
	g.c.trial.begin(nil, g.c.sizes, foldSteps)
	v, c := b.run(g.c.trial)
	switch {
	case c != next: // it fails at run time, if it is reached
		return storeResult(b.run, g.store(l, e)), false
	case v == nil:
		g.store(l, e)
		return always(leave), true
	}
	return g.set(l, constantOf(v), e), false
}

// builtinCall is a call of OPA's implementation of a builtin.
type builtinCall struct {
	name     string
	impl     topdown.BuiltinFunc
	args     []getter
	short    shortcut // nil if there is none
	void     bool     // has no result
	relation bool     // has any number of results
	impure   bool     // not deterministic
}

// run calls the builtin. An undefined argument, an error of the builtin and no
// result all make the call undefined.
func (b *builtinCall) run(m *machine) (ast.Value, ctl) {
	if b.short != nil {
		if v, ok := b.short(m, b.args); ok {
			return v, next
		}
	}
	args := newArguments(len(b.args))
	for i, get := range b.args {
		v := get(m)
		if v == nil {
			return nil, next
		}
		args.terms[i].Value = v
	}
	if !m.step(b.weight(args.terms)) {
		return nil, m.spent()
	}
	if b.impure && m.facts == nil {
		return nil, m.fail(errNotConstant)
	}
	m.out = m.out[:0]
	err := b.impl(m.context, args.list, m.emit)
	switch {
	case err != nil:
		var halt topdown.Halt
		if errors.As(err, &halt) {
			return nil, m.fail(halt.Err)
		}
		return nil, next
	case b.relation:
		return ast.NewArray(slices.Clone(m.out)...), next
	case b.void:
		return ast.InternedValue(true), next
	case len(m.out) == 0 || m.out[len(m.out)-1] == nil:
		return nil, next
	}
	return m.out[len(m.out)-1].Value, next
}

// arguments are those of one call. They are not used again: a builtin may
// keep them in its result.
type arguments struct {
	terms []ast.Term
	list  []*ast.Term
}

func newArguments(n int) arguments {
	few := new(struct {
		terms [3]ast.Term
		list  [3]*ast.Term
	})
	a := arguments{few.terms[:], few.list[:]}
	if n > len(few.terms) {
		a = arguments{make([]ast.Term, n), make([]*ast.Term, n)}
	}
	a.terms, a.list = a.terms[:n], a.list[:n]
	for i := range a.terms {
		a.list[i] = &a.terms[i]
	}
	return a
}

// weight estimates what a call costs, in steps.
func (b *builtinCall) weight(args []ast.Term) int {
	n := builtinSteps
	for i := range args {
		switch v := args[i].Value.(type) {
		case ast.String:
			n += len(v) / 32
		default:
			n += size(v) / 4
		}
	}
	if (b.name == ast.NumbersRange.Name || b.name == ast.NumbersRangeStep.Name) && len(args) >= 2 {
		n = addRange(n, args[0].Value, args[1].Value)
	}
	return n
}

// addRange adds the distance of two numbers, which is how many numbers.range
// makes of them.
func addRange(n int, a, b ast.Value) int {
	x, ok := a.(ast.Number)
	y, ok2 := b.(ast.Number)
	if !ok || !ok2 {
		return n
	}
	lo, _ := x.Float64()
	hi, _ := y.Float64()
	d := math.Abs(hi - lo)
	if !(d < math.MaxInt32) {
		return math.MaxInt32
	}
	return n + int(d)
}
