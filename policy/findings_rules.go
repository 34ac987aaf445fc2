package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Bounds of the search for rules that conflict.
const (
	maxPairs     = 500_000 // of rules that are compared
	maxWitnesses = 500     // packets that the policy is asked about
)

// link is a rule of an else-chain, or one that stands alone.
type link struct {
	rule    *ast.Rule
	name    string // as people call it
	chain   int    // rules of one chain are tried in order
	regions []region
}

// empty returns why no packet satisfies the rule's conditions, nil if one may.
func (l *link) empty() *clash {
	if len(l.regions) == 1 {
		return l.regions[0].clash
	}
	return nil
}

// links returns the rules of the live policy in the order of their files.
func (a *analyst) links() []link {
	var all []link
	chain := 0
	for _, name := range sortedKeys(a.p.live) {
		for _, r := range a.p.compiler.Modules[name].Rules {
			chain++
			for ; r != nil; r = r.Else {
				all = append(all, link{rule: r, name: a.run.label(r), chain: chain, regions: a.regions(r)})
			}
		}
	}
	return all
}

// neverMatch finds rules whose conditions contradict each other, and those
// behind an else that rules before them leave nothing for.
func neverMatch(all []link) Errors {
	var found Errors
	for i := range all {
		l := &all[i]
		if c := l.empty(); c != nil {
			found = append(found, contradiction(l.name, c))
			continue
		}
		for j := i - 1; j >= 0 && all[j].chain == l.chain; j-- {
			if covers(&all[j], l) {
				found = append(found, errorAt(l.rule.Location, fmt.Sprintf("%s can never match: %s at line %d comes first and matches all it would",
					l.name, all[j].name, all[j].rule.Location.Row), "put it before that rule, or remove it"))
				break
			}
		}
	}
	return found
}

// covers returns whether every packet that satisfies b satisfies a.
func covers(a, b *link) bool {
	for i := range b.regions {
		if !slices.ContainsFunc(a.regions, func(r region) bool { return r.clash == nil && b.regions[i].within(&r) }) {
			return false
		}
	}
	return len(b.regions) > 0
}

func contradiction(name string, c *clash) *Error {
	second := c.second
	text := quoted(second)
	if c.first == nil || c.first == c.second {
		return errorAt(second.Location, fmt.Sprintf("%s can never match: %s is true for no packet", name, text), "")
	}
	first := fmt.Sprintf("%s at line %d", quoted(c.first), c.first.Location.Row)
	return errorAt(second.Location, fmt.Sprintf("%s can never match: %s contradicts %s", name, text, first), "")
}

// quoted returns the text of a compiled condition. Where OPA gives one behind
// an else the text of the whole else, it is called by what it is.
func quoted(e *ast.Expr) string {
	if text := tidy(string(e.Location.Text)); !strings.HasPrefix(text, "else") {
		return text
	}
	return "the condition of the else"
}

// deciding returns the links that make decisions: those of rules decision and
// verdict in the form of one value.
func (a *analyst) deciding(all []link) map[string][]link {
	groups := map[string][]link{}
	for _, l := range all {
		ref := l.rule.Head.Ref()
		if name := l.rule.Ref().String(); !l.rule.Default && l.empty() == nil && l.rule.Head.Value != nil && len(ref) > 0 &&
			(name == "data.verdictd."+decisionRule || name == "data.verdictd."+verdictRule) {
			groups[name] = append(groups[name], l)
		}
	}
	return groups
}

// overlaps finds decisions that depend on how rules stand to each other.
// Conflicts are rules that give one packet different values, which is an error
// at run time: each was seen to happen. Order are rules behind an else that
// would decide otherwise about packets that a rule before them takes.
func (a *analyst) overlaps(all []link, end time.Time) (conflicts, order Errors) {
	groups := a.deciding(all)
	pairs, witnesses := 0, 0
	for _, name := range sortedKeys(groups) {
		group := groups[name]
		for i := range group {
			for j := range i {
				first, second := &group[j], &group[i]
				if pairs++; pairs > maxPairs || witnesses > maxWitnesses || time.Now().After(end) {
					return conflicts, order
				}
				if sameValue(first.rule, second.rule) {
					continue
				}
				in, flow, exact := common(first, second)
				if in == nil {
					continue
				}
				if first.chain == second.chain {
					order = append(order, ordered(first, second, flow, exact)...)
					continue
				}
				witnesses++
				if out, _ := a.run.Decide(in); strings.Contains(out.Error, "conflicting values") {
					conflicts = append(conflicts, errorAt(second.rule.Location, fmt.Sprintf("%s conflicts with %s at line %d: both match packets such as %s, and the policy then makes no decision",
						second.name, first.name, first.rule.Location.Row, flow), "let the conditions exclude each other, or join the rules with else"))
				}
			}
		}
	}
	return conflicts, order
}

// ordered returns the note that order decides between two rules of a chain, if
// it is known to.
func ordered(first, second *link, flow string, exact bool) Errors {
	if !exact || trivial(second.rule.Body) || verdictOf(first.rule) == verdictOf(second.rule) {
		return nil
	}
	return Errors{errorAt(second.rule.Location, fmt.Sprintf("the order of rules decides: packets such as %s match %s too, but %s at line %d comes first",
		flow, second.name, first.name, first.rule.Location.Row), "")}
}

// verdictOf returns the verdict that a rule gives, "" if it is not constant.
func verdictOf(r *ast.Rule) string {
	v := r.Head.Value.Value
	if obj, ok := v.(ast.Object); ok {
		t := obj.Get(ast.StringTerm(verdictRule))
		if t == nil {
			return ""
		}
		v = t.Value
	}
	if s, ok := v.(ast.String); ok {
		return string(s)
	}
	return ""
}

func sameValue(a, b *ast.Rule) bool {
	return ast.IsConstant(a.Head.Value.Value) && a.Head.Value.Value.Compare(b.Head.Value.Value) == 0
}

// common returns a packet that may satisfy both rules, in words too, nil if
// none can. exact says that it does.
func common(a, b *link) (in *rules.Input, flow string, exact bool) {
	for i := range a.regions {
		for j := range b.regions {
			both := a.regions[i].meet(b.regions[j])
			if both.clash != nil {
				continue
			}
			if in, flow, ok := both.witness(); ok {
				return in, flow, both.exact
			}
		}
	}
	return nil, "", false
}

// witness returns a packet of the region, in words too. It is one that exists:
// its fields fit together.
func (r *region) witness() (in *rules.Input, flow string, ok bool) {
	version := r.number("ip.version", 4, 6)
	src, ok := r.address("ip.src", version, "192.0.2.1", "2001:db8::1")
	dst, ok2 := r.address("ip.dst", version, "198.51.100.2", "2001:db8::2")
	if !ok || !ok2 || src.Is4() != dst.Is4() {
		return nil, "", false
	}
	proto := r.number("ip.protocol_number", packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP)
	if src.Is6() && proto == packet.ProtoICMP {
		proto = r.number("ip.protocol_number", packet.ProtoICMPv6)
	}
	ends := [2]string{src.String(), dst.String()}
	fragment := r.text("packet.status", packet.OK.String()) == packet.Fragment.String()
	if slices.Contains(portProtocols(), proto) && !fragment {
		ends[0] = netip.AddrPortFrom(src, uint16(r.number("src_port", 40000))).String()
		ends[1] = netip.AddrPortFrom(dst, uint16(r.number("dst_port", 50000, 443, 80))).String()
	}
	flow = fmt.Sprintf("%s %s -> %s %s", rules.ProtocolName(uint8(proto)), ends[0], ends[1], r.text("hook", packet.Output.String()))
	in, err := rules.ParseFlow(flow)
	if err != nil {
		return nil, "", false
	}
	words, ok := r.rest(in)
	return in, flow + words, ok
}

// rest gives the fields that addresses, ports and hook do not tell a value in
// the region, or one that is usual, and returns those that matter in words.
func (r *region) rest(in *rules.Input) (words string, ok bool) {
	var v rules.Value
	fields, unknown := in.Fields(), in.Unknown()
	for i := range fields {
		f := &fields[i]
		_, limited := r.fields[f.Path]
		if f.Get(nil, &v) {
			continue
		}
		if !unknown.Has(i) {
			if limited && f.Path != "ip.protocol" {
				return "", false // such a packet has no such field
			}
			continue
		}
		value := r.value(f)
		if value == "" {
			continue
		}
		if err := in.Set(f.Path, value); err != nil {
			return "", false
		}
		if limited {
			words += " " + f.Path + " " + value
		}
	}
	return words, true
}

// value returns a value in the region as text, "" for none: who owns a packet
// and by which interface it goes is nothing that packets must have.
func (r *region) value(f *rules.Field) string {
	if _, limited := r.fields[f.Path]; !limited {
		switch {
		case f.Kind == rules.String || f.Scope == rules.PerSocket || f.Scope == rules.PerOwner:
			return ""
		case f.Path == "ip.ttl":
			return "64"
		}
	}
	switch f.Kind {
	case rules.Bool:
		return strconv.FormatBool(r.number(f.Path, 0) != 0)
	case rules.Int:
		return strconv.FormatInt(r.number(f.Path, 0), 10)
	}
	return r.text(f.Path, "eth0")
}

// number returns a number that a field can have: the first of the wishes that
// it can, or any.
func (r *region) number(name string, wishes ...int64) int64 {
	spans := r.fields[name].spans
	for _, w := range wishes {
		if spans == nil || slices.ContainsFunc(spans, func(s span) bool { return s.low <= w && w <= s.high }) {
			return w
		}
	}
	return spans[0].low
}

func (r *region) text(name, wish string) string {
	d := r.fields[name]
	if d.strings == nil && !slices.Contains(d.notIn, wish) || slices.Contains(d.strings, wish) {
		return wish
	}
	if len(d.strings) > 0 {
		return d.strings[0]
	}
	return wish + "x"
}

// address returns an address of the IP version that a field can have.
func (r *region) address(name string, version int64, wish4, wish6 string) (netip.Addr, bool) {
	prefixes := r.fields[name].prefixes
	if prefixes == nil && version == 4 {
		return netip.MustParseAddr(wish4), true
	}
	if prefixes == nil {
		return netip.MustParseAddr(wish6), true
	}
	for _, p := range prefixes {
		if p.Addr().Is4() != (version == 4) || p.Addr().Is4In6() {
			continue
		}
		if next := p.Addr().Next(); p.Contains(next) {
			return next, true // not the network's own address
		}
		return p.Addr(), true
	}
	return netip.Addr{}, false
}
