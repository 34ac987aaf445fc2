package policy

import (
	"strings"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/verdictd/verdictd/rules"
)

// trace watches an evaluation and keeps, for each rule, how far it came. It
// keeps no events: its size follows that of the policy, not the time it runs.
// It implements topdown.QueryTracer and is for one evaluation.
type trace struct {
	x      *Explainer
	in     *rules.Input
	fields []rules.Field          // of in
	root   *attempt               // stands for the query: its children make the decision
	open   map[uint64]frame       // queries under evaluation, by topdown's number
	first  map[*ast.Rule]*attempt // what topdown found, and then took from its cache
	split  map[*ast.Rule]*conditions
	seen   map[ast.Node]bool // what was searched for reads
	reads  rules.FieldSet
	order  []int // fields of reads, in the order in which they were read

	stopped atomic.Bool
}

// attempt is how far a rule came: at its best, if it was tried more than once
// for the same caller.
type attempt struct {
	rule    *ast.Rule
	under   int // the caller's expression that asked, by index
	matched bool
	entered bool
	failed  int // index of the expression that failed
	tries   int // how often it failed
	saw     []Seen
	holds   [][]Seen // of a rule that matched, by condition
	asked   []*attempt
	byRule  map[*ast.Rule]*attempt
}

// frame is a query under evaluation: a rule's body, or something inside it.
type frame struct {
	of  *attempt
	own bool // the rule's body itself
	at  *int // index of the expression that the rule's body is at
}

func newTrace(x *Explainer, in *rules.Input) *trace {
	return &trace{
		x: x, in: in, fields: in.Fields(), root: &attempt{}, open: map[uint64]frame{}, first: map[*ast.Rule]*attempt{},
		split: map[*ast.Rule]*conditions{}, seen: map[ast.Node]bool{},
	}
}

func (t *trace) stop() { t.stopped.Store(true) }

// enterQuery begins a query, whose numbers begin anew.
func (t *trace) enterQuery() { t.open = map[uint64]frame{} }

// Enabled implements topdown.QueryTracer.
func (t *trace) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (t *trace) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (t *trace) TraceEvent(e topdown.Event) {
	switch e.Op {
	case topdown.EnterOp:
		t.enter(&e)
	case topdown.EvalOp:
		if f := t.open[e.QueryID]; f.own {
			*f.at = e.Node.(*ast.Expr).Index
		}
		t.read(e.Node)
	case topdown.FailOp:
		t.fail(&e)
	case topdown.ExitOp:
		t.exit(&e)
	}
}

func (t *trace) enter(e *topdown.Event) {
	caller, ok := t.open[e.ParentID]
	if !ok {
		caller = frame{of: t.root, at: new(int)}
	}
	rule, ok := e.Node.(*ast.Rule)
	if !ok {
		t.open[e.QueryID] = frame{of: caller.of, at: caller.at}
		return
	}
	a := caller.of.byRule[rule]
	if a == nil {
		a = &attempt{rule: rule, under: *caller.at}
		caller.of.asked = append(caller.of.asked, a)
		if caller.of.byRule == nil {
			caller.of.byRule = map[*ast.Rule]*attempt{}
		}
		caller.of.byRule[rule] = a
	}
	if t.first[rule] == nil {
		t.first[rule] = a
	}
	t.open[e.QueryID] = frame{of: a, own: true, at: new(int)}
}

func (t *trace) fail(e *topdown.Event) {
	f := t.open[e.QueryID]
	expr, ok := e.Node.(*ast.Expr)
	if !ok || !f.own || f.of.matched {
		return
	}
	a := f.of
	switch {
	case a.entered && expr.Index < a.failed:
	case a.entered && expr.Index == a.failed:
		a.tries++
	default:
		a.entered, a.failed, a.tries = true, expr.Index, 1
		c := t.conditions(a.rule)
		a.saw = t.values(e, c, c.of[expr.Index], expr.Index)
	}
}

func (t *trace) exit(e *topdown.Event) {
	rule, ok := e.Node.(*ast.Rule)
	f := t.open[e.QueryID]
	if !ok || !f.own || f.of.matched {
		return
	}
	t.read(rule.Head)
	f.of.matched = true
	c := t.conditions(rule)
	for i := range c.exprs {
		f.of.holds = append(f.of.holds, t.values(e, c, i, len(c.of)-1))
	}
}

// read adds the input fields that node reads.
func (t *trace) read(node ast.Node) {
	if t.seen[node] {
		return
	}
	t.seen[node] = true
	r := reader{fields: t.x.p.fields}
	r.visit(node)
	for i := range r.fields {
		if r.reads.Has(i) && !t.reads.Has(i) {
			t.reads.Add(i)
			t.order = append(t.order, i)
		}
	}
}

// facts returns what was read.
func (t *trace) facts() []Fact {
	facts := []Fact{}
	fields, unknown := t.fields, t.in.Unknown()
	var v rules.Value
	for _, i := range t.order {
		f := Fact{Field: fields[i].Path, State: "absent"}
		switch {
		case unknown.Has(i):
			f.State = "unknown"
		case fields[i].Get(nil, &v):
			f.State, f.Value = "present", native(fields[i].Kind, &v)
		}
		facts = append(facts, f)
	}
	return facts
}

// native returns a value as encoding/json takes it.
func native(kind rules.Kind, v *rules.Value) any {
	switch kind {
	case rules.Bool:
		return v.Int != 0
	case rules.Int:
		return v.Int
	}
	return v.Text(kind)
}

// conditions says which expressions of a compiled rule came from which of its
// body as it was written: the compiler takes them apart.
type conditions struct {
	exprs []*ast.Expr        // as written
	of    []int              // index in exprs of each compiled expression, -1 for those of the head
	name  map[ast.Var]string // what compiled variables stand for
	terms []*ast.Expr        // compiled
}

func (t *trace) conditions(r *ast.Rule) *conditions {
	if c := t.split[r]; c != nil {
		return c
	}
	c := &conditions{name: map[ast.Var]string{}, terms: r.Body}
	if written := t.x.rules[placeOf(r.Location)]; written != nil && !trivial(written.Body) {
		c.exprs = written.Body
	}
	for _, e := range r.Body {
		c.of = append(c.of, c.index(e.Location))
		c.define(e)
	}
	t.split[r] = c
	return c
}

// trivial returns whether a body is what the parser makes of none.
func trivial(b ast.Body) bool {
	if len(b) != 1 {
		return false
	}
	term, ok := b[0].Terms.(*ast.Term)
	return ok && term.Value.Compare(ast.Boolean(true)) == 0
}

// index returns which of the written expressions holds the place at l.
func (c *conditions) index(l *ast.Location) int {
	if l == nil {
		return -1
	}
	for i, e := range c.exprs {
		begin := e.Location.Offset
		if l.File == e.Location.File && l.Offset >= begin && l.Offset < begin+len(e.Location.Text) {
			return i
		}
	}
	return -1
}

// define notes the text that a variable of the compiler's own stands for.
func (c *conditions) define(e *ast.Expr) {
	if !e.IsCall() || len(e.Operands()) == 0 || e.Location == nil {
		return
	}
	out := e.Operand(len(e.Operands()) - 1)
	if e.IsEquality() {
		out = e.Operand(0)
		if ast.IsConstant(e.Operand(1).Value) {
			return
		}
	}
	if v, ok := out.Value.(ast.Var); ok && len(e.Location.Text) > 0 {
		c.name[v] = tidy(string(e.Location.Text))
	}
}

// held returns how many conditions held when compiled expression failed did
// not: those that were done with.
func (c *conditions) held(failed int) int {
	pending := map[int]bool{}
	for i := failed; i < len(c.of); i++ {
		pending[c.of[i]] = true
	}
	n := 0
	for i := range c.exprs {
		if !pending[i] {
			n++
		}
	}
	return n
}

// values returns what the parts of condition i were at event e, in compiled
// expressions up to the one at index last. -1 stands for the head.
func (t *trace) values(e *topdown.Event, c *conditions, i, last int) []Seen {
	saw := []Seen{}
	add := func(what, value string) {
		for _, s := range saw {
			if s.What == what {
				return
			}
		}
		saw = append(saw, Seen{what, value})
	}
	whole := ""
	if i >= 0 {
		whole = tidy(string(c.exprs[i].Location.Text))
	}
	for k := 0; k <= last && k < len(c.terms); k++ {
		if c.of[k] != i {
			continue
		}
		t.inputs(c.terms[k], add)
		ast.WalkVars(c.terms[k], func(v ast.Var) bool {
			if name := t.varName(c, v); name != "" && name != whole && !strings.HasPrefix(name, "input.") {
				if value := e.Plug(ast.NewTerm(v)); ast.IsConstant(value.Value) {
					add(name, shorten(value.Value))
				}
			}
			return false
		})
	}
	return saw
}

// varName returns what the author knows a compiled variable by, "" if nothing.
func (t *trace) varName(c *conditions, v ast.Var) string {
	if name, ok := t.x.p.compiler.RewrittenVars[v]; ok && !name.IsGenerated() && !name.IsWildcard() {
		return string(name)
	}
	return c.name[v]
}

// inputs adds the input fields that x mentions, with their values.
func (t *trace) inputs(x any, add func(what, value string)) {
	fields, unknown := t.fields, t.in.Unknown()
	var v rules.Value
	ast.WalkRefs(x, func(ref ast.Ref) bool {
		if !ref[0].Equal(ast.InputRootDocument) {
			return false
		}
		path := inputPath(ref)
		for i := range fields {
			switch {
			case fields[i].Path != path:
			case unknown.Has(i):
				add("input."+path, "unknown")
			case !fields[i].Get(nil, &v):
				add("input."+path, "absent")
			default:
				add("input."+path, shorten(term(fields[i].Kind, &v).Value))
			}
		}
		return false
	})
}

// shorten returns a value as Rego writes it, or what it is if that is long.
func shorten(v ast.Value) string {
	if n := length(v); n > 8 {
		return describe(v)
	}
	if s := v.String(); len(s) <= 80 {
		return s
	}
	return describe(v)
}
