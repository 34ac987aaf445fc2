package compile

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// group lowers blocks that run one after the other: the bodies of a rule, an
// else chain, or the blocks of a block statement.
func (g *gen) group(blocks []*ir.Block, e *env) op {
	ops := make([]op, len(blocks))
	found := make([]*guards, len(blocks))
	outer := g.guards
	for i, b := range blocks {
		scope := g.scope
		if id, ok := g.layout.scopes[b]; ok {
			g.scope = id
		}
		g.guards = newGuards()
		found[i] = g.guards
		ops[i] = g.block(b, e.clone())
		g.scope = scope
		e.forget(assigned(b))
	}
	g.guards = outer
	if len(ops) == 1 {
		return oneBlock(ops[0])
	}
	skip := g.skips(blocks)
	if x := g.newChainIndex(found, blocks); x != nil {
		return indexedBlocks(ops, skip, x)
	}
	return allBlocks(ops, skip)
}

func oneBlock(o op) op {
	return func(m *machine) ctl {
		if !m.step(1) {
			return m.spent()
		}
		if r := o(m); r > leave || r < next {
			return after(r)
		}
		return next
	}
}

// after is how a block statement ends whose block ended with r.
func after(r ctl) ctl {
	if r > next {
		return r - 1
	}
	return r
}

// allBlocks runs the blocks in their order. skip says where to go on after a
// block that ran to its end.
func allBlocks(ops []op, skip []int) op {
	return func(m *machine) ctl {
		for i := 0; i < len(ops); {
			if !m.step(1) {
				return m.spent()
			}
			switch r := ops[i](m); r {
			case next:
				i = skip[i]
			case leave:
				i++
			default:
				return after(r)
			}
		}
		return next
	}
}

// skips returns for each block of a group the next one that can have an
// effect once it ran to its end: in an else chain, the blocks that ask
// whether the result is undefined are skipped once it is defined, and so are
// all other bodies of a rule that can have one value only.
func (g *gen) skips(blocks []*ir.Block) []int {
	skip := make([]int, len(blocks))
	for i, b := range blocks {
		skip[i] = i + 1
		once, ok := last(b).(*ir.AssignVarOnceStmt)
		if !ok {
			continue
		}
		if g.early != nil && once.Target == g.result {
			skip[i] = max(i, len(blocks)-1)
			if skip[i] == i {
				skip[i]++
			}
			continue
		}
		for skip[i] < len(blocks) && asksUndefined(blocks[skip[i]], once.Target) {
			skip[i]++
		}
	}
	return skip
}

func last(b *ir.Block) ir.Stmt {
	if len(b.Stmts) == 0 {
		return nil
	}
	return b.Stmts[len(b.Stmts)-1]
}

func asksUndefined(b *ir.Block, l ir.Local) bool {
	if len(b.Stmts) == 0 {
		return false
	}
	s, ok := b.Stmts[0].(*ir.IsUndefinedStmt)
	return ok && s.Source == l
}

// not lowers a negation: it goes on iff its block is undefined. A block that
// ends with a test for a local which only it assigns starts with that local
// undefined: otherwise a value of an earlier iteration would count.
func (g *gen) not(s *ir.NotStmt, e *env) op {
	flag := -1
	if d, ok := last(s.Block).(*ir.IsDefinedStmt); ok {
		flag = g.need(d.Source)
		delete(e.locals, d.Source)
	}
	outer := g.guards
	g.guards = nil
	body := g.block(s.Block, e.clone())
	g.guards = outer
	e.forget(assigned(s.Block))
	return func(m *machine) ctl {
		if flag >= 0 {
			m.frame[flag] = nil
		}
		switch r := body(m); r {
		case next:
			return leave
		case leave:
			return next
		default:
			return after(r)
		}
	}
}

// with lowers a with modifier, which replaces the input or the data, or a
// part of them, for the statements of its block. In there they are values
// like any other, unless all of it is known.
func (g *gen) with(s *ir.WithStmt, e *env) op {
	outer := g.knownOf(local(s.Local), e)
	inside := e.clone()
	var assign op
	if len(s.Path) == 0 && g.knownOf(s.Value, e).form != unknown {
		assign = g.set(s.Local, g.knownOf(s.Value, e), inside)
	} else {
		current, replacement := g.get(local(s.Local), e), g.get(s.Value, e)
		path := make([]*ast.Term, len(s.Path))
		for i, x := range s.Path {
			path[i] = ast.StringTerm(g.c.policy.Static.Strings[x].Value)
		}
		delete(inside.locals, s.Local)
		at := g.need(s.Local)
		assign = func(m *machine) ctl {
			m.frame[at] = upsert(current(m), path, replacement(m))
			return next
		}
	}
	guards := g.guards
	g.guards = nil
	body := g.block(s.Block, inside)
	g.guards = guards
	e.forget(assigned(s.Block))
	if outer.form != unknown {
		e.locals[s.Local] = outer
	}
	return scoped(g.place(s.Local), assign, body)
}

// scoped runs assign and body, and gives the local at place its value back.
func scoped(place int, assign, body op) op {
	if place < 0 {
		return func(m *machine) ctl { return afterWith(body(m)) }
	}
	return func(m *machine) ctl {
		saved := m.frame[place]
		if assign != nil {
			assign(m)
		}
		r := body(m)
		m.frame[place] = saved
		return afterWith(r)
	}
}

// afterWith is how a with statement ends whose block ended with r: an undefined
// block makes the statement undefined.
func afterWith(r ctl) ctl {
	if r > leave {
		return r - 1
	}
	return r
}

// upsert returns v with replacement at path. v is not changed.
func upsert(v ast.Value, path []*ast.Term, replacement ast.Value) ast.Value {
	if len(path) == 0 {
		return replacement
	}
	result := ast.NewObject()
	var below ast.Value
	if obj, ok := v.(ast.Object); ok {
		obj.Foreach(func(k, v *ast.Term) { result.Insert(k, v) })
		if t := obj.Get(path[0]); t != nil {
			below = t.Value
		}
	}
	result.Insert(path[0], ast.NewTerm(upsert(below, path[1:], replacement)))
	return result
}

// returns lowers the end of a function.
func (g *gen) returns(s *ir.ReturnLocalStmt, e *env) op {
	get := g.get(local(s.Source), e)
	return func(m *machine) ctl {
		m.ret = get(m)
		return done
	}
}

// addResult lowers what a query found.
func (g *gen) addResult(s *ir.ResultSetAddStmt, e *env) op {
	get := g.get(local(s.Value), e)
	return func(m *machine) ctl {
		m.results = append(m.results, get(m))
		return next
	}
}
