package compile

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// construction lowers the statements that build collections. A collection of
// constants is built here; one that has a place in the frame is also built at
// run time, since what follows may change it.
func (g *gen) construction(s ir.Stmt, e *env) (o op, ok bool) {
	switch s := s.(type) {
	case *ir.MakeArrayStmt:
		return g.makes(s.Target, func() ast.Value { return ast.NewArray() }, e), true
	case *ir.MakeObjectStmt:
		return g.makes(s.Target, func() ast.Value { return ast.NewObject() }, e), true
	case *ir.MakeSetStmt:
		return g.makes(s.Target, func() ast.Value { return ast.NewSet() }, e), true
	case *ir.ArrayAppendStmt:
		return g.arrayAppend(s, e), true
	case *ir.SetAddStmt:
		return g.setAdd(s, e), true
	case *ir.ObjectInsertStmt:
		return g.objectInsert(s, e), true
	case *ir.ObjectInsertOnceStmt:
		return g.objectInsertOnce(s, e), true
	case *ir.ObjectMergeStmt:
		return g.objectMerge(s, e), true
	}
	return nil, false
}

func (g *gen) makes(l ir.Local, empty func() ast.Value, e *env) op {
	e.locals[l] = known{form: constant, val: empty(), built: e}
	i := g.place(l)
	if i < 0 {
		return nil
	}
	return func(m *machine) ctl {
		m.frame[i] = empty()
		return next
	}
}

// building returns the constant that l is known to hold, ready to be changed,
// or nil if l or one of parts is not constant. Then l is unknown from here on.
func (g *gen) building(l ir.Local, e *env, parts ...known) ast.Value {
	k := e.locals[l]
	for _, p := range parts {
		if p.form != constant {
			k.form = unknown
		}
	}
	if k.form != constant {
		n := k.elements + 1
		if k.val != nil {
			n = size(k.val) + 1
		}
		e.locals[l] = known{elements: n, literal: k.literal || k.built == e}
		g.need(l)
		return nil
	}
	if k.built != e {
		k.val, k.built = copyCollection(k.val), e
		e.locals[l] = k
	}
	return k.val
}

func copyCollection(v ast.Value) ast.Value {
	switch v := v.(type) {
	case ast.Object:
		return v.Copy()
	case ast.Set:
		return v.Copy()
	}
	return v // arrays are values
}

// element returns a getter of what is put into a collection. Constants are
// shared by all evaluations: where the function changes what it put into
// another collection before, a copy goes in.
func (g *gen) element(o ir.Operand, k known, e *env) getter {
	if l, ok := value(o).(ir.Local); ok {
		e.share(l)
	}
	if k.form == unknown {
		return g.get(o, e)
	}
	get := materialize(k)
	if !g.rebuilds {
		return get
	}
	return func(m *machine) ast.Value { return copyCollection(get(m)) }
}

// insertSteps is what an element put into a collection counts, in steps: it allocates.
const insertSteps = 32

func (g *gen) setAdd(s *ir.SetAddStmt, e *env) op {
	v := g.knownOf(s.Value, e)
	if c, ok := g.building(s.Set, e, v).(ast.Set); ok {
		c.Add(ast.NewTerm(v.val))
		if g.place(s.Set) < 0 {
			return nil
		}
	}
	get, i := g.element(s.Value, v, e), g.place(s.Set)
	return func(m *machine) ctl {
		set, ok := m.frame[i].(ast.Set)
		if !ok {
			return next
		}
		if !m.insert(set.Len()) {
			return m.spent()
		}
		set.Add(ast.NewTerm(get(m)))
		return next
	}
}

func (g *gen) arrayAppend(s *ir.ArrayAppendStmt, e *env) op {
	v := g.knownOf(s.Value, e)
	if c, ok := g.building(s.Array, e, v).(*ast.Array); ok {
		k := e.locals[s.Array]
		k.val = c.Append(ast.NewTerm(v.val))
		e.locals[s.Array] = k
		if g.place(s.Array) < 0 {
			return nil
		}
	} else {
		delete(e.locals, s.Array) // elements may be equal
	}
	get, i := g.element(s.Value, v, e), g.place(s.Array)
	return func(m *machine) ctl {
		if !m.step(insertSteps) {
			return m.spent()
		}
		if a, ok := m.frame[i].(*ast.Array); ok {
			m.frame[i] = a.Append(ast.NewTerm(get(m)))
		}
		return next
	}
}

func (g *gen) objectInsert(s *ir.ObjectInsertStmt, e *env) op {
	k, v := g.knownOf(s.Key, e), g.knownOf(s.Value, e)
	if c, ok := g.building(s.Object, e, k, v).(ast.Object); ok {
		c.Insert(ast.NewTerm(k.val), ast.NewTerm(v.val))
		if g.place(s.Object) < 0 {
			return nil
		}
	}
	key, val, i := g.element(s.Key, k, e), g.element(s.Value, v, e), g.place(s.Object)
	literal := e.locals[s.Object].literal
	return func(m *machine) ctl {
		obj, ok := m.frame[i].(ast.Object)
		if !ok {
			return next
		}
		if !m.insert(obj.Len()) {
			return m.spent()
		}
		k := ast.NewTerm(key(m))
		if literal && obj.Get(k) != nil {
			return m.fail(ErrEqualKeys)
		}
		obj.Insert(k, ast.NewTerm(val(m)))
		return next
	}
}

func (g *gen) objectInsertOnce(s *ir.ObjectInsertOnceStmt, e *env) op {
	key := g.element(s.Key, g.knownOf(s.Key, e), e)
	val := g.element(s.Value, g.knownOf(s.Value, e), e)
	delete(e.locals, s.Object)
	i := g.need(s.Object)
	return func(m *machine) ctl {
		obj, ok := m.frame[i].(ast.Object)
		if !ok {
			return next
		}
		if !m.insert(obj.Len()) {
			return m.spent()
		}
		k, v := ast.NewTerm(key(m)), ast.NewTerm(val(m))
		switch old := obj.Get(k); {
		case old == nil:
			obj.Insert(k, v)
		case ast.Compare(old.Value, v.Value) != 0:
			return m.fail(ErrKeyConflict)
		}
		return next
	}
}

func (g *gen) objectMerge(s *ir.ObjectMergeStmt, e *env) op {
	a, b := g.get(local(s.A), e), g.get(local(s.B), e)
	i := g.store(s.Target, e)
	if i < 0 {
		return nil
	}
	return func(m *machine) ctl {
		m.frame[i] = merge(a(m), b(m))
		return next
	}
}

// merge returns a with the keys of b that a lacks, objects below merged too.
// Where only one is an object, or there is only one, a goes first.
func merge(a, b ast.Value) ast.Value {
	x, ok := a.(ast.Object)
	if !ok {
		if a == nil {
			return b
		}
		return a
	}
	y, ok := b.(ast.Object)
	if !ok {
		return a
	}
	r, _ := x.MergeWith(y, func(v, w *ast.Term) (*ast.Term, bool) {
		return ast.NewTerm(merge(v.Value, w.Value)), false
	})
	return r
}

// rebuilds returns whether a function looks up collections in others and
// changes them: rules with several variables in their names do.
func rebuilds(blocks []*ir.Block) bool {
	looked := map[ir.Local]bool{}
	walk(blocks, func(s ir.Stmt) bool {
		if dot, ok := s.(*ir.DotStmt); ok {
			looked[dot.Target] = true
		}
		return true
	})
	return !walk(blocks, func(s ir.Stmt) bool { return !looked[changed(s)] })
}
