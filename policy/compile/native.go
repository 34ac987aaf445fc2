package compile

import (
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// native returns a builtin called with args as a condition on fields; ok is
// false for what is left to OPA's implementation.
func (g *gen) native(name string, args []known) (p predicate, ok bool) {
	if len(args) != 2 {
		return predicate{}, false
	}
	a, b := args[0], args[1]
	switch name {
	case ast.Member.Name:
		if a.form == field && b.form == constant && isCollection(b.val) {
			return g.member(a.field, elements(b.val))
		}
	case ast.Equal.Name, ast.NotEqual.Name:
		return g.nativeEqual(a, b, name == ast.Equal.Name)
	case ast.GreaterThan.Name, ast.GreaterThanEq.Name, ast.LessThan.Name, ast.LessThanEq.Name:
		return g.nativeOrder(name, a, b)
	case ast.StartsWith.Name, ast.EndsWith.Name, ast.Contains.Name:
		return g.nativeText(name, a, b)
	case ast.RegexMatch.Name:
		return g.nativeRegexp(a, b)
	case ast.NetCIDRContains.Name:
		if a.form == constant && b.form == field && g.c.fields[b.field].Kind == rules.Addr {
			return nativeCIDR(a.val, b.field)
		}
	}
	return predicate{}, false
}

func (g *gen) member(i int, values []ast.Value) (p predicate, ok bool) {
	in, ok := g.c.newFieldSet(i, values)
	if !ok {
		return predicate{}, false
	}
	return predicate{eval: in.test, in: in}, true
}

func (g *gen) nativeEqual(a, b known, want bool) (p predicate, ok bool) {
	if a.form == constant {
		a, b = b, a
	}
	if a.form != field {
		return predicate{}, false
	}
	var eq func(m *machine) bool
	switch b.form {
	case constant:
		if p, ok = g.member(a.field, []ast.Value{b.val}); !ok {
			return predicate{}, false
		}
		eq = p.eval
	case field:
		eq = g.c.equalFields(a.field, b.field)
	}
	if eq == nil || want {
		p.eval = eq
		return p, eq != nil
	}
	return predicate{eval: func(m *machine) bool { return !eq(m) }}, true
}

// nativeOrder compares an Int field with a constant integer or another one.
func (g *gen) nativeOrder(name string, a, b known) (p predicate, ok bool) {
	if a.form == constant {
		a, b, name = b, a, mirrored(name)
	}
	if a.form != field || g.c.fields[a.field].Kind != rules.Int {
		return predicate{}, false
	}
	i := a.field
	if b.form == field && g.c.fields[b.field].Kind == rules.Int {
		j := b.field
		return predicate{eval: orderFields(name, i, j)}, true
	}
	if b.form != constant {
		return predicate{}, false
	}
	num, ok := b.val.(ast.Number)
	if !ok {
		return predicate{}, false
	}
	n, ok := num.Int64()
	return predicate{eval: orderConstant(name, i, n)}, ok
}

func mirrored(name string) string {
	switch name {
	case ast.GreaterThan.Name:
		return ast.LessThan.Name
	case ast.GreaterThanEq.Name:
		return ast.LessThanEq.Name
	case ast.LessThan.Name:
		return ast.GreaterThan.Name
	}
	return ast.GreaterThanEq.Name
}

func orderConstant(name string, i int, n int64) func(m *machine) bool {
	switch name {
	case ast.GreaterThan.Name:
		return func(m *machine) bool { return m.vals[i].Int > n }
	case ast.GreaterThanEq.Name:
		return func(m *machine) bool { return m.vals[i].Int >= n }
	case ast.LessThan.Name:
		return func(m *machine) bool { return m.vals[i].Int < n }
	}
	return func(m *machine) bool { return m.vals[i].Int <= n }
}

func orderFields(name string, i, j int) func(m *machine) bool {
	switch name {
	case ast.GreaterThan.Name:
		return func(m *machine) bool { return m.vals[i].Int > m.vals[j].Int }
	case ast.GreaterThanEq.Name:
		return func(m *machine) bool { return m.vals[i].Int >= m.vals[j].Int }
	case ast.LessThan.Name:
		return func(m *machine) bool { return m.vals[i].Int < m.vals[j].Int }
	}
	return func(m *machine) bool { return m.vals[i].Int <= m.vals[j].Int }
}

// isText returns whether k is a field that the input document shows as a
// string.
func (g *gen) isText(k known) bool {
	return k.form == field && (g.c.fields[k.field].Kind == rules.String || g.c.fields[k.field].Kind == rules.Addr)
}

func (g *gen) nativeText(name string, a, b known) (p predicate, ok bool) {
	if !g.isText(a) || b.form != constant {
		return predicate{}, false
	}
	c, ok := b.val.(ast.String)
	if !ok {
		return predicate{}, false
	}
	i, s := a.field, string(c)
	switch name {
	case ast.StartsWith.Name:
		p.eval = func(m *machine) bool { return strings.HasPrefix(m.text(i), s) }
	case ast.EndsWith.Name:
		p.eval = func(m *machine) bool { return strings.HasSuffix(m.text(i), s) }
	default:
		p.eval = func(m *machine) bool { return strings.Contains(m.text(i), s) }
	}
	return p, true
}

func (g *gen) nativeRegexp(pattern, text known) (p predicate, ok bool) {
	if pattern.form != constant || !g.isText(text) {
		return predicate{}, false
	}
	s, ok := pattern.val.(ast.String)
	if !ok {
		return predicate{}, false
	}
	re, err := regexp.Compile(string(s))
	if err != nil {
		return predicate{}, false
	}
	i := text.field
	return predicate{eval: func(m *machine) bool { return re.MatchString(m.text(i)) }}, true
}

// prefixOf returns the network of a CIDR as net.IPNet.Contains takes it: a
// network of IPv4-mapped IPv6 addresses is one of IPv4 addresses, any other
// IPv6 network holds none of those.
func prefixOf(v ast.Value) (netip.Prefix, bool) {
	s, ok := v.(ast.String)
	if !ok {
		return netip.Prefix{}, false
	}
	_, n, err := net.ParseCIDR(string(s))
	if err != nil {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	ip4 := n.IP.To4()
	if ip4 == nil {
		a, ok := netip.AddrFromSlice(n.IP)
		return netip.PrefixFrom(a, ones), ok
	}
	a, ok := netip.AddrFromSlice(ip4)
	return netip.PrefixFrom(a, ones-(bits-32)), ok
}

// withoutZone says whether an address is one to OPA: one with a zone is not.
func withoutZone(i int) func(m *machine) bool {
	return func(m *machine) bool { return m.vals[i].Addr.Zone() == "" }
}

func nativeCIDR(cidr ast.Value, i int) (p predicate, ok bool) {
	prefix, ok := prefixOf(cidr)
	if !ok || prefix.Bits() < 0 {
		return predicate{}, false
	}
	p.defined = withoutZone(i)
	if !prefix.Addr().Is4() {
		p.eval = func(m *machine) bool {
			a := &m.vals[i].Addr
			return a.Is6() && !a.Is4In6() && prefix.Contains(*a)
		}
		return p, true
	}
	network := beUint32(prefix.Masked().Addr().As4())
	mask := ^uint32(0) << (32 - prefix.Bits())
	p.eval = func(m *machine) bool {
		a := m.vals[i].Addr
		return (a.Is4() || a.Is4In6()) && beUint32(a.Unmap().As4())&mask == network
	}
	return p, true
}

func beUint32(b [4]byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func isCollection(v ast.Value) bool {
	switch v.(type) {
	case *ast.Array, ast.Set, ast.Object:
		return true
	}
	return false
}
