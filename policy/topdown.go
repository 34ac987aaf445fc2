package policy

import (
	"context"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/verdictd/verdictd/rules"
)

// resultVar is the variable that an entry's value is bound to.
const resultVar = ast.Var("x")

// interpreter evaluates a policy with OPA's topdown. It is the reference that
// any other evaluator must agree with. It is immutable.
type interpreter struct {
	compiler *ast.Compiler
	store    storage.Store
	txn      storage.Transaction // a read transaction: nothing writes to store
	input    *inputPlan
	entries  []entry // in the order in which they are asked; the first that is defined decides
	budget   time.Duration
	metrics  metrics.Metrics // counts nothing
}

// entry is a rule that makes decisions.
type entry struct {
	query  ast.Body
	decode func(ast.Value, *rules.Decision) error
}

func newInterpreter(ctx context.Context, p *program, budget time.Duration) (*interpreter, error) {
	t := &interpreter{
		compiler: p.compiler, store: p.store(), input: newInputPlan(p.fields, p.reads), budget: budget, metrics: metrics.NoOp(),
	}
	var err error
	if t.txn, err = t.store.NewTransaction(ctx); err != nil {
		return nil, fmt.Errorf("store data: %w", err)
	}
	if p.hasDecision {
		err = t.add(decisionRule, decodeDecision)
	}
	if p.hasVerdict && err == nil {
		err = t.add(verdictRule, decodeVerdict)
	}
	return t, err
}

func (t *interpreter) add(rule string, decode func(ast.Value, *rules.Decision) error) error {
	body, err := ast.ParseBody("data.verdictd." + rule + " = " + string(resultVar))
	if err == nil {
		body, err = t.compiler.QueryCompiler().Compile(body)
	}
	if err != nil {
		return fmt.Errorf("prepare query of rule %s: %w", rule, err)
	}
	t.entries = append(t.entries, entry{query: body, decode: decode})
	return nil
}

// evaluate implements evaluator.
func (t *interpreter) evaluate(f *rules.Facts, d *rules.Decision) error {
	var scratch rules.Value
	input := t.input.build(f, &scratch)
	limit := deadline{start: time.Now(), budget: t.budget}
	for i := range t.entries {
		value, err := t.ask(&t.entries[i], input, f.Meta.Time, &limit)
		if err != nil {
			return err
		}
		if value != nil {
			return t.entries[i].decode(value, d)
		}
	}
	*d = rules.Decision{Rule: defaultRule, Log: true, Reads: d.Reads}
	return nil
}

// ask returns the value of an entry, nil if it is undefined.
func (t *interpreter) ask(e *entry, input *ast.Term, now int64, limit *deadline) (ast.Value, error) {
	var value ast.Value
	err := topdown.NewQuery(e.query).
		WithCompiler(t.compiler).
		WithStore(t.store).
		WithTransaction(t.txn).
		WithInput(input).
		WithTime(time.Unix(0, now)).
		WithMetrics(t.metrics).
		WithCancel(limit).
		Iter(context.Background(), func(r topdown.QueryResult) error {
			value = r[resultVar].Value
			return nil
		})
	if limit.expired {
		return nil, &BudgetError{Budget: t.budget}
	}
	if err != nil {
		return nil, runtimeError(err)
	}
	return value, nil
}

// deadline stops an evaluation that takes too long. Topdown asks it at each
// step, so there is no timer and no goroutine: the clock is read every
// stepsPerLook steps. It is for one evaluation.
type deadline struct {
	start   time.Time
	budget  time.Duration
	steps   uint32
	expired bool
}

const stepsPerLook = 32

// Cancelled implements topdown.Cancel.
func (d *deadline) Cancelled() bool {
	d.steps++
	if !d.expired && d.steps%stepsPerLook == 0 {
		d.expired = time.Since(d.start) > d.budget
	}
	return d.expired
}

// Cancel implements topdown.Cancel.
func (d *deadline) Cancel() { d.expired = true }
