package compile

import (
	"encoding/json"
	"errors"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// Conflicts, as OPA words them.
//
// A program finds every conflict that OPA's evaluator finds, and some that it
// does not: it does not evaluate a rule of which it sees by its index that
// another condition fails. So on these errors the answer is that of OPA's
// evaluator, which the caller asks.
var (
	ErrConflict    = errors.New("eval_conflict_error: complete rules and functions must not produce multiple outputs")
	ErrKeyConflict = errors.New("eval_conflict_error: object keys must be unique")
)

// assignment lowers the statements that give locals their values.
func (g *gen) assignment(s ir.Stmt, e *env) (o op, ok bool) {
	switch s := s.(type) {
	case *ir.ResetLocalStmt:
		return g.reset(s.Target, e), true
	case *ir.MakeNullStmt:
		return g.set(s.Target, constantOf(ast.NullValue), e), true
	case *ir.MakeNumberIntStmt:
		return g.set(s.Target, constantOf(ast.InternedValue(int(s.Value))), e), true
	case *ir.AssignIntStmt:
		return g.set(s.Target, constantOf(ast.InternedValue(int(s.Value))), e), true
	case *ir.MakeNumberRefStmt:
		n := ast.Number(json.Number(g.c.policy.Static.Strings[s.Index].Value))
		return g.set(s.Target, constantOf(n), e), true
	case *ir.AssignVarStmt:
		return g.assign(s, e), true
	case *ir.AssignVarOnceStmt:
		return g.assignOnce(s, e), true
	case *ir.LenStmt:
		return g.length(s, e), true
	}
	return nil, false
}

func (g *gen) reset(l ir.Local, e *env) op {
	i := g.store(l, e)
	if i < 0 {
		return nil
	}
	return func(m *machine) ctl {
		m.frame[i] = nil
		return next
	}
}

func (g *gen) assign(s *ir.AssignVarStmt, e *env) op {
	if k := g.knownOf(s.Source, e); k.form != unknown {
		if l, ok := value(s.Source).(ir.Local); ok {
			e.share(l)
			k.built, k.virtual, k.base = nil, false, k.base && k.val == g.c.data
		}
		return g.set(s.Target, k, e)
	}
	get := g.get(s.Source, e)
	i := g.store(s.Target, e)
	e.locals[s.Target] = known{elements: g.knownOf(s.Source, e).elements}
	if i < 0 {
		return nil
	}
	return func(m *machine) ctl {
		m.frame[i] = get(m)
		return next
	}
}

// assignOnce lowers an assignment of which all must agree.
func (g *gen) assignOnce(s *ir.AssignVarOnceStmt, e *env) op {
	k := g.knownOf(s.Source, e)
	switch l, ok := value(s.Source).(ir.Local); {
	case k.form == constant:
		if ok {
			e.share(l)
		}
		g.once[s.Target] = append(g.once[s.Target], k.val)
	case ok && len(g.once[l]) > 0:
		g.once[s.Target] = append(g.once[s.Target], g.once[l]...)
	default:
		g.once[s.Target] = append(g.once[s.Target], nil)
	}
	get := g.get(s.Source, e)
	i := g.need(s.Target)
	delete(e.locals, s.Target)
	return func(m *machine) ctl {
		v, old := get(m), m.frame[i]
		if old != nil && old != v && ast.Compare(old, v) != 0 {
			return m.fail(ErrConflict)
		}
		m.frame[i] = v
		return next
	}
}

func (g *gen) length(s *ir.LenStmt, e *env) op {
	if k := g.knownOf(s.Source, e); k.form == constant {
		return g.set(s.Target, constantOf(ast.InternedValue(size(k.val))), e)
	}
	get := g.get(s.Source, e)
	i := g.store(s.Target, e)
	if i < 0 {
		return nil
	}
	return func(m *machine) ctl {
		m.frame[i] = ast.InternedValue(size(get(m)))
		return next
	}
}

// size returns the number of elements of a collection, or of characters of a
// string; 0 for anything else.
func size(v ast.Value) int {
	switch v := v.(type) {
	case *ast.Array:
		return v.Len()
	case ast.Set:
		return v.Len()
	case ast.Object:
		return v.Len()
	case ast.String:
		return utf8.RuneCountInString(string(v))
	}
	return 0
}
