package compile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/test/cases"
	"github.com/open-policy-agent/opa/v1/test/cases/testdata"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/verdictd/verdictd/rules"
)

// OPA's conformance cases are queries over any input, so they go to the
// compiler through a target plugin, with the input as a value (generic) or,
// where it has scalar leaves only, as the fields of a document.

// target is the plugin. It runs plans with this package.
type target struct {
	t    *testTarget
	name string
}

type testTarget struct {
	data   ast.Value
	fields []rules.Field
}

func (p target) IsTarget(name string) bool { return name == p.name }

func (p target) PrepareForEval(_ context.Context, policy *ir.Policy, _ ...rego.PrepareOption) (rego.TargetPluginEval, error) {
	tidy(policy)
	q := &query{plan: policy.Plans.Plans[0]}
	c := newCompiler(policy, p.t.fields, nil, p.t.data)
	c.generic = true
	start := newEnv()
	start.locals[ir.Data] = c.base()
	if p.t.fields != nil {
		doc, err := newDocument(p.t.fields)
		if err != nil {
			return nil, err
		}
		doc.always = false // a case without input has none at all
		c.doc = doc
		start.locals[ir.Input] = known{form: document, node: doc}
	}
	g := &gen{c: c, name: "query", copies: 1, rebuilds: rebuilds(q.plan.Blocks)}
	q.run = g.lower(q.plan.Blocks, start)
	q.size, q.input, q.sizes, q.fields = g.layout.size, g.place(ir.Input), c.sizes, p.t.fields
	return q, c.failure
}

type query struct {
	plan   *ir.Plan
	run    op
	size   int
	input  int
	sizes  sizes
	fields []rules.Field
}

func (q *query) Eval(_ context.Context, ec *rego.EvalContext, _ ast.Value) (ast.Value, error) {
	m := newMachine(q.fields)
	m.begin(&rules.Facts{}, q.sizes, 1<<30)
	m.context.Time = ast.NumberTerm("1700000000000000000")
	m.context.Seed, m.context.InterQueryBuiltinCache = ec.Seed(), ec.InterQueryBuiltinCache()
	m.context.InterQueryBuiltinValueCache = ec.InterQueryBuiltinValueCache()
	m.context.Runtime = ast.NewTerm(ast.NewObject())
	m.enter(q.size)
	if q.input >= 0 {
		m.frame[q.input] = inputOf(ec)
	}
	if q.run(m) == fail {
		return nil, m.err
	}
	out := ast.NewSet()
	for _, r := range m.results {
		out.Add(ast.NewTerm(r))
	}
	return out, nil
}

func inputOf(ec *rego.EvalContext) ast.Value {
	if v := ec.ParsedInput(); v != nil {
		return v
	}
	if raw := ec.RawInput(); raw != nil {
		return ast.MustInterfaceToValue(*raw)
	}
	return nil
}

func TestConformance(t *testing.T) {
	t.Cleanup(rego.ResetTargetPlugins)
	modes := []string{"generic", "fields"}
	targets := map[string]*testTarget{}
	for _, mode := range modes {
		targets[mode] = new(testTarget)
		rego.RegisterPlugin(mode, target{targets[mode], mode})
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tt := targets[mode]
			count := map[string]int{}
			eachCase(t, func(c cases.TestCase) {
				result := runCase(t, tt, mode, c)
				count[result]++
				if strings.HasPrefix(result, "skip") && !strings.HasSuffix(result, "scalars") {
					t.Logf("%s: %s/%s", result, c.Filename, c.Note)
				}
			})
			t.Logf("%s: %v", mode, count)
			if count["pass"] < 1000 {
				t.Errorf("only %d cases passed: the suite was not found or does not run", count["pass"])
			}
		})
	}
}

func eachCase(t *testing.T, f func(cases.TestCase)) {
	t.Helper()
	err := fs.WalkDir(testdata.V1, "v1", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".yaml") {
			return err
		}
		b, err := fs.ReadFile(testdata.V1, name)
		if err != nil {
			return err
		}
		var set cases.Set
		if err := util.Unmarshal(b, &set); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range set.Cases {
			c.Filename = path.Base(path.Dir(name))
			f(c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// runCase runs c on OPA's evaluator and on ours, and returns "pass", "fail",
// "exception" or the reason why the case does not apply.
func runCase(t *testing.T, tt *testTarget, mode string, c cases.TestCase) string {
	t.Helper()
	if c.Env != nil || strings.HasPrefix(c.Note, "rand.intn") || strings.HasPrefix(c.Note, "uuid.rfc4122") {
		return "skip: environment or random"
	}
	input, ok := caseInput(t, c)
	if !ok {
		return "skip: input"
	}
	tt.fields = nil
	if mode == "fields" {
		if tt.fields, ok = fieldsOf(input); !ok {
			return "skip: input is not made of scalars"
		}
	}
	want, wantErr, ok := evalCase(tt, c, input, "rego")
	if !ok {
		return "skip: does not compile"
	}
	got, gotErr, ok := evalCase(tt, c, input, mode)
	switch {
	case !ok:
		return "skip: planner"
	case (wantErr == nil) != (gotErr == nil):
		t.Errorf("%s/%s: error %v, want %v", c.Filename, c.Note, gotErr, wantErr)
		return "fail"
	case wantErr == nil && ast.Compare(got, want) != 0:
		t.Errorf("%s/%s: got %v, want %v", c.Filename, c.Note, got, want)
		return "fail"
	}
	return "pass"
}

func caseInput(t *testing.T, c cases.TestCase) (ast.Value, bool) {
	t.Helper()
	switch {
	case c.InputTerm != nil:
		term, err := ast.ParseTerm(*c.InputTerm)
		if err != nil {
			t.Fatalf("%s: %v", c.Note, err)
		}
		return term.Value, true
	case c.Input != nil:
		return ast.MustInterfaceToValue(*c.Input), true
	}
	return nil, true
}

// evalCase returns the set of results of c; ok is false if it does not
// compile.
func evalCase(tt *testTarget, c cases.TestCase, input ast.Value, targetName string) (_ ast.Value, err error, ok bool) {
	data := map[string]any{}
	if c.Data != nil {
		data = *c.Data
	}
	tt.data = ast.MustInterfaceToValue(data)
	opts := []func(*rego.Rego){
		rego.Query(c.Query), rego.Target(targetName), rego.Store(inmem.NewFromObject(data)),
		rego.SetRegoVersion(ast.RegoV1), rego.StrictBuiltinErrors(false), rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t, nil }),
	}
	for i, m := range c.Modules {
		parsed, err := ast.ParseModuleWithOpts(fmt.Sprintf("case%d.rego", i), m, ast.ParserOptions{AllFutureKeywords: true, RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, err, false
		}
		opts = append(opts, rego.ParsedModule(parsed))
	}
	pq, err := rego.New(opts...).PrepareForEval(context.Background())
	if err != nil {
		return nil, err, false
	}
	eval := []rego.EvalOption{rego.EvalTime(time.Unix(1_700_000_000, 0))}
	if input != nil {
		eval = append(eval, rego.EvalParsedInput(input))
	}
	rs, err := pq.Eval(context.Background(), eval...)
	if err != nil {
		return nil, err, true
	}
	out := ast.NewSet()
	for _, r := range rs {
		out.Add(ast.NewTerm(resultValue(r)))
	}
	return out, nil, true
}

func resultValue(r rego.Result) ast.Value {
	obj := ast.NewObject()
	for k, v := range r.Bindings {
		obj.Insert(ast.StringTerm(k), v.(*ast.Term))
	}
	exprs := ast.NewArray()
	for _, x := range r.Expressions {
		if t, ok := x.Value.(*ast.Term); ok {
			exprs = exprs.Append(t)
		}
	}
	return ast.NewArray(ast.NewTerm(obj), ast.NewTerm(exprs))
}

var errNotScalar = errors.New("not a scalar")

// fieldsOf makes fields of an input whose leaves are booleans, integers and
// strings under names without dots; empty objects have no field.
func fieldsOf(input ast.Value) ([]rules.Field, bool) {
	if input == nil { // a document of absent fields is undefined
		absent := func(*rules.Facts, *rules.Value) bool { return false }
		return []rules.Field{{Path: "absent", Kind: rules.Int, Get: absent}}, true
	}
	obj, ok := input.(ast.Object)
	if !ok || obj.Len() == 0 {
		return nil, false
	}
	var fields []rules.Field
	err := addFields(&fields, "", obj)
	return fields, err == nil && len(fields) <= 64*len(rules.FieldSet{})
}

func addFields(fields *[]rules.Field, prefix string, obj ast.Object) error {
	if obj.Len() == 0 {
		return errNotScalar
	}
	return obj.Iter(func(k, v *ast.Term) error {
		name, ok := k.Value.(ast.String)
		if !ok || strings.Contains(string(name), ".") {
			return errNotScalar
		}
		switch v := v.Value.(type) {
		case ast.Object:
			return addFields(fields, prefix+string(name)+".", v)
		case ast.Boolean:
			n := int64(0)
			if v {
				n = 1
			}
			*fields = append(*fields, constField(prefix+string(name), rules.Bool, rules.Value{Int: n}))
		case ast.Number:
			n, ok := v.Int64()
			if !ok || n < 0 {
				return errNotScalar
			}
			*fields = append(*fields, constField(prefix+string(name), rules.Int, rules.Value{Int: n}))
		case ast.String:
			*fields = append(*fields, stringField(prefix+string(name), string(v)))
		default:
			return errNotScalar
		}
		return nil
	})
}

// stringField makes an Addr field of a string that is the text of an address.
func stringField(path, s string) rules.Field {
	if a, ok := parseAddr(s); ok {
		return constField(path, rules.Addr, rules.Value{Addr: a})
	}
	return constField(path, rules.String, rules.Value{Str: s})
}

func constField(path string, kind rules.Kind, val rules.Value) rules.Field {
	return rules.Field{Path: path, Kind: kind, Get: func(_ *rules.Facts, v *rules.Value) bool { *v = val; return true }}
}
