package compile

import (
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"

	"github.com/verdictd/verdictd/rules"
)

// Bounds of what lowering may blow up.
const (
	maxUnroll       = 32      // elements of a collection that is scanned by copies of the body
	maxCopies       = 256     // copies of one statement by nested unrolled scans
	maxVersions     = 32      // versions of one function
	maxClosures     = 1 << 21 // statements lowered for one program
	foldSteps       = 1 << 24 // steps of a trial run
	minIndexedScan  = 9       // elements from which a scan is worth an index
	minIndexedChain = 4       // bodies from which a chain is worth an index
)

// compiler lowers one plan.
type compiler struct {
	policy   *ir.Policy
	fields   []rules.Field
	doc      *node // nil: the input is a value, not facts
	data     ast.Value
	generic  bool // keep nondeterministic builtins, take input as a value
	funcs    map[string]*ir.Func
	byPath   map[string]*ir.Func
	decls    map[string]*ir.BuiltinFunc
	versions map[string]map[string]*function
	interned map[int][]ast.Value // constants that were arguments, by hash
	ids      map[ast.Value]int   // their numbers
	trial    *machine

	sizes
	sites    int // object literals
	closures int
	tables   int // bytes of sets and indexes
	failure  error
}

func newCompiler(p *ir.Policy, fields []rules.Field, doc *node, data ast.Value) *compiler {
	c := &compiler{
		policy: p, fields: fields, doc: doc, data: data,
		funcs: map[string]*ir.Func{}, byPath: map[string]*ir.Func{}, decls: map[string]*ir.BuiltinFunc{},
		versions: map[string]map[string]*function{},
		interned: map[int][]ast.Value{},
		ids:      map[ast.Value]int{},
		trial:    newMachine(fields),
	}
	if p.Funcs != nil {
		for _, f := range p.Funcs.Funcs {
			c.funcs[f.Name] = f
			c.byPath[strings.Join(f.Path, "\x00")] = f
		}
	}
	for _, b := range p.Static.BuiltinFuncs {
		c.decls[b.Name] = b
	}
	c.intern(data) // first, so that it stands for itself
	return c
}

// base returns what is known of data where no with replaces it.
func (c *compiler) base() known { return known{form: constant, val: c.data, base: true} }

// function is one version of a planned function: it is lowered again for each
// combination of arguments that are known.
type function struct {
	name   string
	run    op
	size   int
	params []int // place of each parameter, -1 if its value is known or unused
	memo   int   // index of its memo entry, -1 unless all arguments are known

	sole ast.Value // the only value that it can return, if known

	constants []ast.Value // values that it can return, as far as they are known

	folded bool      // value and defined are valid: it reads no field
	value  ast.Value // nil: undefined
}

// gen lowers one function, or one plan.
type gen struct {
	c      *compiler
	name   string // of the rule, for errors
	layout *layout
	scope  int
	copies int // how often the current statement is being copied

	following ir.Stmt  // the statement after the one being lowered
	rebuilds  bool     // see rebuilds
	members   *members // nil unless the rule is kept as bits

	early  ast.Value                // the only value that the rule's bodies assign
	result ir.Local                 // what the function returns
	once   map[ir.Local][]ast.Value // constants assigned once, nil elements for others
	guards *guards                  // of the body being lowered, nil after its first effect
}

// unsupported records why the policy cannot be lowered; the first reason wins.
func (g *gen) unsupported(s ir.Stmt, format string, args ...any) {
	if g.c.failure != nil {
		return
	}
	u := &Unsupported{Rule: g.name, Reason: fmt.Sprintf(format, args...)}
	if loc := s.GetLocation(); loc != nil && loc.Row > 0 && loc.File < len(g.c.policy.Static.Files) {
		u.File, u.Row, u.Col = g.c.policy.Static.Files[loc.File].Value, loc.Row, loc.Col
	}
	g.c.failure = u
}

// lower lowers blocks twice: to find the locals that need a place, and to
// emit the code.
func (g *gen) lower(blocks []*ir.Block, start *env) op {
	g.layout = newLayout(blocks)
	g.once = map[ir.Local][]ast.Value{}
	g.group(blocks, start.clone())
	g.layout.pack()
	clear(g.once)
	return g.group(blocks, start.clone())
}

// block lowers the statements of b up to one that ends it for certain. e is
// then what is known there.
func (g *gen) block(b *ir.Block, e *env) op {
	var ops []op
	for i := 0; i < len(b.Stmts); i++ {
		s := b.Stmts[i]
		g.following = nil
		if i+1 < len(b.Stmts) {
			g.following = b.Stmts[i+1]
		}
		if o, n := g.objectLiteral(b.Stmts[i:], e); n > 0 {
			ops = append(ops, some(o)...)
			i += n - 1
			continue
		}
		g.c.closures++
		if g.c.closures > maxClosures {
			g.unsupported(s, "the policy is too large: more than %d lowered statements", maxClosures)
			return always(leave)
		}
		if !g.pure(s) {
			g.guards = nil
		}
		o, ends := g.stmt(s, e)
		if o != nil {
			ops = append(ops, o)
		}
		if ends {
			break
		}
	}
	return sequence(ops)
}

// stmt lowers one statement. The op is nil if there is nothing to do at run
// time; ends says that control never gets to the next statement.
func (g *gen) stmt(s ir.Stmt, e *env) (o op, ends bool) {
	if o, ok := g.memberStmt(s); ok {
		return o, false
	}
	switch s := s.(type) {
	case *ir.CallStmt:
		return g.call(s, e)
	case *ir.CallDynamicStmt:
		return g.callDynamic(s, e), false
	case *ir.DotStmt:
		return g.dot(s, e)
	case *ir.ScanStmt:
		return g.scan(s, e), false
	case *ir.BlockStmt:
		return g.group(s.Blocks, e), false
	case *ir.NotStmt:
		return g.not(s, e), false
	case *ir.WithStmt:
		return g.with(s, e), false
	}
	if o, ends, ok := g.ending(s, e); ok {
		return o, ends
	}
	if o, ends, ok := g.condition(s, e); ok {
		return o, ends
	}
	if o, ok := g.assignment(s, e); ok {
		return o, false
	}
	if o, ok := g.construction(s, e); ok {
		return o, false
	}
	g.unsupported(s, "unknown statement %T of the plan", s)
	return always(leave), true
}

// ending lowers the statements that end a block, a function or a query.
func (g *gen) ending(s ir.Stmt, e *env) (o op, ends, ok bool) {
	switch s := s.(type) {
	case *ir.BreakStmt:
		return always(ctl(s.Index) + leave), true, true
	case *ir.ReturnLocalStmt:
		return g.returns(s, e), true, true
	case *ir.ResultSetAddStmt:
		return g.addResult(s, e), false, true
	case *ir.NopStmt:
		return nil, false, true
	}
	return nil, false, false
}

func always(c ctl) op { return func(*machine) ctl { return c } }

// sequence runs ops until one does not say next.
func sequence(ops []op) op {
	switch len(ops) {
	case 0:
		return always(next)
	case 1:
		return ops[0]
	case 2:
		a, b := ops[0], ops[1]
		return func(m *machine) ctl {
			if r := a(m); r != next {
				return r
			}
			return b(m)
		}
	case 3:
		a, b, c := ops[0], ops[1], ops[2]
		return func(m *machine) ctl {
			if r := a(m); r != next {
				return r
			}
			if r := b(m); r != next {
				return r
			}
			return c(m)
		}
	}
	return func(m *machine) ctl {
		for _, o := range ops {
			if r := o(m); r != next {
				return r
			}
		}
		return next
	}
}

// knownOf returns what is known of an operand.
func (g *gen) knownOf(o ir.Operand, e *env) known {
	switch v := value(o).(type) {
	case ir.StringIndex:
		return constantOf(ast.String(g.c.policy.Static.Strings[v].Value))
	case ir.Bool:
		return constantOf(ast.InternedValue(bool(v)))
	case ir.Local:
		return e.locals[v]
	}
	return known{}
}

// get returns a getter of an operand's value. A local that is not known gets
// a place in the frame.
func (g *gen) get(o ir.Operand, e *env) getter {
	if k := g.knownOf(o, e); k.form != unknown {
		return materialize(k)
	}
	l, ok := value(o).(ir.Local)
	if !ok {
		return func(*machine) ast.Value { return nil }
	}
	i := g.need(l)
	return func(m *machine) ast.Value { return m.frame[i] }
}

// materialize returns a getter of a known value.
func materialize(k known) getter {
	switch k.form {
	case constant:
		v := k.val
		return func(*machine) ast.Value { return v }
	case document:
		return k.node.value
	case field:
		i := k.field
		return func(m *machine) ast.Value { return m.fieldValue(i) }
	default:
		eval := k.test.eval
		yes, no := ast.InternedValue(true), ast.InternedValue(false)
		return func(m *machine) ast.Value {
			if eval(m) {
				return yes
			}
			return no
		}
	}
}

// need gives l a place in the frame and returns it; in the first run, 0.
func (g *gen) need(l ir.Local) int {
	p := g.layout.place(g.scope, l)
	if !g.layout.packed {
		g.layout.needed[p] = true
		return 0
	}
	i, ok := g.layout.slots[p]
	if !ok { // cannot be: both runs see the same code
		g.c.failure = fmt.Errorf("lower %s: local %d has no place", g.name, l)
	}
	return i
}

// place returns l's place in the frame, or -1 if nothing reads it there.
func (g *gen) place(l ir.Local) int {
	if i, ok := g.layout.slots[g.layout.place(g.scope, l)]; ok {
		return i
	}
	return -1
}

// set makes l known as k, and stores its value if it has a place.
func (g *gen) set(l ir.Local, k known, e *env) op {
	e.locals[l] = k
	i := g.place(l)
	if i < 0 {
		return nil
	}
	get := materialize(k)
	return func(m *machine) ctl {
		m.frame[i] = get(m)
		return next
	}
}

// store makes l unknown and returns its place, or -1.
func (g *gen) store(l ir.Local, e *env) int {
	delete(e.locals, l)
	return g.place(l)
}
