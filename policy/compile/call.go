package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// call lowers the call of a rule, a function or a builtin.
func (g *gen) call(s *ir.CallStmt, e *env) (o op, ends bool) {
	f, ok := g.c.funcs[s.Func]
	if !ok {
		return g.builtin(s, e)
	}
	fn := g.version(f, s.Args, e)
	if fn.folded {
		if fn.value == nil {
			g.store(s.Result, e)
			return always(leave), true
		}
		return g.set(s.Result, virtual(fn.value), e), false
	}
	run := g.invocation(fn, s.Args, e)
	if fn.sole != nil { // only whether it is defined is left to ask
		set := g.set(s.Result, virtual(fn.sole), e)
		return sequence(some(func(m *machine) ctl {
			v, c := run(m)
			if c == next && v == nil {
				return leave
			}
			return c
		}, set)), false
	}
	at := g.store(s.Result, e)
	e.locals[s.Result] = known{virtual: true}
	return storeResult(run, at), false
}

// virtual returns what is known of a rule's constant value.
func virtual(v ast.Value) known { return known{form: constant, val: v, virtual: true} }

// invocation is a call that gives a value, nil if undefined, or fails.
type invocation func(m *machine) (ast.Value, ctl)

func storeResult(run invocation, at int) op {
	return func(m *machine) ctl {
		v, c := run(m)
		switch {
		case c != next:
			return c
		case v == nil:
			return leave
		case at >= 0:
			m.frame[at] = v
		}
		return next
	}
}

// invocation returns the call of fn with args.
func (g *gen) invocation(fn *function, args []ir.Operand, e *env) invocation {
	if fn.memo >= 0 {
		return remembered(fn)
	}
	var gets []getter
	var places []int
	for i, p := range fn.params {
		if p >= 0 {
			gets, places = append(gets, g.get(args[i], e)), append(places, p)
		}
	}
	return func(m *machine) (ast.Value, ctl) {
		var buf [8]ast.Value
		vals := buf[:0]
		for _, get := range gets {
			vals = append(vals, get(m))
		}
		return m.run(fn, places, vals)
	}
}

// remembered calls a function, all arguments of which are known, at most once
// per evaluation.
func remembered(fn *function) invocation {
	return func(m *machine) (ast.Value, ctl) {
		if r := &m.memo[fn.memo]; r.gen == m.gen {
			return r.v, next
		}
		v, c := m.run(fn, nil, nil)
		if c == next {
			m.memo[fn.memo] = memo{gen: m.gen, v: v}
		}
		return v, c
	}
}

// run runs a function with vals in places of its frame.
func (m *machine) run(fn *function, places []int, vals []ast.Value) (ast.Value, ctl) {
	if !m.step(1) {
		return nil, m.spent()
	}
	caller := m.enter(fn.size)
	for i, p := range places {
		m.frame[p] = vals[i]
	}
	c := fn.run(m)
	m.exit(caller, fn.size)
	switch c {
	case fail:
		return nil, fail
	case done:
		v := m.ret
		m.ret = nil
		return v, next
	}
	return nil, next
}

// version returns f lowered for what is known of args.
func (g *gen) version(f *ir.Func, args []ir.Operand, e *env) *function {
	ks := make([]known, len(f.Params))
	for i := range ks {
		if i < len(args) {
			ks[i] = g.knownOf(args[i], e)
		}
		if l, ok := value(args[i]).(ir.Local); ok {
			e.share(l)
		}
	}
	return g.c.version(f, ks)
}

func (c *compiler) version(f *ir.Func, ks []known) *function {
	all := c.versions[f.Name]
	if all == nil {
		all = map[string]*function{}
		c.versions[f.Name] = all
	}
	if len(all) >= maxVersions { // enough: keep what stands for input and data
		for i := 2; i < len(ks); i++ {
			ks[i] = known{}
		}
	}
	key := c.signature(ks)
	fn, ok := all[key]
	if !ok {
		fn = &function{name: f.Name, memo: -1}
		all[key] = fn
		c.lowerFunc(f, ks, fn)
	}
	return fn
}

// signature tells versions apart. What is not told apart is made unknown.
func (c *compiler) signature(ks []known) string {
	var b strings.Builder
	for i := range ks {
		switch k := &ks[i]; k.form {
		case constant:
			*k = known{form: constant, val: c.intern(k.val), base: k.base && k.val == c.data}
			fmt.Fprintf(&b, "c%d%t,", c.ids[k.val], k.base)
		case document:
			fmt.Fprintf(&b, "d%p,", k.node)
		case field:
			fmt.Fprintf(&b, "f%d,", k.field)
		default:
			*k = known{}
			b.WriteString("?,")
		}
	}
	return b.String()
}

// intern returns the one value that stands for all constants equal to v.
func (c *compiler) intern(v ast.Value) ast.Value {
	if _, ok := c.ids[v]; ok {
		return v
	}
	h := v.Hash()
	for _, other := range c.interned[h] {
		if identical(v, other) {
			return other
		}
	}
	c.interned[h] = append(c.interned[h], v)
	c.ids[v] = len(c.ids)
	return v
}

// identical returns whether a and b are spelled the same; equal numbers may
// be spelled differently.
func identical(a, b ast.Value) bool {
	return ast.Compare(a, b) == 0 && (!ast.IsScalar(a) || a.String() == b.String())
}

// lowerFunc lowers f into fn. If all of ks are known, fn is remembered or,
// if it reads no field, its value is found here and now.
func (c *compiler) lowerFunc(f *ir.Func, ks []known, fn *function) {
	g := &gen{c: c, name: strings.Join(f.Path[1:], "."), copies: 1, result: f.Return, early: c.earlyValue(f), rebuilds: rebuilds(f.Blocks), members: c.newMembers(f)}
	start, closed := newEnv(), true
	for i, k := range ks {
		if k.form == unknown {
			closed = false
			continue
		}
		start.locals[f.Params[i]] = k
	}
	fn.run = g.lower(f.Blocks, start)
	fn.size = g.layout.size
	fn.params = make([]int, len(f.Params))
	for i, p := range f.Params {
		fn.params[i] = -1
		if ks[i].form == unknown {
			fn.params[i] = g.place(p)
		}
	}
	for _, v := range g.once[f.Return] {
		if v != nil {
			fn.constants = append(fn.constants, v)
		}
	}
	if vals := g.once[f.Return]; len(vals) > 0 && !slices.ContainsFunc(vals, func(v ast.Value) bool { return v == nil || !identical(v, vals[0]) }) {
		fn.sole = vals[0]
	}
	if !closed || c.failure != nil {
		return
	}
	// A field that is an argument was read before the call: a trial run would
	// not notice.
	takesField := slices.ContainsFunc(ks, func(k known) bool { return k.form == field })
	if v, ok := c.fold(fn); ok && !takesField {
		fn.folded, fn.value, fn.constants = true, v, nil
		if v != nil {
			fn.constants = []ast.Value{v}
		}
		return
	}
	fn.memo = c.memos
	c.memos++
}

// fold runs fn without facts. A run that gets through depends on none and
// ends like any other.
func (c *compiler) fold(fn *function) (ast.Value, bool) {
	m := c.trial
	m.begin(nil, c.sizes, foldSteps)
	v, ctl := m.run(fn, nil, nil)
	return v, ctl == next && m.err == nil
}

// earlyValue returns the value of a rule that can have one only, so that its
// first body that holds decides; nil for others.
func (c *compiler) earlyValue(f *ir.Func) ast.Value {
	var all ir.Val
	same := walk(f.Blocks, func(s ir.Stmt) bool {
		once, ok := s.(*ir.AssignVarOnceStmt)
		if !ok || once.Target == f.Return {
			return true
		}
		v := value(once.Source)
		if _, isLocal := v.(ir.Local); isLocal || all != nil && all != v {
			return false
		}
		all = v
		return true
	})
	if !same || all == nil {
		return nil
	}
	if b, ok := all.(ir.Bool); ok {
		return ast.InternedValue(bool(b))
	}
	if i, ok := all.(ir.StringIndex); ok {
		return ast.String(c.policy.Static.Strings[i].Value)
	}
	return nil
}

// callDynamic lowers the call of a rule whose path is found at run time.
func (g *gen) callDynamic(s *ir.CallDynamicStmt, e *env) op {
	args := []ir.Operand{local(s.Args[0]), local(s.Args[1])}
	calls := map[string]invocation{}
	for key, f := range g.c.byPath {
		if g.mayBe(f, s.Path, e) {
			fn := g.version(f, args, e)
			calls[key] = func(*machine) (ast.Value, ctl) { return fn.value, next }
			if !fn.folded {
				calls[key] = g.invocation(fn, args, e)
			}
		}
	}
	path := make([]getter, len(s.Path))
	for i, p := range s.Path {
		path[i] = g.get(p, e)
	}
	at := g.store(s.Result, e)
	e.locals[s.Result] = known{virtual: true}
	return storeResult(func(m *machine) (ast.Value, ctl) {
		var buf [128]byte
		key := buf[:0]
		for i, get := range path {
			name, ok := get(m).(ast.String)
			if !ok {
				return nil, next
			}
			if i > 0 {
				key = append(key, 0)
			}
			key = append(key, name...)
		}
		run, ok := calls[string(key)]
		if !ok {
			return nil, next
		}
		return run(m)
	}, at)
}

// mayBe returns whether path can lead to the rule f.
func (g *gen) mayBe(f *ir.Func, path []ir.Operand, e *env) bool {
	if len(f.Path) != len(path) || len(f.Params) != 2 {
		return false
	}
	for i, p := range path {
		k := g.knownOf(p, e)
		if k.form == constant && ast.Compare(k.val, ast.String(f.Path[i])) != 0 {
			return false
		}
	}
	return true
}
