package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// undefinedData finds references to data that neither a rule nor a data file
// defines.
func (p *program) undefinedData() Errors {
	var found Errors
	for _, name := range sortedKeys(p.live) {
		m := p.compiler.Modules[name]
		for _, r := range m.Rules {
			ast.WalkRefs(r, func(ref ast.Ref) bool {
				if ref[0].Equal(ast.DefaultRootDocument) {
					found = append(found, p.undefined(ref)...)
				}
				return false
			})
		}
	}
	return found
}

func (p *program) undefined(ref ast.Ref) Errors {
	prefix := ref.GroundPrefix()
	for i := 1; i < len(prefix); i++ {
		if _, ok := prefix[i].Value.(ast.String); !ok {
			prefix = prefix[:i]
			break
		}
	}
	if len(prefix) == 1 || p.isDefined(prefix) {
		return nil
	}
	at := 2
	for p.isDefined(prefix[:at]) {
		at++
	}
	missing := prefix[:at]
	var beside []string
	if parent, err := p.data.Find(missing[1 : at-1]); err == nil {
		if obj, ok := parent.(ast.Object); ok {
			for _, k := range obj.Keys() {
				if s, ok := k.Value.(ast.String); ok {
					beside = append(beside, string(s))
				}
			}
		}
	}
	key, _ := missing[at-1].Value.(ast.String)
	hint := "correct the name, or write a data file that gives it, were it an empty list"
	if best := nearest(string(key), beside); best != "" {
		hint = fmt.Sprintf("did you mean %s.%s?", missing[:at-1], best)
	}
	return Errors{errorAt(ref[0].Location, fmt.Sprintf("%s is defined nowhere: no rule and no data file gives it", missing), hint).coded("data-undefined")}
}

// isDefined returns whether data files or rules give a value at ref, or below
// it, or may do so.
func (p *program) isDefined(ref ast.Ref) bool {
	if _, err := p.data.Find(ref[1:]); err == nil {
		return true
	}
	for _, name := range sortedKeys(p.live) {
		for _, r := range p.compiler.Modules[name].Rules {
			rule := r.Ref().GroundPrefix()
			if ref.HasPrefix(rule) || rule.HasPrefix(ref) {
				return true
			}
		}
	}
	return false
}

// reached returns the rules that those called names ask, directly or not,
// themselves included.
func (p *program) reached(names ...string) map[*ast.Rule]bool {
	seen := map[*ast.Rule]bool{}
	var open []*ast.Rule
	for _, name := range names {
		if ref, err := ast.ParseRef(name); err == nil {
			open = append(open, p.compiler.GetRules(ref)...)
		}
	}
	for len(open) > 0 {
		r := open[len(open)-1]
		open = open[:len(open)-1]
		if seen[r] {
			continue
		}
		seen[r] = true
		ast.WalkRefs(r, func(ref ast.Ref) bool {
			if ref[0].Equal(ast.DefaultRootDocument) {
				open = append(open, p.compiler.GetRules(ref)...)
			}
			return false
		})
	}
	return seen
}

// unusedHelpers finds rules of package verdictd that no decision asks.
// Packages of other names are libraries, which may hold more than is used.
func (p *program) unusedHelpers() Errors {
	var entries []string
	for _, name := range []string{decisionRule, verdictRule, delegatedRule} {
		entries = append(entries, "data.verdictd."+name)
	}
	reached := p.reached(entries...)
	used := map[string]bool{} // by name: all rules of a name are one
	for r := range reached {
		used[r.Ref().GroundPrefix().String()] = true
	}
	var found Errors
	for _, name := range sortedKeys(p.live) {
		m := p.compiler.Modules[name]
		if m.Package.Path.String() != "data.verdictd" || p.plain != nil && slices.Contains(p.plain.Files, name) {
			continue
		}
		for _, r := range m.Rules {
			if rule := r.Ref().GroundPrefix().String(); !used[rule] {
				used[rule] = true
				found = append(found, errorAt(r.Location, strings.TrimPrefix(rule, "data.verdictd.")+" is never used: no decision asks it", "use it, or remove it").coded("unused"))
			}
		}
	}
	return found
}
