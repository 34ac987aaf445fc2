package compile

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/verdictd/verdictd/rules"
)

// ErrNumberKey says that data was looked up by a number that is not written
// in the policy, under a name that spells it; or a rule, made of data perhaps,
// by a number instead of the string that spells it or the other way round.
// OPA's evaluator takes them for the same at times: it does when it goes down
// a path in data, with the key of a rule put in, and does not when it asks its
// index. It is to be asked.
var ErrNumberKey = errors.New("data is looked up by a number under names that spell numbers: look it up by format_int(number, 10)")

// ErrEqualKeys says that two keys of an object that is written with variables,
// as in {a: 1, b: 2}, are equal. Which value counts is for OPA's evaluator to
// say, which is to be asked.
var ErrEqualKeys = errors.New("two keys of an object written with variables are equal")

// namesNumbers returns whether a name of an object, or an element of a set,
// spells a number.
func namesNumbers(v ast.Value) bool {
	if _, isArray := v.(*ast.Array); isArray {
		return false
	}
	return slices.ContainsFunc(keys(v), func(k ast.Value) bool {
		name, ok := k.(ast.String)
		return ok && spellsNumber(string(name))
	})
}

func spellsNumber(s string) bool {
	if s == "" || s[0] != '-' && (s[0] < '0' || s[0] > '9') {
		return false
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil && json.Valid([]byte(s))
}

// dot lowers the lookup of a key.
func (g *gen) dot(s *ir.DotStmt, e *env) (o op, ends bool) {
	src, key := g.knownOf(s.Source, e), g.knownOf(s.Key, e)
	switch {
	case src.form == constant && key.form == constant:
		return g.dotConstant(s, src, key.val, e)
	case src.form == document && key.form == constant:
		return g.dotDocument(src.node, key.val, s.Target, e)
	case src.form == field:
		g.store(s.Target, e)
		return always(leave), true // a field is no collection
	case src.base && key.form == field && g.c.fields[key.field].Kind == rules.Int && namesNumbers(src.val):
		g.unsupported(s, "data is looked up by a number, input.%s, under names that spell numbers; look it up by format_int(input.%[1]s, 10)", g.c.fields[key.field].Path)
		return always(leave), true
	case src.form == constant && key.form == field && !(src.virtual && mixesSpellings(src.val)):
		if o, ends, ok := g.dotField(src, key.field, localTarget{s.Target, e}); ok {
			return o, ends
		}
	}
	o = g.dotValue(s, src, key, e)
	e.locals[s.Target] = known{base: src.base, virtual: src.virtual}
	return o, false
}

func (g *gen) dotConstant(s *ir.DotStmt, src known, key ast.Value, e *env) (o op, ends bool) {
	term := ast.NewTerm(key)
	v := lookup(src.val, term, src.base)
	switch {
	case v != nil:
		return g.set(s.Target, known{form: constant, val: v, base: src.base, virtual: src.virtual}, e), false
	case src.virtual && respelled(src.val, term):
		g.store(s.Target, e)
		return func(m *machine) ctl { return m.fail(ErrNumberKey) }, true
	}
	g.store(s.Target, e)
	return always(leave), true
}

// dotDocument lowers a step down the input document.
func (g *gen) dotDocument(n *node, key ast.Value, target ir.Local, e *env) (o op, ends bool) {
	name, ok := key.(ast.String)
	if !ok || n.children[string(name)] == nil {
		g.store(target, e)
		return always(leave), true // the document is closed
	}
	child := n.children[string(name)]
	if !child.leaf {
		set := g.set(target, known{form: document, node: child}, e)
		if next, ok := g.following.(*ir.DotStmt); ok && value(next.Source) == target {
			return set, false // the next step asks, and reads less for it
		}
		return sequence(some(func(m *machine) ctl {
			if !child.present(m) {
				return leave
			}
			return next
		}, set)), false
	}
	i := child.field
	set := g.set(target, known{form: field, field: i}, e)
	return sequence(some(func(m *machine) ctl {
		if !m.load(i) {
			return leave
		}
		return next
	}, set)), false
}

// some returns those of ops that are not nil.
func some(ops ...op) []op {
	var out []op
	for _, o := range ops {
		if o != nil {
			out = append(out, o)
		}
	}
	return out
}

// dotValue lowers a lookup in a value.
func (g *gen) dotValue(s *ir.DotStmt, src, key known, e *env) op {
	source, keyOf := g.get(s.Source, e), g.get(s.Key, e)
	i := g.store(s.Target, e)
	base, virtual, written := src.base, src.virtual, key.form == constant
	if written && !base && !virtual {
		term := ast.NewTerm(key.val)
		return found(func(m *machine) ast.Value { return lookupTerm(source(m), term) }, i)
	}
	return found(func(m *machine) ast.Value {
		k := keyOf(m)
		if k == nil {
			return nil
		}
		m.key.Value = k
		in := source(m)
		v := lookup(in, &m.key, base)
		if base && v != nil && !written && byNumber(in, k) || virtual && v == nil && respelled(in, &m.key) {
			m.stop(ErrNumberKey)
		}
		return v
	}, i)
}

// byNumber returns whether k, which is a key of v, is a number and v an object.
func byNumber(v, k ast.Value) bool {
	_, isNumber := k.(ast.Number)
	_, isObject := v.(ast.Object)
	return isNumber && isObject
}

// respelled returns whether v has key in its other spelling: the number as a
// string, or the string as a number.
func respelled(v ast.Value, key *ast.Term) bool {
	var other ast.Value
	switch k := key.Value.(type) {
	case ast.Number:
		other = ast.String(k)
	case ast.String:
		if !spellsNumber(string(k)) {
			return false
		}
		other = ast.Number(json.Number(k))
	default:
		return false
	}
	if _, isArray := v.(*ast.Array); isArray {
		return false // has positions only
	}
	return lookupTerm(v, ast.NewTerm(other)) != nil
}

// mixesSpellings returns whether a collection has numbers, or strings that
// spell numbers, as keys.
func mixesSpellings(v ast.Value) bool {
	for _, k := range keys(v) {
		if _, isNumber := k.(ast.Number); isNumber {
			return true
		}
	}
	return namesNumbers(v)
}

// found stores what get finds, and leaves the block if that is nothing.
func found(get getter, at int) op {
	return func(m *machine) ctl {
		v := get(m)
		if v == nil {
			return leave
		}
		if at >= 0 {
			m.frame[at] = v
		}
		return next
	}
}

// lookup returns the element of v under key, or nil. base says that v is a
// part of the base document.
func lookup(v ast.Value, key *ast.Term, base bool) ast.Value {
	if base {
		return lookupBase(v, key)
	}
	return lookupTerm(v, key)
}

// lookupTerm returns the element of v under key, or nil.
func lookupTerm(v ast.Value, key *ast.Term) ast.Value {
	switch v := v.(type) {
	case ast.Object:
		if t := v.Get(key); t != nil {
			return t.Value
		}
	case ast.Set:
		if v.Contains(key) {
			return key.Value
		}
	case *ast.Array:
		n, ok := key.Value.(ast.Number)
		if !ok {
			return nil
		}
		if i, ok := n.Int(); ok && 0 <= i && i < v.Len() {
			return v.Elem(i).Value
		}
	}
	return nil
}

// lookupBase returns the element of v, a part of the base document, under
// key, or nil. OPA finds it by a storage path, in which numbers and strings
// are spelled alike: data.ports[80] is the "80" of {"ports": {"80": ...}}.
// Where the key is a variable its index may say otherwise: see ErrNumberKey.
func lookupBase(v ast.Value, key *ast.Term) ast.Value {
	var name string
	switch k := key.Value.(type) {
	case ast.String:
		name = string(k)
	case ast.Number:
		name = string(k)
	default:
		return nil
	}
	switch v := v.(type) {
	case ast.Object:
		if t := v.Get(ast.StringTerm(name)); t != nil {
			return t.Value
		}
	case *ast.Array:
		if i, ok := util.Atoi(name); ok && 0 <= i && i < v.Len() {
			return v.Elem(i).Value
		}
	}
	return nil
}
