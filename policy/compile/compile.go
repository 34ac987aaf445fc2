package compile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"

	"github.com/verdictd/verdictd/rules"
)

// DefaultBudget is the number of steps that a decision may take: about 1 ms.
const DefaultBudget = 100_000

// Input is what Compile compiles.
type Input struct {
	// Modules are the policy's modules by name, parsed with their file names.
	// They are not changed.
	Modules map[string]*ast.Module

	// Data is the base document data. Nil: empty.
	Data ast.Object

	// Entries are the rules that decide, in the order in which they are
	// asked: the first that is defined does.
	Entries []Entry

	// Undefined is the decision if no entry is defined. Its zero value drops.
	Undefined rules.Decision

	// Budget is the number of steps that one evaluation may take. 0:
	// DefaultBudget.
	Budget int

	// Capabilities are those that the modules are checked against. Nil: those
	// of the linked version of OPA.
	Capabilities *ast.Capabilities
}

// Entry is a rule that decides.
type Entry struct {
	Path string // as in "verdictd/decision"

	// Decode turns the rule's value into d, all of which it sets. It is
	// called when the program is made, for the values that are constants, and
	// by evaluations for others, by several goroutines at once. It must give
	// the same decision for the same value.
	Decode func(v ast.Value, d *rules.Decision) error
}

// Unsupported says why a policy cannot be compiled. Its decisions have to be
// made by OPA's own evaluator.
type Unsupported struct {
	Rule     string // path of the rule, "verdictd.decision"
	File     string // empty if there is no place to name
	Row, Col int
	Reason   string
}

// Error returns "file:line:column: rule: reason".
func (u *Unsupported) Error() string {
	if u.File == "" {
		return fmt.Sprintf("compile %s: %s", u.Rule, u.Reason)
	}
	return fmt.Sprintf("%s:%d:%d: compile %s: %s", u.File, u.Row, u.Col, u.Rule, u.Reason)
}

// Program is a compiled policy with its data. It is immutable; any number of
// goroutines may evaluate it at once.
type Program struct {
	policy *ir.Policy // what WithData lowers again
	in     Input
	fields []rules.Field

	entries  []entry
	sizes    sizes
	stats    Stats
	machines *sync.Pool
}

// entry is an Entry, lowered.
type entry struct {
	path   string
	fn     *function
	query  bool // fn puts an object with the value into machine.results
	decode func(ast.Value, *rules.Decision) error
	known  map[ast.Value]rules.Decision // those that are constants
}

// Stats say what a program holds.
type Stats struct {
	Statements int // lowered statements, copies included
	Functions  int // versions of rules and functions
	Folded     int // of those, the ones that are constants

	// Bytes is an estimate of the memory that the program holds beside the
	// data: code and indexes.
	Bytes int
}

// statementBytes is what a lowered statement takes on average, measured.
const statementBytes = 160

// Compile compiles a policy over the input document that fields define. ctx
// ends the compilation early.
//
// Errors: ast.Errors for what is wrong with the modules; *Unsupported for
// policies that only OPA's evaluator can run.
func Compile(ctx context.Context, in Input, fields []rules.Field) (*Program, error) {
	in.Budget = cmp.Or(in.Budget, DefaultBudget)
	if in.Capabilities == nil {
		in.Capabilities = ast.CapabilitiesForThisVersion()
	}
	paths := make([]string, len(in.Entries))
	for i, e := range in.Entries {
		paths[i] = e.Path
	}
	policy, err := plan(ctx, in.Modules, paths, in.Capabilities)
	if err != nil {
		return nil, err
	}
	return link(policy, in, fields)
}

// WithData returns the same policy over other data. The modules are not
// compiled again.
func (p *Program) WithData(data ast.Object) (*Program, error) {
	in := p.in
	in.Data = data
	return link(p.policy, in, p.fields)
}

// Stats returns what p holds.
func (p *Program) Stats() Stats { return p.stats }

// link lowers a plan over in.Data.
func link(policy *ir.Policy, in Input, fields []rules.Field) (_ *Program, err error) {
	defer func() {
		if r := recover(); r != nil { // of a builtin, called with constants
			err = &Unsupported{Rule: "policy", Reason: fmt.Sprintf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	doc, err := newDocument(fields)
	if err != nil {
		return nil, err
	}
	if in.Data == nil {
		in.Data = ast.NewObject()
	}
	c := newCompiler(policy, fields, doc, in.Data)
	p := &Program{policy: policy, in: in, fields: fields}
	for i, e := range in.Entries {
		p.entries = append(p.entries, c.entry(e, policy.Plans.Plans[i]))
	}
	if c.failure != nil {
		return nil, c.failure
	}
	p.sizes, p.stats = c.sizes, c.stats()
	p.machines = &sync.Pool{New: func() any { return newMachine(fields) }}
	return p, nil
}

// entry lowers the rule of an entry, or, where several rules make up its
// value, the query for it.
func (c *compiler) entry(e Entry, plan *ir.Plan) entry {
	out := entry{path: e.Path, decode: e.Decode, known: map[ast.Value]rules.Decision{}}
	if f := ruleFunc(c.policy, strings.Split(e.Path, "/")); f != nil {
		out.fn = c.version(f, []known{{form: document, node: c.doc}, c.base()})
	} else {
		start := newEnv()
		start.locals[ir.Input], start.locals[ir.Data] = known{form: document, node: c.doc}, c.base()
		g := &gen{c: c, name: e.Path, copies: 1, rebuilds: rebuilds(plan.Blocks)}
		out.query, out.fn = true, &function{name: e.Path, memo: -1, run: g.lower(plan.Blocks, start)}
		out.fn.size = g.layout.size
	}
	for _, v := range out.fn.constants {
		var d rules.Decision
		if err := e.Decode(v, &d); err == nil {
			out.known[v] = d
		}
	}
	return out
}

func (c *compiler) stats() Stats {
	s := Stats{Statements: c.closures, Bytes: c.closures*statementBytes + c.tables}
	for _, versions := range c.versions {
		for _, fn := range versions {
			s.Functions++
			if fn.folded {
				s.Folded++
			}
		}
	}
	return s
}

// Evaluate decides about f, filling in all of d. d.Reads are the fields that
// the decision depends on: any facts that agree on them, absence included,
// get the same decision. Nothing of f is kept.
//
// Errors: ErrBudget, those of Doubtful, those of an Entry's Decode and of
// builtins that halt the evaluation. d is a drop without a rule then,
// with its Reads.
func (p *Program) Evaluate(f *rules.Facts, d *rules.Decision) (err error) {
	m := p.machines.Get().(*machine)
	defer func() {
		if r := recover(); r != nil { // m is lost: its state is not known
			*d = rules.Decision{Reads: m.loaded}
			err = fmt.Errorf("evaluate policy: panic: %v\n%s", r, debug.Stack())
		}
	}()
	err = p.run(m, f, d)
	p.machines.Put(m)
	return err
}

// run is Evaluate on a machine.
func (p *Program) run(m *machine, f *rules.Facts, d *rules.Decision) error {
	m.begin(f, p.sizes, p.in.Budget)
	err := p.decide(m, d)
	if err != nil {
		*d = rules.Decision{}
	}
	d.Reads = m.loaded
	m.end()
	return err
}

// Doubtful returns whether an error of Evaluate is one on which OPA's own
// evaluator may have a decision, and is to be asked: see ErrConflict,
// ErrNumberKey and ErrEqualKeys.
func Doubtful(err error) bool {
	for _, doubt := range []error{ErrConflict, ErrKeyConflict, ErrNumberKey, ErrEqualKeys} {
		if errors.Is(err, doubt) {
			return true
		}
	}
	return false
}

// decide asks the entries.
func (p *Program) decide(m *machine, d *rules.Decision) error {
	for i := range p.entries {
		e := &p.entries[i]
		v, err := e.value(m)
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		if known, ok := e.known[v]; ok {
			*d = known
			return nil
		}
		return e.decideBy(m, i, v, d)
	}
	*d = p.in.Undefined
	return nil
}

// decisionKey names a decision: the entry's index and its value.
type decisionKey struct {
	entry int
	v     ast.Value
}

// decideBy decodes the value of entry i, once as long as m keeps the value.
func (e *entry) decideBy(m *machine, i int, v ast.Value, d *rules.Decision) error {
	if v != m.kept {
		return e.decode(v, d)
	}
	key := decisionKey{i, v}
	if known, ok := m.decisions[key]; ok {
		*d = known
		return nil
	}
	err := e.decode(v, d)
	if err == nil {
		if len(m.decisions) >= maxObjects {
			clear(m.decisions)
		}
		m.decisions[key] = *d
	}
	return err
}

// value evaluates an entry; nil means undefined.
func (e *entry) value(m *machine) (ast.Value, error) {
	if e.fn.folded {
		return e.fn.value, nil
	}
	v, c := m.run(e.fn, nil, nil)
	switch {
	case c != next || m.err != nil:
		return nil, m.err
	case !e.query:
		return v, nil
	case len(m.results) == 0:
		return nil, nil
	}
	v = lookupTerm(m.results[0], ast.StringTerm("result"))
	m.results = m.results[:0]
	return v, nil
}
