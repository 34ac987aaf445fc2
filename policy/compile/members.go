package compile

import (
	"math/bits"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"
)

// Bounds of rules that are kept as bits.
const (
	maxMembers = 64
	maxSets    = 1024 // sets that a machine keeps
)

// members says how a rule that is a set of some strings, as in
//
//	deny contains "telnet" if ...
//
// is built: as a mask with a bit for each string. The set itself is made when
// the rule returns, and kept: few of all possible sets come up.
type members struct {
	id   int // in machine.masks; a function is never called by itself
	all  []*ast.Term
	bits map[ir.StringIndex]uint64
}

// setKey names a set: the rule's id and its mask.
type setKey struct {
	id   int
	mask uint64
}

// newMembers returns how f is built if it is such a rule, else nil.
func (c *compiler) newMembers(f *ir.Func) *members {
	b := &members{id: c.masks, bits: map[ir.StringIndex]uint64{}}
	made := false
	ok := walk(f.Blocks, func(s ir.Stmt) bool {
		switch s := s.(type) {
		case *ir.MakeSetStmt:
			made = made || s.Target == f.Return
			return true
		case *ir.SetAddStmt:
			if s.Set != f.Return {
				return true
			}
			i, ok := value(s.Value).(ir.StringIndex)
			return ok && b.add(i, c)
		case *ir.ReturnLocalStmt:
			return true
		}
		for _, l := range append(uses(s), writes(s)...) {
			if l == f.Return {
				return false
			}
		}
		return true
	})
	if !ok || !made || len(b.all) == 0 {
		return nil
	}
	c.masks++
	return b
}

func (b *members) add(i ir.StringIndex, c *compiler) bool {
	if _, ok := b.bits[i]; !ok {
		b.bits[i] = 1 << len(b.all)
		b.all = append(b.all, ast.StringTerm(c.policy.Static.Strings[i].Value))
	}
	return len(b.all) < maxMembers
}

// memberStmt lowers the statements that build the rule.
func (g *gen) memberStmt(s ir.Stmt) (o op, ok bool) {
	b := g.members
	if b == nil {
		return nil, false
	}
	switch s := s.(type) {
	case *ir.MakeSetStmt:
		if s.Target == g.result {
			return func(m *machine) ctl { m.masks[b.id] = 0; return next }, true
		}
	case *ir.SetAddStmt:
		if s.Set == g.result {
			i, _ := value(s.Value).(ir.StringIndex)
			bit := b.bits[i]
			return func(m *machine) ctl { m.masks[b.id] |= bit; return next }, true
		}
	case *ir.ReturnLocalStmt:
		return func(m *machine) ctl { m.ret = b.set(m); return done }, true
	}
	return nil, false
}

// set returns the set of the mask.
func (b *members) set(m *machine) ast.Value {
	key := setKey{b.id, m.masks[b.id]}
	if s, ok := m.sets[key]; ok {
		return s
	}
	s := ast.NewSet()
	for rest := key.mask; rest != 0; rest &= rest - 1 {
		s.Add(b.all[bits.TrailingZeros64(rest)])
	}
	if len(m.sets) >= maxSets {
		clear(m.sets)
	}
	m.sets[key] = s
	return s
}
