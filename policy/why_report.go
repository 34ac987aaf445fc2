package policy

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/internal/terminal"
)

// Bounds of what is told below a rule that decided or came near.
const (
	usedRules = 3 // for each rule
	usedDepth = 4
)

// report puts into e which rules decided and which came near.
func (t *trace) report(e *Explanation, nearest int) {
	e.DecidedBy, e.Near = []Tried{}, []Tried{}
	var failed []*attempt
	for _, a := range t.root.asked {
		if a.matched {
			e.DecidedBy = append(e.DecidedBy, t.tried(a, usedDepth))
			continue
		}
		failed = append(failed, a)
	}
	near, farther := t.nearest(failed, nearest)
	e.Farther = farther
	for _, a := range near {
		e.Near = append(e.Near, t.tried(a, usedDepth))
	}
}

// nearest returns the n attempts with the most conditions that held, in their
// order, and how many others there are.
func (t *trace) nearest(all []*attempt, n int) ([]*attempt, int) {
	held := func(a *attempt) int { return t.conditions(a.rule).held(a.failed) }
	byHeld := slices.Clone(all)
	slices.SortStableFunc(byHeld, func(a, b *attempt) int { return cmp.Compare(held(b), held(a)) })
	kept := byHeld[:min(n, len(byHeld))]
	near := slices.DeleteFunc(slices.Clone(all), func(a *attempt) bool { return !slices.Contains(kept, a) })
	return near, len(all) - len(near)
}

// tried describes an attempt, and down to depth the rules that it asked.
func (t *trace) tried(a *attempt, depth int) Tried {
	c := t.conditions(a.rule)
	out := Tried{
		Name: t.x.label(a.rule), File: a.rule.Location.File, Line: a.rule.Location.Row, Col: max(a.rule.Location.Col, 1),
		Matched: a.matched, Of: len(c.exprs), Held: len(c.exprs), Conditions: []Condition{},
	}
	if a.matched {
		for i, e := range c.exprs {
			out.Conditions = append(out.Conditions, condition(e, true, 1, a.holds[i]))
		}
		t.used(&out, a, depth, func(int) bool { return true })
		return out
	}
	out.Held = c.held(a.failed)
	if len(c.terms) == 0 || a.failed >= len(c.terms) {
		return out
	}
	i := c.of[a.failed]
	expr := c.terms[a.failed]
	if i >= 0 {
		expr = c.exprs[i]
	}
	out.Conditions = append(out.Conditions, condition(expr, false, a.tries, a.saw))
	t.used(&out, a, depth, func(under int) bool { return under < len(c.of) && c.of[under] == i })
	return out
}

func condition(e *ast.Expr, held bool, tries int, saw []Seen) Condition {
	c := Condition{Held: held, Tries: tries, Saw: saw}
	if l := e.Location; l != nil {
		begin, end := elseIf(e)
		c.File, c.Line, c.Col, c.Text = l.File, l.Row, max(l.Col, 1), tidy(string(l.Text[begin:end]))
		line, col := position(l.Text, begin)
		if line == 1 {
			col += c.Col - 1
		}
		c.Line, c.Col = c.Line+line-1, col
	}
	if len(c.Text) > 160 {
		c.Text = c.Text[:157] + "..."
	}
	return c
}

// elseIf returns where in its text an expression begins and ends. Of one that
// stands alone behind an else, OPA's parser says that it is the whole else, and
// all that follows.
func elseIf(e *ast.Expr) (begin, end int) {
	text := string(e.Location.Text)
	if !strings.HasPrefix(text, "else") {
		return 0, len(text)
	}
	tries := 0
	for i := range text {
		if !strings.HasPrefix(text[i:], "if") {
			continue
		}
		for j := i + len("if"); j <= len(text) && tries < 100; j++ {
			if j < len(text) && !strings.HasPrefix(text[j:], "else") {
				continue
			}
			tries++
			part := text[i+len("if") : j]
			body, err := ast.ParseBodyWithOpts(part, ast.ParserOptions{RegoVersion: ast.RegoV1})
			if err == nil && len(body) == 1 && body[0].Compare(e) == 0 {
				begin = j - len(strings.TrimLeft(part, " \t\n"))
				return begin, begin + len(strings.TrimSpace(part))
			}
		}
	}
	return 0, len(text)
}

// used adds the rules that a asked at those of its expressions that count.
// Rules without conditions are tables: nothing can be said of them.
func (t *trace) used(out *Tried, a *attempt, depth int, counts func(under int) bool) {
	if depth == 0 {
		return
	}
	var matched, failed []*attempt
	for _, b := range t.askedBy(a, counts) {
		switch {
		case len(t.conditions(b.rule).exprs) == 0:
		case b.matched:
			matched = append(matched, b)
		default:
			failed = append(failed, b)
		}
	}
	show := matched
	if !a.matched || len(matched) == 0 {
		show = append(show, failed...)
	}
	near, farther := t.nearest(show, usedRules)
	out.Farther = farther
	for _, b := range near {
		out.Used = append(out.Used, t.tried(b, depth-1))
	}
}

// askedBy returns the rules that a asked at the expressions that count. Those
// that topdown had in its cache are as they were when first asked.
func (t *trace) askedBy(a *attempt, counts func(under int) bool) []*attempt {
	var all []*attempt
	for _, b := range a.asked {
		if counts(b.under) {
			all = append(all, b)
		}
	}
	if len(all) > 0 {
		return all
	}
	for k, e := range t.conditions(a.rule).terms {
		if !counts(k) || !a.matched && k > a.failed {
			continue
		}
		ast.WalkRefs(e, func(ref ast.Ref) bool {
			for _, r := range t.x.p.compiler.GetRules(ref.GroundPrefix()) {
				if b := t.first[r]; b != nil && b != a && !slices.Contains(all, b) {
					all = append(all, b)
				}
			}
			return false
		})
	}
	return all
}

// label returns how people call a compiled rule: by its reference, and by the
// name that it gives a decision.
func (x *Explainer) label(r *ast.Rule) string {
	if written := x.rules[placeOf(r.Location)]; written != nil {
		r = written // its head is still in one piece
	}
	name := r.Head.Ref().String()
	if r.Default {
		return "default " + name
	}
	if r.Head.RuleKind() == ast.MultiValue && r.Head.Key != nil && ast.IsScalar(r.Head.Key.Value) {
		return name + " contains " + r.Head.Key.String()
	}
	if r.Head.Value == nil {
		return name
	}
	obj, ok := r.Head.Value.Value.(ast.Object)
	if !ok {
		if ast.IsScalar(r.Head.Value.Value) && r.Head.Value.Value.Compare(ast.Boolean(true)) != 0 {
			return name + " " + r.Head.Value.String()
		}
		return name
	}
	if s := obj.Get(ast.StringTerm("rule")); s != nil {
		if text, ok := s.Value.(ast.String); ok {
			return name + " (" + string(text) + ")"
		}
	}
	return name
}

// WriteText writes the explanation for people.
func (e *Explanation) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	e.Decision.writeText(b)
	if len(e.DecidedBy) == 0 {
		fmt.Fprintln(b, "no rule matched: such packets are dropped")
	}
	for i := range e.DecidedBy {
		e.DecidedBy[i].writeText(b, "decided by", "")
	}
	if len(e.Facts) > 0 {
		fmt.Fprintln(b, "facts it read:")
	}
	for _, f := range e.Facts {
		value := f.State
		if f.Why != "" {
			value += " (" + terminal.Line(f.Why) + ")"
		}
		if f.State == "present" {
			value = fmt.Sprint(f.Value)
			if text, ok := f.Value.(string); ok {
				value = terminal.Word(text)
			}
		}
		fmt.Fprintf(b, "    %-18s %s\n", f.Field, value)
	}
	if len(e.Near) > 0 {
		fmt.Fprintln(b, "did not match, in the order in which they were tried:")
	}
	for i := range e.Near {
		e.Near[i].writeText(b, "", "    ")
	}
	if e.Farther > 0 {
		fmt.Fprintf(b, "    and %d that had fewer conditions hold\n", e.Farther)
	}
	fmt.Fprintf(b, "took %v; policy %s, sha256 %.12s\n", e.Took.Round(100*time.Nanosecond), e.Policy, e.Hash)
	return b.Flush()
}

// WriteText writes the decision on one line, and its reason on another.
func (o *Outcomes) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	o.writeText(b)
	return b.Flush()
}

func (o *Outcomes) writeText(b *bufio.Writer) {
	if o.Error != "" {
		fmt.Fprintf(b, "no decision: %s\n", terminal.Line(o.Error))
		return
	}
	fmt.Fprintf(b, "%s by rule %s", o.Verdict, terminal.Line(o.Rule))
	if o.Mark != nil {
		fmt.Fprintf(b, ", mark %d", *o.Mark)
	}
	if !o.Log {
		fmt.Fprint(b, ", not logged")
	}
	fmt.Fprintln(b)
	if o.Reason != "" {
		fmt.Fprintf(b, "    %s\n", terminal.Line(o.Reason))
	}
}

func (r *Tried) writeText(b *bufio.Writer, how, indent string) {
	if how != "" {
		how += " "
	}
	fmt.Fprintf(b, "%s%s%s:%d:%d %s", indent, how, r.File, r.Line, r.Col, r.Name)
	if !r.Matched {
		fmt.Fprintf(b, ": %d of %d conditions held", r.Held, r.Of)
	}
	fmt.Fprintln(b)
	for _, c := range r.Conditions {
		c.writeText(b, indent+"    ")
	}
	for i := range r.Used {
		word := "where"
		if !r.Used[i].Matched {
			word = "for which"
		}
		r.Used[i].writeText(b, word, indent+"    ")
	}
	if r.Farther > 0 {
		fmt.Fprintf(b, "%s    and %d like it\n", indent, r.Farther)
	}
}

func (c *Condition) writeText(b *bufio.Writer, indent string) {
	word := "holds"
	if !c.Held {
		word = "fails"
	}
	fmt.Fprintf(b, "%s%s %d:%d  %s", indent, word, c.Line, c.Col, c.Text)
	saw := make([]string, len(c.Saw))
	for i, s := range c.Saw {
		saw[i] = s.What + " is " + terminal.Line(s.Value)
	}
	if len(saw) > 0 {
		fmt.Fprintf(b, "  (%s)", strings.Join(saw, ", "))
	}
	if c.Tries > 1 {
		fmt.Fprintf(b, ", the first of %d tries", c.Tries)
	}
	fmt.Fprintln(b)
}
