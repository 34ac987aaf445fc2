package compile

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// Bounds of the objects that a machine keeps.
const (
	maxParts   = 2   // values of an object that are not constants
	maxObjects = 256 // objects, and decisions made of them
)

// objectKey names an object that was built before: the place in the program,
// and its values that are not constants.
type objectKey struct {
	site  int
	parts [maxParts]ast.Value
}

// objectLiteral is an object whose keys are constants, as in
// {"verdict": "drop", "rule": name}.
type objectLiteral struct {
	keys  []*ast.Term
	vals  []getter
	parts []int // of vals, those that are not constants
	site  int
}

// objectLiteral lowers an object that the first n of stmts build, if some of
// its values are not constants and nothing changes it afterwards. n is 0 for
// everything else.
func (g *gen) objectLiteral(stmts []ir.Stmt, e *env) (o op, n int) {
	made, ok := stmts[0].(*ir.MakeObjectStmt)
	if !ok {
		return nil, 0
	}
	lit := &objectLiteral{}
	n = 1
	for n < len(stmts) && g.literalPart(stmts[n], made.Target, lit, e) {
		n++
	}
	rest := []*ir.Block{{Stmts: stmts[n:]}}
	final := walk(rest, func(s ir.Stmt) bool { return changed(s) != made.Target })
	if len(lit.parts) == 0 || !final {
		return nil, 0
	}
	g.c.sites++
	lit.site = g.c.sites
	i := g.store(made.Target, e)
	if i < 0 {
		return nil, n
	}
	return func(m *machine) ctl {
		m.frame[i] = lit.value(m)
		return next
	}, n
}

// literalPart adds what s contributes to an object; false if s does not.
func (g *gen) literalPart(s ir.Stmt, target ir.Local, lit *objectLiteral, e *env) bool {
	switch s.(type) {
	case *ir.MakeNumberRefStmt, *ir.MakeNullStmt:
		o, _ := g.assignment(s, e)
		return o == nil
	}
	insert, ok := s.(*ir.ObjectInsertStmt)
	if !ok || insert.Object != target {
		return false
	}
	key, val := g.knownOf(insert.Key, e), g.knownOf(insert.Value, e)
	if key.form != constant {
		return false
	}
	if val.form != constant {
		lit.parts = append(lit.parts, len(lit.vals))
	}
	lit.keys = append(lit.keys, ast.NewTerm(key.val))
	lit.vals = append(lit.vals, g.element(insert.Value, val, e))
	return true
}

// value returns the object, one built before if its values are the same
// scalars.
func (lit *objectLiteral) value(m *machine) ast.Value {
	key := objectKey{site: lit.site}
	if len(lit.parts) > maxParts {
		return lit.build(m)
	}
	for i, p := range lit.parts {
		key.parts[i] = lit.vals[p](m)
		if !ast.IsScalar(key.parts[i]) {
			return lit.build(m)
		}
	}
	v, ok := m.objects[key]
	if !ok {
		v = lit.build(m)
		if len(m.objects) >= maxObjects {
			clear(m.objects)
		}
		m.objects[key] = v
	}
	m.kept = v
	return v
}

func (lit *objectLiteral) build(m *machine) ast.Value {
	pairs := make([][2]*ast.Term, 0, 8)
	for i, k := range lit.keys {
		pair := [2]*ast.Term{k, ast.NewTerm(lit.vals[i](m))}
		same := func(p [2]*ast.Term) bool { return p[0].Equal(k) }
		if j := slices.IndexFunc(pairs, same); j >= 0 { // the later one counts
			pairs[j] = pair
			continue
		}
		pairs = append(pairs, pair)
	}
	return ast.NewObject(pairs...)
}
