package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// Bounds of what an analysis follows. Beyond them it knows less, and finds
// less.
const (
	maxRegions = 64 // of one rule: its alternatives
	maxInline  = 8  // depth of rules that ask rules
	maxListed  = 4096
)

// analyst reads the compiled rules of a program as regions.
type analyst struct {
	p   *program
	run *Explainer // of the same program

	always *rules.FieldSet // what every packet has, once it is asked for
}

// env are the values of a rule's local variables, as far as they are known.
type env map[ast.Var]*ast.Term

// regions returns regions that together hold every packet for which the rule's
// body is true; of those that are empty it keeps one, and only if all are.
func (a *analyst) regions(r *ast.Rule) []region { return a.body(r.Body, env{}, maxInline) }

func (a *analyst) body(body ast.Body, vars env, depth int) []region {
	all := []region{everything()}
	for _, e := range body {
		all = product(all, a.expr(e, vars, depth))
	}
	return all
}

// product returns the regions in one of each list.
func product(a, b []region) []region {
	if len(a)*len(b) > maxRegions {
		for i := range a {
			a[i].exact, a[i].negated = false, nil
		}
		return a
	}
	var out []region
	var empty *region
	for _, x := range a {
		for _, y := range b {
			switch z := x.meet(y); {
			case z.clash == nil:
				out = append(out, z)
			case empty == nil:
				empty = &z
			}
		}
	}
	if len(out) == 0 && empty != nil {
		return []region{*empty}
	}
	return out
}

// unknown returns the region of a condition of which no more is known than
// that the fields it mentions are present.
func (a *analyst) unknown(e *ast.Expr, vars env) []region {
	r := everything()
	r.exact = false
	if e.Negated {
		r.negated = a.negation(e, vars)
		return []region{r}
	}
	r.maybe = a.mentions(e)
	if e.IsEvery() || len(e.With) > 0 {
		return []region{r}
	}
	for _, t := range terms(e) {
		if f := a.p.field(vars.resolve(t)); f != nil {
			a.require(&r, f, domain{by: e})
		}
	}
	return []region{r}
}

// terms returns the operands of a call, or the term that an expression is.
func terms(e *ast.Expr) []*ast.Term {
	switch t := e.Terms.(type) {
	case *ast.Term:
		return []*ast.Term{t}
	case []*ast.Term:
		return t[1:]
	}
	return nil
}

// resolve returns what a term stands for: of a local variable its value.
func (v env) resolve(t *ast.Term) *ast.Term {
	for range 8 {
		name, ok := t.Value.(ast.Var)
		if !ok || v[name] == nil {
			break
		}
		t = v[name]
	}
	ref, ok := t.Value.(ast.Ref)
	if !ok {
		return t
	}
	out := make(ast.Ref, len(ref))
	for i, x := range ref {
		out[i] = x
		if _, isVar := x.Value.(ast.Var); isVar && !x.Equal(ast.InputRootDocument) && !x.Equal(ast.DefaultRootDocument) {
			out[i] = v.resolve(x)
		}
	}
	if head, ok := out[0].Value.(ast.Ref); ok { // a variable that stands for a reference
		out = append(slices.Clone(head), out[1:]...)
	}
	return &ast.Term{Value: out, Location: t.Location}
}

// expr returns the regions of one condition. Where it gives a local variable
// its value it says so in vars.
func (a *analyst) expr(e *ast.Expr, vars env, depth int) []region {
	if e.Negated || len(e.With) > 0 || e.IsEvery() {
		return a.unknown(e, vars)
	}
	if t, ok := e.Terms.(*ast.Term); ok {
		return a.truth(e, vars.resolve(t), vars, depth)
	}
	if !e.IsCall() {
		return a.unknown(e, vars)
	}
	if found := a.userCall(e, vars, depth); found != nil {
		return blamed(found, e)
	}
	operands := e.Operands()
	if len(operands) != 2 {
		return a.unknown(e, vars)
	}
	left, right := vars.resolve(operands[0]), vars.resolve(operands[1])
	switch name := e.Operator().String(); name {
	case ast.Equality.Name, ast.Equal.Name:
		return a.equal(e, left, right, vars)
	case ast.Member.Name:
		if values, ok := a.elements(right); ok {
			return a.oneOf(e, left, values, vars)
		}
	case ast.NotEqual.Name, ast.LessThan.Name, ast.LessThanEq.Name, ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		return a.compare(e, name, left, right, vars)
	case ast.NetCIDRContains.Name:
		if values, ok := a.values(left); ok {
			found := a.inNetwork(e, right, values, vars)
			found[0].exact = found[0].exact && a.constant(left) != nil
			return found
		}
	}
	return a.unknown(e, vars)
}

// truth returns the regions in which a term is neither undefined nor false.
func (a *analyst) truth(e *ast.Expr, t *ast.Term, vars env, depth int) []region {
	if f := a.p.field(t); f != nil {
		r := everything()
		d := domain{by: e}
		if f.Kind == rules.Bool {
			d.spans = []span{{1, 1}}
		}
		a.require(&r, f, d)
		return []region{r}
	}
	switch v := t.Value.(type) {
	case ast.Boolean:
		if bool(v) {
			return []region{everything()}
		}
	case ast.Ref:
		if found := a.helper(v, depth); found != nil {
			return blamed(found, e)
		}
		if r, ok := a.lookup(e, v); ok {
			return []region{r}
		}
	}
	return a.unknown(e, vars)
}

// blamed makes a condition answer for what the rules that it asks demand.
func blamed(found []region, e *ast.Expr) []region {
	for i := range found {
		found[i].blame(e)
	}
	return found
}

// helper returns the regions in which a rule without arguments is true; nil if
// that is not known.
func (a *analyst) helper(ref ast.Ref, depth int) []region {
	if depth == 0 || !ref.IsGround() {
		return nil
	}
	list := a.p.compiler.GetRulesExact(ref)
	return a.anyOf(list, func(*ast.Rule) env { return env{} }, depth)
}

// anyOf returns the regions in which one of the rules is true.
func (a *analyst) anyOf(list []*ast.Rule, vars func(*ast.Rule) env, depth int) []region {
	var all []region
	for _, r := range list {
		if r.Else != nil || r.Default || r.Head.RuleKind() == ast.MultiValue || len(r.Head.Ref()) != len(list[0].Head.Ref()) ||
			r.Head.Value == nil || r.Head.Value.Value.Compare(ast.Boolean(true)) != 0 {
			return nil
		}
		v := vars(r)
		if v == nil {
			return nil
		}
		all = append(all, a.body(r.Body, v, depth-1)...)
	}
	if live := slices.DeleteFunc(slices.Clone(all), func(r region) bool { return r.clash != nil }); len(live) > 0 {
		return live
	}
	return all
}

// userCall returns the regions of a call of the policy's own function; nil if
// e is none, or not understood.
func (a *analyst) userCall(e *ast.Expr, vars env, depth int) []region {
	if depth == 0 {
		return nil
	}
	list := a.p.compiler.GetRulesExact(e.Operator())
	if len(list) == 0 || len(e.Operands()) != len(list[0].Head.Args) {
		return nil
	}
	return a.anyOf(list, func(r *ast.Rule) env {
		inner := env{}
		for i, arg := range r.Head.Args {
			v, ok := arg.Value.(ast.Var)
			if !ok {
				return nil
			}
			inner[v] = vars.resolve(e.Operand(i))
		}
		return inner
	}, depth)
}

// equal returns the regions of left = right, which may give a variable its
// value.
func (a *analyst) equal(e *ast.Expr, left, right *ast.Term, vars env) []region {
	for _, side := range [][2]*ast.Term{{left, right}, {right, left}} {
		if v, ok := side[0].Value.(ast.Var); ok {
			vars[v] = side[1]
			return a.bound(e, side[1], vars)
		}
	}
	for _, side := range [][2]*ast.Term{{left, right}, {right, left}} {
		values, ok := a.values(side[1])
		if !ok || a.p.field(side[0]) == nil {
			continue
		}
		found := a.oneOf(e, side[0], values, vars)
		found[0].exact = found[0].exact && a.constant(side[1]) != nil
		return found
	}
	return a.unknown(e, vars)
}

// bound returns the regions in which a term is defined.
func (a *analyst) bound(e *ast.Expr, t *ast.Term, vars env) []region {
	r := everything()
	if f := a.p.field(t); f != nil {
		a.require(&r, f, domain{by: e})
		return []region{r}
	}
	if ast.IsConstant(t.Value) {
		return []region{r}
	}
	if ref, ok := t.Value.(ast.Ref); ok {
		if _, ok := a.elements(t); ok {
			return []region{r} // a table, or one element of it
		}
		if found, ok := a.lookup(e, ref); ok {
			return []region{found}
		}
		if _, ok := a.values(t); ok {
			return []region{r}
		}
	}
	return a.unknown(e, vars)
}

// lookup returns the region in which table[field] is defined.
func (a *analyst) lookup(e *ast.Expr, ref ast.Ref) (region, bool) {
	last := len(ref) - 1
	if last < 1 {
		return region{}, false
	}
	f := a.p.field(ref[last])
	table := a.constant(&ast.Term{Value: ref[:last]})
	if last == 1 && table == nil {
		table = ref[0].Value
	}
	if f == nil || table == nil {
		return region{}, false
	}
	var keys []*ast.Term
	switch c := table.(type) {
	case ast.Object:
		keys = c.Keys()
	case ast.Set:
		keys = c.Slice()
	default:
		return region{}, false
	}
	out := a.oneOf(e, ref[last], keys, env{})
	out[0].exact = out[0].exact && table != nil && !hasFalse(table)
	return out[0], true
}

// hasFalse returns whether a table holds false, which a lookup finds but which
// is not true.
func hasFalse(v ast.Value) bool {
	found := false
	ast.WalkTerms(v, func(t *ast.Term) bool {
		found = found || t.Value.Compare(ast.Boolean(false)) == 0
		return found
	})
	return found
}

// constant returns the constant that a term is: written there, in a data file,
// or the value of a rule without conditions. Else nil.
func (a *analyst) constant(t *ast.Term) ast.Value {
	if ast.IsConstant(t.Value) {
		return t.Value
	}
	ref, ok := t.Value.(ast.Ref)
	if !ok || !ref.IsGround() || !ref[0].Equal(ast.DefaultRootDocument) {
		return nil
	}
	if v, err := a.p.data.Find(ref[1:]); err == nil {
		return v
	}
	list := a.p.compiler.GetRulesExact(ref)
	if len(list) != 1 || list[0].Else != nil || !trivial(list[0].Body) || list[0].Head.Value == nil || len(list[0].Head.Args) > 0 ||
		list[0].Head.RuleKind() == ast.MultiValue || !ast.IsConstant(list[0].Head.Value.Value) {
		return nil
	}
	return list[0].Head.Value.Value
}

// elements returns the elements of a constant collection.
func (a *analyst) elements(t *ast.Term) ([]*ast.Term, bool) {
	var all []*ast.Term
	switch c := a.constant(t).(type) {
	case ast.Set:
		all = c.Slice()
	case *ast.Array:
		c.Foreach(func(x *ast.Term) { all = append(all, x) })
	case ast.Object:
		c.Foreach(func(_, x *ast.Term) { all = append(all, x) })
	default:
		return nil, false
	}
	return all, len(all) <= maxListed
}

// values returns every value that a term can have: one for a constant, the
// elements for table[x] with a variable x.
func (a *analyst) values(t *ast.Term) ([]*ast.Term, bool) {
	if c := a.constant(t); c != nil {
		return []*ast.Term{ast.NewTerm(c)}, true
	}
	ref, ok := t.Value.(ast.Ref)
	if !ok || len(ref) < 2 {
		return nil, false
	}
	last := len(ref) - 1
	if _, ok := ref[last].Value.(ast.Var); !ok {
		return nil, false
	}
	table := &ast.Term{Value: ref[:last]}
	if last == 1 && !ref[0].Equal(ast.DefaultRootDocument) {
		table = ref[0]
	}
	return a.elements(table)
}
