package compile

import (
	"net/netip"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// fewValues is how many values are compared one by one instead of looked up.
const fewValues = 6

// fieldSet is the condition that a field has one of some values. Of the lists
// the one for the field's kind is valid; they have no duplicates.
type fieldSet struct {
	field int
	ints  []int64 // of Int and Bool fields
	strs  []string
	addrs []netip.Addr
	test  func(m *machine) bool
}

// newFieldSet returns the condition that field i equals one of values. Values
// that the field can never have are left out. ok is false if a value may
// equal the field without being spelled like it: 1.0 and 1.
func (c *compiler) newFieldSet(i int, values []ast.Value) (s *fieldSet, ok bool) {
	s = &fieldSet{field: i}
	for _, v := range values {
		if !s.add(c.fields[i].Kind, v) {
			return nil, false
		}
	}
	switch c.fields[i].Kind {
	case rules.String:
		slices.Sort(s.strs)
		s.strs = slices.Compact(s.strs)
		s.test = c.testStrings(i, s.strs)
	case rules.Addr:
		slices.SortFunc(s.addrs, netip.Addr.Compare)
		s.addrs = slices.Compact(s.addrs)
		s.test = c.testAddrs(i, s.addrs)
	default:
		slices.Sort(s.ints)
		s.ints = slices.Compact(s.ints)
		s.test = c.testInts(i, s.ints)
	}
	return s, true
}

func (s *fieldSet) add(kind rules.Kind, v ast.Value) bool {
	switch v := v.(type) {
	case ast.Boolean:
		if kind == rules.Bool {
			n := int64(0)
			if v {
				n = 1
			}
			s.ints = append(s.ints, n)
		}
	case ast.Number:
		n, ok := v.Int64()
		if kind == rules.Int {
			s.ints = append(s.ints, n)
		}
		return ok || kind != rules.Int
	case ast.String:
		if kind == rules.String {
			s.strs = append(s.strs, string(v))
		}
		if a, ok := parseAddr(string(v)); ok && kind == rules.Addr {
			s.addrs = append(s.addrs, a)
		}
	}
	return true
}

// parseAddr returns the address that the input document spells s. Any other
// spelling of an address is a different string.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.String() == s
}

func (c *compiler) testInts(i int, ints []int64) func(m *machine) bool {
	switch {
	case len(ints) == 1:
		n := ints[0]
		return func(m *machine) bool { return m.vals[i].Int == n }
	case len(ints) == 2:
		n, o := ints[0], ints[1]
		return func(m *machine) bool { v := m.vals[i].Int; return v == n || v == o }
	case len(ints) <= fewValues:
		return func(m *machine) bool { return slices.Contains(ints, m.vals[i].Int) }
	}
	set := setOf(ints)
	c.tables += 16 * len(ints)
	return func(m *machine) bool { _, ok := set[m.vals[i].Int]; return ok }
}

func (c *compiler) testStrings(i int, strs []string) func(m *machine) bool {
	switch {
	case len(strs) == 1:
		s := strs[0]
		return func(m *machine) bool { return m.vals[i].Str == s }
	case len(strs) <= fewValues:
		return func(m *machine) bool { return slices.Contains(strs, m.vals[i].Str) }
	}
	set := setOf(strs)
	c.tables += 32 * len(strs)
	return func(m *machine) bool { _, ok := set[m.vals[i].Str]; return ok }
}

func (c *compiler) testAddrs(i int, addrs []netip.Addr) func(m *machine) bool {
	switch {
	case len(addrs) == 1:
		a := addrs[0]
		return func(m *machine) bool { return m.vals[i].Addr == a }
	case len(addrs) <= fewValues:
		return func(m *machine) bool { return slices.Contains(addrs, m.vals[i].Addr) }
	}
	set := setOf(addrs)
	c.tables += 48 * len(addrs)
	return func(m *machine) bool { _, ok := set[m.vals[i].Addr]; return ok }
}

func setOf[T comparable](values []T) map[T]struct{} {
	set := make(map[T]struct{}, len(values))
	for _, v := range values {
		set[v] = struct{}{}
	}
	return set
}

// fieldMap maps the values of a field to something.
type fieldMap[T any] struct {
	ints  map[int64]T
	strs  map[string]T
	addrs map[netip.Addr]T
}

func newFieldMap[T any]() *fieldMap[T] {
	return &fieldMap[T]{ints: map[int64]T{}, strs: map[string]T{}, addrs: map[netip.Addr]T{}}
}

// update changes what v, a value of field i, is mapped to. It returns false
// if v may equal the field without being spelled like it.
func (t *fieldMap[T]) update(c *compiler, i int, v ast.Value, change func(T) T) bool {
	one := fieldSet{}
	if !one.add(c.fields[i].Kind, v) {
		return false
	}
	for _, k := range one.ints {
		t.ints[k] = change(t.ints[k])
	}
	for _, k := range one.strs {
		t.strs[k] = change(t.strs[k])
	}
	for _, k := range one.addrs {
		t.addrs[k] = change(t.addrs[k])
	}
	return true
}

// get returns what the value of field i, loaded and present, is mapped to.
func (t *fieldMap[T]) get(m *machine, i int) (T, bool) {
	switch m.fields[i].Kind {
	case rules.String:
		v, ok := t.strs[m.vals[i].Str]
		return v, ok
	case rules.Addr:
		v, ok := t.addrs[m.vals[i].Addr]
		return v, ok
	default:
		v, ok := t.ints[m.vals[i].Int]
		return v, ok
	}
}

func (t *fieldMap[T]) len() int { return len(t.ints) + len(t.strs) + len(t.addrs) }

// dotField lowers the lookup of a field in a constant collection; ok is false
// where that is left to the lookup of values.
func (g *gen) dotField(src known, i int, target localTarget) (o op, ends, ok bool) {
	switch v := src.val.(type) {
	case ast.Set:
		in, ok := g.c.newFieldSet(i, elements(v))
		if !ok {
			return nil, false, false
		}
		g.guard(in)
		set := g.set(target.local, known{form: field, field: i}, target.env)
		return sequence(some(require(in.test, true), set)), false, true
	case ast.Object:
		return g.dotObject(v, i, target)
	}
	return nil, false, false
}

func (g *gen) dotObject(obj ast.Object, i int, target localTarget) (o op, ends, ok bool) {
	table, ok := newFieldMap[ast.Value](), true
	values := ast.NewSet()
	obj.Foreach(func(k, v *ast.Term) {
		ok = ok && table.update(g.c, i, k.Value, func(ast.Value) ast.Value { return v.Value })
		values.Add(v)
	})
	if !ok {
		return nil, false, false
	}
	g.c.tables += 64 * table.len()
	if values.Len() == 1 { // a set written as an object
		in, _ := g.c.newFieldSet(i, keys(obj))
		g.guard(in)
		set := g.set(target.local, constantOf(values.Slice()[0].Value), target.env)
		return sequence(some(require(in.test, true), set)), false, true
	}
	at := g.store(target.local, target.env)
	return func(m *machine) ctl {
		v, ok := table.get(m, i)
		if !ok {
			return leave
		}
		if at >= 0 {
			m.frame[at] = v
		}
		return next
	}, false, true
}
