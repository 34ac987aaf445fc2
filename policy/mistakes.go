package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// Bounds of the constants that are found.
const (
	maxFaults = 100_000 // looked at
	maxTold   = 20      // told of: to say where one is costs a pass over its data file
)

// fault is what is wrong with a constant for what is asked about it.
type fault struct {
	code, msg, hint string
	suspicion       bool // it may be meant
}

// faulty is a constant with a fault, and where it is asked about.
type faulty struct {
	fault
	origin *origin
	asked  *ast.Location
}

// mistakes are errors in what the policy and its data give: constants that
// nothing can match as they are used, data that nobody defines, two decisions.
// suspicions are those that may be meant.
func (p *program) mistakes() (mistakes, suspicions Errors) {
	t := newTracer(p)
	mistakes = append(p.undefinedData(), p.twoDecisions()...)
	faults := t.faults()
	for i, f := range faults {
		if i == maxTold {
			break
		}
		e := p.told(f)
		if more := len(faults) - maxTold; i == maxTold-1 && more > 0 {
			e.Msg += fmt.Sprintf("; and %d more constants such as these", more)
		}
		if f.suspicion {
			suspicions = append(suspicions, e)
		} else {
			mistakes = append(mistakes, e)
		}
	}
	suspicions = append(suspicions, t.swapped()...)
	absent, doubtful := p.absentMatches()
	return append(mistakes, absent...), append(suspicions, doubtful...)
}

// given is the step of newProgram that refuses mistakes.
func (p *program) given() Errors {
	mistakes, suspicions := p.mistakes()
	p.suspicions = suspicions
	return mistakes
}

// faults returns the constants that are wrong wherever the policy asks about
// them. One that is right for another question is left out: a list may hold
// addresses and networks if the policy looks for both.
func (t *tracer) faults() []*faulty {
	wrong := map[string]*faulty{}
	var order []string
	t.questions(func(o *origin, asked *ast.Location, f *fault) {
		if f == nil || len(order) == maxFaults {
			return
		}
		if key := o.key(); wrong[key] == nil {
			wrong[key] = &faulty{*f, o, asked}
			order = append(order, key)
		}
	})
	if len(wrong) == 0 {
		return nil
	}
	t.questions(func(o *origin, _ *ast.Location, f *fault) {
		if f == nil {
			delete(wrong, o.key())
		}
	})
	var all []*faulty
	for _, key := range order {
		if f := wrong[key]; f != nil {
			all = append(all, f)
		}
	}
	return all
}

// question is called with a constant that is asked about, where, and what is
// wrong with it, nil if nothing is.
type question func(o *origin, asked *ast.Location, f *fault)

// questions goes through all that the policy asks about constants.
func (t *tracer) questions(ask question) {
	for _, r := range t.all {
		eachExpr(r, func(e *ast.Expr) {
			if e.IsCall() {
				t.networks(r, e, ask)
				t.comparisons(r, e, ask)
			}
		})
		eachRef(r, func(ref ast.Ref) { t.lookups(r, ref, ask) })
	}
}

// networkArg is what an operand of a builtin about networks must be.
type networkArg struct {
	operand int
	steps   []step // to the text
	address bool   // an address will do
}

// networkArgs returns the operands of a call that are networks, nil if it is
// about something else.
func networkArgs(e *ast.Expr) []networkArg {
	if !e.IsCall() {
		return nil
	}
	each := []step{{}}
	switch e.Operator().String() {
	case ast.NetCIDRContains.Name:
		return []networkArg{{0, nil, false}, {1, nil, true}}
	case ast.NetCIDRIntersects.Name:
		return []networkArg{{0, nil, false}, {1, nil, false}}
	case ast.NetCIDRContainsMatches.Name:
		return []networkArg{{0, nil, false}, {0, each, false}, {1, nil, true}, {1, each, true}}
	case ast.NetCIDRExpand.Name:
		return []networkArg{{0, nil, false}}
	case ast.NetCIDRMerge.Name:
		return []networkArg{{0, each, true}}
	}
	return nil
}

// networks asks about the networks of a call.
func (t *tracer) networks(r *ast.Rule, e *ast.Expr, ask question) {
	for _, arg := range networkArgs(e) {
		if arg.operand >= len(e.Operands()) {
			continue
		}
		t.from(r, e.Operand(arg.operand), arg.steps, e, func(o *origin) {
			if s, ok := o.value.(ast.String); ok {
				ask(o, e.Location, notNetwork(string(s), arg.address))
			} else if n, ok := o.value.(ast.Number); ok {
				ask(o, e.Location, &fault{code: "network", msg: n.String() + " is a number, not a network", hint: `write a text such as "192.0.2.0/24"`})
			}
		})
	}
}

// notNetwork returns why OPA takes text for no network; where an address will
// do, for none either.
func notNetwork(text string, address bool) *fault {
	_, _, err := net.ParseCIDR(text)
	if err == nil || address && net.ParseIP(text) != nil {
		return nil
	}
	f := &fault{code: "network", msg: fmt.Sprintf("%q is no network, so no address is in it", text), hint: `write one such as "192.0.2.0/24" or "2001:db8::/32"`}
	addr, bits, _ := strings.Cut(strings.TrimSpace(text), "/")
	ip, err := netip.ParseAddr(addr)
	switch {
	case err != nil || ip.Zone() != "":
	case bits == "" && text == addr:
		f.msg = fmt.Sprintf("%q is an address, not a network, so no address is in it", text)
		f.hint = fmt.Sprintf("write \"%s/%d\"", text, ip.BitLen())
	case strings.TrimSpace(text) != text:
		f.msg = fmt.Sprintf("%q is no network: there is a space in it", text)
		f.hint = fmt.Sprintf("write %q", strings.TrimSpace(text))
	default:
		f.msg = fmt.Sprintf("%q is no network: the length %q is not a number from 0 to %d", text, bits, ip.BitLen())
		f.hint = fmt.Sprintf("write one such as \"%s/%d\"", addr, ip.BitLen())
	}
	return f
}

// comparisons asks about the constants that a field is compared with.
func (t *tracer) comparisons(r *ast.Rule, e *ast.Expr, ask question) {
	operands := e.Operands()
	if len(operands) != 2 {
		return
	}
	switch e.Operator().String() {
	case ast.Equal.Name, ast.Equality.Name, ast.NotEqual.Name:
		t.compared(r, e, operands[0], operands[1], nil, ask)
		t.compared(r, e, operands[1], operands[0], nil, ask)
	case ast.Member.Name:
		t.compared(r, e, operands[0], operands[1], []step{{}}, ask)
	}
}

func (t *tracer) compared(r *ast.Rule, e *ast.Expr, left, right *ast.Term, steps []step, ask question) {
	fields := t.fieldsOf(r, left, e)
	if len(fields) == 0 {
		return
	}
	t.from(r, right, steps, e, func(o *origin) {
		if o.value != nil {
			ask(o, e.Location, neverAny(fields, o))
		}
	})
}

// lookups asks about the keys of tables in which a field is looked up.
func (t *tracer) lookups(r *ast.Rule, ref ast.Ref, ask question) {
	for i := 1; i < len(ref); i++ {
		if ast.IsScalar(ref[i].Value) {
			continue
		}
		fields := slices.DeleteFunc(t.fieldsOf(r, ref[i], nil), func(f *rules.Field) bool { return f.Kind != rules.String && f.Kind != rules.Addr })
		if len(fields) == 0 {
			continue
		}
		t.from(r, &ast.Term{Value: ref[:i:i], Location: ref[0].Location}, []step{{key: true}}, nil, func(o *origin) {
			if o.value != nil {
				ask(o, ref[0].Location, neverAny(fields, o))
			}
		})
	}
}

// fieldsOf returns the fields that a term stands for.
func (t *tracer) fieldsOf(r *ast.Rule, term *ast.Term, asked *ast.Expr) []*rules.Field {
	if ast.IsConstant(term.Value) {
		return nil
	}
	var fields []*rules.Field
	t.noData = true
	defer func() { t.noData = false }()
	t.from(r, term, nil, asked, func(o *origin) {
		if o.field != nil {
			fields = append(fields, o.field)
		}
	})
	return fields
}

// neverAny returns why none of the fields can have the value of o.
func neverAny(fields []*rules.Field, o *origin) *fault {
	var first *fault
	for _, field := range fields {
		f := never(field, o.value)
		if f == nil || o.isKey && field.Kind == rules.Int {
			return nil
		}
		if first == nil {
			f.msg = fmt.Sprintf("input.%s is never %s: %s", field.Path, o.value, f.msg)
			first = f
		}
	}
	return first
}

// told returns a constant's fault as an error at its place.
func (p *program) told(f *faulty) *Error {
	if f.origin.loc != nil {
		return errorAt(f.origin.loc, f.msg, f.hint).coded(f.code)
	}
	e := p.dataPlace(f.origin.path)
	e.Code, e.Msg, e.Hint = f.code, f.msg, f.hint
	if at := errorAt(f.asked, "", ""); at.Line > 0 {
		e.Msg += fmt.Sprintf("; %s:%d asks for it", at.File, at.Line)
	}
	return e
}

// swapped finds calls in which the packet's address stands where the network
// belongs.
func (t *tracer) swapped() Errors {
	var found Errors
	for _, r := range t.all {
		eachExpr(r, func(e *ast.Expr) {
			args := networkArgs(e)
			if args == nil || args[0].address {
				return
			}
			t.noData = true
			defer func() { t.noData = false }()
			t.from(r, e.Operand(0), nil, e, func(o *origin) {
				if o.field != nil && o.field.Kind == rules.Addr {
					name := e.Operator().String()
					found = append(found, errorAt(e.Location, fmt.Sprintf("%s: input.%s is an address, and the network comes first, so this never matches", name, o.field.Path),
						fmt.Sprintf("write %s(NETWORK, input.%s)", name, o.field.Path)).coded("swapped"))
				}
			})
		})
	}
	return found
}

// twoDecisions finds policies in which decision and verdict both decide.
func (p *program) twoDecisions() Errors {
	if !p.hasDecision || !p.hasVerdict {
		return nil
	}
	asked := p.reached("data.verdictd." + decisionRule)
	for _, name := range sortedKeys(p.live) {
		for _, r := range p.compiler.Modules[name].Rules {
			if r.Ref().GroundPrefix().String() != "data.verdictd."+verdictRule || asked[r] {
				continue
			}
			return Errors{errorAt(r.Location, "both decision and verdict are defined: verdict counts only where decision is undefined, which nobody sees at the rule",
				"keep one of them; a verdict that decision asks for may stay").coded("two-decisions")}
		}
	}
	return nil
}
