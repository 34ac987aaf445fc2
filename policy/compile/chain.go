package compile

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/open-policy-agent/opa/v1/ir"

	"github.com/verdictd/verdictd/rules"
)

// maxIndexFields is how many fields a chain is indexed by.
const maxIndexFields = 3

// guards are necessary conditions of a body: it is undefined, without having
// had any effect, unless they hold.
type guards struct {
	byField map[int]*fieldSet
}

func newGuards() *guards { return &guards{byField: map[int]*fieldSet{}} }

// guard notes a condition of the body being lowered.
func (g *gen) guard(in *fieldSet) {
	if g.guards == nil {
		return
	}
	old, ok := g.guards.byField[in.field]
	if !ok || in.len() < old.len() {
		g.guards.byField[in.field] = in
	}
}

func (s *fieldSet) len() int { return len(s.ints) + len(s.strs) + len(s.addrs) }

// pure returns whether a statement has no effect outside of its body and
// cannot fail, so that it need not run where the body is undefined anyway.
func (g *gen) pure(s ir.Stmt) bool {
	switch s := s.(type) {
	case *ir.CallStmt:
		_, isRule := g.c.funcs[s.Func]
		return !isRule
	case *ir.BlockStmt, *ir.ScanStmt, *ir.NotStmt, *ir.WithStmt, *ir.CallDynamicStmt, *ir.BreakStmt,
		*ir.ReturnLocalStmt, *ir.ResultSetAddStmt, *ir.AssignVarOnceStmt, *ir.ObjectInsertOnceStmt:
		return false
	case *ir.ResetLocalStmt, *ir.IsUndefinedStmt:
		return true // of a chain's result: see chainIndex.reset
	}
	for _, l := range writes(s) {
		if !g.layout.own[l] {
			return false
		}
	}
	return true
}

// chainIndex finds the bodies of a group that the packet's fields allow.
type chainIndex struct {
	n      int
	reset  int // place of the local that the first body resets, -1 if none
	fields []indexedField
}

type indexedField struct {
	field int
	ids   *fieldMap[int] // into masks
	masks [][]uint64     // bodies by value; masks[0]: those without a condition
}

// newChainIndex returns an index of the bodies that found belongs to, or nil
// if it would not pay. Only fields that every packet of a flow shares are
// looked at: the index reads them even where the first body would decide.
func (g *gen) newChainIndex(found []*guards, blocks []*ir.Block) *chainIndex {
	if !slices.ContainsFunc(blocks, func(b *ir.Block) bool { return g.layout.scopes[b] > 0 }) {
		return nil // the blocks are no bodies: they may share what they write
	}
	counts := map[int]int{}
	for _, f := range found {
		for i := range f.byField {
			if g.c.fields[i].Scope == rules.PerFlow {
				counts[i]++
			}
		}
	}
	var best []int
	for i, n := range counts {
		if n >= minIndexedChain && 8*n >= len(found) {
			best = append(best, i)
		}
	}
	if len(best) == 0 {
		return nil
	}
	slices.SortFunc(best, func(a, b int) int { return cmp.Or(counts[b]-counts[a], a-b) })
	x := &chainIndex{n: len(found), reset: -1}
	for _, i := range best[:min(len(best), maxIndexFields)] {
		x.fields = append(x.fields, g.c.newIndexedField(i, found))
	}
	if len(blocks[0].Stmts) > 0 {
		if r, ok := blocks[0].Stmts[0].(*ir.ResetLocalStmt); ok {
			x.reset = g.place(r.Target)
		}
	}
	return x
}

func (c *compiler) newIndexedField(i int, found []*guards) indexedField {
	x := indexedField{field: i, ids: newFieldMap[int]()}
	words := (len(found) + 63) / 64
	always := make([]uint64, words)
	x.masks = [][]uint64{always}
	for b, f := range found {
		if f.byField[i] == nil {
			always[b>>6] |= 1 << (b & 63)
		}
	}
	for b, f := range found {
		in := f.byField[i]
		if in == nil {
			continue
		}
		for _, n := range in.ints {
			x.ids.ints[n] = x.mark(x.ids.ints[n], b)
		}
		for _, s := range in.strs {
			x.ids.strs[s] = x.mark(x.ids.strs[s], b)
		}
		for _, a := range in.addrs {
			x.ids.addrs[a] = x.mark(x.ids.addrs[a], b)
		}
	}
	c.tables += 64*x.ids.len() + 8*words*len(x.masks)
	return x
}

// mark adds body b to the mask of that id; id 0 stands for a new one.
func (x *indexedField) mark(id, b int) int {
	if id == 0 {
		id = len(x.masks)
		x.masks = append(x.masks, slices.Clone(x.masks[0]))
	}
	x.masks[id][b>>6] |= 1 << (b & 63)
	return id
}

// mask returns the bodies that the field's value allows.
func (x *indexedField) mask(m *machine) []uint64 {
	if !m.load(x.field) {
		return x.masks[0]
	}
	id, _ := x.ids.get(m, x.field)
	return x.masks[id]
}

// candidates are the masks of one run; a body is allowed if all have it.
type candidates [maxIndexFields][]uint64

func (x *chainIndex) candidates(m *machine) candidates {
	var c candidates
	for i := range c {
		c[i] = x.fields[min(i, len(x.fields)-1)].mask(m)
	}
	return c
}

// from returns the first body from i on that is allowed, n if there is none.
func (c *candidates) from(i, n int) int {
	if i >= n {
		return n
	}
	w := i >> 6
	allowed := c[0][w] & c[1][w] & c[2][w] &^ (1<<(i&63) - 1)
	for allowed == 0 {
		w++
		if w == len(c[0]) {
			return n
		}
		allowed = c[0][w] & c[1][w] & c[2][w]
	}
	return w<<6 + bits.TrailingZeros64(allowed)
}

// indexedBlocks runs the allowed blocks in their order, like allBlocks.
func indexedBlocks(ops []op, skip []int, x *chainIndex) op {
	n := len(ops)
	return func(m *machine) ctl {
		if x.reset >= 0 {
			m.frame[x.reset] = nil
		}
		c := x.candidates(m)
		for i := c.from(0, n); i < n; {
			if !m.step(1) {
				return m.spent()
			}
			switch r := ops[i](m); r {
			case next:
				i = c.from(skip[i], n)
			case leave:
				i = c.from(i+1, n)
			default:
				return after(r)
			}
		}
		return next
	}
}
