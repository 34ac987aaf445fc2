package compile

import "github.com/open-policy-agent/opa/v1/ast"

// shortcut computes a builtin without a call of OPA's implementation. ok is
// false for values that are left to it.
type shortcut func(m *machine, args []getter) (v ast.Value, ok bool)

// newShortcut returns the shortcut of a builtin, nil if it has none.
func newShortcut(name string) shortcut {
	switch name {
	case ast.Count.Name:
		return func(m *machine, args []getter) (ast.Value, bool) {
			v := args[0](m)
			if _, isText := v.(ast.String); !isText && !isCollection(v) {
				return nil, false
			}
			return ast.InternedValue(size(v)), true
		}
	case ast.Min.Name:
		return func(m *machine, args []getter) (ast.Value, bool) {
			return ofSorted(args[0](m), func(int) int { return 0 })
		}
	case ast.Max.Name:
		return func(m *machine, args []getter) (ast.Value, bool) {
			return ofSorted(args[0](m), func(n int) int { return n - 1 })
		}
	case ast.Member.Name:
		return isMember
	}
	return nil
}

// ofSorted returns the element of a set at index(size) of its order; an empty
// set has none.
func ofSorted(v ast.Value, index func(n int) int) (ast.Value, bool) {
	set, ok := v.(ast.Set)
	if !ok || set.Len() == 0 {
		return nil, ok
	}
	return set.Slice()[index(set.Len())].Value, true
}

// isMember computes x in collection for sets and arrays.
func isMember(m *machine, args []getter) (ast.Value, bool) {
	x, in := args[0](m), args[1](m)
	if x == nil {
		return nil, true
	}
	switch in := in.(type) {
	case ast.Set:
		m.key.Value = x
		return ast.InternedValue(in.Contains(&m.key)), m.step(1)
	case *ast.Array:
		if !m.step(in.Len()) {
			return nil, false // the call is stopped too
		}
		for i := range in.Len() {
			if ast.Compare(in.Elem(i).Value, x) == 0 {
				return ast.InternedValue(true), true
			}
		}
		return ast.InternedValue(false), true
	}
	return nil, false
}
