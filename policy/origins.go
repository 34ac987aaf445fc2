package policy

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// origin is what a term of the policy can stand for: a constant, or a field of
// the input document.
type origin struct {
	value ast.Value     // nil for a field
	loc   *ast.Location // of a constant that is written in the policy
	path  []*ast.Term   // below data, of a constant in a data file
	isKey bool          // of an object in a data file, where it may stand for a number
	field *rules.Field  // nil for a constant
	term  *ast.Term     // that is the field
}

// key tells constants apart by where they stand.
func (o *origin) key() string {
	if o.loc != nil {
		return o.loc.String() + " " + o.value.String()
	}
	key := ""
	for _, t := range o.path {
		key += "\x00" + t.String()
	}
	return key
}

// step leads from a value to what is in it: to the element of a key, or to any
// element, or to any key.
type step struct {
	to  *ast.Term // nil: any
	key bool
}

// Bounds of what a tracer follows. Beyond them it knows less, and finds less.
const (
	maxTraceDepth = 24
	maxTraceSteps = 200_000 // of one trace, data not counted
)

// tracer follows the terms of a compiled policy back to where their values
// come from: through local variables, arguments of functions, rules and data.
// It may name an origin that a condition excludes, and so it goes through no
// variable that other conditions test.
type tracer struct {
	p        *program
	rules    map[string][]*ast.Rule // by the constant beginning of what they define
	calls    map[string][]callSite  // of the policy's functions
	all      []*ast.Rule            // with those behind else
	bindings map[*ast.Rule]map[ast.Var][]binding
	tests    map[*ast.Rule]map[ast.Var][]*ast.Expr
	noData   bool // data files are of no interest
	left     int
}

type callSite struct {
	rule *ast.Rule
	expr *ast.Expr
}

// binding is what gives a variable its value: a term, or what is in it.
type binding struct {
	term  *ast.Term
	steps []step
}

func newTracer(p *program) *tracer {
	t := &tracer{
		p: p, rules: map[string][]*ast.Rule{}, calls: map[string][]callSite{},
		bindings: map[*ast.Rule]map[ast.Var][]binding{}, tests: map[*ast.Rule]map[ast.Var][]*ast.Expr{},
	}
	for _, name := range sortedKeys(p.live) {
		for _, r := range p.compiler.Modules[name].Rules {
			for ; r != nil; r = r.Else {
				t.add(r)
			}
		}
	}
	return t
}

func (t *tracer) add(r *ast.Rule) {
	t.all = append(t.all, r)
	name := r.Ref().GroundPrefix().String()
	t.rules[name] = append(t.rules[name], r)
	t.bindings[r], t.tests[r] = map[ast.Var][]binding{}, map[ast.Var][]*ast.Expr{}
	eachExpr(r, func(e *ast.Expr) { t.expr(r, e) })
	eachRef(r, func(ref ast.Ref) { t.keys(r, ref) })
	t.parts(r)
}

// eachExpr calls f with the expressions of one rule, those of comprehensions
// and every included, without those of its else.
func eachExpr(r *ast.Rule, f func(*ast.Expr)) {
	visit := func(e *ast.Expr) bool {
		f(e)
		return false
	}
	ast.WalkExprs(r.Head, visit)
	ast.WalkExprs(r.Body, visit)
}

func eachRef(r *ast.Rule, f func(ast.Ref)) {
	visit := func(ref ast.Ref) bool {
		f(ref)
		return false
	}
	ast.WalkRefs(r.Head, visit)
	ast.WalkRefs(r.Body, visit)
}

// expr notes what an expression does with the variables in it.
func (t *tracer) expr(r *ast.Rule, e *ast.Expr) {
	if every, ok := e.Terms.(*ast.Every); ok {
		t.bind(r, every.Value, binding{every.Domain, []step{{}}})
		if every.Key != nil {
			t.bind(r, every.Key, binding{every.Domain, []step{{key: true}}})
		}
		return
	}
	if !e.IsCall() {
		return
	}
	operands := e.Operands()
	if e.IsEquality() && len(operands) == 2 && !e.Negated {
		t.bind(r, operands[0], binding{term: operands[1]})
		t.bind(r, operands[1], binding{term: operands[0]})
		if ast.IsConstant(operands[0].Value) || ast.IsConstant(operands[1].Value) {
			t.test(r, e, operands, false) // x.kind == "network"
		}
		return
	}
	t.calls[e.Operator().String()] = append(t.calls[e.Operator().String()], callSite{r, e})
	t.test(r, e, operands, true)
}

// test notes the variables that a condition tests, or parts of which it tests.
func (t *tracer) test(r *ast.Rule, e *ast.Expr, operands []*ast.Term, whole bool) {
	for _, o := range operands {
		switch v := o.Value.(type) {
		case ast.Var:
			if whole {
				t.tests[r][v] = append(t.tests[r][v], e)
			}
		case ast.Ref:
			if head, ok := v[0].Value.(ast.Var); ok {
				t.tests[r][head] = append(t.tests[r][head], e)
			}
		}
	}
}

// parts lets a variable answer for the tests of what is taken from it: OPA gives
// x.kind in startswith(x.kind, "a") a variable of its own.
func (t *tracer) parts(r *ast.Rule) {
	for v, tests := range maps.Clone(t.tests[r]) {
		for _, b := range t.bindings[r][v] {
			if ref, ok := b.term.Value.(ast.Ref); ok {
				if head, ok := ref[0].Value.(ast.Var); ok {
					t.tests[r][head] = append(t.tests[r][head], tests...)
				}
			}
		}
	}
}

func (t *tracer) bind(r *ast.Rule, to *ast.Term, b binding) {
	if v, ok := to.Value.(ast.Var); ok {
		t.bindings[r][v] = append(t.bindings[r][v], b)
	}
}

// keys notes the variables that go through the keys of a collection.
func (t *tracer) keys(r *ast.Rule, ref ast.Ref) {
	for i := 1; i < len(ref); i++ {
		if v, ok := ref[i].Value.(ast.Var); ok {
			t.bindings[r][v] = append(t.bindings[r][v], binding{&ast.Term{Value: ref[:i:i], Location: ref[0].Location}, []step{{key: true}}})
		}
	}
}

// from calls yield with all that term of rule r, or what steps lead to from
// there, can stand for. asked is the expression that has the term.
func (t *tracer) from(r *ast.Rule, term *ast.Term, steps []step, asked *ast.Expr, yield func(*origin)) {
	t.left = maxTraceSteps
	t.walk(site{r, asked}, term, steps, maxTraceDepth, yield)
}

// site is where a tracer is: at an expression of a rule.
type site struct {
	rule *ast.Rule
	expr *ast.Expr
}

func (t *tracer) walk(at site, term *ast.Term, steps []step, depth int, yield func(*origin)) {
	if t.left--; t.left < 0 || depth == 0 {
		return
	}
	switch v := term.Value.(type) {
	case ast.Var:
		t.variable(at, v, steps, depth-1, yield)
	case ast.Ref:
		t.ref(at, v, steps, depth-1, yield)
	case *ast.SetComprehension:
		t.comprehension(at, v.Term, steps, depth, yield)
	case *ast.ArrayComprehension:
		t.comprehension(at, v.Term, steps, depth, yield)
	case *ast.ObjectComprehension:
		if len(steps) > 0 && steps[0].key {
			t.walk(at, v.Key, nil, depth-1, yield)
			return
		}
		t.comprehension(at, v.Value, steps, depth, yield)
	case ast.Call:
	default:
		t.constant(at, term, steps, depth, yield)
	}
}

func (t *tracer) comprehension(at site, element *ast.Term, steps []step, depth int, yield func(*origin)) {
	if len(steps) > 0 {
		t.walk(at, element, steps[1:], depth-1, yield)
	}
}

// constant goes on in a value that is written in the policy; its elements may
// be terms of any kind.
func (t *tracer) constant(at site, term *ast.Term, steps []step, depth int, yield func(*origin)) {
	if len(steps) == 0 {
		if ast.IsConstant(term.Value) {
			yield(&origin{value: term.Value, loc: term.Location})
		}
		return
	}
	eachElement(term.Value, steps[0], func(_, element *ast.Term) { t.walk(at, element, steps[1:], depth-1, yield) })
}

// eachElement calls f with the elements of a collection that a step leads to.
func eachElement(v ast.Value, s step, f func(key, element *ast.Term)) {
	switch c := v.(type) {
	case *ast.Array:
		for i := range c.Len() {
			index := ast.InternedTerm(i)
			if s.key || s.to != nil && !s.to.Equal(index) {
				continue
			}
			f(index, c.Elem(i))
		}
	case ast.Set:
		c.Foreach(func(x *ast.Term) {
			if s.to == nil || s.to.Equal(x) {
				f(x, x)
			}
		})
	case ast.Object:
		if s.to != nil {
			if x := c.Get(s.to); x != nil {
				f(s.to, x)
			}
			return
		}
		c.Foreach(func(key, x *ast.Term) {
			if s.key {
				x = key
			}
			f(key, x)
		})
	}
}

// variable goes on to what gives a local variable its value. Where another
// condition tests it, its values are not all that there are.
func (t *tracer) variable(at site, v ast.Var, steps []step, depth int, yield func(*origin)) {
	if slices.ContainsFunc(t.tests[at.rule][v], func(e *ast.Expr) bool { return e != at.expr && t.filters(at.rule, e) }) {
		return
	}
	for i, arg := range at.rule.Head.Args {
		if !arg.Equal(&ast.Term{Value: v}) {
			continue
		}
		for _, c := range t.calls[at.rule.Ref().GroundPrefix().String()] {
			if i < len(c.expr.Operands()) {
				t.walk(site(c), c.expr.Operand(i), steps, depth, yield)
			}
		}
	}
	for _, b := range t.bindings[at.rule][v] {
		t.walk(at, b.term, append(slices.Clone(b.steps), steps...), depth, yield)
	}
}

// filters returns whether a condition picks values by something other than the
// packet.
func (t *tracer) filters(r *ast.Rule, e *ast.Expr) bool {
	if e.IsCall() && (e.Operator().String() == ast.Print.Name || networkArgs(e) != nil) {
		return false
	}
	return !slices.ContainsFunc(terms(e), func(o *ast.Term) bool {
		if isInput(o) {
			return true
		}
		v, _ := o.Value.(ast.Var)
		return slices.ContainsFunc(t.bindings[r][v], func(b binding) bool { return isInput(b.term) })
	})
}

func isInput(t *ast.Term) bool {
	ref, ok := t.Value.(ast.Ref)
	return ok && ref[0].Equal(ast.InputRootDocument)
}

func (t *tracer) ref(at site, ref ast.Ref, steps []step, depth int, yield func(*origin)) {
	if field := t.p.field(&ast.Term{Value: ref}); field != nil && len(steps) == 0 {
		yield(&origin{field: field, term: &ast.Term{Value: ref, Location: ref[0].Location}})
		return
	}
	all := make([]step, 0, len(ref)-1+len(steps))
	for _, x := range ref[1:] {
		if !ast.IsScalar(x.Value) {
			x = nil
		}
		all = append(all, step{to: x})
	}
	all = append(all, steps...)
	switch {
	case ref[0].Equal(ast.InputRootDocument):
	case ref[0].Equal(ast.DefaultRootDocument):
		if !t.noData {
			t.data(t.p.data, nil, all, yield)
		}
		t.defined(all, depth, yield)
	default:
		t.walk(at, ref[0], all, depth, yield)
	}
}

// data goes on in the data files.
func (t *tracer) data(v ast.Value, path []*ast.Term, steps []step, yield func(*origin)) {
	if len(steps) == 0 {
		yield(&origin{value: v, path: path})
		return
	}
	eachElement(v, steps[0], func(key, x *ast.Term) {
		below := append(path[:len(path):len(path)], key)
		if steps[0].key && len(steps) == 1 {
			yield(&origin{value: x.Value, path: below, isKey: true})
			return
		}
		t.data(x.Value, below, steps[1:], yield)
	})
}

// defined goes on in the rules that define what steps lead to below data.
func (t *tracer) defined(steps []step, depth int, yield func(*origin)) {
	name := ast.Ref{ast.DefaultRootDocument}
	for i, s := range steps {
		if s.to == nil {
			return
		}
		name = append(name, s.to)
		for _, r := range t.rules[name.String()] {
			if len(r.Head.Args) == 0 {
				t.head(r, r.Ref()[len(name):], steps[i+1:], depth, yield)
			}
		}
	}
}

// head goes on in what a rule defines; rest is what of its reference steps
// have not led through.
func (t *tracer) head(r *ast.Rule, rest ast.Ref, steps []step, depth int, yield func(*origin)) {
	at := site{rule: r}
	for _, x := range rest {
		if len(steps) == 0 {
			return
		}
		if steps[0].key {
			t.walk(at, x, nil, depth, yield)
			return
		}
		steps = steps[1:]
	}
	switch {
	case r.Head.RuleKind() != ast.MultiValue:
		if r.Head.Value != nil {
			t.walk(at, r.Head.Value, steps, depth, yield)
		}
	case len(steps) > 0:
		t.walk(at, r.Head.Key, steps[1:], depth, yield)
	}
}
