package compile

import (
	"maps"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// form is how a value is known when a function is lowered.
type form uint8

const (
	unknown  form = iota // in the frame at run time
	constant             // known.val
	document             // the part of the input document at known.node
	field                // field known.field, loaded and present
	test                 // true or false: known.test
)

// known is what lowering knows of a value.
type known struct {
	form  form
	val   ast.Value
	node  *node
	field int
	test  predicate

	// base says that the value was reached from data by its path alone, so
	// that keys below it are those of the base document: see lookupBase. It
	// holds for unknown values too.
	base bool

	// virtual says that the value is what a rule gave, or was reached from that
	// by its path alone: see respelled. It holds for unknown values too.
	virtual bool

	// elements counts those of a collection written with variables, as in
	// {a, "b"}: see scan. It holds for unknown values.
	elements int

	// literal says that an object is being written, key by key. It holds for
	// unknown values.
	literal bool

	// built is the environment in which the constant val is being built: it
	// may be changed in place there, because nothing else refers to it.
	built *env
}

// predicate is a condition on fields that are loaded and present.
type predicate struct {
	eval func(m *machine) bool
	// defined says whether the condition has a value at all; nil if always.
	defined func(m *machine) bool
	// in is the condition if it is that a field has one of some values.
	in *fieldSet
}

// localTarget is a local and what is known where it is assigned.
type localTarget struct {
	local ir.Local
	env   *env
}

func constantOf(v ast.Value) known { return known{form: constant, val: v} }

// env is what is known of the locals at a point of the program.
type env struct {
	locals map[ir.Local]known
}

func newEnv() *env { return &env{locals: map[ir.Local]known{}} }

func (e *env) clone() *env { return &env{locals: maps.Clone(e.locals)} }

func (e *env) forget(ls map[ir.Local]bool) {
	for l := range ls {
		delete(e.locals, l)
	}
}

// share marks l's constant as referred to by others, so that it is no longer
// changed in place.
func (e *env) share(l ir.Local) {
	if k, ok := e.locals[l]; ok && k.built != nil {
		k.built = nil
		e.locals[l] = k
	}
}
