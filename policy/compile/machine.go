package compile

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/verdictd/verdictd/rules"
)

// ErrBudget says that an evaluation took more steps than a decision may.
var ErrBudget = errors.New("step budget of the decision is used up: the policy scans too much data; test cheap conditions first, or look data up by key")

// stepTime is the time that a step stands for.
const stepTime = time.Millisecond / DefaultBudget

// crowd is the size from which a collection is large.
const crowd = 256

// errNotConstant stops a trial run that reads a field of the facts or calls a
// nondeterministic builtin.
var errNotConstant = errors.New("not a constant")

// ctl says how a statement ended: next, a number of blocks to leave, or one
// of the two below.
type ctl int

const (
	next  ctl = 0  // go on with the next statement
	leave ctl = 1  // leave the innermost block: it is undefined
	done  ctl = -1 // the function has returned
	fail  ctl = -2 // machine.err is set
)

// op is a lowered statement.
type op func(m *machine) ctl

// getter returns a value, or nil if it is undefined.
type getter func(m *machine) ast.Value

// machine is the state of one evaluation. Machines are pooled and keep their
// memory from one evaluation to the next.
type machine struct {
	fields []rules.Field
	facts  *rules.Facts // nil in trial runs and generic evaluations

	loaded  rules.FieldSet // fields read so far: the reads of the decision
	present rules.FieldSet // of those, the fields that the packet has
	vals    []rules.Value
	texts   []text  // last text of each address field
	boxes   []boxed // last Rego value of each field

	frame []ast.Value // locals of the running function
	stack []ast.Value // frames
	top   int
	ret   ast.Value // what the last function returned

	memo    []memo
	gen     uint32   // of memo: entries of other generations are void
	masks   []uint64 // of rules kept as bits, by members.id
	sets    map[setKey]ast.Value
	objects map[objectKey]ast.Value

	// kept is the last value that came from objects. decisions are those
	// made of such values, by entry.
	kept      ast.Value
	decisions map[decisionKey]rules.Decision
	steps     int
	limit     time.Duration // that steps stand for
	crowded   time.Time     // when the first large collection was added to; zero: none was
	err       error
	results   []ast.Value

	key     ast.Term // scratch for lookups in objects
	out     []*ast.Term
	emit    func(*ast.Term) error // appends to out: where builtins put results
	context topdown.BuiltinContext
}

type text struct {
	addr netip.Addr
	s    string
}

type boxed struct {
	from rules.Value
	v    ast.Value
}

type memo struct {
	gen uint32
	v   ast.Value // nil: undefined
}

func newMachine(fields []rules.Field) *machine {
	m := &machine{
		fields: fields,
		vals:   make([]rules.Value, len(fields)),
		texts:  make([]text, len(fields)),
		boxes:  make([]boxed, len(fields)),
		stack:  make([]ast.Value, 64),
		sets:   map[setKey]ast.Value{}, objects: map[objectKey]ast.Value{}, decisions: map[decisionKey]rules.Decision{},
		context: topdown.BuiltinContext{
			Context:      context.Background(),
			Metrics:      metrics.NoOp(),
			Cache:        builtins.Cache{},
			Capabilities: ast.CapabilitiesForThisVersion(),
		},
	}
	m.emit = func(t *ast.Term) error {
		m.out = append(m.out, t)
		return nil
	}
	return m
}

// sizes are how many memo entries and masks a program needs.
type sizes struct{ memos, masks int }

// begin prepares m for an evaluation of a program.
func (m *machine) begin(f *rules.Facts, n sizes, steps int) {
	m.facts = f
	m.loaded, m.present = rules.FieldSet{}, rules.FieldSet{}
	m.frame, m.top, m.ret = nil, 0, nil
	m.steps, m.err = steps, nil
	m.limit, m.crowded = time.Duration(steps)*stepTime, time.Time{}
	m.results = m.results[:0]
	if len(m.memo) < n.memos {
		m.memo, m.gen = make([]memo, n.memos), 0
	}
	if len(m.masks) < n.masks {
		m.masks = make([]uint64, n.masks)
	}
	m.gen++
	if m.gen == 0 { // wrapped: entries of 2^32 evaluations ago would count
		clear(m.memo)
		m.gen = 1
	}
}

// end drops what m holds of the evaluation.
func (m *machine) end() {
	m.facts, m.frame, m.ret, m.kept = nil, nil, nil, nil
	if len(m.context.Cache) > 0 {
		clear(m.context.Cache)
	}
	m.context.Time = nil
}

// load reads field i unless that has been done, and returns whether the
// packet has it. m.vals[i] is valid iff it has.
func (m *machine) load(i int) bool {
	w, b := i>>6, uint64(1)<<(i&63)
	if m.loaded[w]&b == 0 {
		m.fetch(i)
	}
	return m.present[w]&b != 0
}

func (m *machine) fetch(i int) {
	m.loaded.Add(i)
	if m.facts == nil {
		m.stop(errNotConstant)
		return
	}
	if m.fields[i].Get(m.facts, &m.vals[i]) {
		m.present.Add(i)
	}
}

// stop ends the evaluation where it cannot be ended at once: the next step
// fails, and so does the evaluation if there is none.
func (m *machine) stop(err error) { m.err, m.steps = err, -1 }

// text returns field i, a String or Addr that is loaded and present, as the
// input document spells it.
func (m *machine) text(i int) string {
	if m.fields[i].Kind == rules.String {
		return m.vals[i].Str
	}
	t, a := &m.texts[i], m.vals[i].Addr
	if t.addr != a || t.s == "" {
		t.addr, t.s = a, a.String()
	}
	return t.s
}

// fieldValue returns field i as a Rego value, nil if the packet lacks it.
func (m *machine) fieldValue(i int) ast.Value {
	if !m.load(i) {
		return nil
	}
	b, v := &m.boxes[i], &m.vals[i]
	switch m.fields[i].Kind {
	case rules.Bool:
		return ast.InternedValue(v.Int != 0)
	case rules.Int:
		if b.v == nil || b.from.Int != v.Int {
			b.from.Int, b.v = v.Int, ast.InternedValue(int(v.Int))
		}
	default:
		s := m.text(i)
		if b.v == nil || b.from.Str != s {
			s = strings.Clone(s) // the facts are lent
			b.from.Str, b.v = s, ast.String(s)
		}
	}
	return b.v
}

// step counts n steps and returns whether the evaluation may go on.
func (m *machine) step(n int) bool {
	m.steps -= n
	return m.steps >= 0
}

// insert counts an element that is put into a collection of n, and returns whether
// the evaluation may go on. In a set or object of package ast, elements of one hash
// stand in a row, and those of [i, j] are i + j: how long an insertion takes is known
// to the clock alone, which is asked where there are many.
func (m *machine) insert(n int) bool {
	if !m.step(insertSteps) || n < crowd {
		return m.steps >= 0
	}
	now := time.Now()
	if m.crowded.IsZero() {
		m.crowded = now
	}
	if now.Sub(m.crowded) > m.limit {
		m.steps = -1
	}
	return m.steps >= 0
}

// spent ends an evaluation that step has stopped.
func (m *machine) spent() ctl {
	if m.err == nil {
		m.err = ErrBudget
	}
	return fail
}

func (m *machine) fail(err error) ctl {
	m.err = err
	return fail
}

// enter makes room for a frame of size locals and returns the caller's. Frames
// below stay where they are when the stack moves.
func (m *machine) enter(size int) (caller []ast.Value) {
	caller = m.frame
	if size == 0 {
		m.frame = nil
		return caller
	}
	lo, hi := m.top, m.top+size
	if hi > len(m.stack) {
		m.stack = make([]ast.Value, 2*hi)
	}
	m.frame = m.stack[lo:hi:hi]
	clear(m.frame)
	m.top = hi
	return caller
}

func (m *machine) exit(caller []ast.Value, size int) {
	m.frame = caller
	m.top -= size
}
