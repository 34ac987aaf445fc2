package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/verdictd/verdictd/rules"
)

// program is a policy that was read, parsed and type-checked, before it is
// made into something that runs. It is what evaluators are built from.
type program struct {
	name    string // as messages name it
	hash    string
	files   []file
	fields  []rules.Field
	caps    *ast.Capabilities
	schemas *ast.SchemaSet
	data    ast.Object

	plain   *rules.Ruleset         // nil if there is no rules file
	modules map[string]*ast.Module // as parsed, by the name that messages use
	live    map[string]*ast.Module // modules without tests: what packets are judged by

	compiler *ast.Compiler // of live
	all      *ast.Compiler // of modules
	tests    *testCompiler // of modules, by the first run of the tests
	reads    rules.FieldSet

	hasDecision, hasVerdict bool // which of the two rules live defines

	suspicions Errors // what given found that may be meant
}

// newProgram checks the policy that files are, which were read from src. Its
// tests are not yet run.
func newProgram(ctx context.Context, src Source, files []file) (*program, Errors) {
	files = withLibrary(files)
	caps := capabilities()
	schemas, err := schemaSet()
	if err != nil {
		return nil, Errors{fileError(src.String(), "input schema: "+err.Error(), "this is a fault of verdictd")}
	}
	p := &program{name: src.String(), hash: hash(files), files: files, fields: rules.Fields(), caps: caps, schemas: schemas, tests: &testCompiler{}}
	for _, step := range []func(context.Context) Errors{p.parse, p.entries, p.compile} {
		if errs := step(ctx); len(errs) > 0 {
			return nil, errs.sorted()
		}
	}
	p.reads = readSet(p.compiler.Modules, p.fields)
	if errs := p.given(); len(errs) > 0 {
		return nil, errs.sorted()
	}
	return p, nil
}

// schemaSet returns the schema of the input document for OPA's type checker.
func schemaSet() (*ast.SchemaSet, error) {
	var raw any
	if err := json.Unmarshal(rules.Schema(), &raw); err != nil {
		return nil, err
	}
	set := ast.NewSchemaSet()
	set.Put(ast.SchemaRootRef, raw)
	return set, nil
}

// explainer returns what turns OPA's errors into ours.
func (p *program) explainer() explainer {
	names := make([]string, len(p.caps.Builtins))
	for i, b := range p.caps.Builtins {
		names[i] = b.Name
	}
	return explainer{builtins: names}
}

// parse parses all files.
func (p *program) parse(context.Context) Errors {
	var errs Errors
	p.data, errs = data(p.files)
	p.modules, p.live = map[string]*ast.Module{}, map[string]*ast.Module{}
	for i := range p.files {
		f := &p.files[i]
		if f.rules != nil {
			errs = append(errs, p.parsePlain(f)...)
		}
		if !f.isRego() {
			continue
		}
		m, err := ast.ParseModuleWithOpts(f.shown, string(f.content), ast.ParserOptions{
			Capabilities: p.caps, RegoVersion: ast.RegoV1, ProcessAnnotation: true,
		})
		if err != nil {
			errs = append(errs, p.explainer().explain(f.shown, err)...)
			continue
		}
		p.modules[f.shown] = m
		if !f.isTest() {
			p.live[f.shown] = withoutTests(m)
		}
	}
	errs = append(errs, p.misnamed()...)
	if len(errs) == 0 && len(p.live) == 0 {
		return Errors{fileError(p.name, "holds no policy", "put a .rego file with package verdictd, or a rules.yaml, there")}
	}
	return errs
}

// withoutTests returns the module without its test rules.
func withoutTests(m *ast.Module) *ast.Module {
	live := *m
	live.Rules = nil
	for _, r := range m.Rules {
		if !isTestRule(r) {
			live.Rules = append(live.Rules, r)
		}
	}
	return &live
}

// isTestRule returns whether OPA's test runner takes the rule for a test.
func isTestRule(r *ast.Rule) bool {
	for _, t := range r.Head.Ref().GroundPrefix() {
		name := ""
		switch v := t.Value.(type) {
		case ast.Var:
			name = string(v)
		case ast.String:
			name = string(v)
		}
		if strings.HasPrefix(name, "test_") || strings.HasPrefix(name, "todo_test_") {
			return true
		}
	}
	return false
}

// entries finds the rules that make the decision and checks their form.
func (p *program) entries(context.Context) Errors {
	var errs Errors
	var first *ast.Module // of package verdictd
	for _, name := range sortedKeys(p.live) {
		m := p.live[name]
		if m.Package.Path.String() != "data.verdictd" {
			continue
		}
		if first == nil {
			first = m
		}
		errs = append(errs, p.moduleEntries(m)...)
	}
	switch {
	case first == nil:
		m := p.live[sortedKeys(p.live)[0]]
		name := strings.TrimPrefix(m.Package.Path.String(), "data.")
		errs = append(errs, errorAt(m.Package.Location, fmt.Sprintf("package is %s, want verdictd", name), "begin the policy with: package verdictd"))
	case !p.hasDecision && !p.hasVerdict:
		errs = append(errs, errorAt(first.Package.Location, "package verdictd defines neither decision nor verdict, so it would drop every packet",
			`add a rule such as: verdict := "accept" if input.tcp.dst_port == 443`))
	}
	return append(errs, p.checkPlain()...)
}

func (p *program) moduleEntries(m *ast.Module) Errors {
	for _, r := range m.Rules {
		name, ok := r.Head.Ref()[0].Value.(ast.Var)
		isDecision, isVerdict := name == decisionRule, name == verdictRule
		if !ok || !isDecision && !isVerdict {
			continue
		}
		p.hasDecision = p.hasDecision || isDecision
		p.hasVerdict = p.hasVerdict || isVerdict
		if len(r.Head.Args) > 0 || r.Head.RuleKind() == ast.MultiValue || isVerdict && len(r.Head.Ref()) > 1 {
			return Errors{errorAt(r.Location, string(name)+" must be a rule with one value", "write "+string(name)+" := ... if { ... }")}
		}
	}
	return checkConstants(m)
}

// compile type-checks all modules, strictly, and then compiles those that
// packets are judged by.
func (p *program) compile(ctx context.Context) Errors {
	p.all = p.newCompiler().WithStrict(true)
	if p.all.Compile(p.modules); p.all.Failed() {
		return p.explainer().explain(p.name, p.all.Errors)
	}
	if errs := p.conflicts(ctx); len(errs) > 0 {
		return errs
	}
	p.compiler = p.newCompiler()
	if p.compiler.Compile(p.live); p.compiler.Failed() {
		return p.explainer().explain(p.name, p.compiler.Errors)
	}
	return nil
}

// conflicts returns where a rule and the data would give the same document.
func (p *program) conflicts(ctx context.Context) Errors {
	store := p.store()
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return Errors{fileError(p.name, "store data: "+err.Error(), "")}
	}
	defer store.Abort(ctx, txn)
	if errs := ast.CheckPathConflicts(p.all, storage.NonEmpty(ctx, store, txn)); len(errs) > 0 {
		return p.explainer().explain(p.name, errs)
	}
	return nil
}

// newCompiler returns a compiler that knows the input document and allows
// what a policy may use.
func (p *program) newCompiler() *ast.Compiler {
	return ast.NewCompiler().WithCapabilities(p.caps).WithSchemas(p.schemas).
		WithDefaultRegoVersion(ast.RegoV1).SetErrorLimit(2 * maxErrors)
}

// store returns the policy's data as a store that evaluations read without
// conversion.
func (p *program) store() storage.Store { return inmem.NewFromASTObject(p.data) }
