package compile

import "github.com/open-policy-agent/opa/v1/ir"

// place names a local of a function. The planner numbers the locals of each
// rule body from the same start, so that a number means something else in
// each; the scope tells them apart. Scope 0 holds what the bodies share.
type place struct {
	scope int
	local ir.Local
}

// layout says where the locals of one function live.
//
// Most locals never exist at run time: what they hold is known when the
// function is lowered. Lowering runs twice: a first run finds the locals that
// are read where their value is not known (need), pack gives those a place in
// the frame, and the second run emits the code.
type layout struct {
	scopes map[*ir.Block]int
	own    map[ir.Local]bool // local to each scope that mentions it
	needed map[place]bool
	slots  map[place]int // valid after pack
	packed bool
	size   int
}

// newLayout finds the scopes of a function: its bodies and those of its else
// chains. A local is a scope's own if every scope that mentions it writes it
// first.
func newLayout(blocks []*ir.Block) *layout {
	l := &layout{scopes: map[*ir.Block]int{}, own: map[ir.Local]bool{}, needed: map[place]bool{}, slots: map[place]int{}}
	shared := map[ir.Local]bool{}
	l.scan(blocks, shared)
	for v := range shared {
		delete(l.own, v)
	}
	return l
}

func (l *layout) scan(blocks []*ir.Block, shared map[ir.Local]bool) {
	for _, b := range blocks {
		if chain := soleBlockStmt(b); chain != nil {
			l.scan(chain.Blocks, shared)
			continue
		}
		l.scopes[b] = len(l.scopes) + 1
		seen := map[ir.Local]bool{}
		firstMentions(b, seen, shared)
		for v := range seen {
			l.own[v] = true
		}
	}
}

// soleBlockStmt returns the statement of a block that has no other: an else
// chain.
func soleBlockStmt(b *ir.Block) *ir.BlockStmt {
	if len(b.Stmts) != 1 {
		return nil
	}
	s, _ := b.Stmts[0].(*ir.BlockStmt)
	return s
}

// firstMentions adds to shared the locals that b reads before it writes them.
func firstMentions(b *ir.Block, seen, shared map[ir.Local]bool) {
	for _, s := range b.Stmts {
		for _, v := range uses(s) {
			if !seen[v] {
				shared[v] = true
			}
			seen[v] = true
		}
		for _, v := range writes(s) {
			seen[v] = true
		}
		for _, sub := range inner(s) {
			firstMentions(sub, seen, shared)
		}
	}
}

func (l *layout) place(scope int, v ir.Local) place {
	if l.own[v] {
		return place{scope, v}
	}
	return place{0, v}
}

// pack gives the needed locals their places: the shared ones first, then
// those of each scope over each other.
func (l *layout) pack() {
	perScope := map[int]int{}
	for p := range l.needed {
		if p.scope == 0 {
			l.slots[p] = perScope[0]
			perScope[0]++
		}
	}
	l.size = perScope[0]
	for p := range l.needed {
		if p.scope == 0 {
			continue
		}
		i := perScope[0] + perScope[p.scope]
		perScope[p.scope]++
		l.slots[p] = i
		l.size = max(l.size, i+1)
	}
	l.packed = true
}
