package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// span is a range of numbers, both ends included.
type span struct{ low, high int64 }

// domain is the set of values that a field of a region can have: numbers or,
// for names of interfaces, strings, or addresses. What is nil is not limited.
type domain struct {
	spans    []span // sorted, disjoint
	strings  []string
	notIn    []string
	prefixes []netip.Prefix
	by       *ast.Expr // which limited it last
}

// region is a set of packets: those whose fields are all within their domains.
// It holds every packet that the conditions it was made from let through, and
// if it is exact no other. A field with a domain is present.
type region struct {
	fields map[string]domain
	exact  bool

	// negated are conditions with not, and maybe the fields that may be present
	// because of conditions that are not understood.
	negated []negation
	maybe   rules.FieldSet

	// clash is why the region is empty: two conditions that contradict each
	// other, or one that contradicts itself. Nil if the region is not empty.
	clash *clash
}

type clash struct{ first, second *ast.Expr }

func everything() region { return region{fields: map[string]domain{}, exact: true} }

// meet returns the packets that are in both regions.
func (r region) meet(s region) region {
	out := region{fields: maps.Clone(r.fields), exact: r.exact && s.exact, clash: r.clash}
	if out.clash == nil {
		out.clash = s.clash
	}
	out.negated = append(slices.Clone(r.negated), s.negated...)
	out.maybe = r.maybe
	out.maybe.Union(s.maybe)
	for name, d := range s.fields {
		out.limit(name, d)
	}
	return out
}

// blame makes e the condition that limited every field.
func (r *region) blame(e *ast.Expr) {
	for name, d := range r.fields {
		d.by = e
		r.fields[name] = d
	}
	if r.clash != nil {
		r.clash = &clash{e, e}
	}
}

// limit narrows the domain of a field.
func (r *region) limit(name string, d domain) {
	old, ok := r.fields[name]
	if !ok {
		old = domain{by: d.by}
	}
	both := old.meet(d)
	if ok && old.within(both) && !both.empty() {
		both.by = old.by // d took nothing away
	}
	if both.empty() && r.clash == nil {
		r.clash = &clash{first: old.by, second: d.by}
	}
	r.fields[name] = both
}

func (d domain) meet(e domain) domain {
	out := domain{by: e.by, spans: meetSpans(d.spans, e.spans), prefixes: meetPrefixes(d.prefixes, e.prefixes)}
	out.notIn = append(slices.Clone(d.notIn), e.notIn...)
	out.strings = d.strings
	switch {
	case d.strings == nil:
		out.strings = e.strings
	case e.strings != nil:
		out.strings = slices.DeleteFunc(slices.Clone(d.strings), func(s string) bool { return !slices.Contains(e.strings, s) })
	}
	if out.strings != nil {
		out.strings = slices.DeleteFunc(slices.Clone(out.strings), func(s string) bool { return slices.Contains(out.notIn, s) })
	}
	return out
}

func (d domain) empty() bool {
	return d.spans != nil && len(d.spans) == 0 ||
		d.strings != nil && len(d.strings) == 0 ||
		d.prefixes != nil && len(d.prefixes) == 0
}

// within returns whether every value of d is one of e.
func (d domain) within(e domain) bool {
	if e.spans != nil && (d.spans == nil || !slices.Equal(meetSpans(d.spans, e.spans), d.spans)) {
		return false
	}
	if e.strings != nil && (d.strings == nil || slices.ContainsFunc(d.strings, func(s string) bool { return !slices.Contains(e.strings, s) })) {
		return false
	}
	for _, s := range e.notIn {
		if d.strings == nil && !slices.Contains(d.notIn, s) || slices.Contains(d.strings, s) {
			return false
		}
	}
	if e.prefixes == nil {
		return true
	}
	return d.prefixes != nil && !slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool {
		return !slices.ContainsFunc(e.prefixes, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
	})
}

// within returns whether every packet of r is one of s.
func (r *region) within(s *region) bool {
	if !s.exact {
		return false
	}
	for name, limit := range s.fields {
		d, ok := r.fields[name]
		if !ok || !d.within(limit) {
			return false
		}
	}
	return true
}

// meetSpans returns the numbers that are in both; nil is all numbers.
func meetSpans(a, b []span) []span {
	if a == nil || b == nil {
		return slices.Concat(a, b)
	}
	out := []span{}
	for _, x := range a {
		for _, y := range b {
			if low, high := max(x.low, y.low), min(x.high, y.high); low <= high {
				out = append(out, span{low, high})
			}
		}
	}
	slices.SortFunc(out, func(x, y span) int { return int(min(max(x.low-y.low, -1), 1)) })
	return out
}

// spansOf returns the numbers as spans. Neighbours are joined, so that equal
// sets are written alike.
func spansOf(numbers []int64) []span {
	out := []span{}
	slices.Sort(numbers)
	for _, n := range slices.Compact(numbers) {
		if last := len(out) - 1; last >= 0 && out[last].high == n-1 {
			out[last].high = n
			continue
		}
		out = append(out, span{n, n})
	}
	return out
}

// complement returns the numbers from 0 to most that are not in spans.
func complement(spans []span, most int64) []span {
	out := []span{}
	next := int64(0)
	for _, s := range spans {
		if s.low > next {
			out = append(out, span{next, s.low - 1})
		}
		next = max(next, s.high+1)
	}
	if next <= most {
		out = append(out, span{next, most})
	}
	return out
}

// meetPrefixes returns the networks that are in both; nil is every address.
func meetPrefixes(a, b []netip.Prefix) []netip.Prefix {
	if a == nil || b == nil {
		return slices.Concat(a, b)
	}
	out := []netip.Prefix{}
	for _, x := range a {
		for _, y := range b {
			switch {
			case !x.Overlaps(y):
			case x.Bits() >= y.Bits():
				out = append(out, x)
			default:
				out = append(out, y)
			}
		}
	}
	return out
}
