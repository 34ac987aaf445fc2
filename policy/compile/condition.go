package compile

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"

	"github.com/verdictd/verdictd/rules"
)

// condition lowers the statements that leave the block unless something holds.
func (g *gen) condition(s ir.Stmt, e *env) (o op, ends, ok bool) {
	switch s := s.(type) {
	case *ir.EqualStmt:
		o, ends = g.equal(s.A, s.B, e, true)
	case *ir.NotEqualStmt:
		o, ends = g.equal(s.A, s.B, e, false)
	case *ir.IsDefinedStmt:
		o, ends = g.defined(s.Source, e, true)
	case *ir.IsUndefinedStmt:
		o, ends = g.defined(s.Source, e, false)
	case *ir.IsArrayStmt:
		o = g.typeTest(s.Source, e, func(v ast.Value) bool { _, ok := v.(*ast.Array); return ok })
	case *ir.IsObjectStmt:
		o = g.typeTest(s.Source, e, func(v ast.Value) bool { _, ok := v.(ast.Object); return ok })
	case *ir.IsSetStmt:
		o = g.typeTest(s.Source, e, func(v ast.Value) bool { _, ok := v.(ast.Set); return ok })
	default:
		return nil, false, false
	}
	return o, ends, true
}

// require leaves the block unless cond says want.
func require(cond func(m *machine) bool, want bool) op {
	if want {
		return func(m *machine) ctl {
			if cond(m) {
				return next
			}
			return leave
		}
	}
	return func(m *machine) ctl {
		if cond(m) {
			return leave
		}
		return next
	}
}

// decided is the op of a condition whose outcome is known.
func decided(holds bool) (o op, ends bool) {
	if holds {
		return nil, false
	}
	return always(leave), true
}

// decidedIf is decided for an operand that may be undefined.
func decidedIf(present func(m *machine) bool, holds bool) (o op, ends bool) {
	if holds {
		return require(present, true), false
	}
	return always(leave), true
}

func (g *gen) defined(l ir.Local, e *env, want bool) (o op, ends bool) {
	switch k := e.locals[l]; k.form {
	case unknown:
	case document:
		return require(k.node.present, want), false
	default:
		return decided(want)
	}
	i := g.need(l)
	return require(func(m *machine) bool { return m.frame[i] != nil }, want), false
}

func (g *gen) typeTest(o ir.Operand, e *env, is func(ast.Value) bool) op {
	get := g.get(o, e)
	return require(func(m *machine) bool { return is(get(m)) }, true)
}

// equal lowers a comparison. want says whether the operands must be equal or
// must differ.
func (g *gen) equal(a, b ir.Operand, e *env, want bool) (o op, ends bool) {
	x, y := g.knownOf(a, e), g.knownOf(b, e)
	if x.form == constant || x.form == unknown && y.form == field {
		a, b, x, y = b, a, y, x
	}
	switch {
	case x.form == constant && y.form == constant:
		return decided((ast.Compare(x.val, y.val) == 0) == want)
	case x.form == test && y.form == constant:
		return g.equalTest(x.test, y.val, want)
	case x.form == document && y.form == constant:
		if _, isObject := y.val.(ast.Object); !isObject {
			return decidedIf(x.node.present, !want) // an object differs from all else
		}
	case x.form == field:
		if eq := g.equalField(x.field, y, b, e, want); eq != nil {
			return require(eq, want), false
		}
	}
	p, q := g.get(a, e), g.get(b, e)
	return require(func(m *machine) bool { return same(p(m), q(m)) }, want), false
}

// equalField returns the comparison of a field with operand o, of which y is
// known; nil where there is no short cut.
func (g *gen) equalField(i int, y known, o ir.Operand, e *env, want bool) func(m *machine) bool {
	switch y.form {
	case constant:
		in, ok := g.c.newFieldSet(i, []ast.Value{y.val})
		if !ok {
			return nil
		}
		if want {
			g.guard(in)
		}
		return in.test
	case field:
		return g.c.equalFields(i, y.field)
	case unknown:
		return g.c.equalValue(i, g.get(o, e))
	}
	return nil
}

// equalTest compares a truth value with a constant.
func (g *gen) equalTest(p predicate, v ast.Value, want bool) (o op, ends bool) {
	b, ok := v.(ast.Boolean)
	if !ok {
		return decided(!want)
	}
	if bool(b) == want && p.in != nil {
		g.guard(p.in)
	}
	return require(p.eval, bool(b) == want), false
}

// same returns whether two values are equal; undefined equals undefined.
func same(a, b ast.Value) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	if x, ok := a.(ast.Boolean); ok {
		y, ok := b.(ast.Boolean)
		return ok && x == y
	}
	return ast.Compare(a, b) == 0
}

// equalFields compares two fields of one kind; nil for others.
func (c *compiler) equalFields(i, j int) func(m *machine) bool {
	if c.fields[i].Kind != c.fields[j].Kind {
		return nil
	}
	switch c.fields[i].Kind {
	case rules.String:
		return func(m *machine) bool { return m.vals[i].Str == m.vals[j].Str }
	case rules.Addr: // the text form of an address is its own
		return func(m *machine) bool { return m.vals[i].Addr == m.vals[j].Addr }
	default:
		return func(m *machine) bool { return m.vals[i].Int == m.vals[j].Int }
	}
}

// equalValue compares a field with a value that is known at run time only;
// nil for kinds without a short cut.
func (c *compiler) equalValue(i int, get getter) func(m *machine) bool {
	switch c.fields[i].Kind {
	case rules.Int:
		return func(m *machine) bool {
			v := get(m)
			n, ok := v.(ast.Number)
			if !ok {
				return false
			}
			if x, ok := n.Int64(); ok {
				return x == m.vals[i].Int
			}
			return same(m.fieldValue(i), v)
		}
	case rules.String, rules.Addr:
		return func(m *machine) bool {
			s, ok := get(m).(ast.String)
			return ok && string(s) == m.text(i)
		}
	}
	return nil
}
