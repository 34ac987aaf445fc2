package compile

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/ir"

	"github.com/verdictd/verdictd/rules"
)

// Bounds of a scan index, in entries for each element of the collection.
const maxEntries = 8

// join is a condition of a scan's body that ties the elements to a field.
type join struct {
	kind  joinKind
	field int
	keys  []ast.Value // of each element, nil where the condition has no value
}

type joinKind uint8

const (
	joinEqual  joinKind = iota // the key is the field's value
	joinMember                 // the key is a collection that has the field's value
	joinCIDR                   // the key is a network that has the field's value
	joinPrefix                 // the field starts with the key
	joinSuffix                 // the field ends with the key
)

// scanIndex finds the elements that a field's value allows, in their order.
type scanIndex struct {
	find   func(m *machine) []int32
	expect float64 // elements found, by estimate
}

// newScanIndex returns what finds the elements for which the body may be
// defined, or nil if the body has no condition to find them by.
func (g *gen) newScanIndex(s *ir.ScanStmt, all []pair, inside *env) func(m *machine) []int32 {
	var best scanIndex
	for _, j := range g.joins(s, all, inside.clone()) {
		if x, ok := g.c.index(j); ok && (best.find == nil || x.expect < best.expect) {
			best = x
		}
	}
	return best.find
}

// projection gives what a local holds for each element of the collection; nil
// elements are undefined.
type projection []ast.Value

// joins collects the conditions at the head of a scan's body, up to its first
// statement that may have an effect.
func (g *gen) joins(s *ir.ScanStmt, all []pair, e *env) []join {
	held := map[ir.Local]projection{}
	ks, vs := make(projection, len(all)), make(projection, len(all))
	for i, p := range all {
		ks[i], vs[i] = p.key, p.val
	}
	held[s.Key], held[s.Value] = ks, vs
	made := map[ir.Local]bool{}
	var out []join
	for i, st := range s.Block.Stmts {
		if !g.pure(st) || changed(st) >= 0 && !made[changed(st)] {
			break
		}
		for _, l := range makes(st) {
			made[l] = true
		}
		switch st := st.(type) {
		case *ir.MakeNumberRefStmt, *ir.MakeNumberIntStmt, *ir.MakeNullStmt:
			g.assignment(st, e)
		case *ir.AssignVarStmt:
			g.follow(st, held, e)
		case *ir.DotStmt:
			g.followDot(st, held, e)
		case *ir.EqualStmt:
			out = appendJoin(out, joinEqual, st.A, st.B, g, held, e)
			out = appendJoin(out, joinEqual, st.B, st.A, g, held, e)
		case *ir.CallStmt:
			if holds(st.Result, s.Block.Stmts[i+1:]) && len(st.Args) == 2 {
				out = g.callJoin(out, st, held, e)
			}
		}
	}
	return out
}

// holds returns whether the next statement demands that l is true.
func holds(l ir.Local, rest []ir.Stmt) bool {
	if len(rest) == 0 {
		return false
	}
	switch s := rest[0].(type) {
	case *ir.NotEqualStmt:
		return value(s.A) == l && value(s.B) == ir.Bool(false)
	case *ir.EqualStmt:
		return value(s.A) == l && value(s.B) == ir.Bool(true)
	}
	return false
}

func (g *gen) callJoin(out []join, s *ir.CallStmt, held map[ir.Local]projection, e *env) []join {
	a, b := s.Args[0], s.Args[1]
	switch s.Func {
	case ast.NetCIDRContains.Name:
		return appendJoin(out, joinCIDR, a, b, g, held, e)
	case ast.StartsWith.Name:
		return appendJoin(out, joinPrefix, b, a, g, held, e)
	case ast.EndsWith.Name:
		return appendJoin(out, joinSuffix, b, a, g, held, e)
	case ast.Member.Name:
		return appendJoin(out, joinMember, b, a, g, held, e)
	}
	return out
}

func appendJoin(out []join, kind joinKind, key, val ir.Operand, g *gen, held map[ir.Local]projection, e *env) []join {
	l, ok := value(key).(ir.Local)
	k := g.knownOf(val, e)
	if !ok || held[l] == nil || k.form != field {
		return out
	}
	return append(out, join{kind: kind, field: k.field, keys: held[l]})
}

// follow notes what an assignment makes a local hold.
func (g *gen) follow(s *ir.AssignVarStmt, held map[ir.Local]projection, e *env) {
	delete(held, s.Target)
	k := g.knownOf(s.Source, e)
	k.base = false
	e.locals[s.Target] = k
	if l, ok := value(s.Source).(ir.Local); ok && held[l] != nil {
		held[s.Target] = held[l]
	}
}

// followDot notes what a lookup makes a local hold: a part of the elements or
// of the input document.
func (g *gen) followDot(s *ir.DotStmt, held map[ir.Local]projection, e *env) {
	src, key := g.knownOf(s.Source, e), g.knownOf(s.Key, e)
	l, isLocal := value(s.Source).(ir.Local)
	elems := held[l]
	delete(held, s.Target)
	e.locals[s.Target] = known{base: src.base}
	switch {
	case key.form != constant:
	case isLocal && elems != nil:
		part := make(projection, len(elems))
		for i, v := range elems {
			if v != nil {
				part[i] = lookup(v, ast.NewTerm(key.val), src.base)
			}
		}
		held[s.Target] = part
	case src.form == document:
		name, _ := key.val.(ast.String)
		child := src.node.children[string(name)]
		switch {
		case child == nil:
		case child.leaf:
			e.locals[s.Target] = known{form: field, field: child.field}
		default:
			e.locals[s.Target] = known{form: document, node: child}
		}
	}
}

// index builds the index of a join; ok is false if it would not serve.
func (c *compiler) index(j join) (scanIndex, bool) {
	kind := c.fields[j.field].Kind
	switch {
	case j.kind == joinCIDR && kind == rules.Addr:
		return c.indexCIDR(j)
	case j.kind == joinEqual || j.kind == joinMember:
		return c.indexValues(j)
	case kind == rules.String && (j.kind == joinPrefix || j.kind == joinSuffix):
		return c.indexText(j)
	}
	return scanIndex{}, false
}

// indexValues finds elements by the field's value.
func (c *compiler) indexValues(j join) (scanIndex, bool) {
	table, entries := newFieldMap[[]int32](), 0
	for i, k := range j.keys {
		values := []ast.Value{k}
		if j.kind == joinMember {
			values = elements(k)
		}
		for _, v := range values {
			entries++
			add := func(old []int32) []int32 {
				if len(old) > 0 && old[len(old)-1] == int32(i) {
					return old
				}
				return append(old, int32(i))
			}
			if v != nil && !table.update(c, j.field, v, add) || entries > maxEntries*len(j.keys) {
				return scanIndex{}, false
			}
		}
	}
	c.tables += 64*table.len() + 4*entries
	f := j.field
	return scanIndex{find: func(m *machine) []int32 {
		if !m.load(f) {
			return nil
		}
		found, _ := table.get(m, f)
		return found
	}, expect: float64(entries) / float64(max(1, table.len()))}, true
}

// indexCIDR finds the elements whose network holds an address. Each prefix of
// the table has the elements of all networks around it, in their order, so
// one longest-prefix match finds them all.
func (c *compiler) indexCIDR(j join) (scanIndex, bool) {
	own := map[netip.Prefix][]int32{}
	table := new(bart.Table[[]int32])
	for i, k := range j.keys {
		if p, ok := prefixOf(k); ok {
			own[p.Masked()] = append(own[p.Masked()], int32(i))
			table.Insert(p.Masked(), nil)
		}
	}
	entries := 0
	for p := range own {
		var all []int32
		for q := range table.Supernets(p) {
			all = append(all, own[q]...)
		}
		slices.Sort(all)
		table.Insert(p, all)
		entries += len(all)
		if entries > maxEntries*len(j.keys) {
			return scanIndex{}, false
		}
	}
	c.tables += 64*len(own) + 4*entries
	f := j.field
	return scanIndex{find: func(m *machine) []int32 {
		if !m.load(f) || m.vals[f].Addr.Zone() != "" {
			return nil
		}
		found, _ := table.Lookup(m.vals[f].Addr.Unmap())
		return found
	}, expect: float64(entries) / float64(max(1, len(own)))}, true
}

// indexText finds the elements whose key starts or ends the field's text: one
// lookup for each length that a key has.
func (c *compiler) indexText(j join) (scanIndex, bool) {
	table := map[string][]int32{}
	own := map[string][]int32{}
	for i, k := range j.keys {
		if s, ok := k.(ast.String); ok {
			own[string(s)] = append(own[string(s)], int32(i))
		}
	}
	lengths, entries := []int{}, 0
	for s := range own {
		if !slices.Contains(lengths, len(s)) {
			lengths = append(lengths, len(s))
		}
	}
	slices.Sort(lengths)
	slices.Reverse(lengths)
	part := func(s string, n int) string { return s[:n] }
	if j.kind == joinSuffix {
		part = func(s string, n int) string { return s[len(s)-n:] }
	}
	for s := range own { // as in indexCIDR: the longest key has them all
		for _, n := range lengths {
			if n <= len(s) {
				table[s] = append(table[s], own[part(s, n)]...)
			}
		}
		slices.Sort(table[s])
		entries += len(table[s])
		if entries > maxEntries*len(j.keys) {
			return scanIndex{}, false
		}
	}
	c.tables += 64*len(own) + 4*entries
	return scanIndex{find: longest(table, lengths, j.field, part), expect: 1}, true
}

// longest finds the longest key that is a part of field f's text.
func longest(table map[string][]int32, lengths []int, f int, part func(s string, n int) string) func(m *machine) []int32 {
	return func(m *machine) []int32 {
		if !m.load(f) {
			return nil
		}
		s := m.text(f)
		for _, n := range lengths {
			if n > len(s) {
				continue
			}
			if found, ok := table[part(s, n)]; ok {
				return found
			}
		}
		return nil
	}
}
