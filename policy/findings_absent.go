package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// negation is a condition with not that holds where fields are absent: in each
// of the alternatives in which what stands behind not is true, one of the
// fields of that alternative is needed.
type negation struct {
	expr         *ast.Expr
	alternatives [][]*rules.Field
	helper       bool // behind not is a rule or a function
}

// negation returns the negation that e is, none if it is not because of absent
// fields that it holds: not input.x asks for just that, unless x is true or
// false.
func (a *analyst) negation(e *ast.Expr, vars env) []negation {
	if len(e.With) > 0 || e.IsEvery() {
		return nil
	}
	positive := e.Complement()
	n := negation{expr: e}
	if t, ok := positive.Terms.(*ast.Term); ok {
		f := a.p.field(vars.resolve(t))
		if f != nil && f.Kind != rules.Bool {
			return nil
		}
		n.helper = f == nil
	} else if positive.IsCall() {
		n.helper = len(a.p.compiler.GetRulesExact(positive.Operator())) > 0
	}
	always := a.alwaysPresent()
	for _, r := range a.expr(positive, vars, maxInline) {
		var needs []*rules.Field
		for i := range a.p.fields {
			f := &a.p.fields[i]
			if d, ok := r.fields[f.Path]; ok && d.by != nil && !always.Has(i) {
				needs = append(needs, f)
			}
		}
		if len(needs) == 0 {
			return nil
		}
		slices.SortStableFunc(needs, func(x, y *rules.Field) int { return a.asks(positive, y, vars) - a.asks(positive, x, vars) })
		n.alternatives = append(n.alternatives, needs)
	}
	if len(n.alternatives) == 0 {
		return nil
	}
	return []negation{n}
}

// asks returns 2 if the condition itself has the field, 1 if a rule that it asks
// has it, else 0.
func (a *analyst) asks(e *ast.Expr, f *rules.Field, vars env) int {
	if slices.ContainsFunc(terms(e), func(t *ast.Term) bool { return a.p.field(vars.resolve(t)) == f }) {
		return 2
	}
	reads := a.mentions(e)
	if i := slices.IndexFunc(a.p.fields, func(g rules.Field) bool { return g.Path == f.Path }); reads.Has(i) {
		return 1
	}
	return 0
}

// alwaysPresent returns the fields that every packet has.
func (a *analyst) alwaysPresent() rules.FieldSet {
	if a.always == nil {
		here := netip.IPv4Unspecified()
		f := &rules.Facts{Meta: &packet.Meta{}, Packet: &packet.Packet{Status: packet.OK, Version: 4, Src: here, Dst: here}}
		var set rules.FieldSet
		var v rules.Value
		for i := range a.p.fields {
			if a.p.fields[i].Get(f, &v) {
				set.Add(i)
			}
		}
		a.always = &set
	}
	return *a.always
}

// mentions returns the fields that a condition, and the rules that it asks, can
// read.
func (a *analyst) mentions(e *ast.Expr) rules.FieldSet {
	r := reader{fields: a.p.fields}
	r.visit(e)
	seen := map[*ast.Rule]bool{}
	var follow func(x any)
	follow = func(x any) {
		ast.WalkRefs(x, func(ref ast.Ref) bool {
			if !ref[0].Equal(ast.DefaultRootDocument) {
				return false
			}
			for _, rule := range a.p.compiler.GetRules(ref) {
				if !seen[rule] {
					seen[rule] = true
					r.visit(rule)
					follow(rule)
				}
			}
			return false
		})
	}
	follow(e)
	return r.reads
}

// absentMatches finds conditions with not in rules that accept, which hold for
// packets that do not have what they ask about: not input.tcp.dst_port == 23 is
// true of every packet that is not TCP. What asks for a field is a mistake, what
// asks for a rule is doubtful.
func (p *program) absentMatches() (mistakes, doubtful Errors) {
	a := &analyst{p: p, run: &Explainer{p: p}}
	seen := map[*ast.Expr]bool{}
	for _, r := range a.accepting() {
		for _, region := range a.regions(r) {
			if region.clash != nil {
				continue
			}
			for _, n := range region.negated {
				field := a.absent(&region, &n)
				if field == nil || seen[n.expr] {
					continue
				}
				seen[n.expr] = true
				if n.helper || strings.HasPrefix(field.Path, "interface.") { // of which the hook decides
					doubtful = append(doubtful, n.doubt(field))
				} else {
					mistakes = append(mistakes, n.mistake(field))
				}
			}
		}
	}
	return mistakes, doubtful
}

// accepting returns the rules of Rego files whose decision is to accept.
func (a *analyst) accepting() []*ast.Rule {
	return a.deciders(func(verdict string) bool { return verdict == packet.Accept.String() })
}

// deciders returns the rules of Rego files that decide as wanted.
func (a *analyst) deciders(want func(verdict string) bool) []*ast.Rule {
	var all []*ast.Rule
	for _, name := range sortedKeys(a.p.live) {
		if a.p.plain != nil && slices.Contains(a.p.plain.Files, name) {
			continue
		}
		for _, r := range a.p.compiler.Modules[name].Rules {
			for ; r != nil; r = r.Else {
				switch strings.TrimPrefix(r.Ref().String(), "data.verdictd.") {
				case decisionRule, verdictRule, delegatedRule, decisionRule + "." + verdictRule:
					if r.Head.Value != nil && want(verdictOf(r)) {
						all = append(all, r)
					}
				}
			}
		}
	}
	return all
}

// absent returns a field for whose absence the negation holds in the region,
// nil if it does not, or if the region says so itself.
func (a *analyst) absent(r *region, n *negation) *rules.Field {
	var first *rules.Field
	for _, needs := range n.alternatives {
		i := slices.IndexFunc(needs, func(f *rules.Field) bool { return !a.present(r, f) })
		if i < 0 {
			return nil
		}
		if first == nil {
			first = needs[i]
		}
	}
	return first
}

// present returns whether every packet of a region has a field, or the region
// names which packets without it are meant: their protocols, the hook, or how
// the owner is known.
func (a *analyst) present(r *region, f *rules.Field) bool {
	if _, ok := r.fields[f.Path]; ok {
		return true
	}
	if i := slices.IndexFunc(a.p.fields, func(g rules.Field) bool { return g.Path == f.Path }); r.maybe.Has(i) {
		return true
	}
	group, _, _ := strings.Cut(f.Path, ".")
	named := ""
	switch group {
	case "tcp", "udp", "icmp", "src_port", "dst_port":
		named = "ip.protocol_number"
	case "interface":
		named = "hook"
	case "uid", "gid", "process":
		named = "process.source"
	}
	if f.Path == "process.exe_deleted" {
		_, exe := r.fields["process.exe"]
		_, inside := r.fields["process.exe_inside"]
		return exe || inside
	}
	d, ok := r.fields[named]
	count := int64(0)
	for _, s := range d.spans {
		count += s.high - s.low + 1
	}
	return ok && count <= maxNamed
}

// maxNamed is how many protocols count as named by a rule: all but one are not.
const maxNamed = 32

func (n *negation) mistake(f *rules.Field) *Error {
	text := quoted(n.expr)
	than := "..."
	for _, t := range terms(n.expr) {
		if ast.IsScalar(t.Value) {
			than = t.Value.String()
		}
	}
	hint := fmt.Sprintf("write input.%s != %s, which needs input.%[1]s; if packets without it are meant too, accept them in a rule of its own, by: not input.%[1]s", f.Path, than)
	if f.Kind == rules.Bool {
		hint = fmt.Sprintf("write input.%s == false, which needs input.%[1]s; if packets without it are meant, name their protocols in the rule", f.Path)
	}
	return errorAt(n.expr.Location, fmt.Sprintf("%s also holds for packets that have no input.%s, and the rule accepts them", text, f.Path), hint).coded("absent")
}

func (n *negation) doubt(f *rules.Field) *Error {
	hint := "name what is accepted, such as input.ip.protocol in {\"tcp\", \"udp\"}, or decide what is denied first, before an else"
	if !n.helper {
		hint = "name the hook or the direction in the rule"
	}
	return errorAt(n.expr.Location, fmt.Sprintf("%s also holds for packets that have no input.%s, and the rule accepts them", quoted(n.expr), f.Path), hint).coded("absent-helper")
}
