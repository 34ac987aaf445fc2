package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// oneOf returns the region in which a field has one of the values.
func (a *analyst) oneOf(e *ast.Expr, t *ast.Term, values []*ast.Term, vars env) []region {
	f := a.p.field(t)
	if f == nil {
		return a.unknown(e, vars)
	}
	r := everything()
	d := domain{by: e}
	switch f.Kind {
	case rules.Addr:
		d.prefixes = []netip.Prefix{}
		for _, v := range values {
			if s, ok := v.Value.(ast.String); ok {
				if addr, err := netip.ParseAddr(string(s)); err == nil && addr.String() == string(s) {
					d.prefixes = append(d.prefixes, netip.PrefixFrom(addr, addr.BitLen()))
				}
			}
		}
	case rules.String:
		d.strings = []string{}
		for _, v := range values {
			if s, ok := v.Value.(ast.String); ok {
				d.strings = append(d.strings, string(s))
			}
		}
	default:
		numbers := []int64{}
		for _, v := range values {
			if n, ok := number(v.Value); ok {
				numbers = append(numbers, n)
			}
		}
		d.spans = spansOf(numbers)
	}
	a.require(&r, f, d)
	return []region{r}
}

// number returns a value as the fields of kind Int and Bool have it.
func number(v ast.Value) (int64, bool) {
	switch v := v.(type) {
	case ast.Number:
		return v.Int64()
	case ast.Boolean:
		if bool(v) {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// compare returns the region of a comparison of a field with a constant.
func (a *analyst) compare(e *ast.Expr, op string, left, right *ast.Term, vars env) []region {
	f, c := a.p.field(left), a.constant(right)
	if f == nil {
		f, c = a.p.field(right), a.constant(left)
		op = map[string]string{"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte", "neq": "neq"}[op]
	}
	if f == nil || c == nil {
		return a.unknown(e, vars)
	}
	r := everything()
	if s, ok := c.(ast.String); ok && op == "neq" && f.Kind == rules.String {
		a.require(&r, f, domain{by: e, notIn: []string{string(s)}})
		return []region{r}
	}
	n, ok := number(c)
	if !ok || f.Kind != rules.Int {
		return a.unknown(e, vars)
	}
	const far = int64(1) << 53
	n = min(max(n, -far), far)
	spans := map[string][]span{
		"lt": {{-far, n - 1}}, "lte": {{-far, n}}, "gt": {{n + 1, 2 * far}}, "gte": {{n, 2 * far}},
		"neq": {{-far, n - 1}, {n + 1, 2 * far}},
	}[op]
	a.require(&r, f, domain{by: e, spans: spans})
	return []region{r}
}

// inNetwork returns the region in which an address is in one of the networks.
func (a *analyst) inNetwork(e *ast.Expr, t *ast.Term, networks []*ast.Term, vars env) []region {
	f := a.p.field(t)
	if f == nil || f.Kind != rules.Addr {
		return a.unknown(e, vars)
	}
	r := everything()
	d := domain{by: e, prefixes: []netip.Prefix{}}
	for _, v := range networks {
		s, ok := v.Value.(ast.String)
		if !ok {
			return a.unknown(e, vars)
		}
		p, err := netip.ParsePrefix(string(s))
		if err != nil {
			return a.unknown(e, vars)
		}
		// OPA takes an IPv4 address that is mapped into IPv6 for that address.
		mapped := netip.AddrFrom16(p.Masked().Addr().As16())
		if p = p.Masked(); p.Addr().Is4() {
			d.prefixes = append(d.prefixes, p, netip.PrefixFrom(mapped, p.Bits()+96))
			continue
		}
		d.prefixes = append(d.prefixes, p)
		r.exact = r.exact && !p.Overlaps(netip.MustParsePrefix("::ffff:0:0/96"))
	}
	a.require(&r, f, d)
	return []region{r}
}

// require limits a field to d, and what follows from it: that a field of TCP
// is there means that the packet is TCP.
func (a *analyst) require(r *region, f *rules.Field, d domain) {
	name := f.Path
	switch f.Kind {
	case rules.Bool:
		r.limit(name, domain{by: d.by, spans: []span{{0, 1}}})
	case rules.Int:
		r.limit(name, domain{by: d.by, spans: []span{{0, f.Max}}})
	}
	group, rest, _ := strings.Cut(name, ".")
	protocols := map[string][]int64{
		"tcp": {packet.ProtoTCP}, "udp": {packet.ProtoUDP}, "icmp": {packet.ProtoICMP, packet.ProtoICMPv6},
		"src_port": portProtocols(), "dst_port": portProtocols(),
	}[group]
	if protocols != nil {
		r.limit("ip.protocol_number", domain{by: d.by, spans: spansOf(protocols)})
		r.limit("packet.status", domain{by: d.by, strings: []string{packet.OK.String()}})
	}
	switch {
	case rest == "src_port" || rest == "dst_port":
		r.limit(rest, d)
	case name == "ip.protocol":
		r.limit("ip.protocol_number", protocolDomain(d))
	case name == "direction":
		r.limit("hook", hookDomain(d))
	case name == "ip.version":
		r.limit(name, domain{by: d.by, spans: []span{{4, 4}, {6, 6}}})
	case f.Enum != nil:
		r.limit(name, domain{by: d.by, strings: f.Enum})
	case f.Kind == rules.Addr:
		r.limit("ip.version", versionDomain(d))
	}
	r.limit(name, d)
}

func portProtocols() []int64 {
	return []int64{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP}
}

// protocolDomain returns the numbers of protocols given by name.
func protocolDomain(d domain) domain {
	out := domain{by: d.by}
	var in, not []int64
	for n := range int64(256) {
		name := rules.ProtocolName(uint8(n))
		if slices.Contains(d.strings, name) {
			in = append(in, n)
		}
		if slices.Contains(d.notIn, name) {
			not = append(not, n)
		}
	}
	switch {
	case d.strings != nil:
		out.spans = spansOf(in)
	case not != nil:
		out.spans = complement(spansOf(not), 255)
	}
	return out
}

// hookDomain returns the hooks of directions.
func hookDomain(d domain) domain {
	out := domain{by: d.by, strings: []string{}}
	for h := packet.Prerouting; h <= packet.Postrouting; h++ {
		way := h.Direction()
		if (d.strings == nil || slices.Contains(d.strings, way)) && !slices.Contains(d.notIn, way) {
			out.strings = append(out.strings, h.String())
		}
	}
	return out
}

// versionDomain returns the IP versions that addresses belong to.
func versionDomain(d domain) domain {
	out := domain{by: d.by}
	if d.prefixes == nil {
		return out
	}
	versions := map[int64]bool{}
	for _, p := range d.prefixes {
		versions[map[bool]int64{true: 4, false: 6}[p.Addr().Is4()]] = true
	}
	out.spans = spansOf(slices.Collect(maps.Keys(versions)))
	return out
}
