package compile

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// pair is an element of a collection. The key of a set's element is itself.
type pair struct{ key, val ast.Value }

// pairs returns the elements of a collection in their order, nil for other
// values.
func pairs(v ast.Value) []pair {
	var out []pair
	each(v, func(k, v ast.Value) bool {
		out = append(out, pair{k, v})
		return true
	})
	return out
}

func elements(v ast.Value) []ast.Value {
	var out []ast.Value
	each(v, func(_, v ast.Value) bool {
		out = append(out, v)
		return true
	})
	return out
}

func keys(v ast.Value) []ast.Value {
	var out []ast.Value
	each(v, func(k, _ ast.Value) bool {
		out = append(out, k)
		return true
	})
	return out
}

// each calls f for the elements of a collection until it returns false.
func each(v ast.Value, f func(k, v ast.Value) bool) {
	switch v := v.(type) {
	case *ast.Array:
		for i := range v.Len() {
			if !f(ast.InternedValue(i), v.Elem(i).Value) {
				return
			}
		}
	case ast.Set:
		for _, t := range v.Slice() {
			if !f(t.Value, t.Value) {
				return
			}
		}
	case ast.Object:
		v.Until(func(k, v *ast.Term) bool { return !f(k.Value, v.Value) })
	}
}

// scan lowers a loop over a collection: by copies of its body if the
// collection is small and known, by an index if it is known and the body asks
// for elements that match a field, else as a loop.
func (g *gen) scan(s *ir.ScanStmt, e *env) op {
	src := e.locals[s.Source]
	if src.elements > 1 && appends(s.Block) {
		g.unsupported(s, "an array is made of the elements of a collection written with variables, of which OPA's evaluator takes equal ones twice; make a set")
	}
	inside := e.clone()
	inside.forget(assigned(s.Block))
	delete(inside.locals, s.Key)
	inside.locals[s.Value] = known{base: src.base, virtual: src.virtual}
	stop := g.stopsEarly(s, e)
	guards := g.guards
	g.guards = nil
	var o op
	switch src.form {
	case constant:
		o = g.scanConstant(s, pairs(src.val), inside, stop)
	case field:
		o = nil // no collection: nothing to scan
	default:
		o = g.scanValue(s, g.get(local(s.Source), e), inside, stop)
	}
	g.guards = guards
	e.forget(assigned(s.Block))
	delete(e.locals, s.Key)
	delete(e.locals, s.Value)
	return o
}

// appends returns whether b adds to an array that it does not make: where the
// same element twice makes a difference.
func appends(b *ir.Block) bool {
	made := map[ir.Local]bool{}
	return !walk([]*ir.Block{b}, func(s ir.Stmt) bool {
		for _, l := range makes(s) {
			made[l] = true
		}
		a, ok := s.(*ir.ArrayAppendStmt)
		return !ok || made[a.Array]
	})
}

func (g *gen) scanConstant(s *ir.ScanStmt, all []pair, inside *env, stop int) op {
	if len(all) < minIndexedScan && len(all)*g.copies <= maxCopies {
		return g.unroll(s, all, inside, stop)
	}
	if find := g.newScanIndex(s, all, inside); find != nil {
		key, val, body := g.loop(s, inside)
		return indexedScan(all, find, stop, key, val, body)
	}
	if len(all) <= maxUnroll && len(all)*g.copies <= maxCopies {
		return g.unroll(s, all, inside, stop)
	}
	key, val, body := g.loop(s, inside)
	return pairScan(all, stop, key, val, body)
}

// loop lowers the body for elements that are known at run time only.
func (g *gen) loop(s *ir.ScanStmt, inside *env) (key, val int, body op) {
	body = g.block(s.Block, inside)
	return g.place(s.Key), g.place(s.Value), body
}

// unroll lowers the body once for each element.
func (g *gen) unroll(s *ir.ScanStmt, all []pair, inside *env, stop int) op {
	if len(all) == 0 {
		return nil
	}
	g.copies *= len(all)
	ops := make([]op, len(all))
	for i, p := range all {
		own := inside.clone()
		val := own.locals[s.Value]
		val.form, val.val = constant, p.val
		head := some(g.set(s.Key, constantOf(p.key), own), g.set(s.Value, val, own))
		ops[i] = sequence(append(head, g.block(s.Block, own)))
	}
	g.copies /= len(all)
	return func(m *machine) ctl {
		for _, o := range ops {
			if r, more := m.turn(o, stop); !more {
				return r
			}
		}
		return next
	}
}

// turn runs the body of a scan once and returns whether to go on, and what
// the scan ends with if not.
func (m *machine) turn(body op, stop int) (ctl, bool) {
	if !m.step(1) {
		return m.spent(), false
	}
	switch r := body(m); {
	case r == next || r == leave:
		return next, stop < 0 || m.frame[stop] == nil
	case r < next:
		return r, false
	default:
		return r - 2, false
	}
}

func (m *machine) put(key, val int, p pair) {
	if key >= 0 {
		m.frame[key] = p.key
	}
	if val >= 0 {
		m.frame[val] = p.val
	}
}

func pairScan(all []pair, stop, key, val int, body op) op {
	return func(m *machine) ctl {
		for i := range all {
			m.put(key, val, all[i])
			if r, more := m.turn(body, stop); !more {
				return r
			}
		}
		return next
	}
}

func indexedScan(all []pair, find func(m *machine) []int32, stop, key, val int, body op) op {
	return func(m *machine) ctl {
		for _, i := range find(m) {
			m.put(key, val, all[i])
			if r, more := m.turn(body, stop); !more {
				return r
			}
		}
		return next
	}
}

// scanValue lowers a scan of a collection that is known at run time only.
func (g *gen) scanValue(s *ir.ScanStmt, get getter, inside *env, stop int) op {
	key, val, body := g.loop(s, inside)
	return func(m *machine) ctl {
		result := next
		each(get(m), func(k, v ast.Value) bool {
			m.put(key, val, pair{k, v})
			r, more := m.turn(body, stop)
			result = r
			return more
		})
		return result
	}
}

// stopsEarly returns the place of a local after whose first assignment the
// scan can have no further effect, or -1: all it does is to assign it the
// value that all bodies of the rule assign. What is left out by that OPA
// leaves out too.
func (g *gen) stopsEarly(s *ir.ScanStmt, e *env) int {
	if g.early == nil {
		return -1
	}
	target := ir.Local(-1)
	inert := walk([]*ir.Block{s.Block}, func(s ir.Stmt) bool {
		switch s := s.(type) {
		case *ir.AssignVarOnceStmt:
			if target >= 0 && s.Target != target {
				return false
			}
			target = s.Target
			return true
		case *ir.ReturnLocalStmt, *ir.ResultSetAddStmt, *ir.ObjectInsertOnceStmt:
			return false
		case *ir.ObjectInsertStmt, *ir.SetAddStmt, *ir.ArrayAppendStmt, *ir.AssignVarStmt:
			return g.layout.own[writes(s)[0]]
		}
		return true
	})
	if !inert || target < 0 {
		return -1
	}
	if e.locals[target].form != unknown {
		return -1
	}
	return g.need(target)
}
