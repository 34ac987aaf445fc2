package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// DefaultMaxScan is how many elements a rule may go through for one packet
// before Check warns: about a millisecond of OPA's topdown.
const DefaultMaxScan = 1000

// findings returns what is allowed but hardly meant, and what is worth knowing.
func (p *program) findings(ctx context.Context, cfg CheckConfig) (found, notes Errors, err error) {
	if cfg.MaxScan <= 0 {
		cfg.MaxScan = DefaultMaxScan
	}
	if cfg.ProbeTime <= 0 {
		cfg.ProbeTime = 2 * time.Second
	}
	for _, name := range sortedKeys(p.live) {
		found = append(found, p.scans(p.compiler.Modules[name], cfg.MaxScan)...)
	}
	for _, name := range sortedKeys(p.modules) {
		found = append(found, p.testInputs(p.modules[name])...)
	}
	found = append(append(found, p.suspicions...), p.unusedHelpers()...)
	found = append(found, p.plainFindings()...)
	analysed, notes, err := p.analyse(ctx, cfg.ProbeTime)
	for _, e := range analysed {
		// A value that a field never has is told once, by its own name.
		if !slices.ContainsFunc(found, func(f *Error) bool { return f.File == e.File && f.Line == e.Line }) {
			found = append(found, e)
		}
	}
	return found.sorted(), notes.sorted(), err
}

// analyse finds rules that never match, that conflict or depend on their
// order, and protocols that nobody thought of.
func (p *program) analyse(ctx context.Context, limit time.Duration) (found, notes Errors, err error) {
	run, err := newExplainer(ctx, p, 0)
	if err != nil {
		return nil, nil, err
	}
	end := time.Now().Add(limit)
	a := &analyst{p: p, run: run}
	links := a.links()
	conflicts, notes := a.overlaps(links, end)
	found = p.withoutPlain(neverMatch(links))
	notes = p.withoutPlain(notes)
	found = append(found, a.owners()...)
	holes, complete := a.protocols(ctx, links, end)
	if !complete {
		notes = append(notes, fileError(p.name, "decisions are too slow to ask about every protocol", ""))
	}
	return append(append(found, conflicts...), holes...), notes, nil
}

// withoutPlain leaves out what is found in a rules file: plainFindings, and
// verdictd rules check, know more about it.
func (p *program) withoutPlain(found Errors) Errors {
	return slices.DeleteFunc(found, func(e *Error) bool { return p.plain != nil && slices.Contains(p.plain.Files, e.File) })
}

// field returns the field that t refers to, or nil.
func (p *program) field(t *ast.Term) *rules.Field {
	ref, ok := t.Value.(ast.Ref)
	if !ok || !ref.IsGround() || !ref[0].Equal(ast.InputRootDocument) {
		return nil
	}
	path := inputPath(ref)
	i := slices.IndexFunc(p.fields, func(f rules.Field) bool { return f.Path == path })
	if i < 0 {
		return nil
	}
	return &p.fields[i]
}

// scans finds references of a compiled module that go through every element of
// a collection of more than most elements.
func (p *program) scans(m *ast.Module, most int) Errors {
	var found Errors
	ast.WalkRules(m, func(r *ast.Rule) bool {
		bound := boundVars(r)
		ast.WalkRefs(r, func(ref ast.Ref) bool {
			prefix := ref.GroundPrefix()
			if len(prefix) == len(ref) || !ref[0].Equal(ast.DefaultRootDocument) {
				return false
			}
			v, ok := ref[len(prefix)].Value.(ast.Var)
			if !ok || bound[v] {
				return false
			}
			if n := p.size(prefix); n > most {
				found = append(found, errorAt(ref[0].Location, fmt.Sprintf("goes through all %d elements of %s for a packet", n, prefix),
					"look a key up instead, as in data.blocked[input.ip.dst], or put cheap conditions first"))
			}
			return false
		})
		return false
	})
	return found
}

// boundVars returns the variables that a rule gives values to other than by
// iteration: its arguments and both sides of equalities.
func boundVars(r *ast.Rule) map[ast.Var]bool {
	bound := map[ast.Var]bool{}
	for _, arg := range r.Head.Args {
		ast.WalkVars(arg, func(v ast.Var) bool {
			bound[v] = true
			return false
		})
	}
	ast.WalkExprs(r, func(e *ast.Expr) bool {
		if !e.IsCall() {
			return false
		}
		operands := e.Operands()
		if !e.IsEquality() && len(operands) > 0 {
			operands = operands[len(operands)-1:] // where a function's result goes
		}
		for _, t := range operands {
			if v, ok := t.Value.(ast.Var); ok {
				bound[v] = true
			}
		}
		return false
	})
	return bound
}

// size returns how many elements the collection at ref has, 0 if it is not
// constant.
func (p *program) size(ref ast.Ref) int {
	if v, err := p.data.Find(ref[1:]); err == nil {
		return length(v)
	}
	most := 0
	for _, r := range p.compiler.GetRulesExact(ref) {
		if r.Head.Value != nil {
			most = max(most, length(r.Head.Value.Value))
		}
	}
	return most
}

func length(v ast.Value) int {
	if c, ok := v.(interface{ Len() int }); ok {
		return c.Len()
	}
	return 0
}

// testInputs finds fields that a test gives to input and that do not exist.
func (p *program) testInputs(m *ast.Module) Errors {
	var found Errors
	ast.WalkWiths(m, func(w *ast.With) bool {
		ref, ok := w.Target.Value.(ast.Ref)
		if !ok {
			ref = ast.Ref{w.Target}
		}
		if ref[0].Equal(ast.InputRootDocument) {
			found = append(found, p.unknownFields(inputPath(ref), w.Value)...)
		}
		return false
	})
	return found
}

// unknownFields returns the keys of value, given to the input document at
// path, that are no field and lead to none.
func (p *program) unknownFields(path string, value *ast.Term) Errors {
	known := func(f rules.Field) bool {
		return path == "" || f.Path == path || strings.HasPrefix(f.Path, path+".")
	}
	if !slices.ContainsFunc(p.fields, known) {
		names := make([]string, len(p.fields))
		for i := range p.fields {
			names[i] = p.fields[i].Path
		}
		hint := ""
		if best := nearest(path, names); best != "" {
			hint = "did you mean input." + best + "?"
		}
		return Errors{errorAt(value.Location, "the test gives input."+path+", which does not exist", hint)}
	}
	obj, ok := value.Value.(ast.Object)
	if !ok {
		return nil
	}
	var found Errors
	obj.Foreach(func(key, v *ast.Term) {
		if s, ok := key.Value.(ast.String); ok {
			found = append(found, p.unknownFields(strings.TrimPrefix(path+"."+string(s), "."), v)...)
		}
	})
	return found
}
