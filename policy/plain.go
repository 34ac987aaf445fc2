package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// delegatedRule is the rule of package verdictd that a rules file delegates to.
const delegatedRule = "delegated"

// isPlain returns whether a policy that is one file is a rules file. An
// example of one need not be renamed to be tried.
func isPlain(name string) bool {
	ext := path.Ext(strings.TrimSuffix(name, ".example"))
	return ext == ".yaml" || ext == ".yml"
}

// plainOf returns the rules file of a directory, or nil.
func plainOf(files []file) *file {
	i := slices.IndexFunc(files, func(f file) bool { return f.name == "rules.yaml" || f.name == "rules.yml" })
	if i < 0 {
		return nil
	}
	return &files[i]
}

// readPlain reads the rules file main of fsys and those it includes, and adds
// them to files, which were read already. With an error it returns the files
// read so far: whoever watches them waits for a better version.
func readPlain(fsys fs.FS, main, shown string, files []file) ([]file, Errors) {
	dir := path.Dir(shown)
	set, err := rules.ParsePlain(shown, func(name string) ([]byte, error) {
		relative := strings.TrimPrefix(name, strings.TrimSuffix(dir, "/")+"/")
		i := slices.IndexFunc(files, func(f file) bool { return f.shown == name })
		if i < 0 {
			content, rerr := readFile(fsys, path.Join(path.Dir(main), relative), name)
			if rerr != nil {
				return nil, errors.New(strings.TrimPrefix(rerr.Msg, "read policy: "))
			}
			files, i = append(files, file{name: relative, shown: name, content: content}), len(files)
		}
		files[i].plain = true
		return files[i].content, nil
	})
	if err != nil {
		return files, plainErrors(err)
	}
	other := slices.IndexFunc(files, func(f file) bool { return f.name == "rules.yml" && !f.plain })
	if other >= 0 {
		return nil, Errors{fileError(files[other].shown, "stands beside rules.yaml", "keep one of them, or let one include the other")}
	}
	files = withEssential(files, set)
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	i := slices.IndexFunc(files, func(f file) bool { return f.shown == shown })
	files[i].rules = set
	return files, nil
}

// plainErrors returns an error of package rules as Errors.
func plainErrors(err error) Errors {
	list, ok := errors.AsType[rules.PlainErrors](err)
	if !ok {
		return Errors{fileError("rules", err.Error(), "")}
	}
	var errs Errors
	for _, e := range list {
		errs = append(errs, &Error{File: e.Place.File, Line: e.Place.Line, Col: e.Place.Col, Msg: e.Msg, Hint: e.Hint})
	}
	return errs
}

// parsePlain adds the translation of rules file f to the modules. What goes
// wrong with it later is reported at its place in the rules file.
func (p *program) parsePlain(f *file) Errors {
	p.plain = f.rules
	text := f.rules.Rego()
	m, err := ast.ParseModuleWithOpts(f.shown, string(text.Text), ast.ParserOptions{Capabilities: p.caps, RegoVersion: ast.RegoV1})
	if err != nil {
		return Errors{fileError(f.shown, "translation to Rego: "+err.Error(), "this is a fault of verdictd")}
	}
	relocate(m, text.Lines)
	p.modules[f.shown], p.live[f.shown] = m, m
	return nil
}

// misnamed finds data files that are rules files by what they say, and that no
// Rego asks as data: their rules would be without effect.
func (p *program) misnamed() Errors {
	var found Errors
	seen := map[string]bool{}
	for i := range p.files {
		f := &p.files[i]
		ext, dir := path.Ext(f.name), path.Dir(f.name)
		if f.plain || ext != ".yaml" && ext != ".yml" || seen[dir] {
			continue
		}
		seen[dir] = true
		keys, ref := []*ast.Term{}, ast.Ref{ast.DefaultRootDocument}
		if dir != "." {
			for part := range strings.SplitSeq(dir, "/") {
				keys = append(keys, ast.StringTerm(part))
			}
		}
		keys = append(keys, ast.StringTerm("rules"))
		list, err := p.data.Find(append(ref, keys...)[1:])
		if err != nil || !rulesLike(list) || p.asksFor(append(ref, keys...)) {
			continue
		}
		e := p.dataPlace(keys)
		e.Msg = "these are rules, but the rules file of a policy is rules.yaml, so they are data and decide nothing"
		e.Hint = "rename the file to rules.yaml, or name it there, below include"
		found = append(found, e.coded("not-rules"))
	}
	return found
}

// rulesLike returns whether v is a list of rules as rules files have it.
func rulesLike(v ast.Value) bool {
	list, ok := v.(*ast.Array)
	return ok && list.Len() > 0 && list.Iter(func(t *ast.Term) error {
		rule, ok := t.Value.(ast.Object)
		if !ok || rule.Get(ast.StringTerm("name")) == nil || rule.Get(ast.StringTerm("verdict")) == nil {
			return errors.New("no rule")
		}
		return nil
	}) == nil
}

// asksFor returns whether a module asks for what is at ref, or above it.
func (p *program) asksFor(ref ast.Ref) bool {
	found := false
	for _, m := range p.modules {
		ast.WalkRefs(m, func(r ast.Ref) bool {
			prefix := r.GroundPrefix()
			found = found || len(prefix) > 1 && (prefix.HasPrefix(ref) || ref.HasPrefix(prefix))
			return false
		})
	}
	return found
}

// relocate puts the places lines, of each line of a module's text, in place of
// the module's own.
func relocate(m *ast.Module, lines []rules.Place) {
	done := map[*ast.Location]bool{}
	move := func(l *ast.Location) {
		if l == nil || done[l] || l.Row < 1 || l.Row > len(lines) {
			return
		}
		done[l] = true
		at := lines[l.Row-1]
		l.File, l.Row, l.Col = at.File, max(at.Line, 1), max(at.Col, 1)
	}
	ast.NewGenericVisitor(func(x any) bool {
		if n, ok := x.(ast.Node); ok {
			move(n.Loc())
		}
		return false
	}).Walk(m)
}

// checkPlain checks that a rules file and the Rego beside it fit together.
func (p *program) checkPlain() Errors {
	if p.plain == nil {
		return nil
	}
	main := p.plain.Files[0]
	taken := map[string]bool{verdictRule: true}
	for _, r := range p.live[main].Rules {
		taken[ruleName(r)] = true
	}
	var errs Errors
	delegated := false
	for _, name := range sortedKeys(p.modules) {
		m := p.modules[name]
		if name == main || m.Package.Path.String() != "data.verdictd" {
			continue
		}
		for _, r := range m.Rules {
			delegated = delegated || ruleName(r) == delegatedRule && p.live[name] != nil
			errs = append(errs, checkBeside(r, main, taken)...)
		}
	}
	if places := p.plain.Delegates(); len(places) > 0 && !delegated {
		at := places[0]
		errs = append(errs, &Error{File: at.File, Line: at.Line, Col: at.Col, Msg: "the rules delegate to Rego, and no Rego file defines the rule delegated",
			Hint: "put a .rego file with package verdictd and delegated := {...} if {...} into the directory of " + filepath.Base(main)})
	}
	return errs
}

func ruleName(r *ast.Rule) string {
	name, ok := r.Head.Ref()[0].Value.(ast.Var)
	if !ok {
		return ""
	}
	return string(name)
}

// checkBeside checks a rule of package verdictd in a file beside rules file
// main, which defines the names in taken.
func checkBeside(r *ast.Rule, main string, taken map[string]bool) Errors {
	name := ruleName(r)
	switch {
	case name == decisionRule || name == verdictRule:
		return Errors{errorAt(r.Location, fmt.Sprintf("%s is made by %s", name, main), "name the rule delegated, in the form of decision, and let the rules delegate to it")}
	case taken[name]:
		return Errors{errorAt(r.Location, fmt.Sprintf("%s is defined by %s: a set, or a helper of its translation", name, main), "use it, or choose another name")}
	case name != delegatedRule:
		return nil
	case len(r.Head.Args) > 0 || r.Head.RuleKind() == ast.MultiValue:
		return Errors{errorAt(r.Location, "delegated must be a rule with one value", "write delegated := {...} if { ... }")}
	}
	for ; r != nil; r = r.Else {
		if len(r.Head.Ref()) > 1 || r.Head.Value == nil {
			continue
		}
		if err := checkObject(r.Head.Value.Value, new(rules.Decision)); err != nil {
			return Errors{errorAt(headLocation(r), strings.Replace(err.Error(), "decision", delegatedRule, 1), "")}
		}
	}
	return nil
}

// plainFindings returns what the analysis of the rules file warns of.
func (p *program) plainFindings() Errors {
	if p.plain == nil {
		return nil
	}
	var found Errors
	for _, f := range p.plain.Findings() {
		if f.Level == rules.Warning {
			found = append(found, &Error{File: f.Place.File, Line: f.Place.Line, Col: f.Place.Col, Msg: f.Msg})
		}
	}
	if len(p.plain.Delegates()) > 0 {
		return found
	}
	for _, name := range sortedKeys(p.live) {
		for _, r := range p.live[name].Rules {
			if ruleName(r) == delegatedRule && p.live[name].Package.Path.String() == "data.verdictd" {
				return append(found, errorAt(r.Location, "delegated is never asked: no rule of "+p.plain.Files[0]+" delegates", "write verdict: delegate, or default: delegate, there"))
			}
		}
	}
	return found
}

// watchDirs returns the directories in which a change can change the policy.
func (s Source) watchDirs() []string {
	dirs := map[string]bool{}
	for _, dir := range watchDirs(s.Path) {
		dirs[dir] = true
	}
	if s.Bundle.Key.isFile() { // another key may make a refused bundle good
		for _, dir := range watchDirs(s.Bundle.Key.Key) {
			dirs[dir] = true
		}
	}
	if isPlain(s.Path) {
		files, _ := s.read() // what is wrong with them is reported where they are loaded
		for i := range files {
			if files[i].name != rules.EssentialFile {
				dirs[filepath.Dir(files[i].shown)] = true
			}
		}
	}
	return sortedKeys(dirs)
}

// ReadPlain reads the rules file at path, or that of the directory at path.
// The error is Errors.
func ReadPlain(path string) (*rules.Ruleset, error) {
	files, errs := Source{Path: path}.read()
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	for i := range files {
		if files[i].rules != nil {
			return files[i].rules, nil
		}
	}
	return nil, Errors{fileError(path, "holds no rules file", "give the path of a .yaml file, or of a directory that holds rules.yaml")}
}
