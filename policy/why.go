package policy

import (
	"context"
	"errors"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// explainTime is how long an evaluation may take that is traced.
const explainTime = 10 * time.Second

// Explainer says why a policy decides as it does. It evaluates with tracing
// and without indexes, some hundred times slower than Policy: it is for people
// who ask, not for packets. It is immutable and safe for concurrent use.
type Explainer struct {
	p     *program
	run   *interpreter
	rules map[place]*ast.Rule // as parsed
}

// place is where a rule or an expression begins.
type place struct {
	file   string
	offset int
}

// Explanation is why a policy decided as it did.
type Explanation struct {
	Policy string `json:"policy"`
	Hash   string `json:"sha256"`

	Decision Outcomes      `json:"decision"`
	Took     time.Duration `json:"took_ns"` // one evaluation as Policy does it, without tracing

	// DecidedBy are the rules whose values made the decision. It is empty where
	// no rule did, and then the packet is dropped; there is more than one where
	// several rules agree, or conflict.
	DecidedBy []Tried `json:"decided_by"`

	// Facts are the input fields that the evaluation looked at, in the order in
	// which it did.
	Facts []Fact `json:"facts"`

	// Near are the rules that came nearest to a decision but made none, in the
	// order in which they were tried, and Farther is how many are left out.
	Near    []Tried `json:"near"`
	Farther int     `json:"farther"`
}

// Outcomes is a decision, or the error in its place.
type Outcomes struct {
	Verdict string  `json:"verdict"` // accept, drop or reject; drop if there is an error
	Rule    string  `json:"rule,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Log     bool    `json:"log"`
	Mark    *uint32 `json:"mark,omitempty"`
	Error   string  `json:"error,omitempty"` // the policy decides nothing: the failure table does
}

// Action returns the verdict.
func (o *Outcomes) Action() packet.Action {
	for _, a := range []packet.Action{packet.Accept, packet.Reject} {
		if o.Verdict == a.String() {
			return a
		}
	}
	return packet.Drop
}

// Fact is an input field that was looked at.
type Fact struct {
	Field string `json:"field"`
	State string `json:"state"` // present, absent or unknown
	Value any    `json:"value,omitempty"`
	Why   string `json:"why,omitempty"` // it is absent, as far as the caller knows: Explain does not
}

// Tried is a rule that was tried.
type Tried struct {
	Name string `json:"name"` // decision (web): the rule, and what it says its name is
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`

	Matched    bool        `json:"matched"`
	Held       int         `json:"held"` // how many of its conditions held
	Of         int         `json:"of"`   // how many it has
	Conditions []Condition `json:"conditions"`

	// Used are rules that this one asked: those that made its conditions hold,
	// or that would have had to match for the one that failed.
	Used    []Tried `json:"used,omitempty"`
	Farther int     `json:"farther,omitempty"` // how many of those are left out
}

// Condition is one expression of a rule's body. Of a rule that matched, all
// are told, else only the one that failed.
type Condition struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
	Text string `json:"text"`
	Held bool   `json:"held"`
	Saw  []Seen `json:"saw"`

	// Tries is how often it was evaluated where some iterates: Saw is of the
	// first.
	Tries int `json:"tries"`
}

// Seen is the value that a part of a condition had.
type Seen struct {
	What  string `json:"what"`
	Value string `json:"value"` // as Rego writes it; "undefined", "absent", "unknown"
}

// NewExplainer reads and checks the policy at src. Its tests are not run, and
// a kept bundle is not looked at. The error is as Load returns it.
func NewExplainer(ctx context.Context, src Source) (*Explainer, error) {
	files, err := src.files(ctx)
	if err != nil {
		return nil, err
	}
	p, errs := newProgram(ctx, src, files)
	if len(errs) > 0 {
		return nil, errs
	}
	return newExplainer(ctx, p, src.Budget)
}

func newExplainer(ctx context.Context, p *program, budget time.Duration) (*Explainer, error) {
	if budget <= 0 {
		budget = DefaultBudget
	}
	run, err := newInterpreter(ctx, p, budget)
	if err != nil {
		return nil, Errors{fileError(p.name, err.Error(), "")}
	}
	x := &Explainer{p: p, run: run, rules: map[place]*ast.Rule{}}
	for _, m := range p.live {
		for _, r := range m.Rules {
			for ; r != nil; r = r.Else {
				x.rules[placeOf(r.Location)] = r
			}
		}
	}
	return x, nil
}

func placeOf(l *ast.Location) place {
	if l == nil {
		return place{offset: -1}
	}
	return place{l.File, l.Offset}
}

// Hash returns the SHA-256 of the policy, as Policy.Hash does.
func (x *Explainer) Hash() string { return x.p.hash }

// Decide decides about in as Policy.Evaluate does about a packet. What in does
// not know counts as absent.
func (x *Explainer) Decide(in *rules.Input) (Outcomes, time.Duration) {
	run := *x.run
	run.input = newInputPlan(in.Fields(), x.p.reads)
	var d rules.Decision
	start := time.Now()
	err := run.evaluate(&rules.Facts{Meta: &packet.Meta{}}, &d)
	took := time.Since(start)
	if err != nil {
		return Outcomes{Verdict: packet.Drop.String(), Log: true, Error: err.Error()}, took
	}
	out := Outcomes{Verdict: d.Action.String(), Rule: d.Rule, Reason: d.Reason, Log: d.Log}
	if d.SetMark {
		out.Mark = &d.Mark
	}
	return out, took
}

// Explain says why the policy decides about in as it does. It tells of up to
// nearest rules that came near, 0 meaning 5.
//
// The error says that the policy could not be traced: it takes too long, or ctx
// ended. That the policy makes no decision is no error but in the Explanation.
func (x *Explainer) Explain(ctx context.Context, in *rules.Input, nearest int) (*Explanation, error) {
	if nearest <= 0 {
		nearest = 5
	}
	x.Decide(in) // the first evaluation pays for cold caches
	e := &Explanation{Policy: x.p.name, Hash: x.p.hash}
	e.Decision, e.Took = x.Decide(in)
	t := newTrace(x, in)
	if err := x.trace(ctx, in, t); err != nil {
		return nil, err
	}
	e.Facts = t.facts()
	t.report(e, nearest)
	return e, nil
}

// trace evaluates the policy on in and lets t watch.
func (x *Explainer) trace(ctx context.Context, in *rules.Input, t *trace) error {
	var v rules.Value
	input := newInputPlan(in.Fields(), x.p.reads).build(nil, &v)
	limit := deadline{start: time.Now(), budget: explainTime}
	stop := context.AfterFunc(ctx, t.stop)
	defer stop()
	for i := range x.run.entries {
		t.enterQuery()
		defined := false
		err := topdown.NewQuery(x.run.entries[i].query).
			WithCompiler(x.run.compiler).
			WithStore(x.run.store).
			WithTransaction(x.run.txn).
			WithInput(input).
			WithMetrics(x.run.metrics).
			WithCancel(&tracedCancel{deadline: &limit, t: t}).
			WithIndexing(false). // it would pass over rules without a word
			WithQueryTracer(t).
			Iter(ctx, func(topdown.QueryResult) error { defined = true; return nil })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case limit.expired:
			return errors.New("explain decision: the policy takes longer than " + explainTime.String() + " to trace")
		case err != nil || defined:
			return nil // an error of the policy is what Decide says
		}
	}
	return nil
}

// tracedCancel ends a traced evaluation when its time is over or nobody waits
// for it any more.
type tracedCancel struct {
	*deadline
	t *trace
}

// Cancelled implements topdown.Cancel.
func (c *tracedCancel) Cancelled() bool { return c.deadline.Cancelled() || c.t.stopped.Load() }
