package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// testTimeout is how long one test may take.
const testTimeout = 5 * time.Second

// TestResult is the outcome of one test rule.
type TestResult struct {
	Name     string        `json:"name"`
	File     string        `json:"file"`
	Line     int           `json:"line"`
	Duration time.Duration `json:"duration_ns"`
	Outcome  Outcome       `json:"outcome"`
	Failure  *Error        `json:"failure,omitempty"` // where and why; nil unless Outcome is Fail
	Output   string        `json:"output,omitempty"`  // what the test printed
}

// Outcome says how a test ended.
type Outcome string

// Outcomes.
const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
	Skip Outcome = "skip" // rules named todo_test_
)

// runTests runs the policy's tests and returns their results, sorted by place,
// and what the tests covered. Without tests it returns nothing.
func (p *program) runTests(ctx context.Context) ([]TestResult, *cover.Cover, error) {
	if !p.hasTests() {
		return nil, nil, nil
	}
	coverage := cover.New()
	all, err := p.tests.use(p, func(runner *tester.Runner) ([]*tester.Result, error) {
		return p.run(ctx, runner.SetCoverageRuns(nil).SetCoverageQueryTracer(coverage))
	})
	if err != nil {
		return nil, nil, err
	}
	results := make([]TestResult, 0, len(all))
	for _, r := range all {
		out := TestResult{Name: r.Name, File: r.Location.File, Line: r.Location.Row, Duration: r.Duration, Outcome: Pass, Output: string(r.Output)}
		switch {
		case r.Skip:
			out.Outcome = Skip
		case !r.Pass():
			out.Outcome = Fail
			if out.Failure, err = p.failure(ctx, r); err != nil {
				return nil, nil, err
			}
		}
		results = append(results, out)
	}
	return results, coverage, nil
}

func (p *program) hasTests() bool {
	for _, m := range p.modules {
		if slices.ContainsFunc(m.Rules, isTestRule) {
			return true
		}
	}
	return false
}

func (p *program) newRunner() *tester.Runner {
	return tester.NewRunner().
		SetCompiler(p.newTestCompiler()).
		SetStore(p.store()).
		SetModules(p.modules).
		SetTimeout(testTimeout)
}

func (p *program) newTestCompiler() *ast.Compiler {
	return p.newCompiler().WithEnablePrintStatements(true)
}

// run runs the tests of runner and returns their results, sorted by place.
func (p *program) run(ctx context.Context, runner *tester.Runner) ([]*tester.Result, error) {
	store := p.store()
	runner.SetStore(store)
	var results []*tester.Result
	err := storage.Txn(ctx, store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		ch, err := runner.RunTests(ctx, txn)
		if err != nil {
			return p.explainer().explain(p.name, err)
		}
		for r := range ch {
			results = append(results, r)
		}
		return ctx.Err()
	})
	slices.SortFunc(results, func(a, b *tester.Result) int {
		return cmp.Or(cmp.Compare(a.Location.File, b.Location.File), a.Location.Row-b.Location.Row, cmp.Compare(a.Name, b.Name))
	})
	return results, err
}

// failure returns why a test did not pass. A test that came out false is run
// again, traced, to find the expression that made it so.
func (p *program) failure(ctx context.Context, r *tester.Result) (*Error, error) {
	if topdown.IsCancel(r.Error) {
		return errorAt(r.Location, fmt.Sprintf("%s takes longer than %v", r.Name, testTimeout), ""), nil
	}
	if terr, ok := errors.AsType[*topdown.Error](r.Error); ok {
		return errorAt(cmp.Or(terr.Location, r.Location), r.Name+": "+tidy(terr.Message), runtimeHint(terr)), nil
	}
	if r.Error != nil {
		return errorAt(r.Location, r.Name+": "+tidy(r.Error.Error()), ""), nil
	}
	runner := p.newRunner().EnableTracing(true).Filter("^" + regexp.QuoteMeta(r.Package+"."+r.Name) + "$")
	again, err := p.run(ctx, runner)
	if err != nil {
		return nil, err
	}
	for _, traced := range again {
		if expr := failedAt(traced); expr != nil && traced.Location.Equal(r.Location) {
			return errorAt(expr.Location, fmt.Sprintf("%s fails at: %s", r.Name, tidy(string(expr.Location.Text))), p.decided(ctx, expr)), nil
		}
	}
	return errorAt(r.Location, fmt.Sprintf("%s fails%s", r.Name, failedCases(r)), ""), nil
}

// decided says what the decision was for the input that an expression gives by
// with; "" if that is not constant.
func (p *program) decided(ctx context.Context, e *ast.Expr) string {
	if len(e.With) == 0 || slices.ContainsFunc(e.With, func(w *ast.With) bool { return !ast.IsConstant(w.Value.Value) }) {
		return ""
	}
	name := decisionRule
	if !p.hasDecision {
		name = verdictRule
	}
	query := ast.Equality.Expr(ast.MustParseTerm("data.verdictd."+name), ast.VarTerm(string(resultVar)))
	query.With = e.With
	store := p.store()
	said := "undefined, so the packet is dropped"
	err := storage.Txn(ctx, store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		body, err := p.compiler.QueryCompiler().Compile(ast.NewBody(query))
		if err != nil {
			return err
		}
		return topdown.NewQuery(body).WithCompiler(p.compiler).WithStore(store).WithTransaction(txn).Iter(ctx, func(r topdown.QueryResult) error {
			said = r[resultVar].String()
			return nil
		})
	})
	if err != nil {
		return ""
	}
	return name + " is " + said
}

// failedCases names the cases of a table test that failed.
func failedCases(r *tester.Result) string {
	var names []string
	for name, sub := range r.SubResults.Iter {
		if sub.Fail {
			names = append(names, strings.Join(name, "/"))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " in case " + strings.Join(names, ", ")
}

// failedAt returns the last expression of the test rule itself that failed, or
// nil if none did.
func failedAt(r *tester.Result) *ast.Expr {
	last, _ := r.Location.End()
	for _, e := range slices.Backward(r.Trace) {
		expr, ok := e.Node.(*ast.Expr)
		if !ok || e.Op != topdown.FailOp || expr.Location == nil {
			continue
		}
		if l := expr.Location; l.File == r.Location.File && l.Row >= r.Location.Row && l.Row <= last {
			return expr
		}
	}
	return nil
}

// failures returns why tests failed.
func failures(results []TestResult) Errors {
	var errs Errors
	for i := range results {
		if results[i].Failure != nil {
			errs = append(errs, results[i].Failure)
		}
	}
	return errs
}

// covered returns the share, in percent, of the live policy's lines that the
// tests ran. A line of which a part was not run does not count as run.
func (p *program) covered(c *cover.Cover) float64 {
	report := c.Report(p.live)
	total, missed := 0, 0
	for name := range p.live {
		if name == essentialAs {
			continue // not the policy's to test
		}
		fr := report.Files[name]
		if fr == nil {
			continue
		}
		not := rows(fr.NotCovered)
		all := rows(fr.Covered)
		maps.Copy(all, not)
		for row := range testRows(p.modules[name]) {
			delete(all, row)
			delete(not, row)
		}
		total += len(all)
		missed += len(not)
	}
	if total == 0 {
		return 100
	}
	return 100 * float64(total-missed) / float64(total)
}

// rows returns the lines that ranges touch.
func rows(ranges []cover.Range) map[int]bool {
	set := map[int]bool{}
	for _, r := range ranges {
		for row := r.Start.Row; row <= r.End.Row; row++ {
			set[row] = true
		}
	}
	return set
}

// testRows returns the lines of a module that belong to tests.
func testRows(m *ast.Module) map[int]bool {
	var ranges []cover.Range
	for _, r := range m.Rules {
		if isTestRule(r) {
			end, _ := r.Location.End()
			ranges = append(ranges, cover.Range{Start: cover.Position{Row: r.Location.Row}, End: cover.Position{Row: end}})
		}
	}
	return rows(ranges)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
