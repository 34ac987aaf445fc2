package rules

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// Values of all kinds are compared as byte strings whose order is the order of
// the values, so that ports, networks and names are one case: an interval.

// span is the half-open interval of keys from lo up to, not including, hi.
type span struct{ lo, hi string }

// spanSet is a set of keys: spans in order, disjoint and not touching.
type spanSet []span

// newSpanSet returns the union of spans.
func newSpanSet(spans []span) spanSet {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	var out spanSet
	for _, s := range spans {
		if s.lo >= s.hi {
			continue
		}
		if n := len(out); n > 0 && s.lo <= out[n-1].hi {
			out[n-1].hi = max(out[n-1].hi, s.hi)
			continue
		}
		out = append(out, s)
	}
	return out
}

// has returns whether key is in the set.
func (s spanSet) has(key string) bool {
	i := sort.Search(len(s), func(i int) bool { return key < s[i].hi })
	return i < len(s) && s[i].lo <= key
}

// and returns what is in both sets.
func (s spanSet) and(t spanSet) spanSet {
	var out spanSet
	for i, j := 0, 0; i < len(s) && j < len(t); {
		if lo, hi := max(s[i].lo, t[j].lo), min(s[i].hi, t[j].hi); lo < hi {
			out = append(out, span{lo, hi})
		}
		if s[i].hi < t[j].hi {
			i++
			continue
		}
		j++
	}
	return out
}

// meets returns whether something is in both sets.
func (s spanSet) meets(t spanSet) bool {
	for i, j := 0, 0; i < len(s) && j < len(t); {
		switch {
		case s[i].hi <= t[j].lo:
			i++
		case t[j].hi <= s[i].lo:
			j++
		default:
			return true
		}
	}
	return false
}

// without returns what is in s and not in t.
func (s spanSet) without(t spanSet) spanSet {
	var out spanSet
	j := 0
	for _, a := range s {
		for j < len(t) && t[j].hi <= a.lo {
			j++
		}
		for k := j; k < len(t) && t[k].lo < a.hi; k++ {
			if a.lo < t[k].lo {
				out = append(out, span{a.lo, t[k].lo})
			}
			a.lo = max(a.lo, t[k].hi)
		}
		if a.lo < a.hi {
			out = append(out, a)
		}
	}
	return out
}

// numberKey returns the key of a number that is not negative.
func numberKey(n int64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	return string(b[:])
}

// numberSpan returns the span of the numbers from low to high, both included.
func numberSpan(low, high int64) span { return span{numberKey(low), numberKey(high + 1)} }

// nameSpan returns the span of one name or, if wild, of all names that begin
// with it.
func nameSpan(name string, wild bool) span {
	if wild {
		return span{name, after(name)}
	}
	return span{name, name + "\x00"}
}

// addrKey returns the key of an address. IPv4 addresses in IPv6 form have that
// of the IPv4 address, as in Rego's net.cidr_contains.
func addrKey(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return "4" + string(a.AsSlice())
	}
	return "6" + string(a.AsSlice())
}

// prefixSpan returns the span of the addresses of a network.
func prefixSpan(p netip.Prefix) span {
	first := addrKey(p.Masked().Addr())
	last := []byte(first)
	for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
		last[1+bit/8] |= 0x80 >> (bit % 8)
	}
	// Keys of one family have one length: so has the end, or there would be
	// a gap before the next network.
	end := after(string(last))
	return span{first, end + strings.Repeat("\x00", len(first)-len(end))}
}

// after returns the least string greater than all that begin with s.
func after(s string) string {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] < 0xff {
			return s[:i] + string([]byte{s[i] + 1})
		}
	}
	return endOfNames
}

// endOfNames is greater than every key. Names of interfaces have 15 bytes at
// most.
var endOfNames = strings.Repeat("\xff", 256)

// region is the set of values of one dimension that a rule matches.
type region struct {
	values spanSet
	absent bool // packets without a value are matched too
}

func (r *region) empty() bool { return len(r.values) == 0 && !r.absent }

func (r *region) and(s *region) *region {
	return &region{values: r.values.and(s.values), absent: r.absent && s.absent}
}

func (r *region) without(s *region) *region {
	return &region{values: r.values.without(s.values), absent: r.absent && !s.absent}
}

func (r *region) overlaps(s *region) bool {
	return r.absent && s.absent || r.values.meets(s.values)
}

// box is what a rule matches: the packets whose value is in the region of each
// dimension. Nil stands for every value.
type box []*region

// at returns the region of dimension d; whole are those of all packets.
func (b box) at(d int, whole box) *region {
	if b[d] == nil {
		return whole[d]
	}
	return b[d]
}

func (b box) empty() bool {
	return slices.ContainsFunc(b, func(r *region) bool { return r != nil && r.empty() })
}

// overlaps returns whether a packet can be in both boxes.
func (b box) overlaps(c box) bool {
	for d := range b {
		if b[d] != nil && c[d] != nil && !b[d].overlaps(c[d]) {
			return false
		}
	}
	return true
}

// within returns whether every packet of b is in c.
func (b box) within(c, whole box) bool {
	for d := range b {
		if c[d] != nil && !b.at(d, whole).without(c[d]).empty() {
			return false
		}
	}
	return true
}

// without returns what of b is not in c, as boxes that do not overlap.
func (b box) without(c, whole box) []box {
	if !b.overlaps(c) {
		return []box{b}
	}
	var out []box
	inner := slices.Clone(b)
	for d := range b {
		if c[d] == nil {
			continue
		}
		here := inner.at(d, whole)
		if rest := here.without(c[d]); !rest.empty() {
			piece := slices.Clone(inner)
			piece[d] = rest
			out = append(out, piece)
		}
		inner[d] = here.and(c[d])
	}
	return out
}
